// Tile registers of bytes (AMX), which a process may use once it has asked the kernel for them.
#pragma once

namespace headrace::cpu_detail {

// Whether this CPU has them and Linux lets this process use them: asked at the first call, for all
// threads. Source: "Using XSTATE features in user space applications", Linux documentation.
bool may_use_amx();

}  // namespace headrace::cpu_detail
