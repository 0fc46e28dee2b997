#include "engine/device/cuda/products.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "engine/device/cuda/check.h"
#include "engine/ops/cuda/row_ops.h"

namespace headrace {
namespace {

constexpr size_t kWorkspace = size_t{32} << 20;
constexpr size_t kTrial = size_t{128} << 20;  // where results go while algorithms are tried
constexpr int64_t kMostBias = 1 << 20;
constexpr int64_t kTriedRows[] = {1, 16, 64, 256, 1024, 4096};
constexpr int kAsked = 12;         // algorithms for each of them
constexpr int64_t kCompared = 32;  // rows whose bits are compared

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw ResourceMissing(std::string(what) +
                        " on the GPU failed: " + cublasLtGetStatusString(status));
}

size_t element_bytes(const HalfProduct& p) {
  return p.result == HalfProduct::Result::kReluHalf ? sizeof(Half) : sizeof(float);
}

uint32_t alignment_of(const void* pointer, int64_t stride_bytes) {
  const auto bits = reinterpret_cast<uintptr_t>(pointer) | static_cast<uintptr_t>(stride_bytes);
  return static_cast<uint32_t>(std::min<uintptr_t>(bits & (~bits + 1), 16));
}

// The least of all operands.
uint32_t alignment_of(const HalfProduct& p) {
  const auto result = static_cast<int64_t>(element_bytes(p));
  return std::min({alignment_of(p.x, 2 * p.inputs), alignment_of(p.w, 2 * p.inputs),
                   alignment_of(p.y, result * p.stride)});
}

}  // namespace

// In cuBLASLt's order by columns, y is [outputs][rows], w transposed and x not.
struct Products::Problem {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t w, x, y;

  Problem(const HalfProduct& p, const void* bias) {
    const bool relu = p.result == HalfProduct::Result::kReluHalf;
    const cudaDataType_t result = relu ? CUDA_R_16F : CUDA_R_32F;
    check(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, relu && bias ? CUBLASLT_EPILOGUE_RELU_BIAS
                                       : relu       ? CUBLASLT_EPILOGUE_RELU
                                       : bias       ? CUBLASLT_EPILOGUE_BIAS
                                                    : CUBLASLT_EPILOGUE_DEFAULT);
    if (bias) {
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, result);
    }
    const auto inputs = static_cast<uint64_t>(p.inputs), outputs = static_cast<uint64_t>(p.outputs);
    check(cublasLtMatrixLayoutInit(&w, CUDA_R_16F, inputs, outputs, p.inputs), "a product");
    check(cublasLtMatrixLayoutInit(&x, CUDA_R_16F, inputs, static_cast<uint64_t>(p.rows), p.inputs),
          "a product");
    check(cublasLtMatrixLayoutInit(&y, result, outputs, static_cast<uint64_t>(p.rows), p.stride),
          "a product");
  }

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    check(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof value), "a product");
  }
};

Products::Products()
    : workspace_(kWorkspace), trial_(2 * kTrial), half_bias_(kMostBias * sizeof(Half)) {
  check(cublasLtCreate(&handle_), "starting cuBLASLt");
}

Products::~Products() { cublasLtDestroy(handle_); }

void Products::multiply(cudaStream_t stream, const HalfProduct& product) {
  HalfProduct p = product;
  if (p.bias && p.result == HalfProduct::Result::kReluHalf) {
    // The bias has the type of the result.
    cuda::to_half(stream, p.bias, p.outputs, reinterpret_cast<Half*>(half_bias_.data()));
    p.bias = reinterpret_cast<const float*>(half_bias_.data());
  }
  if (!run(stream, p, algorithm(stream, p), p.y)) {
    throw ResourceMissing("a product on the GPU failed: its algorithm does not fit any more");
  }
}

Products::Shape Products::shape_of(const HalfProduct& p) {
  return {p.outputs,
          p.inputs,
          p.stride,
          alignment_of(p),
          p.result == HalfProduct::Result::kReluHalf,
          p.bias != nullptr};
}

const Products::Algorithm& Products::algorithm(cudaStream_t stream, const HalfProduct& p) {
  const Key key{shape_of(p), static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(p.rows)))};
  const auto found = algorithms_.find(key);
  if (found != algorithms_.end()) return found->second;

  // No more rows than there is room for results.
  HalfProduct tried = p;
  const size_t row = static_cast<size_t>(p.stride) * element_bytes(p);
  tried.rows = std::min(p.rows, std::max<int64_t>(1, static_cast<int64_t>(kTrial / row)));
  if (tried.result == HalfProduct::Result::kAdded) tried.result = HalfProduct::Result::kFloat;
  return algorithms_.emplace(key, tune(stream, tried)).first->second;
}

