// A block of a GPU's threads on the CPU, for kernels that are written with the instructions of
// engine/ops/cuda/warp_instructions.cuh: comes before them. Threads are fibers that change over in
// random order where they wait for others; copies to shared memory are done when they are waited
// for, or at any time before; shared memory begins as NaN. Who does not wait for what it needs
// reads something else.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "engine/half.h"

#define __device__

namespace headrace::cuda {

struct Dim {
  unsigned x = 0, y = 0, z = 0;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
class Block;
inline Dim threadIdx, blockIdx;
inline Block* running = nullptr;

class Block {
 public:
  static constexpr int kWarp = 32;

  Block(int threads, size_t shared_bytes, uint64_t seed)
      : random_(seed), shared_((shared_bytes + 15) / 16), fibers_(static_cast<size_t>(threads)) {
    std::memset(shared_.data(), 0xFF, shared_.size() * sizeof(uint4));
    warps_.resize(fibers_.size() / kWarp);
  }

  // Runs the function on every thread. Throws std::logic_error if some wait for ever.
  void run(Dim index, const std::function<void(char* shared)>& body) {
    body_ = &body;
    blockIdx = index;
    running = this;
    for (size_t i = 0; i < fibers_.size(); ++i) start(i);
    for (size_t left = fibers_.size(); left > 0;) {
      const size_t next = choose();
      current_ = next;
      threadIdx = {static_cast<unsigned>(next)};
      swapcontext(&main_, &fibers_[next].context);
      if (fibers_[next].done) --left;
    }
    running = nullptr;
  }

  void wait_for_block() {
    if (++arrived_ == fibers_.size()) {
      arrived_ = 0;
      ++generation_;
      return;
    }
    wait_on(generation_);
  }

  // The last of a warp to come does it for all, with what each has brought.
  template <typename T>
  void together(T& mine, const std::function<void(T* (&all)[kWarp])>& work) {
    Warp& warp = warps_[current_ / kWarp];
    warp.brought[current_ % kWarp] = &mine;
    if (++warp.arrived < kWarp) return wait_on(warp.generation);
    T* all[kWarp];
    for (int i = 0; i < kWarp; ++i) all[i] = static_cast<T*>(warp.brought[i]);
    work(all);
    warp.arrived = 0;
    ++warp.generation;
  }

  void copy(char* to, const std::byte* from) {
    groups().back().push_back({to, from});
    if (random_() % 8 == 0) finish(groups().back());
  }
  void end_copies() { groups().emplace_back(); }
  // The last `but` groups, and the one that has not ended, may be late.
  void wait_for_copies(size_t but) {
    auto& all = groups();
    for (size_t i = 0; i + 1 + but < all.size(); ++i) finish(all[i]);
  }

 private:
  struct Copy {
    char* to;
    const std::byte* from;
  };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    const uint64_t* watched = nullptr;  // waits until this has changed
    uint64_t seen = 0;
    bool done = false;
    std::vector<std::vector<Copy>> copies;
  };
  struct Warp {
    void* brought[kWarp] = {};
    int arrived = 0;
    uint64_t generation = 0;
  };
  static constexpr size_t kStack = 64 << 10;

  std::vector<std::vector<Copy>>& groups() { return fibers_[current_].copies; }
  static void finish(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, 16);
    copies.clear();
  }

  void start(size_t i) {
    Fiber& fiber = fibers_[i];
    fiber.done = false;
    fiber.watched = nullptr;
    fiber.copies.assign(1, {});
    if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &main_;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::body), 0);
  }

  static void body() {
    Block& here = *running;
    (*here.body_)(reinterpret_cast<char*>(here.shared_.data()));
    here.fibers_[here.current_].done = true;
  }

  void wait_on(const uint64_t& generation) {
    Fiber& fiber = fibers_[current_];
    const size_t me = current_;
    fiber.watched = &generation;
    fiber.seen = generation;
    swapcontext(&fiber.context, &main_);
    fibers_[me].watched = nullptr;
  }

  size_t choose() {
    const size_t first = random_() % fibers_.size();
    for (size_t i = 0; i < fibers_.size(); ++i) {
      const size_t at = (first + i) % fibers_.size();
      const Fiber& fiber = fibers_[at];
      if (!fiber.done && (!fiber.watched || *fiber.watched != fiber.seen)) return at;
    }
    throw std::logic_error("threads of a block wait for ever");
  }

  std::mt19937_64 random_;
  std::vector<uint4> shared_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  ucontext_t main_;
  const std::function<void(char*)>* body_ = nullptr;
  size_t current_ = 0, arrived_ = 0;
  uint64_t generation_ = 0;
};

template <typename T>
T min(T a, T b) {
  return std::min(a, b);
}
template <typename T>
T max(T a, T b) {
  return std::max(a, b);
}
using std::fmaxf;

inline void __syncthreads() { running->wait_for_block(); }
inline void __syncwarp() {
  int nothing = 0;
  running->together<int>(nothing, [](auto&) {});
}

