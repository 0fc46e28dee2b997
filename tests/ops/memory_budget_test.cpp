#include <gtest/gtest.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/memory/budget.h"
#include "engine/sanitizer.h"

namespace headrace {
namespace {

constexpr uint64_t kKiB = 1024, kMiB = kKiB * kKiB;

// The text of the DoesNotFit that the allocation ends with.
std::string refusal(MemoryBudget& budget, size_t bytes, const std::string& purpose) {
  try {
    budget.allocate(bytes, purpose);
  } catch (const DoesNotFit& e) {
    return e.what();
  }
  ADD_FAILURE() << bytes << " bytes were granted";
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(MemoryBudget, BuffersAreAlignedUsableAndCounted) {
  MemoryBudget budget("host memory", kMiB);
  Buffer buffer = budget.allocate(5000, "weights");
  ASSERT_NE(buffer.data(), nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 4096, 0u);
  EXPECT_EQ(buffer.size(), 8192u) << "whole pages";
  std::memset(buffer.data(), 0x5A, buffer.size());
  EXPECT_EQ(buffer.as<uint8_t>()[buffer.size() - 1], 0x5A);
  EXPECT_EQ(std::as_const(buffer).as<uint32_t>()[0], 0x5A5A5A5Au);
  EXPECT_EQ(budget.limit(), kMiB);
  EXPECT_EQ(budget.used(), 8192u);
  EXPECT_EQ(budget.available(), kMiB - 8192);
}

TEST(MemoryBudget, NothingIsFree) {
  MemoryBudget budget("host memory", kMiB);
  Buffer none = budget.allocate(0, "weights");
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(none.size(), 0u);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(MemoryBudget, TheLimitIsExact) {
  MemoryBudget budget("host memory", 3 * 4096);
  const Buffer two = budget.allocate(2 * 4096, "weights");
  EXPECT_THROW(budget.allocate(4097, "KV cache"), DoesNotFit);
  EXPECT_EQ(budget.used(), 2 * 4096u) << "a refusal counts nothing";
  const Buffer one = budget.allocate(4096, "KV cache");
  EXPECT_EQ(budget.available(), 0u);
  EXPECT_THROW(budget.allocate(1, "KV cache"), DoesNotFit);
  MemoryBudget odd("host memory", 4096 + 100);
  EXPECT_THROW(odd.allocate(4097, "weights"), DoesNotFit) << "counted as it is allocated";
  MemoryBudget nothing("host memory", 0);
  EXPECT_THROW(nothing.allocate(1, "weights"), DoesNotFit);
}

TEST(MemoryBudget, HugeSizesAreRefused) {
  MemoryBudget budget("host memory", kMiB);
  const size_t most = std::numeric_limits<size_t>::max();
  for (const size_t bytes : {most, most - 1, most - 4094, most - 4095, most / 2, size_t{1} << 40}) {
    EXPECT_THROW(budget.allocate(bytes, "weights"), DoesNotFit) << bytes;
  }
  EXPECT_EQ(budget.used(), 0u);
}

TEST(MemoryBudget, TheOperatingSystemsRefusalDoesNotFit) {
#if defined(HEADRACE_ASAN) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer's allocator aborts instead of refusing";
#endif
  MemoryBudget budget("host memory", std::numeric_limits<uint64_t>::max());
  const std::string text = refusal(budget, size_t{1} << 62, "KV cache");
  EXPECT_TRUE(contains(text, "KV cache")) << text;
  EXPECT_TRUE(contains(text, "--host-memory")) << text;
  EXPECT_EQ(budget.used(), 0u);
  EXPECT_EQ(budget.table(), "host memory: of " + format_bytes(budget.limit()));
  const std::string most = refusal(budget, std::numeric_limits<size_t>::max(), "KV cache");
  EXPECT_TRUE(contains(most, "KV cache")) << most;
}

#ifndef HEADRACE_ASAN  // which has its own heap

// Bytes of this process in memory.
int64_t resident() {
  int64_t all = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> all >> pages;
  return pages * ::sysconf(_SC_PAGESIZE);
}

// Of the mapping that holds an address: "rd wr mr ...".
std::string mapping_flags(const std::byte* address) {
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
      inside = begin <= wanted && wanted < end;
    } else if (inside && line.starts_with("VmFlags:")) {
      return line + " ";
    }
  }
  return "";
}

TEST(MemoryBudget, WhatIsFreedGoesBackToTheSystem) {
  MemoryBudget budget("host memory", 64 * kMiB);
  // malloc learns from it to keep what is smaller, as far as it is not at the end of its heap.
  { const Buffer gone = budget.allocate(16 * kMiB, "weights"); }
  Buffer large = budget.allocate(8 * kMiB, "weights");
  std::memset(large.data(), 1, large.size());
  const Buffer after = budget.allocate(4 * kMiB, "weights");
  const int64_t before = resident();
  large = Buffer();
  EXPECT_LT(resident(), before - int64_t{7 * kMiB});
}

TEST(MemoryBudget, LargeBuffersAskForHugePages) {
  if (::access("/sys/kernel/mm/transparent_hugepage", F_OK) != 0) {
    GTEST_SKIP() << "this kernel has no huge pages";
  }
  MemoryBudget budget("host memory", 64 * kMiB);
  const Buffer large = budget.allocate(2 * kMiB + 4096, "KV cache");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large.data()) % (2 * kMiB), 0u);
  EXPECT_TRUE(contains(mapping_flags(large.data()), " hg "));
  const Buffer small = budget.allocate(2 * kMiB - 4096, "KV cache");
  EXPECT_FALSE(contains(mapping_flags(small.data()), " hg "));
}

