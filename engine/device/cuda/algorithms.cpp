#include "engine/device/cuda/algorithms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <string>
#include <utility>

#include "engine/device/cuda/check.h"
#include "engine/ops/cuda/row_ops.h"

namespace headrace {
namespace {

using Algorithm = ProductProblem::Algorithm;

constexpr size_t kTried = size_t{80} << 20;  // for results while algorithms are tried
constexpr int64_t kUsual = 4096;             // rows, and outputs of a usual matrix
constexpr int64_t kMostTriedRows = 2048;
constexpr int kAskedOfOneId = 64, kAskedToBeFast = 32;  // recommendations
constexpr int64_t kCompared = 32;                       // rows, at least
constexpr int kTimed = 3;                               // calls, the shortest of which counts
// Another order changes a sum by an ulp of f32, which the rounding to f16 shows once in 2^13 times.
constexpr int64_t kComparedHalves = 1 << 20;

// Adds those recommended for these numbers of rows that are not there.
void add_recommended(std::vector<Algorithm>& all, const CublasLt& blas, HalfProduct product,
                     const Alignment& aligned, std::initializer_list<int64_t> rows, int asked) {
  for (const int64_t count : rows) {
    product.rows = count;
    product.y_apart = std::max(product.y_apart, count * product.stride);
    for (const Algorithm& one : ProductProblem(product).recommended(blas, aligned, asked)) {
      const bool known = std::any_of(all.begin(), all.end(), [&](const Algorithm& other) {
        return std::memcmp(&other, &one, sizeof one) == 0;
      });
      if (!known) all.push_back(one);
    }
  }
}

HalfProduct usual(HalfProduct product) {
  product.outputs = product.stride = kUsual;
  return product;
}

void keep_id(std::vector<Algorithm>& all, int32_t id) {
  std::erase_if(all, [=](const Algorithm& algorithm) { return id_of(algorithm) != id; });
}

}  // namespace

// The product with rows of x, or of w in place of x where x has too few.
struct Algorithms::Trial {
  HalfProduct product;
  const Half* x;
  int64_t rows;     // of x; a multiple of product.rows
  int64_t at_once;  // rows at a time that give what is expected
  // [count][rows][stride]: what results are added to (or null), are to be, and are.
  std::byte *added, *expected, *got;

