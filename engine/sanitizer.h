// HEADRACE_ASAN is defined where the address sanitizer is built in; g++ and clang say so differently.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define HEADRACE_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HEADRACE_ASAN
#endif
#endif
