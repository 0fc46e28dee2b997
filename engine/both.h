// Marks functions that run on the CPU and, compiled by nvcc, on a GPU.
#pragma once

#ifdef __CUDACC__
#define HEADRACE_BOTH __host__ __device__
#else
#define HEADRACE_BOTH
#endif
