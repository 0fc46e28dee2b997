#include "tests/device/fake_cublas.h"

#include <cublasLt.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine/half.h"
#include "engine/ops/cuda/packed_product.h"
#include "engine/ops/cuda/row_ops.h"
#include "engine/ops/cuda/unpack.h"
#include "engine/ops/panel_elements.h"

namespace headrace {
namespace {

using test::FakeAlgorithm;
using test::FakeProduct;

// Clearing more is for what a GPU has in its caches; no test has results of that size.
constexpr size_t kMostCleared = 16 << 20;

double now_s = 0;  // as products and copies are done

struct Layout {
  int64_t rows, cols, apart, distance;
  int32_t type, count;
};
struct Operation {
  uint32_t epilogue;
  const void* bias;
  int64_t bias_distance;
  int32_t transposed;
};
struct Preference {
  uint32_t a, b, c, d;
};
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t));
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t));

template <typename T, typename Opaque>
T& in(Opaque* opaque) {
  return *reinterpret_cast<T*>(opaque);
}

const FakeAlgorithm& algorithm_of(const cublasLtMatmulAlgo_t& algorithm) {
  return test::fake_blas().algorithms.at(algorithm.data[0]);
}

FakeProduct product_of(const Layout& w, const Layout& x) {
  return {x.cols, w.cols, w.rows, w.count};
}

bool is_aligned(const void* pointer, uint32_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

float sum(FakeAlgorithm::Order order, const Half* w, const Half* x, int64_t n, int64_t rows) {
  float result = 0;
  const auto add = [&](int64_t i) { result += f16_to_f32(w[i].bits) * f16_to_f32(x[i].bits); };
  switch (order) {
    case FakeAlgorithm::Order::kUp:
      for (int64_t i = 0; i < n; ++i) add(i);
      break;
    case FakeAlgorithm::Order::kDown:
      for (int64_t i = n - 1; i >= 0; --i) add(i);
      break;
    case FakeAlgorithm::Order::kBySizeOfBatch:
      for (int64_t i = 0; i < n; ++i) add((i + rows / 3) % n);
      break;
  }
  return result;
}

}  // namespace

namespace test {
FakeBlas& fake_blas() {
  static FakeBlas blas;
  return blas;
}
}  // namespace test

namespace cuda {

void to_half(cudaStream_t, const float* x, int64_t count, Half* y) {
  std::transform(x, x + count, y, headrace::to_half);
}

void count_differing(cudaStream_t, const void* a, const void* b, size_t bytes,
                     uint32_t* differing) {
  *differing = 0;
  for (size_t at = 0; at < bytes; at += 2) {
    *differing +=
        std::memcmp(static_cast<const char*>(a) + at, static_cast<const char*>(b) + at, 2) != 0;
  }
}

// Of Q8_0 and Q4_0.
Half weight_of(const PackedMatrix& w, int64_t n, int64_t k) {
  const std::byte* const panel = w.panel(n / kPanelRows);
  const auto row = static_cast<int>(n % kPanelRows);
  return headrace::to_half(w.dtype == DType::kQ8_0 ? panel_weight<DType::kQ8_0>(panel, row, k)
                                                   : panel_weight<DType::kQ4_0>(panel, row, k));
}

void unpack(cudaStream_t, const PackedMatrix& w, int64_t first, int64_t end, Half* rows) {
  test::FakePacked& fake = test::fake_blas().packed;
  ++fake.expanded;
  now_s += fake.expanding_s;
  for (int64_t n = first * kPanelRows; n < std::min(end * kPanelRows, w.rows); ++n) {
    for (int64_t k = 0; k < w.cols; ++k) {
      *rows++ = weight_of(w, n, k);
    }
  }
}

void multiply(const PackedWork& work) {
  const HalfProduct& p = work.of.product;
  const PackedMatrix& w = work.of.w;
  for (int64_t n = 0; n < p.outputs; ++n) {
    std::vector<Half> weights;
    for (int64_t k = 0; k < w.cols; ++k) {
      weights.push_back(weight_of(w, work.of.first * kPanelRows + n, k));
    }
    for (int64_t row = 0; row < p.rows; ++row) {
      float value = p.scale * sum(test::fake_blas().packed.order, weights.data(),
                                  p.x + row * w.cols, w.cols, p.rows);
      const int64_t at = row * p.stride + n;
      if (p.result == HalfProduct::Result::kReluHalf) {
        if (p.bias) value += f16_to_f32(headrace::to_half(p.bias[n]).bits);
        static_cast<Half*>(p.y)[at] = headrace::to_half(std::max(value, 0.0f));
        continue;
      }
      const bool adds = p.result == HalfProduct::Result::kAdded;
      const float before = adds ? static_cast<const float*>(work.added)[at] : 0.0f;
      const bool added_first = work.order == PackedWork::Order::kAddedFirst;
      if (added_first) value += before;
      if (p.bias) value += p.bias[n];
      if (!added_first) value += before;
      static_cast<float*>(p.y)[at] = value;
    }
  }
}

bool multiply_packed(cudaStream_t, const PackedWorks& works) {
  test::FakePacked& fake = test::fake_blas().packed;
  if (!fake.works) return false;
  ++fake.calls;
  now_s += fake.seconds;
  for (int i = 0; i < works.count; ++i) multiply(works.all[i]);
  return true;
}

}  // namespace cuda
}  // namespace headrace

