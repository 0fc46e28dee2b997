// A block of GPU threads on the CPU, for block programs (engine/ops/cuda/row_blocks.h): threads of
// a phase run one after the other, in another order each time, so that a program which counts on an
// order, or on a phase that it lacks, gives other results. Memory is poisoned and guarded.
// What all threads do between phases runs once, so a phase that is missing after such a read is not
// seen.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace headrace {

class HostBlock {
 public:
  HostBlock(int threads, uint64_t seed) : random_(seed), order_(static_cast<size_t>(threads)) {
    std::iota(order_.begin(), order_.end(), 0);
  }
  ~HostBlock() {
    for (const auto& memory : shared_) {
      for (size_t i = memory.size() - kGuard; i < memory.size(); ++i) {
        EXPECT_EQ(memory[i], kPoison) << "written past the end of shared memory";
      }
    }
  }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  int threads() const { return static_cast<int>(order_.size()); }

  template <typename F>
  void each_thread(F&& f) {
    std::shuffle(order_.begin(), order_.end(), random_);
    for (const int t : order_) f(t);
  }

  template <typename T>
  T* shared(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    shared_.emplace_back(bytes + kGuard, kPoison);
    taken_ += bytes;
    return reinterpret_cast<T*>(shared_.back().data());
  }
  size_t shared_bytes() const { return taken_; }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kPoison = 0xFF;  // NaN

  std::mt19937_64 random_;
  std::vector<int> order_;
  std::vector<std::vector<unsigned char>> shared_;
  size_t taken_ = 0;
};

}  // namespace headrace
