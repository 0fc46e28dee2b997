#include "engine/device/cuda/product_problem.h"

#include <algorithm>
#include <span>

#include "engine/device/cuda/check.h"

namespace headrace {
namespace {

constexpr size_t kWorkspace = size_t{32} << 20;
constexpr uintptr_t kSomeAddress = uintptr_t{1} << 30;

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  // Of what went wrong before it on the GPU it says no more than that it could not go on.
  if (const cudaError_t before = cudaStreamQuery(nullptr); before != cudaErrorNotReady) {
    check_cuda(before, what);
  }
  throw ResourceMissing(std::string(what) +
                        " on the GPU failed: " + cublasLtGetStatusString(status));
}

uint32_t alignment_of(const void* pointer, int64_t distance_bytes) {
  const auto bits = reinterpret_cast<uintptr_t>(pointer) | static_cast<uintptr_t>(distance_bytes);
  return static_cast<uint32_t>(std::min<uintptr_t>(bits & (~bits + 1), 16));
}

void repeat(cublasLtMatrixLayoutOpaque_t& matrix, int32_t count, int64_t apart) {
  const auto set = [&](cublasLtMatrixLayoutAttribute_t attribute, auto value) {
    check(cublasLtMatrixLayoutSetAttribute(&matrix, attribute, &value, sizeof value), "a product");
  };
  set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count);
  set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, apart);
}

// Of a type that has as many bytes as cuBLASLt gives it.
template <typename T>
T attribute_of(const cublasLtMatmulAlgo_t& algorithm,
               cublasLtMatmulAlgoConfigAttributes_t attribute) {
  T value{};
  size_t written = 0;
  cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof value, &written);
  return value;
}

}  // namespace

CublasLt::CublasLt() : workspace_(kWorkspace) {
  check(cublasLtCreate(&handle_), "starting cuBLASLt");
}

size_t element_bytes(HalfProduct::Result result) {
  return result == HalfProduct::Result::kReluHalf ? sizeof(Half) : sizeof(float);
}

HalfProduct part_of(HalfProduct p, int i) {
  p.w += i * p.w_apart;
  if (p.bias) p.bias += i * p.bias_apart;
  p.y =
      static_cast<std::byte*>(p.y) + i * p.y_apart * static_cast<int64_t>(element_bytes(p.result));
  p.count = 1;
  p.w_apart = p.bias_apart = p.y_apart = 0;
  return p;
}

Alignment alignment_of(const HalfProduct& p) {
  const auto bytes = static_cast<int64_t>(element_bytes(p.result));
  return {.operands = std::min(alignment_of(p.x, 2 * p.inputs),
                               alignment_of(p.w, 2 * (p.inputs | p.w_apart))),
          .bias = alignment_of(p.bias, bytes * p.bias_apart),
          .result = alignment_of(p.y, bytes * (p.stride | p.y_apart))};
}

ProductProblem::ProductProblem(const HalfProduct& p) : has_bias_(p.bias != nullptr) {
  const bool relu = p.result == HalfProduct::Result::kReluHalf;
  const cudaDataType_t result = relu ? CUDA_R_16F : CUDA_R_32F;
  check(cublasLtMatmulDescInit(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, relu && p.bias ? CUBLASLT_EPILOGUE_RELU_BIAS
                                     : relu         ? CUBLASLT_EPILOGUE_RELU
                                     : p.bias       ? CUBLASLT_EPILOGUE_BIAS
                                                    : CUBLASLT_EPILOGUE_DEFAULT);
  if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, result);
  const auto inputs = static_cast<uint64_t>(p.inputs), outputs = static_cast<uint64_t>(p.outputs),
             rows = static_cast<uint64_t>(p.rows);
  check(cublasLtMatrixLayoutInit(&w_, CUDA_R_16F, inputs, outputs, p.inputs), "a product");
  check(cublasLtMatrixLayoutInit(&x_, CUDA_R_16F, inputs, rows, p.inputs), "a product");
  check(cublasLtMatrixLayoutInit(&y_, result, outputs, rows, p.stride), "a product");
  if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  if (p.count == 1) return;
  if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, p.bias_apart);
  repeat(w_, p.count, p.w_apart);
  repeat(x_, p.count, 0);
  repeat(y_, p.count, p.y_apart);
}

template <typename T>
void ProductProblem::set(cublasLtMatmulDescAttributes_t attribute, T value) {
  check(cublasLtMatmulDescSetAttribute(&operation_, attribute, &value, sizeof value), "a product");
}

bool ProductProblem::run(const CublasLt& blas, cudaStream_t stream, const HalfProduct& p,
                         const Algorithm& algorithm, const void* added, void* y) {
  const float zero = 0.0f, one = 1.0f;
  const bool adds = p.result == HalfProduct::Result::kAdded;
  if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  const cublasStatus_t status = cublasLtMatmul(
      blas.handle(), &operation_, &p.scale, p.w, &w_, p.x, &x_, adds ? &one : &zero,
      adds ? added : y, &y_, y, &y_, &algorithm, blas.workspace().data(), kWorkspace, stream);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return false;
  check(status, "a product");
  return true;
}

std::vector<ProductProblem::Algorithm> ProductProblem::recommended(const CublasLt& blas,
                                                                   const Alignment& aligned,
                                                                   int asked) {
  cublasLtMatmulPreferenceOpaque_t preference;
  check(cublasLtMatmulPreferenceInit(&preference), "a preference");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
          "a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned.operands);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned.operands);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned.result);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned.result);

  // How a bias is aligned it takes from the address, and reads nothing there.
  if (has_bias_) {
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, reinterpret_cast<void*>(kSomeAddress + aligned.bias));
  }

  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(asked));
  int found = 0;
  // It fails where it knows none: none are found then.
  cublasLtMatmulAlgoGetHeuristic(blas.handle(), &operation_, &w_, &x_, &y_, &y_, &preference, asked,
                                 results.data(), &found);
  std::vector<Algorithm> all;
  for (const auto& result : std::span(results).first(static_cast<size_t>(found))) {
    if (result.state != CUBLAS_STATUS_SUCCESS) continue;
    if (attribute_of<int32_t>(result.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1) continue;
    all.push_back(result.algo);
  }
  return all;
}

int32_t id_of(const cublasLtMatmulAlgo_t& algorithm) {
  return attribute_of<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_ID);
}

std::string describe(const cublasLtMatmulAlgo_t& algorithm) {
  const auto number = [&](auto attribute) {
    return std::to_string(attribute_of<uint32_t>(algorithm, attribute));
  };
  const auto small = [&](auto attribute) {
    return std::to_string(attribute_of<uint16_t>(algorithm, attribute));
  };
  return "id " + number(CUBLASLT_ALGO_CONFIG_ID) + ", tile " +
         number(CUBLASLT_ALGO_CONFIG_TILE_ID) + ", stages " +
         number(CUBLASLT_ALGO_CONFIG_STAGES_ID) + ", swizzle " +
         number(CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING) + ", option " +
         number(CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION) + ", inner shape " +
         small(CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID) + ", cluster " +
         small(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID);
}

}  // namespace headrace