// `from`: the lane that each lane reads.
template <typename T, typename From>
T exchanged(T value, From from) {
  struct Lane {
    T value, result;
  } mine{value, value};
  running->together<Lane>(mine, [&](auto& all) {
    for (int i = 0; i < Block::kWarp; ++i) all[i]->result = all[from(i)]->value;
  });
  return mine.result;
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return exchanged(value, [mask](int lane) { return lane ^ mask; });
}
// Each lane names its own source.
template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  struct Lane {
    T value;
    int source;
    T result;
  } mine{value, source, value};
  running->together<Lane>(mine, [](auto& all) {
    for (Lane* lane : all) lane->result = all[lane->source]->value;
  });
  return mine.result;
}
inline bool __any_sync(unsigned, bool value) {
  struct Lane {
    bool value, result;
  } mine{value, false};
  running->together<Lane>(mine, [](auto& all) {
    const bool any = std::any_of(std::begin(all), std::end(all), [](Lane* l) { return l->value; });
    for (Lane* lane : all) lane->result = any;
  });
  return mine.result;
}

// ---- what warp_instructions.cuh has ----

inline void copy_16(char* to, const std::byte* from, bool is_there) {
  static constexpr std::byte kZeros[16] = {};
  running->copy(to, is_there ? from : kZeros);
}
inline void wait_for_block() { running->wait_for_block(); }
inline void end_copies() { running->end_copies(); }
template <int kBut>
void wait_for_copies() {
  running->wait_for_copies(kBut);
}

inline float exp2_of(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline uint32_t pack(float low, float high) {
  return f32_to_f16(low) | static_cast<uint32_t>(f32_to_f16(high)) << 16;
}

inline uint32_t pack_saturated(float low, float high) {
  return to_half(low).bits | static_cast<uint32_t>(to_half(high).bits) << 16;
}

inline float2 unpack(uint32_t both) {
  return {f16_to_f32(static_cast<uint16_t>(both)), f16_to_f32(static_cast<uint16_t>(both >> 16))};
}

// Rows of four 8 x 8 matrices: those of matrix m are the ones that lanes 8m to 8m + 7 point to.
struct MatrixLane {
  const char* row;
  uint32_t to[4];
};
inline uint16_t matrix_element(MatrixLane* const (&all)[Block::kWarp], int matrix, int row,
                               int column) {
  uint16_t element;
  std::memcpy(&element, all[matrix * 8 + row]->row + column * 2, sizeof element);
  return element;
}
inline void load_matrices(MatrixLane& mine, bool turned) {
  running->together<MatrixLane>(mine, [turned](auto& all) {
    for (int lane = 0; lane < Block::kWarp; ++lane) {
      for (int m = 0; m < 4; ++m) {
        const int a = lane / 4, b = lane % 4 * 2;
        const uint16_t low = turned ? matrix_element(all, m, b, a) : matrix_element(all, m, a, b),
                       high = turned ? matrix_element(all, m, b + 1, a)
                                     : matrix_element(all, m, a, b + 1);
        all[lane]->to[m] = low | static_cast<uint32_t>(high) << 16;
      }
    }
  });
}
inline void load_turned(uint32_t (&to)[4], const char* row) {
  MatrixLane mine{row, {}};
  load_matrices(mine, true);
  std::copy_n(mine.to, 4, to);
}
inline uint4 load_straight(const char* row) {
  MatrixLane mine{row, {}};
  load_matrices(mine, false);
  return {mine.to[0], mine.to[1], mine.to[2], mine.to[3]};
}

// As PTX lays out m16n8k16: a lane has rows g = lane / 4 and g + 8, columns 2t and 2t + 1, t = lane
// % 4, of each 8 x 8 part.
inline void multiply_add(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  struct Lane {
    float* c;
    uint32_t a[4], b[2];
  } mine{c, {a.x, a.y, a.z, a.w}, {b0, b1}};
  running->together<Lane>(mine, [](auto& all) {
    float left[16][16], right[16][8];
    const auto of = [](uint32_t pair, int i) {
      return f16_to_f32(static_cast<uint16_t>(pair >> (16 * i)));
    };
    for (int lane = 0; lane < Block::kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4 * 2;
      for (int i = 0; i < 2; ++i) {
        left[g][t + i] = of(all[lane]->a[0], i);
        left[g + 8][t + i] = of(all[lane]->a[1], i);
        left[g][t + 8 + i] = of(all[lane]->a[2], i);
        left[g + 8][t + 8 + i] = of(all[lane]->a[3], i);
        right[t + i][g] = of(all[lane]->b[0], i);
        right[t + 8 + i][g] = of(all[lane]->b[1], i);
      }
    }
    for (int lane = 0; lane < Block::kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = all[lane]->c[i];
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
        all[lane]->c[i] = sum;
      }
    }
  });
}

}  // namespace headrace::cuda
