// Which sequences the coordinator puts into which step.
#include "runtime/schedule/coordinator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>

#include "runtime/schedule/stream_key.h"
#include "tests/unit/coordinator_bench.h"

namespace headrace {
namespace {

using test::Bench;
using test::expect_right;
using test::hashed_token;
using test::limits_of;
using test::request;
using test::requests_of;

TEST(Coordinator, AnEmptyInputIsFinishedAtOnce) {
  Bench bench(limits_of(4, 2), {});
  EXPECT_TRUE(bench.coordinator.unfinished()) << "the input has not been looked at yet";
  EXPECT_TRUE(bench.coordinator.finished());
  EXPECT_FALSE(bench.coordinator.unfinished());
  EXPECT_FALSE(bench.coordinator.next_step());
}

TEST(Coordinator, GeneratesWhatARequestAsksFor) {
  Bench bench(limits_of(4, 1), {request("a", 5, 7), request("b", 1, 1), request("c", 40, 3, 3)});
  ASSERT_TRUE(bench.run());
  for (const PreparedRequest& r : bench.requests) {
    expect_right(r, bench.done.at(r.request.custom_id), {});
  }
  EXPECT_EQ(bench.coordinator.counts().requests_done, 3);
  EXPECT_EQ(bench.coordinator.counts().prompt_tokens, 5 + 1 + 3 * 40);
  EXPECT_EQ(bench.coordinator.counts().generated_tokens, 7 + 1 + 3 * 3);
  EXPECT_EQ(bench.coordinator.counts().active, 0);
}

TEST(Coordinator, AFreedSlotIsUsedInTheNextStep) {
  // Two slots, one group: a is done after its first token, so c must be in the second step.
  Bench bench(limits_of(2, 1), {request("a", 3, 1), request("b", 3, 9), request("c", 3, 2)});
  ASSERT_EQ(bench.form_all().size(), 1u);
  bench.answer_one();
  const std::vector<StepMessage> second = bench.form_all();
  ASSERT_EQ(second.size(), 1u);
  ASSERT_EQ(second[0].changes.size(), 1u);
  EXPECT_EQ(second[0].changes[0].from, -1);
  ASSERT_EQ(second[0].admissions.size(), 1u);
  EXPECT_EQ(second[0].admissions[0].stream, stream_key("c", 0));
  EXPECT_EQ(second[0].admissions[0].slot, second[0].changes[0].slot);
  EXPECT_EQ(second[0].items.size(), 2u);
  EXPECT_TRUE(bench.run());
}

TEST(Coordinator, SlotsStayFullWhileRequestsWait) {
  Bench bench(limits_of(6, 2), requests_of(60, 4, 5));
  while (bench.done.size() < 50 && !testing::Test::HasFailure()) {
    bench.form_all();
    EXPECT_EQ(bench.coordinator.counts().active, 6);
    bench.answer_one();
  }
  EXPECT_TRUE(bench.run());
  EXPECT_EQ(bench.done.size(), 60u);
}

TEST(Coordinator, LongestFirstOrInputOrder) {
  const std::vector<PreparedRequest> all = {request("short", 2, 3), request("long", 20, 30),
                                            request("equal", 3, 2), request("middle", 10, 10)};
  const auto admitted = [&](Order order) {
    ScheduleLimits limits = limits_of(1, 1);
    limits.order = order;
    Bench bench(limits, all);
    EXPECT_TRUE(bench.run());
    return bench.order_done;
  };
  EXPECT_EQ(admitted(Order::kInput),
            (std::vector<std::string>{"short", "long", "equal", "middle"}));
  EXPECT_EQ(admitted(Order::kLongestFirst),
            (std::vector<std::string>{"long", "middle", "short", "equal"}));
}

TEST(Coordinator, NoGroupStaysEmptyAndSharesAreEven) {
  for (int groups = 1; groups <= 5; ++groups) {
    for (int sequences = groups; sequences <= 3 * groups + 2; ++sequences) {
      Bench bench(limits_of(sequences, groups), requests_of(sequences, 3, 40));
      for (int turn = 0; turn < 20 * groups; ++turn) {
        for (const StepMessage& step : bench.form_all()) {
          const auto items = static_cast<int>(step.items.size());
          EXPECT_GE(items, sequences / groups) << sequences << " in " << groups << " groups";
          EXPECT_LE(items, (sequences + groups - 1) / groups);
        }
        ASSERT_EQ(bench.pipeline.under_way(), groups) << sequences << " sequences";
        bench.answer_one();
      }
    }
  }
}

// Groups that became uneven, because sequences of one of them ended, become even again.
TEST(Coordinator, SharesEvenOutAgain) {
  std::vector<PreparedRequest> all = requests_of(8, 3, 200);
  all[0].request.max_tokens = all[1].request.max_tokens = 1;  // one group empties at once
  Bench bench(limits_of(8, 4), all);
  for (int turn = 0; turn < 20; ++turn) {
    bench.form_all();
    bench.answer_one();
  }
  for (int turn = 0; turn < 40; ++turn) {
    for (const StepMessage& step : bench.form_all()) EXPECT_LE(step.items.size(), 2u);
    ASSERT_EQ(bench.pipeline.under_way(), 4);
    bench.answer_one();
  }
}

TEST(Coordinator, PromptsAreFedInChunksBesideDecodingWithinTheRowLimit) {
  ScheduleLimits limits = limits_of(4, 1);
  limits.step_rows = 17;  // two chunks and one decoding sequence, but there are two
  limits.prefill_chunk = 8;
  Bench bench(limits,
              {request("a", 2, 30), request("b", 3, 30), request("c", 50, 5), request("d", 30, 5)});
  int mixed = 0;
  for (int turn = 0; turn < 10; ++turn) {
    const std::vector<StepMessage> steps = bench.form_all();
    ASSERT_EQ(steps.size(), 1u);
    const StepMessage& step = steps[0];
    EXPECT_LE(step.rows(), 17);
    int decoding = 0, chunks = 0;
    for (const StepItem& item : step.items) item.rows == 1 ? ++decoding : ++chunks;
    if (turn > 0) {
      EXPECT_GE(decoding, 2) << "decoding must go on beside the prompts";
    }
    mixed += decoding > 0 && chunks > 0;
    bench.answer_one();
  }
  EXPECT_GE(mixed, 5);
  EXPECT_TRUE(bench.run());
  for (const PreparedRequest& r : bench.requests) {
    expect_right(r, bench.done.at(r.request.custom_id), {});
  }
}

TEST(Coordinator, MoreSequencesThanAStepHasRowsTakeTurns) {
  ScheduleLimits limits = limits_of(30, 1);
  limits.step_rows = 4;
  limits.prefill_chunk = 4;
  Bench bench(limits, requests_of(40, 6, 5));
  ASSERT_TRUE(bench.run());
  EXPECT_EQ(bench.done.size(), 40u);
}

TEST(Coordinator, WhoHasWaitedLongestGoesFirst) {
  ScheduleLimits limits = limits_of(10, 1);
  limits.step_rows = 3;
  Bench bench(limits, requests_of(10, 1, 30));
  std::map<int32_t, uint64_t> last_step;
  for (int turn = 0; turn < 60; ++turn) {
    for (const StepMessage& step : bench.form_all()) {
      for (const StepItem& item : step.items) last_step[item.slot] = step.step;
      for (const auto& [slot, last] : last_step) {
        EXPECT_LE(step.step - last, 4u) << "slot " << slot << " was passed over";
      }
    }
    bench.answer_one();
  }
  EXPECT_EQ(last_step.size(), 10u);
}

TEST(Coordinator, InputThatComesSlowlyHoldsNothingUp) {
  Bench bench(limits_of(4, 1), requests_of(3, 2, 5));
  bench.held_back = 0;
  EXPECT_TRUE(bench.form_all().empty());
  EXPECT_TRUE(bench.asked_idle);
  EXPECT_FALSE(bench.coordinator.finished());

  bench.held_back = 1;
  while (bench.done.size() < 1) {
    ASSERT_EQ(bench.form_all().size(), 1u);
    bench.answer_one();
  }
  EXPECT_FALSE(bench.coordinator.finished());
  EXPECT_TRUE(bench.coordinator.unfinished());

  bench.held_back = 2;
  ASSERT_EQ(bench.form_all().size(), 1u);
  bench.answer_one();
  EXPECT_FALSE(bench.form_all().empty());
  EXPECT_FALSE(bench.asked_idle);
  bench.held_back = SIZE_MAX;
  while (!bench.coordinator.finished()) {
    if (bench.coordinator.steps_under_way()) bench.answer_one();
    bench.form_all();
  }
  EXPECT_EQ(bench.done.size(), 3u);
}

TEST(Coordinator, KvPagesAreNeverOverbooked) {
  ScheduleLimits limits = limits_of(16, 3);
  limits.kv_pages = 9;
  std::vector<PreparedRequest> all;
  for (int i = 0; i < 200; ++i) {
    all.push_back(request("r" + std::to_string(i), 1 + i * 7 % 60, 1 + i * 5 % 40));
  }
  for (const Order order : {Order::kInput, Order::kLongestFirst}) {
    limits.order = order;
    Bench bench(limits, all);  // the pipeline's KvStore throws if a page is missing
    ASSERT_TRUE(bench.run());
    EXPECT_EQ(bench.done.size(), 200u);
    EXPECT_LE(bench.pipeline.least_free_pages(), 2) << "the cache was never nearly full";
  }
}

TEST(Coordinator, ARequestAsLargeAsTheWholeCacheIsServed) {
  ScheduleLimits limits = limits_of(4, 2);
  limits.kv_pages = 5;
  Bench bench(limits, {request("small", 3, 4), request("whole", 40, 40), request("last", 3, 4)});
  ASSERT_TRUE(bench.run());
  EXPECT_EQ(bench.done.size(), 3u);
}

TEST(Coordinator, StopDrainsWhatIsUnderWay) {
  Bench bench(limits_of(6, 3), requests_of(50, 4, 5));
  for (int turn = 0; turn < 20; ++turn) {
    bench.form_all();
    bench.answer_one();
  }
  bench.form_all();
  const size_t before = bench.done.size();
  EXPECT_EQ(bench.pipeline.under_way(), 3);
  bench.coordinator.stop();
  EXPECT_FALSE(bench.coordinator.finished());
  while (bench.pipeline.under_way() > 0) {
    EXPECT_FALSE(bench.coordinator.next_step());
    bench.answer_one();
  }
  EXPECT_TRUE(bench.coordinator.finished());
  EXPECT_TRUE(bench.coordinator.unfinished());
  EXPECT_FALSE(bench.coordinator.next_step());
  EXPECT_GE(bench.done.size(), before);
  EXPECT_LT(bench.done.size(), 50u);
  for (const auto& [id, result] : bench.done) {
    expect_right(bench.requests[std::stoul(id.substr(1))], result, {});
  }
}

TEST(Coordinator, AResultOutOfOrderIsAnErrorOfTheProgram) {
  Bench bench(limits_of(2, 2), requests_of(2, 3, 3));
  ASSERT_EQ(bench.form_all().size(), 2u);
  bench.pipeline.answer();
  EXPECT_THROW(bench.coordinator.accept(bench.pipeline.answer()), std::logic_error);
}

// Bytes bound it, too, but one request is always read, and all are served.
TEST(Coordinator, LongPromptsAreReadAheadAsFarAsMemoryAllows) {
  for (const int prompt : {10, 5000}) {
    ScheduleLimits limits = limits_of(2, 1);
    limits.window_bytes = 100000;
    limits.step_rows = 100000;
    limits.prefill_chunk = 100000;
    std::vector<PreparedRequest> all;
    for (int i = 0; i < 60; ++i) all.push_back(request("r" + std::to_string(i), prompt, 1));
    all.push_back(request("more than all of it", 30000, 1, 3));
    for (int i = 0; i < 10; ++i) all.push_back(request("s" + std::to_string(i), prompt, 1));
    Bench bench(limits, all);
    size_t most = 0;
    while (!bench.coordinator.finished() && !testing::Test::HasFailure()) {
      bench.form_all();
      most = std::max(most, bench.fed - bench.done.size());
      if (bench.pipeline.under_way() > 0) bench.answer_one();
    }
    EXPECT_EQ(bench.done.size(), 71u);
    // 20,000 bytes a prompt, and a little more: five wait, and two are in their slots.
    if (prompt == 5000) {
      EXPECT_LE(most, 8u);
    } else {
      EXPECT_GT(most, 40u);
    }
  }
}

TEST(Coordinator, TheWindowBoundsWhatIsReadAhead) {
  ScheduleLimits limits = limits_of(5, 2);
  limits.window = 20;
  limits.order = Order::kLongestFirst;
  std::vector<PreparedRequest> all;
  for (int i = 0; i < 500; ++i) {
    all.push_back(request("r" + std::to_string(i), 1 + i % 50, 1 + i % 7));
  }
  Bench bench(limits, all);
  size_t most = 0;
  while (!bench.coordinator.finished() && !testing::Test::HasFailure()) {
    bench.form_all();
    const size_t waiting = bench.fed - bench.pipeline.admitted().size();
    EXPECT_LE(waiting, 20u);
    most = std::max(most, waiting);
    if (bench.pipeline.under_way() > 0) bench.answer_one();
  }
  EXPECT_GE(most, 15u);
  EXPECT_EQ(bench.done.size(), 500u);
}

// Everything at once: random requests under random limits, answers at random moments.
TEST(Coordinator, TenThousandRandomRequestsAreEachDoneOnceAndRight) {
  std::mt19937_64 random(99);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  int served = 0, rounds = 0;
  while (served < 10000) {
    ScheduleLimits limits;
    limits.groups = 1 + below(5);
    limits.slots = limits.groups + below(40);
    limits.kv_pages = 8 + below(100);
    limits.step_rows = 1 + below(rounds % 2 ? 600 : 40);
    limits.prefill_chunk = 1 + below(static_cast<int>(limits.step_rows));
    limits.order = below(2) ? Order::kInput : Order::kLongestFirst;
    limits.window = 1 + below(100);
    std::vector<PreparedRequest> all;
    for (int i = 0; i < 500; ++i) {
      const std::string id = std::to_string(rounds) + "." + std::to_string(i);
      // At most 8 pages.
      all.push_back(request(id, 1 + below(80), 1 + below(48), below(10) ? 1 : 1 + below(4)));
      all.back().request.ignore_eos = below(3) == 0;
      if (below(4) == 0) all.back().request.sampling.top_logprobs = below(5);
    }
    const std::vector<int> eos = {13, 77};
    Bench bench(limits, all, hashed_token, eos);
    while (!bench.coordinator.finished()) {
      // An answer may come before every group is under way.
      for (int formed = 0; formed < 1 + below(limits.groups); ++formed) {
        const std::optional<StepMessage> step = bench.coordinator.next_step();
        if (!step) break;
        bench.pipeline.take(*step);
      }
      if (HasFatalFailure()) FAIL() << "round " << rounds;
      if (bench.pipeline.under_way() > 0) bench.answer_one();
    }
    ASSERT_EQ(bench.done.size(), all.size());
    EXPECT_TRUE(bench.failed.empty());
    for (const PreparedRequest& r : all) {
      expect_right(r, bench.done.at(r.request.custom_id), eos);
      if (HasFatalFailure()) FAIL() << "round " << rounds;
    }
    EXPECT_EQ(bench.coordinator.counts().active, 0);
    EXPECT_EQ(bench.coordinator.counts().requests_done, std::ssize(all));
    served += static_cast<int>(all.size());
    ++rounds;
  }
}

}  // namespace
}  // namespace headrace
