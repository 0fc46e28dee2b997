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
constexpr int64_t kManyRows = 4096;
constexpr int64_t kMostTriedRows = 2048;
constexpr int kAsked = 12;         // algorithms for each number of rows
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
  return std::min({alignment_of(p.x, 2 * p.inputs), alignment_of(p.w, 2 * (p.inputs | p.w_apart)),
                   alignment_of(p.y, result * (p.stride | p.y_apart))});
}

// One of those that are done at once.
HalfProduct part_of(HalfProduct p, int i) {
  p.w += i * p.w_apart;
  if (p.bias) p.bias += i * p.bias_apart;
  p.y = static_cast<std::byte*>(p.y) + i * p.y_apart * static_cast<int64_t>(element_bytes(p));
  p.count = 1;
  p.w_apart = p.bias_apart = p.y_apart = 0;
  return p;
}

int32_t attribute_of(const cublasLtMatmulAlgo_t& algorithm,
                     cublasLtMatmulAlgoConfigAttributes_t attribute) {
  int32_t value = -1;
  size_t written = 0;
  cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof value, &written);
  return value;
}

int32_t id_of(const cublasLtMatmulAlgo_t& algorithm) {
  return attribute_of(algorithm, CUBLASLT_ALGO_CONFIG_ID);
}

}  // namespace

// In cuBLASLt's order by columns, y is [outputs][rows], w transposed and x not.
struct Products::Problem {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t w, x, y;
  std::optional<Algorithm> algorithm;

  explicit Problem(const HalfProduct& p) {
    const bool relu = p.result == HalfProduct::Result::kReluHalf;
    const cudaDataType_t result = relu ? CUDA_R_16F : CUDA_R_32F;
    check(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, relu && p.bias ? CUBLASLT_EPILOGUE_RELU_BIAS
                                       : relu         ? CUBLASLT_EPILOGUE_RELU
                                       : p.bias       ? CUBLASLT_EPILOGUE_BIAS
                                                      : CUBLASLT_EPILOGUE_DEFAULT);
    if (p.bias) {
      point_to(p.bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, result);
    }
    const auto inputs = static_cast<uint64_t>(p.inputs), outputs = static_cast<uint64_t>(p.outputs);
    check(cublasLtMatrixLayoutInit(&w, CUDA_R_16F, inputs, outputs, p.inputs), "a product");
    check(cublasLtMatrixLayoutInit(&x, CUDA_R_16F, inputs, static_cast<uint64_t>(p.rows), p.inputs),
          "a product");
    check(cublasLtMatrixLayoutInit(&y, result, outputs, static_cast<uint64_t>(p.rows), p.stride),
          "a product");
    if (p.count == 1) return;
    if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, p.bias_apart);
    repeat(w, p.count, p.w_apart);
    repeat(x, p.count, 0);
    repeat(y, p.count, p.y_apart);
  }

  void point_to(const void* bias) { set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias); }

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    check(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof value), "a product");
  }

  static void repeat(cublasLtMatrixLayoutOpaque_t& matrix, int32_t count, int64_t apart) {
    check(cublasLtMatrixLayoutSetAttribute(&matrix, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                           sizeof count),
          "a product");
    check(cublasLtMatrixLayoutSetAttribute(&matrix, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                           &apart, sizeof apart),
          "a product");
  }
};

Products::Products()
    : workspace_(kWorkspace),
      trial_(2 * kTrial),
      half_bias_(kMostBias * sizeof(Half)),
      differing_(sizeof(uint32_t)) {
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
  Problem& problem = prepared(stream, shape_of(p), p);
  if (!problem.algorithm) {
    for (int i = 0; i < p.count; ++i) multiply(stream, part_of(p, i));
    return;
  }
  if (p.bias) problem.point_to(p.bias);
  if (run(stream, p, problem, *problem.algorithm, p.y)) return;
  if (p.count == 1) {
    throw ResourceMissing("a product on the GPU failed: its algorithm does not fit any more");
  }
  problem.algorithm.reset();
  multiply(stream, p);
}

