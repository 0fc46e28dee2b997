// cuBLASLt and what of CUDA products call, on the CPU, with algorithms that a test makes up: each
// has its own order of sums, time, and products that it does not do.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace headrace::test {

struct FakeProduct {
  int64_t rows = 0, outputs = 0, inputs = 0;
  int32_t count = 1;
};

struct FakeAlgorithm {
  int32_t id = 0;
  double seconds = 1;  // of a call
  // How the products of a row are summed up.
  enum class Order { kUp, kDown, kBySizeOfBatch } order = Order::kUp;
  uint32_t aligned = 1;  // bytes, all addresses that it is given
  int32_t split_k = 1;
  std::function<bool(const FakeProduct&)> is_recommended = nullptr;  // null: where it works
  std::function<bool(const FakeProduct&)> works = nullptr;           // null: for all
};

// The kernel that reads low-bit weights as they are, and the one that expands them.
struct FakePacked {
  double seconds = 1, expanding_s = 1;
  FakeAlgorithm::Order order = FakeAlgorithm::Order::kUp;
  bool works = true;
  int calls = 0, expanded = 0;
};

// What the process's only cuBLASLt does; the first algorithm is recommended first.
struct FakeBlas {
  std::vector<FakeAlgorithm> algorithms;
  FakePacked packed;
  std::vector<size_t> calls;        // the algorithm of each product that was done
  std::vector<std::string> faults;  // what a GPU would have died of
};
FakeBlas& fake_blas();

}  // namespace headrace::test