#endif

TEST(MemoryBudget, ARefusalShowsTheTable) {
  MemoryBudget budget("device memory", 10 * kMiB);
  const Buffer weights = budget.allocate(6 * kMiB, "weights");
  const Buffer cache = budget.allocate(2 * kMiB, "KV cache");
  { const Buffer gone = budget.allocate(kMiB, "activations"); }
  const std::string text = refusal(budget, 3 * kMiB, "logits");
  EXPECT_TRUE(contains(text, "device memory is too small: logits needs 3.0 MiB")) << text;
  EXPECT_TRUE(contains(text, "weights 6.0 MiB")) << text;
  EXPECT_TRUE(contains(text, "KV cache 2.0 MiB")) << text;
  EXPECT_TRUE(contains(text, "budget: 10.0 MiB")) << text;
  EXPECT_TRUE(contains(text, "11.0 MiB")) << "what would do: " << text;
  EXPECT_FALSE(contains(text, "activations")) << "no longer in use: " << text;
}

TEST(MemoryBudget, TableByPurpose) {
  MemoryBudget budget("host memory", 900 * kMiB);
  EXPECT_EQ(budget.table(), "host memory: of 900.0 MiB");
  std::vector<Buffer> buffers;
  buffers.push_back(budget.allocate(20 * kMiB, "weights"));
  buffers.push_back(budget.allocate(4096, "KV cache"));
  buffers.push_back(budget.allocate(5 * kMiB, "weights"));
  EXPECT_EQ(budget.table(), "host memory: KV cache 4.0 KiB, weights 25.0 MiB of 900.0 MiB");
  buffers.pop_back();
  EXPECT_EQ(budget.table(), "host memory: KV cache 4.0 KiB, weights 20.0 MiB of 900.0 MiB");
  buffers.erase(buffers.begin());
  EXPECT_EQ(budget.table(), "host memory: KV cache 4.0 KiB of 900.0 MiB");
  buffers.clear();
  EXPECT_EQ(budget.table(), "host memory: of 900.0 MiB");
  EXPECT_EQ(budget.used(), 0u);
}

TEST(MemoryBudget, BuffersMove) {
  MemoryBudget budget("host memory", kMiB);
  Buffer a = budget.allocate(4096, "weights");
  std::byte* const data = a.data();
  data[7] = std::byte{42};

  Buffer b = std::move(a);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT: a moved-from buffer is empty
  EXPECT_EQ(a.size(), 0u);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.data()[7], std::byte{42});
  EXPECT_EQ(budget.used(), 4096u);

  Buffer c = budget.allocate(8192, "KV cache");
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(b.data(), nullptr);
  EXPECT_EQ(budget.used(), 4096u) << "what was assigned over is given back at once";
  EXPECT_EQ(budget.table(), "host memory: weights 4.0 KiB of 1.0 MiB");

  Buffer& same = c;
  c = std::move(same);
  EXPECT_EQ(c.data(), data) << "moved onto itself";
  EXPECT_EQ(budget.used(), 4096u);

  c = Buffer();
  EXPECT_EQ(c.data(), nullptr);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(MemoryBudget, BuffersKeepTheirOwnBudget) {
  MemoryBudget host("host memory", kMiB), disk("disk", kMiB);
  Buffer a = host.allocate(4096, "weights");
  a = disk.allocate(8192, "KV cache");
  EXPECT_EQ(host.used(), 0u);
  EXPECT_EQ(disk.used(), 8192u);
}

TEST(MemoryBudget, AnyThread) {
  MemoryBudget budget("host memory", 64 * 4096);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&budget, t] {
      for (int i = 0; i < 2000; ++i) {
        const Buffer a = budget.allocate(4096, t % 2 ? "weights" : "KV cache");
        const Buffer b = budget.allocate(1, "activations");
        if (budget.used() > budget.limit()) ADD_FAILURE() << "over the limit";
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(budget.used(), 0u);
  EXPECT_EQ(budget.table(), "host memory: of 256.0 KiB");
}

TEST(FormatBytes, Units) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(9240 * kKiB), "9.0 MiB");
  EXPECT_EQ(format_bytes(1536 * kKiB), "1.5 MiB");
  EXPECT_EQ(format_bytes(97621606), "93.1 MiB");
  EXPECT_EQ(format_bytes(900 * kMiB), "900.0 MiB");
  EXPECT_EQ(format_bytes(10240 * kMiB), "10.0 GiB");
}

TEST(MemoryBudget, WhatIsSetAsideIsNotGivenOut) {
  MemoryBudget budget("host memory", 100 << 10);
  budget.set_aside(60 << 10, "tokenizer");
  EXPECT_EQ(budget.available(), 40u << 10);
  EXPECT_NE(budget.table().find("tokenizer 60.0 KiB"), std::string::npos) << budget.table();
  EXPECT_THROW(budget.allocate(41 << 10, "weights"), DoesNotFit);
  EXPECT_THROW(budget.set_aside(41 << 10, "trace"), DoesNotFit);
  EXPECT_EQ(budget.allocate(40 << 10, "weights").size(), 40u << 10);
}

}  // namespace
}  // namespace headrace