Products::Shape Products::shape_of(const HalfProduct& p) {
  return {.outputs = p.outputs,
          .inputs = p.inputs,
          .stride = p.stride,
          .count = p.count,
          .aligned = alignment_of(p),
          .result = p.result,
          .has_bias = p.bias != nullptr};
}

Products::Problem& Products::prepared(cudaStream_t stream, const Shape& shape,
                                      const HalfProduct& p) {
  std::unique_ptr<Problem>& problem =
      problems_[{shape, p.rows, p.w_apart, p.bias_apart, p.y_apart}];
  if (problem) return *problem;
  const int64_t power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(p.rows)));
  auto found = algorithms_.find({shape, power});
  if (found == algorithms_.end()) {
    HalfProduct tried = p;
    const size_t row = static_cast<size_t>(p.count * p.stride) * element_bytes(p);
    tried.rows = std::min(
        {p.rows, kMostTriedRows, std::max<int64_t>(1, static_cast<int64_t>(kTrial / row))});
    if (tried.count > 1) tried.y_apart = tried.rows * tried.stride;
    found = algorithms_.emplace(std::pair(shape, power), tune(stream, shape, tried)).first;
  }
  problem = std::make_unique<Problem>(p);
  problem->algorithm = found->second;
  return *problem;
}

// Algorithms that add up without a break, as recommended for these numbers of rows.
std::vector<Products::Algorithm> Products::candidates(const HalfProduct& product, uint32_t aligned,
                                                      std::span<const int64_t> rows) {
  cublasLtMatmulPreferenceOpaque_t preference;
  check(cublasLtMatmulPreferenceInit(&preference), "a preference");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
          "a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer(attribute, aligned);
  }
  std::vector<Algorithm> all;
  for (const int64_t count : rows) {
    HalfProduct p = product;
    p.rows = count;
    p.y_apart = std::max(p.y_apart, count * p.stride);
    Problem problem(p);
    cublasLtMatmulHeuristicResult_t results[kAsked];
    int found = 0;
    cublasLtMatmulAlgoGetHeuristic(handle_, &problem.operation, &problem.w, &problem.x, &problem.y,
                                   &problem.y, &preference, kAsked, results, &found);
    for (int i = 0; i < found; ++i) {
      const Algorithm& algorithm = results[i].algo;
      const bool known = std::any_of(all.begin(), all.end(), [&](const Algorithm& other) {
        return std::memcmp(&other, &algorithm, sizeof algorithm) == 0;
      });
      const bool splits = attribute_of(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1;
      if (!splits && !known) all.push_back(algorithm);
    }
  }
  return all;
}

// The one whose bits count, whatever the number of rows: the best for many, of the id that other
// matrices with as many inputs have, if it is among them. A matrix may come in pieces.
const Products::Algorithm& Products::reference(const Shape& shape, const HalfProduct& product) {
  const auto found = references_.find(shape);
  if (found != references_.end()) return found->second;
  const std::vector<Algorithm> all = candidates(product, shape.aligned, {&kManyRows, 1});
  if (all.empty()) {
    throw ResourceMissing("cuBLASLt has no algorithm for a product of " +
                          std::to_string(product.inputs) + " x " + std::to_string(product.outputs) +
                          " that does not split its sums; use --math f32");
  }
  const int32_t id =
      ids_.emplace(std::tuple(shape.inputs, shape.result, shape.has_bias), id_of(all.front()))
          .first->second;
  const auto best = std::find_if(
      all.begin(), all.end(), [&](const Algorithm& algorithm) { return id_of(algorithm) == id; });
  return references_.emplace(shape, best == all.end() ? all.front() : *best).first->second;
}

