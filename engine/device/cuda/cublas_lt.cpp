// cuBLASLt's functions as product_problem.cpp calls them, from the library that is opened when the
// first of them is called: it is hundreds of megabytes, and the module is also opened where there
// is no GPU, or to compute in float32.

#include <cublasLt.h>
#include <dlfcn.h>

#include <string>

#include "engine/error.h"

namespace {

void* library() {
  static void* const opened = [] {
    const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* const handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle) return handle;
    throw headrace::ResourceMissing("opening " + name + " failed: " + dlerror() +
                                    "; install cuBLAS of CUDA " + std::to_string(CUBLAS_VER_MAJOR) +
                                    ", or use --math f32, which needs none");
  }();
  return opened;
}

template <typename Function>
Function find(const char* name) {
  void* const symbol = dlsym(library(), name);
  if (!symbol) throw headrace::ResourceMissing(std::string("cuBLASLt has no ") + name);
  return reinterpret_cast<Function>(symbol);
}

}  // namespace

#define FORWARD(name, parameters, arguments)                   \
  extern "C" cublasStatus_t CUBLASWINAPI name parameters {     \
    static const auto function = find<decltype(&name)>(#name); \
    return function arguments;                                 \
  }

FORWARD(cublasLtCreate, (cublasLtHandle_t * handle), (handle))
FORWARD(cublasLtDestroy, (cublasLtHandle_t handle), (handle))
FORWARD(cublasLtMatmulDescInit_internal,
        (cublasLtMatmulDesc_t operation, size_t size, cublasComputeType_t compute,
         cudaDataType_t scale),
        (operation, size, compute, scale))
FORWARD(cublasLtMatmulDescSetAttribute,
        (cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
         const void* value, size_t size),
        (operation, attribute, value, size))
FORWARD(cublasLtMatrixLayoutInit_internal,
        (cublasLtMatrixLayout_t layout, size_t size, cudaDataType type, uint64_t rows,
         uint64_t cols, int64_t ld),
        (layout, size, type, rows, cols, ld))
FORWARD(cublasLtMatrixLayoutSetAttribute,
        (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute,
         const void* value, size_t size),
        (layout, attribute, value, size))
FORWARD(cublasLtMatmulPreferenceInit_internal, (cublasLtMatmulPreference_t preference, size_t size),
        (preference, size))
FORWARD(cublasLtMatmulPreferenceSetAttribute,
        (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const void* value, size_t size),
        (preference, attribute, value, size))
FORWARD(cublasLtMatmulAlgoGetHeuristic,
        (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
         cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
         cublasLtMatmulPreference_t preference, int wanted,
         cublasLtMatmulHeuristicResult_t results[], int* found),
        (handle, operation, a, b, c, d, preference, wanted, results, found))
FORWARD(cublasLtMatmulAlgoConfigGetAttribute,
        (const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,
         void* value, size_t size, size_t* written),
        (algorithm, attribute, value, size, written))
FORWARD(cublasLtMatmul,
        (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
         cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
         const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
         cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
         size_t workspace_size, cudaStream_t stream),
        (handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
         algorithm, workspace, workspace_size, stream))

extern "C" size_t CUBLASWINAPI cublasLtGetVersion() {
  static const auto function = find<decltype(&cublasLtGetVersion)>("cublasLtGetVersion");
  return function();
}

extern "C" const char* CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t status) {
  static const auto function = find<decltype(&cublasLtGetStatusString)>("cublasLtGetStatusString");
  return function(status);
}
