#include "engine/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "engine/error.h"
#include "engine/sanitizer.h"

namespace headrace {
namespace {

// Addresses are limited here; of a machine's threads a test should not take the last.
TEST(ThreadPool, ThreadsThatCannotBeMadeAreAnError) {
#if defined(HEADRACE_ASAN) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take addresses for themselves";
#endif
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  const rlimit few{rlim_t{2} << 30, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &few), 0);
  std::string said;
  try {
    ThreadPool pool(5000);
  } catch (const ResourceMissing& e) {
    said = e.what();
  }
  setrlimit(RLIMIT_AS, &before);
  EXPECT_TRUE(said.starts_with("of 5000 compute threads only ")) << said;
  EXPECT_NE(said.find("--threads"), said.npos);
}

// Number of threads and microseconds that an idle worker spins.
class ThreadPoolTest : public testing::TestWithParam<std::tuple<int, int>> {
 protected:
  int threads() const { return std::get<0>(GetParam()); }
  int spin_us() const { return std::get<1>(GetParam()); }
};

TEST_P(ThreadPoolTest, EveryItemOnce) {
  ThreadPool pool(threads(), spin_us());
  EXPECT_EQ(pool.threads(), threads());
  for (const int64_t count : {0, 1, 2, 3, 7, 1000, 100000}) {
    std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
    pool.parallel_for(count, [&](int64_t i) { ++calls.at(static_cast<size_t>(i)); });
    for (const auto& n : calls) ASSERT_EQ(n, 1);
  }
  pool.parallel_for(-5, [](int64_t) { FAIL() << "there is no item"; });
}

// What the items wrote without atomics is there when the loop returns.
TEST_P(ThreadPoolTest, ResultsAreVisibleAfterwards) {
  ThreadPool pool(threads(), spin_us());
  std::vector<int64_t> values(257);
  for (int64_t loop = 0; loop < 500; ++loop) {
    pool.parallel_for(257, [&](int64_t i) { values[static_cast<size_t>(i)] += loop + i; });
  }
  for (int64_t i = 0; i < 257; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 124750 + 500 * i);
}

TEST_P(ThreadPoolTest, AllThreadsTakePart) {
  ThreadPool pool(threads(), spin_us());
  std::atomic<int> waiting = 0;
  // Each item waits until as many are being worked on as there are threads.
  pool.parallel_for(threads(), [&](int64_t) {
    ++waiting;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (waiting < threads() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  });
  EXPECT_EQ(waiting, threads());
}

TEST_P(ThreadPoolTest, ExceptionsPropagateAndThePoolSurvives) {
  ThreadPool pool(threads(), spin_us());
  for (int round = 0; round < 300; ++round) {
    const int64_t bad = round % 10;
    std::atomic<int64_t> done = 0;
    try {
      pool.parallel_for(10, [&](int64_t i) {
        if (i == bad) throw std::runtime_error("item " + std::to_string(i));
        ++done;
      });
      FAIL() << "the exception got lost";
    } catch (const std::runtime_error& e) {
      EXPECT_EQ(e.what(), "item " + std::to_string(bad));
    }
    EXPECT_GE(done, bad) << "items before the bad one were begun";
    EXPECT_LE(done, 9);
    std::atomic<int64_t> sum = 0;
    pool.parallel_for(10, [&](int64_t i) { sum += i; });
    ASSERT_EQ(sum, 45) << "after the exception";
  }
}

TEST_P(ThreadPoolTest, OneOfSeveralExceptionsArrives) {
  ThreadPool pool(threads(), spin_us());
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> thrown = 0;
    EXPECT_THROW(pool.parallel_for(50,
                                   [&](int64_t i) {
                                     ++thrown;
                                     throw i;
                                   }),
                 int64_t);
    EXPECT_GE(thrown, 1);
    EXPECT_LE(thrown, threads()) << "later items are skipped";
  }
}

// Loops so short that workers are still on their way out, or in, when the next one begins.
TEST_P(ThreadPoolTest, ShortLoopsBackToBack) {
  constexpr int64_t kLoops = 200000;
  ThreadPool pool(threads(), spin_us());
  std::vector<int64_t> calls(5);
  int64_t expected = 0;
  std::atomic<int64_t> total = 0;
  for (int64_t loop = 0; loop < kLoops; ++loop) {
    const int64_t count = 2 + loop % 4;
    pool.parallel_for(count, [&](int64_t i) {
      ++calls[static_cast<size_t>(i)];
      total.fetch_add(1, std::memory_order_relaxed);
    });
    expected += count;
    ASSERT_EQ(total.load(std::memory_order_relaxed), expected) << "loop " << loop;
  }
  EXPECT_EQ(calls, (std::vector<int64_t>{kLoops, kLoops, kLoops * 3 / 4, kLoops / 2, kLoops / 4}));
}

TEST_P(ThreadPoolTest, DestructionWhileIdle) {
  for (int round = 0; round < 200; ++round) {
    ThreadPool unused(threads(), spin_us());
    ThreadPool pool(threads(), spin_us());
    std::atomic<int> calls = 0;
    for (int loop = 0; loop < round % 3; ++loop) pool.parallel_for(8, [&](int64_t) { ++calls; });
    // Long enough for the workers to sleep, in some rounds.
    if (round % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_EQ(calls, 8 * (round % 3));
  }
}

INSTANTIATE_TEST_SUITE_P(, ThreadPoolTest,
                         testing::Combine(testing::Values(1, 2, 3, 4), testing::Values(0, 50)),
                         [](const auto& test) {
                           return std::to_string(std::get<0>(test.param)) + "_threads_spin_" +
                                  std::to_string(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace headrace