using namespace headrace;

extern "C" {

cublasStatus_t CUBLASWINAPI cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t CUBLASWINAPI cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
size_t CUBLASWINAPI cublasLtGetVersion() { return 130102; }
const char* CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t) { return "fake"; }

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t operation, size_t,
                                                            cublasComputeType_t, cudaDataType_t) {
  in<Operation>(operation) = {};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                                           cublasLtMatmulDescAttributes_t attribute,
                                                           const void* value, size_t size) {
  Operation& o = in<Operation>(operation);
  const auto set = [&](auto& to) {
    if (size != sizeof to) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&to, value, size);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(o.transposed);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(o.epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(o.bias);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
      return set(o.bias_distance);
    default:
      return CUBLAS_STATUS_SUCCESS;
  }
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t,
                                                              cudaDataType type, uint64_t rows,
                                                              uint64_t cols, int64_t ld) {
  in<Layout>(layout) = {static_cast<int64_t>(rows), static_cast<int64_t>(cols), ld, 0, type, 1};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutSetAttribute(
    cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const void* value,
    size_t size) {
  Layout& l = in<Layout>(layout);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) std::memcpy(&l.count, value, size);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) {
    std::memcpy(&l.distance, value, size);
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI
cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference, size_t) {
  in<Preference>(preference) = {256, 256, 256, 256};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
    const void* value, size_t size) {
  Preference& p = in<Preference>(preference);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      std::memcpy(&p.a, value, size);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      std::memcpy(&p.b, value, size);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      std::memcpy(&p.c, value, size);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      std::memcpy(&p.d, value, size);
      break;
    default:
      break;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t results[],
    int* found) {
  const FakeProduct product = product_of(in<Layout>(a), in<Layout>(b));
  const Preference& p = in<Preference>(preference);
  const uint32_t least = std::min({p.a, p.b, p.c, p.d});
  *found = 0;
  const auto& all = test::fake_blas().algorithms;
  for (size_t i = 0; i < all.size() && *found < wanted; ++i) {
    const auto& says = all[i].is_recommended ? all[i].is_recommended : all[i].works;
    const bool fits =
        all[i].aligned <= least && is_aligned(in<Operation>(operation).bias, all[i].aligned);
    if (!fits || (says && !says(product))) continue;
    cublasLtMatmulHeuristicResult_t& result = results[(*found)++];
    result = {};
    result.algo.data[0] = i;
    result.state = CUBLAS_STATUS_SUCCESS;
  }
  return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoConfigGetAttribute(
    const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,
    void* value, size_t size, size_t* written) {
  std::memset(value, 0, size);
  *written = size;
  const FakeAlgorithm& one = algorithm_of(*algorithm);
  if (attribute == CUBLASLT_ALGO_CONFIG_ID) std::memcpy(value, &one.id, sizeof one.id);
  if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) {
    std::memcpy(value, &one.split_k, sizeof one.split_k);
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                           const void* alpha, const void* a,
                                           cublasLtMatrixLayout_t a_layout, const void* b,
                                           cublasLtMatrixLayout_t b_layout, const void* beta,
                                           const void* c, cublasLtMatrixLayout_t, void* d,
                                           cublasLtMatrixLayout_t d_layout,
                                           const cublasLtMatmulAlgo_t* algorithm, void*, size_t,
                                           cudaStream_t) {
  const Operation& o = in<Operation>(operation);
  const Layout &w = in<Layout>(a_layout), &x = in<Layout>(b_layout), &y = in<Layout>(d_layout);
  const FakeAlgorithm& one = algorithm_of(*algorithm);
  const FakeProduct product = product_of(w, x);
  if (one.works && !one.works(product)) return CUBLAS_STATUS_NOT_SUPPORTED;
  test::FakeBlas& fake = test::fake_blas();
  const bool has_bias = (o.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0;
  const bool has_relu = (o.epilogue & CUBLASLT_EPILOGUE_RELU) != 0;
  for (int32_t i = 0; i < w.count; ++i) {
    const auto* ws = static_cast<const Half*>(a) + i * w.distance;
    const auto* xs = static_cast<const Half*>(b) + i * x.distance;
    const auto bias_bytes = y.type == CUDA_R_16F ? sizeof(Half) : sizeof(float);
    const auto* bias =
        static_cast<const char*>(o.bias) + static_cast<size_t>(i * o.bias_distance) * bias_bytes;
    for (const void* address : {static_cast<const void*>(ws), static_cast<const void*>(xs),
                                static_cast<const void*>(has_bias ? bias : nullptr)}) {
      if (!is_aligned(address, one.aligned)) fake.faults.push_back("a misaligned address");
    }
    for (int64_t row = 0; row < x.cols; ++row) {
      for (int64_t out = 0; out < w.cols; ++out) {
        float value = *static_cast<const float*>(alpha) *
                      sum(one.order, ws + out * w.apart, xs + row * x.apart, w.rows, x.cols);
        const int64_t at = i * y.distance + row * y.apart + out;
        if (y.type == CUDA_R_16F) {
          const auto* biases = reinterpret_cast<const Half*>(bias);
          if (has_bias) value += f16_to_f32(biases[out].bits);
          static_cast<Half*>(d)[at] = to_half(has_relu ? std::max(value, 0.0f) : value);
          continue;
        }
        if (has_bias) value += reinterpret_cast<const float*>(bias)[out];
        const float before = *static_cast<const float*>(beta);
        if (before != 0) value += before * static_cast<const float*>(c)[at];
        static_cast<float*>(d)[at] = value;
      }
    }
  }
  now_s += one.seconds;
  fake.calls.push_back(algorithm->data[0]);
  return CUBLAS_STATUS_SUCCESS;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "fake"; }
const char* cudaGetErrorName(cudaError_t) { return "fake"; }
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, std::min(bytes, kMostCleared));
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t row = 0; row < height; ++row) {
    std::memcpy(static_cast<char*>(to) + row * to_pitch,
                static_cast<const char*>(from) + row * from_pitch, width);
  }
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new double(0));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<double*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  *reinterpret_cast<double*>(event) = now_s;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  *ms = static_cast<float>(1e3 *
                           (*reinterpret_cast<double*>(end) - *reinterpret_cast<double*>(begin)));
  return cudaSuccess;
}

}  // extern "C"