  size_t row_bytes() const {
    return static_cast<size_t>(product.stride) * element_bytes(product.result);
  }
  size_t part_bytes() const { return static_cast<size_t>(rows) * row_bytes(); }
  size_t bytes() const { return static_cast<size_t>(product.count) * part_bytes(); }
};

Algorithms::Shape Algorithms::shape_of(const HalfProduct& p) {
  return {.outputs = p.outputs,
          .inputs = p.inputs,
          .stride = p.stride,
          .count = p.count,
          .aligned = alignment_of(p),
          .result = p.result,
          .has_bias = p.bias != nullptr};
}

Algorithms::Algorithms(const CublasLt& blas)
    : blas_(blas), memory_(3 * kTried), differing_(sizeof(uint32_t)) {}

std::vector<Algorithm> Algorithms::fitting(cudaStream_t stream, const HalfProduct& product,
                                           size_t most) {
  const Trial trial = trial_of(stream, product);
  const std::optional<Algorithm> reference = expect(stream, trial);
  std::vector<Algorithm> found;
  if (reference) {
    for (const Algorithm& algorithm : by_time(stream, trial, id_of(*reference))) {
      if (found.size() == most) break;
      if (agrees(stream, trial, algorithm)) found.push_back(algorithm);
    }
    if (found.empty() && agrees(stream, trial, *reference)) found.push_back(*reference);
  }
  if (!found.empty() || product.count > 1) return found;
  throw ResourceMissing("cuBLASLt has no algorithm for " + std::to_string(product.rows) +
                        " rows through a matrix of " + std::to_string(product.outputs) + " x " +
                        std::to_string(product.inputs) +
                        " that does not split its sums and gives each row the same bits in any "
                        "batch; use --math f32");
}

bool Algorithms::agrees(cudaStream_t stream, const HalfProduct& product, const Way& way) {
  const Trial trial = trial_of(stream, product);
  return expect(stream, trial) && agrees(stream, trial, way);
}

double Algorithms::seconds(cudaStream_t stream, const HalfProduct& product, const Way& way) {
  return seconds(stream, trial_of(stream, product), way, 1e9);
}

Algorithms::Trial Algorithms::trial_of(cudaStream_t stream, const HalfProduct& product) {
  Trial trial{};
  HalfProduct& p = trial.product = product;
  const size_t row = static_cast<size_t>(p.count) * trial.row_bytes();
  const auto most = static_cast<int64_t>(kTried / row);
  if (most == 0) throw DoesNotFit("rows of " + std::to_string(row) + " bytes are too long to try");
  p.rows = std::min({p.rows, kMostTriedRows, most});

  const bool halves = p.result == HalfProduct::Result::kReluHalf;
  const int64_t wanted = std::max(kCompared, halves ? kComparedHalves / p.outputs : 0);
  const int64_t of_w = std::min({wanted + p.rows - 1, p.outputs, most}) / p.rows * p.rows;
  trial.rows = std::max(p.rows, of_w);
  trial.x = trial.rows > p.rows ? p.w : p.x;
  trial.at_once = std::min(kCompared, trial.rows);
  trial.expected = memory_.data();
  trial.got = memory_.data() + kTried;
  if (p.result != HalfProduct::Result::kAdded) return trial;

  trial.added = memory_.data() + 2 * kTried;
  for (int i = 0; i < p.count; ++i) {
    for (int64_t first = 0; first < trial.rows; first += p.rows) {
      std::byte* const to = trial.added + static_cast<size_t>(i) * trial.part_bytes() +
                            static_cast<size_t>(first) * trial.row_bytes();
      check_cuda(cudaMemcpy2DAsync(to, trial.row_bytes(), part_of(product, i).y, trial.row_bytes(),
                                   static_cast<size_t>(p.outputs) * sizeof(float),
                                   static_cast<size_t>(p.rows), cudaMemcpyDeviceToDevice, stream),
                 "copying what results are added to");
    }
  }
  return trial;
}

// Those whose bits count, in the order in which they are tried.
std::vector<Algorithm>& Algorithms::references(const HalfProduct& product) {
  Shape shape = shape_of(product);  // of all that are done at once
  shape.count = 1;
  const auto [found, is_new] = references_.try_emplace(shape);
  if (!is_new) return found->second;
  const HalfProduct one = part_of(product, 0);
  std::vector<Algorithm>& all = found->second;
  add_recommended(all, blas_, usual(one), shape.aligned, {kUsual}, kAskedOfOneId);
  add_recommended(all, blas_, one, shape.aligned, {kUsual, kCompared, 1}, kAskedOfOneId);
  return all;
}

// Computes what is expected, each product alone, and gives the algorithm that did it.
std::optional<Algorithm> Algorithms::expect(cudaStream_t stream, const Trial& trial) {
  // What lies between rows is compared, too.
  check_cuda(cudaMemsetAsync(trial.expected, 0xff, trial.bytes(), stream), "clearing");
  std::vector<Algorithm>& all = references(trial.product);
  for (const Algorithm algorithm : all) {
    bool done = true;
    for (int i = 0; i < trial.product.count && done; ++i) {
      const HalfProduct part = part_of(trial.product, i);
      done = fill(trial, part, trial.at_once, way_of(stream, trial, part, trial.at_once, algorithm),
                  trial.expected, i);
    }
    if (!done) continue;
    keep_id(all, id_of(algorithm));
    return algorithm;
  }
  return std::nullopt;
}

Algorithms::Way Algorithms::way_of(cudaStream_t stream, const Trial& trial, HalfProduct p,
                                   int64_t at_once, const Algorithm& algorithm) const {
  p.rows = at_once;
  p.y_apart = trial.rows * p.stride;
  const auto problem = std::make_shared<ProductProblem>(p);
  return [=, this](const HalfProduct& product, const void* added, void* y) {
    return problem->run(blas_, stream, product, algorithm, added, y);
  };
}

// All rows of the trial, so many at a time, into a part of y.
bool Algorithms::fill(const Trial& trial, HalfProduct p, int64_t at_once, const Way& way,
                      std::byte* y, int part) const {
  p.rows = at_once;
  for (int64_t row = 0; row < trial.rows; row += at_once) {
    const int64_t first = std::min(row, trial.rows - at_once);
    const size_t at = static_cast<size_t>(part) * trial.part_bytes() +
                      static_cast<size_t>(first) * trial.row_bytes();
    p.x = trial.x + first * p.inputs;
    const std::byte* const added = trial.added ? trial.added + at : nullptr;
    if (!way(p, added, y + at)) return false;
  }
  return true;
}

// Those of the id that do it, the fastest first; those that take twice as long are left out.
std::vector<Algorithm> Algorithms::by_time(cudaStream_t stream, const Trial& trial,
                                           int32_t id) const {
  HalfProduct p = trial.product;
  const Alignment aligned = alignment_of(p);
  p.x = trial.x;
  std::vector<Algorithm> all;
  if (p.rows < kUsual / 4) {
    add_recommended(all, blas_, p, aligned, {p.rows, 1, 16, 64, 256, kUsual}, kAskedToBeFast);
    // Of the reference's id none may be recommended for this matrix.
    add_recommended(all, blas_, usual(p), aligned, {p.rows, 1, 64}, kAskedToBeFast);
  } else {  // what is good at many rows differs little from what is recommended for them
    add_recommended(all, blas_, p, aligned, {p.rows}, kAskedToBeFast);
  }
  keep_id(all, id);

  std::vector<std::pair<double, Algorithm>> timed;
  double best_s = 1e9;
  for (const Algorithm& algorithm : all) {
    const Way way = way_of(stream, trial, trial.product, trial.product.rows, algorithm);
    if (!way(p, trial.added, trial.got)) continue;
    const double taken_s = seconds(stream, trial, way, 2 * best_s);
    best_s = std::min(best_s, taken_s);
    if (taken_s <= 2 * best_s) timed.emplace_back(taken_s, algorithm);
  }
  std::stable_sort(timed.begin(), timed.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  all.clear();
  for (const auto& [seconds, algorithm] : timed) all.push_back(algorithm);
  return all;
}

// The shortest of some calls, or of one that takes longer than that. What clears the caches hides
// how long a call takes.
double Algorithms::seconds(cudaStream_t stream, const Trial& trial, const Way& way,
                           double longest) const {
  HalfProduct p = trial.product;
  p.x = trial.x;
  CudaEvent begin, end;
  double least_s = 1e9;
  for (int i = 0; i < kTimed && (i == 0 || least_s < longest); ++i) {
    check_cuda(cudaMemsetAsync(trial.got, 0xff, kTried, stream), "clearing");
    begin.record(stream);
    if (!way(p, trial.added, trial.got)) return INFINITY;
    end.record(stream);
    end.synchronize();
    least_s = std::min(least_s, end.seconds_since(begin));
  }
  return least_s;
}

bool Algorithms::agrees(cudaStream_t stream, const Trial& trial, const Algorithm& algorithm) {
  return agrees(stream, trial, way_of(stream, trial, trial.product, trial.product.rows, algorithm));
}

// Whether the product's number of rows at a time gives every bit that is expected.
bool Algorithms::agrees(cudaStream_t stream, const Trial& trial, const Way& way) {
  check_cuda(cudaMemsetAsync(trial.got, 0xff, trial.bytes(), stream), "clearing");
  if (!fill(trial, trial.product, trial.product.rows, way, trial.got, 0)) return false;
  auto* const differing = reinterpret_cast<uint32_t*>(differing_.data());
  uint32_t count = 0;
  cuda::count_differing(stream, trial.expected, trial.got, trial.bytes(), differing);
  check_cuda(cudaMemcpyAsync(&count, differing, sizeof count, cudaMemcpyDeviceToHost, stream),
             "copying out");
  check_cuda(cudaStreamSynchronize(stream), "trying algorithms");
  return count == 0;
}

}  // namespace headrace