// Algorithms that add up without a break, of which some are good at few rows and some at many.
std::vector<Products::Algorithm> Products::candidates(const HalfProduct& product) {
  cublasLtMatmulPreferenceOpaque_t preference;
  check(cublasLtMatmulPreferenceInit(&preference), "a preference");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
          "a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  const uint32_t aligned = alignment_of(product);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer(attribute, aligned);
  }
  std::vector<Algorithm> all;
  const auto ask = [&](int64_t rows) {
    HalfProduct p = product;
    p.rows = rows;
    Problem problem(p, p.bias);
    cublasLtMatmulHeuristicResult_t results[kAsked];
    int count = 0;
    cublasLtMatmulAlgoGetHeuristic(handle_, &problem.operation, &problem.w, &problem.x, &problem.y,
                                   &problem.y, &preference, kAsked, results, &count);
    for (int i = 0; i < count; ++i) {
      const Algorithm& found = results[i].algo;
      int32_t parts = 1;
      size_t written = 0;
      cublasLtMatmulAlgoConfigGetAttribute(&found, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                           sizeof parts, &written);
      const bool known = std::any_of(all.begin(), all.end(), [&](const Algorithm& other) {
        return std::memcmp(&other, &found, sizeof found) == 0;
      });
      if (parts <= 1 && !known) all.push_back(found);
    }
  };
  ask(product.rows);
  for (const int64_t rows : kTriedRows) ask(rows);
  return all;
}

Products::Algorithm Products::tune(cudaStream_t stream, const HalfProduct& product) {
  const Shape shape = shape_of(product);
  const std::vector<Algorithm> all = candidates(product);
  std::byte* const expected_memory = trial_.data();
  std::byte* const tried_memory = trial_.data() + kTrial;
  const int64_t rows = std::min(product.rows, kCompared);
  const size_t bytes = static_cast<size_t>(rows * product.stride) * element_bytes(product);
  const auto result_of = [&](const std::byte* memory) {
    std::vector<std::byte> copy(bytes);
    check_cuda(cudaMemcpyAsync(copy.data(), memory, bytes, cudaMemcpyDeviceToHost, stream),
               "copying out");
    check_cuda(cudaStreamSynchronize(stream), "trying algorithms");
    return copy;
  };
  check_cuda(cudaMemsetAsync(trial_.data(), 0, 2 * kTrial, stream), "clearing");

  // The one whose bits count is the same for every number of rows.
  if (!references_.contains(shape)) {
    HalfProduct many = product;
    many.rows = kTriedRows[std::size(kTriedRows) - 1];
    const std::vector<Algorithm> of_many = candidates(many);
    const auto works = [&](const Algorithm& a) { return run(stream, product, a, expected_memory); };
    const auto first = std::find_if(of_many.begin(), of_many.end(), works);
    if (first == of_many.end()) {
      throw ResourceMissing("cuBLASLt has no algorithm for a product of " +
                            std::to_string(product.inputs) + " x " +
                            std::to_string(product.outputs) + " that does not split its sums");
    }
    references_.emplace(shape, *first);
  }
  const Algorithm& reference = references_.at(shape);
  if (!run(stream, product, reference, expected_memory)) {
    throw ResourceMissing("cuBLASLt's algorithm for many rows does not do " +
                          std::to_string(product.rows));
  }
  const std::vector<std::byte> expected = result_of(expected_memory);

  CudaEvent begin, end;
  Algorithm best = reference;
  double best_s = 1e9;
  const auto time_of = [&](const Algorithm& a, int calls) {
    begin.record(stream);
    for (int i = 0; i < calls; ++i) run(stream, product, a, tried_memory);
    end.record(stream);
    end.synchronize();
    return end.seconds_since(begin) / calls;
  };
  for (const Algorithm& a : all) {
    if (!run(stream, product, a, tried_memory)) continue;
    if (result_of(tried_memory) != expected) continue;  // of another class
    double seconds = time_of(a, 1);
    if (seconds > 2 * best_s) continue;
    seconds = time_of(a, seconds < 1e-3 ? 10 : 3);
    if (seconds < best_s) {
      best_s = seconds;
      best = a;
    }
  }
  return best;
}

// False where the algorithm does not do this product.
bool Products::run(cudaStream_t stream, const HalfProduct& p, const Algorithm& algorithm,
                   void* y) const {
  Problem problem(p, p.bias);
  const float zero = 0.0f, one = 1.0f;
  const float& beta = p.result == HalfProduct::Result::kAdded ? one : zero;
  const cublasStatus_t status = cublasLtMatmul(
      handle_, &problem.operation, &p.scale, p.w, &problem.w, p.x, &problem.x, &beta, y, &problem.y,
      y, &problem.y, &algorithm, workspace_.data(), kWorkspace, stream);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return false;
  check(status, "a product");
  return true;
}

}  // namespace headrace