// Results of both algorithms for `product`, then for rows of w in place of x until there are
// kCompared, if w has so many: is every bit the same? `alone` does each of the products for itself.
// False where one of them does not do it.
bool Products::agrees(cudaStream_t stream, const HalfProduct& product, const Algorithm& alone,
                      const Algorithm& algorithm) {
  const size_t bytes =
      static_cast<size_t>(product.count * product.rows * product.stride) * element_bytes(product);
  Problem problem(product);
  size_t done = 0;
  const int64_t rows = product.rows, last = product.outputs - rows;
  for (int64_t row = 0; row == 0 || (row < kCompared && last >= 0); row += rows, done += bytes) {
    HalfProduct tried = product, expected = product;
    if (row > 0) tried.x = product.w + std::min(row, last) * product.inputs;
    expected.y = trial_.data() + done;
    for (int i = 0; i < product.count; ++i) {
      const HalfProduct part = part_of(tried, i);
      Problem of_part(part);
      if (!run(stream, part, of_part, alone, part_of(expected, i).y)) return false;
    }
    if (!run(stream, tried, problem, algorithm, trial_.data() + kTrial + done)) return false;
  }
  auto* const differing = reinterpret_cast<uint32_t*>(differing_.data());
  uint32_t count = 0;
  cuda::count_differing(stream, trial_.data(), trial_.data() + kTrial, done, differing);
  check_cuda(cudaMemcpyAsync(&count, differing, sizeof count, cudaMemcpyDeviceToHost, stream),
             "copying out");
  check_cuda(cudaStreamSynchronize(stream), "trying algorithms");
  return count == 0;
}

// The fastest that has the bits of the one for many rows. None: the products are not done at once.
std::optional<Products::Algorithm> Products::tune(cudaStream_t stream, const Shape& shape,
                                                  const HalfProduct& product) {
  Shape of_one = shape;
  of_one.count = 1;
  const Algorithm& alone = reference(of_one, part_of(product, 0));
  Problem problem(product);
  CudaEvent begin, end;
  const auto time_of = [&](const Algorithm& algorithm, int calls) {
    begin.record(stream);
    for (int i = 0; i < calls; ++i) {
      run(stream, product, problem, algorithm, trial_.data() + kTrial);
    }
    end.record(stream);
    end.synchronize();
    return end.seconds_since(begin) / calls;
  };
  // What is good at many rows differs little from what is recommended for them.
  std::vector<int64_t> asked = {product.rows};
  if (product.rows < kManyRows / 4) asked.insert(asked.end(), {1, 16, 64, 256, kManyRows});
  std::vector<std::pair<double, Algorithm>> timed;
  double best_s = 1e9;
  for (const Algorithm& algorithm : candidates(product, shape.aligned, asked)) {
    if (id_of(algorithm) != id_of(alone)) continue;
    if (!run(stream, product, problem, algorithm, trial_.data() + kTrial)) continue;
    double seconds = time_of(algorithm, 1);
    if (seconds > 2 * best_s) continue;
    seconds = time_of(algorithm, seconds < 2e-4 ? 10 : 2);
    best_s = std::min(best_s, seconds);
    timed.emplace_back(seconds, algorithm);
  }
  std::stable_sort(timed.begin(), timed.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  // What lies between rows is compared, too.
  check_cuda(cudaMemsetAsync(trial_.data(), 0, trial_.size(), stream), "clearing");
  for (const auto& [seconds, algorithm] : timed) {
    if (agrees(stream, product, alone, algorithm)) return algorithm;
  }
  if (product.count > 1) return std::nullopt;
  if (agrees(stream, product, alone, alone)) return alone;
  throw ResourceMissing("cuBLASLt's algorithm for many rows does not do " +
                        std::to_string(product.rows));
}

// Into y, which is p.y or where it is tried out. False where the algorithm does not do this
// product.
bool Products::run(cudaStream_t stream, const HalfProduct& p, Problem& problem,
                   const Algorithm& algorithm, void* y) const {
  const float zero = 0.0f, one = 1.0f;
  const float& beta = p.result == HalfProduct::Result::kAdded ? one : zero;
  const cublasStatus_t status = cublasLtMatmul(
      handle_, &problem.operation, &p.scale, p.w, &problem.w, p.x, &problem.x, &beta, p.y,
      &problem.y, y, &problem.y, &algorithm, workspace_.data(), kWorkspace, stream);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return false;
  check(status, "a product");
  return true;
}

}  // namespace headrace
