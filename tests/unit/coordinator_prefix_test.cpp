// Which sequences take KV pages over from others, and when. The pipeline checks that what they take
// over is what they would have computed, and that no page is wanting.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "runtime/schedule/coordinator.h"
#include "tests/unit/coordinator_bench.h"

namespace headrace {
namespace {

using test::Bench;
using test::expect_right;
using test::FakeModel;
using test::hashed_token;
using test::limits_of;
using test::requests_of;

ScheduleLimits sharing(ScheduleLimits limits) {
  limits.shares_prefixes = true;
  limits.kept_slots = 8;
  return limits;
}

// The first `common` tokens are those of all prompts with this prefix; the others are its own.
PreparedRequest prefixed(const std::string& id, int prefix, int common, int own, int max_tokens,
                         int n = 1) {
  PreparedRequest made;
  made.request.custom_id = id;
  made.request.max_tokens = max_tokens;
  made.request.n = n;
  const auto number = static_cast<int>(std::hash<std::string>{}(id) % 1000000);
  for (int i = 0; i < common; ++i) made.prompt.push_back(prefix * 1000 + i);
  for (int i = 0; i < own; ++i) made.prompt.push_back(100000 + number * 1000 + i);
  return made;
}

int64_t prompt_tokens(const std::vector<PreparedRequest>& requests) {
  int64_t tokens = 0;
  for (const PreparedRequest& r : requests) tokens += r.request.n * std::ssize(r.prompt);
  return tokens;
}

// Runs to the end; everything must be right and counted. Returns how many tokens of prompts were
// computed.
int64_t computed(Bench& bench) {
  EXPECT_TRUE(bench.run());
  EXPECT_EQ(bench.done.size() + bench.failed.size(), bench.requests.size());
  for (const auto& [id, result] : bench.done) {
    const auto asked = std::ranges::find_if(
        bench.requests, [&](const PreparedRequest& r) { return r.request.custom_id == id; });
    expect_right(*asked, result, {});
  }
  const ScheduleCounts& counts = bench.coordinator.counts();
  EXPECT_EQ(counts.prompt_tokens - counts.shared_tokens, bench.pipeline.prompt_rows());
  EXPECT_EQ(counts.active, 0);
  return bench.pipeline.prompt_rows();
}

TEST(Prefixes, SamplesOfAPromptShareIt) {
  for (const int slots : {1, 2, 3, 16}) {
    for (int groups = 1; groups <= std::min(slots, 3); ++groups) {
      SCOPED_TRACE(std::to_string(slots) + " slots, " + std::to_string(groups) + " groups");
      Bench bench(sharing(limits_of(slots, groups)), {prefixed("a", 1, 100, 0, 7, 5)});
      EXPECT_EQ(computed(bench), 100 + 4 * (100 - 96));
      EXPECT_EQ(bench.coordinator.counts().prompt_tokens, 500);
    }
  }
}

// The token after which the first new one comes is always computed.
TEST(Prefixes, AWholeNumberOfPagesIsNotSharedToItsEnd) {
  Bench bench(sharing(limits_of(2, 1)), {prefixed("a", 1, 96, 0, 3, 2)});
  EXPECT_EQ(computed(bench), 96 + 16);
}

TEST(Prefixes, WhatPromptsHaveInCommonIsComputedOnce) {
  for (const int slots : {1, 2, 5, 16, 40}) {
    for (const int groups : {1, 2, 3}) {
      if (groups > slots) continue;
      for (const Order order : {Order::kInput, Order::kLongestFirst}) {
        SCOPED_TRACE(std::to_string(slots) + " slots, " + std::to_string(groups) + " groups");
        ScheduleLimits limits = sharing(limits_of(slots, groups));
        limits.order = order;
        std::vector<PreparedRequest> all;
        for (int i = 0; i < 30; ++i) {
          all.push_back(
              prefixed("r" + std::to_string(i), i % 3, 80 + i % 3, 5 + i % 30, 1 + i % 9));
        }
        Bench bench(limits, all);
        EXPECT_EQ(computed(bench), prompt_tokens(all) - 27 * 80);
        // In chunks, who comes when all but a page is there may compute that.
        limits.prefill_chunk = 24;
        limits.step_rows = 64;
        Bench in_chunks(limits, all);
        EXPECT_LE(computed(in_chunks), prompt_tokens(all) - 27 * 64);
      }
    }
  }
}

// A prefix within a prefix: few-shot examples after a system prompt.
TEST(Prefixes, APrefixOfAPrefixIsComputedOnce) {
  std::vector<PreparedRequest> all;
  for (int i = 0; i < 12; ++i) {
    all.push_back(prefixed("r" + std::to_string(i), 1, 64, 0, 4));
    for (int t = 0; t < 64; ++t) all.back().prompt.push_back(5000 + i % 2 * 100 + t);
    all.back().prompt.push_back(7000 + i);
  }
  Bench bench(sharing(limits_of(12, 2)), all);
  EXPECT_EQ(computed(bench), 64 + 2 * 64 + 12);
}

TEST(Prefixes, OthersGoOnWhileSomeWaitForAPrefix) {
  ScheduleLimits limits = sharing(limits_of(4, 1));
  limits.prefill_chunk = 16;
  Bench bench(limits, {prefixed("first", 1, 70, 5, 9), prefixed("waits", 1, 70, 9, 9),
                       prefixed("other", 2, 70, 5, 9), prefixed("waits, too", 1, 70, 1, 9)});
  int32_t first = -1;
  for (int turn = 0; turn < 4; ++turn) {
    const std::vector<StepMessage> steps = bench.form_all();
    ASSERT_EQ(steps.size(), 1u);
    if (turn == 0) first = steps[0].admissions[0].slot;
    EXPECT_TRUE(steps[0].changes.empty());
    std::vector<int64_t> positions;
    for (const StepItem& item : steps[0].items) positions.push_back(item.first_position);
    EXPECT_EQ(positions, (std::vector<int64_t>{turn * 16, turn * 16})) << "first and other";
    bench.answer_one();
  }
  const std::vector<StepMessage> steps = bench.form_all();
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(steps[0].items.size(), 4u);
  for (const StepItem& item : steps[0].items) EXPECT_EQ(item.first_position, 64);
  ASSERT_EQ(steps[0].changes.size(), 2u);
  for (const KvChange& change : steps[0].changes) {
    EXPECT_EQ(change.from, first);
    EXPECT_EQ(change.pages, 4);
  }
  computed(bench);
}

// Slots that were given back together are given out the other way round: whoever waits must not
// wait for one that waits itself.
TEST(Prefixes, AllWhoWaitBeginTogether) {
  ScheduleLimits limits = sharing(limits_of(24, 1));
  limits.prefill_chunk = 16;
  std::vector<PreparedRequest> all = requests_of(24, 5, 1);
  for (int i = 0; i < 24; ++i) all.push_back(prefixed("p" + std::to_string(i), 1, 160, 20, 4));
  Bench bench(limits, all);
  EXPECT_EQ(bench.form_all().front().items.size(), 24u);
  bench.answer_one();
  for (int turn = 0; turn <= 10; ++turn) {
    const std::vector<StepMessage> steps = bench.form_all();
    ASSERT_EQ(steps.size(), 1u);
    ASSERT_EQ(steps[0].items.size(), turn < 10 ? 1u : 24u) << turn;
    bench.answer_one();
  }
  EXPECT_EQ(computed(bench), 24 * 5 + 160 + 24 * 20);
}

// The first one ends as soon as the others could take over what they wait for, and the pages are
// wanted for yet another one.
TEST(Prefixes, WhatIsWaitedForIsNotGivenUp) {
  ScheduleLimits limits = sharing(limits_of(8, 1));
  limits.kv_pages = 60;
  std::vector<PreparedRequest> all;
  for (int i = 0; i < 6; ++i) all.push_back(prefixed("p" + std::to_string(i), 1, 144, 10, 1));
  all.push_back(prefixed("other", 2, 144, 6, 5));
  Bench bench(limits, all);
  EXPECT_EQ(computed(bench), 144 + 6 * 10 + 150);
}

// The pages need not have been computed when the step is formed that uses them, only before it.
TEST(Prefixes, NobodyWaitsForTheAnswer) {
  Bench bench(sharing(limits_of(2, 2)), {prefixed("a", 1, 70, 0, 9, 2)});
  const std::vector<StepMessage> steps = bench.form_all();
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].rows(), 70);
  EXPECT_EQ(steps[1].rows(), 70 - 64);
  EXPECT_EQ(computed(bench), 70 + 6);
}

TEST(Prefixes, APageIsNotWorthWaiting) {
  Bench bench(sharing(limits_of(2, 1)),
              {prefixed("a", 1, 20, 9, 3), prefixed("b", 1, 20, 4, 3), prefixed("c", 1, 20, 7, 3)});
  const std::vector<StepMessage> steps = bench.form_all();
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(steps[0].rows(), 29 + 24);
  EXPECT_EQ(computed(bench), 29 + 24 + 27 - 16) << "but taken over where it is there";
}

TEST(Prefixes, ARequestThatFailsOrEndsAtOnceLeavesItsPrefix) {
  const PreparedRequest first = prefixed("first", 1, 80, 3, 1);
  const FakeModel model = [&](uint64_t stream, const std::vector<int32_t>& tokens) {
    return tokens == first.prompt ? std::nullopt : hashed_token(stream, tokens);
  };
  for (const int slots : {1, 3}) {
    for (const bool fails : {true, false}) {
      const std::vector<PreparedRequest> all = {first, prefixed("b", 1, 80, 4, 5),
                                                prefixed("c", 1, 80, 5, 5)};
      Bench bench(sharing(limits_of(slots, 1)), all, fails ? model : hashed_token);
      EXPECT_EQ(computed(bench), 83 + 4 + 5);
      EXPECT_EQ(bench.failed.size(), fails ? 1u : 0u);
    }
  }
}

TEST(Prefixes, SharedPagesCountOnce) {
  ScheduleLimits limits = sharing(limits_of(8, 1));
  limits.kv_pages = 12;
  // 6 pages each, of which 4 are common.
  std::vector<PreparedRequest> all;
  for (int i = 0; i < 20; ++i) all.push_back(prefixed("r" + std::to_string(i), 1, 64, 10, 20));
  const auto most_active = [&](const ScheduleLimits& some) {
    Bench bench(some, all);
    int most = 0;
    while (!bench.coordinator.finished() && !HasFatalFailure()) {
      bench.form_all();
      most = std::max(most, bench.coordinator.counts().active);
      bench.answer_one();
    }
    EXPECT_EQ(bench.done.size(), 20u);
    return most;
  };
  EXPECT_EQ(most_active(limits), 4) << "6 + 3 * 2";
  limits.table_pages = 12;
  EXPECT_EQ(most_active(limits), 2);
  limits.table_pages = 1000;
  limits.shares_prefixes = false;
  EXPECT_EQ(most_active(limits), 2);
}

// With room for no more than the sequence itself, its pages pass to the next one.
TEST(Prefixes, WhatIsKeptGivesWay) {
  ScheduleLimits limits = sharing(limits_of(1, 1));
  limits.kv_pages = 7;
  std::vector<PreparedRequest> all;
  for (int i = 0; i < 10; ++i) all.push_back(prefixed("r" + std::to_string(i), 1, 64, 20, 20));
  all.push_back(prefixed("whole", 2, 90, 0, 20));
  all.push_back(prefixed("again", 1, 64, 20, 20));
  Bench bench(limits, all);
  EXPECT_EQ(computed(bench), prompt_tokens(all) - 9 * 64);
}

TEST(Prefixes, WhatNobodyWaitsForIsNotKept) {
  ScheduleLimits limits = sharing(limits_of(1, 1));
  Bench bench(limits, {prefixed("a", 1, 64, 20, 3), prefixed("b", 2, 64, 20, 3)});
  EXPECT_EQ(computed(bench), 168);
  EXPECT_EQ(bench.pipeline.free_pages(), limits.kv_pages - 6) << "b's, not told any more";
}

TEST(Prefixes, TheOldestIsGivenUpWhereManyAreKept) {
  ScheduleLimits limits = sharing(limits_of(1, 1));
  limits.kept_slots = 2;
  std::vector<PreparedRequest> all;
  for (const int prefix : {1, 2, 3, 3, 3, 2, 1}) {
    all.push_back(prefixed("r" + std::to_string(all.size()), prefix, 64, 20, 3));
  }
  Bench bench(limits, all);
  EXPECT_EQ(computed(bench), prompt_tokens(all) - 3 * 64) << "1 had to go";
}

TEST(Prefixes, PageTablesOfWhatIsKeptHaveABound) {
  ScheduleLimits limits = sharing(limits_of(1, 1));
  std::vector<PreparedRequest> all;
  for (const int prefix : {1, 2, 1, 2}) {  // 6 pages each
    all.push_back(prefixed("r" + std::to_string(all.size()), prefix, 64, 20, 3));
  }
  Bench enough(limits, all);
  EXPECT_EQ(computed(enough), prompt_tokens(all) - 2 * 64);
  limits.table_pages = 6;
  Bench bench(limits, all);
  EXPECT_EQ(computed(bench), prompt_tokens(all) - 64) << "1 had to go";
}

TEST(Prefixes, WhatWasOfUseStaysLonger) {
  ScheduleLimits limits = sharing(limits_of(1, 1));
  limits.kept_slots = 2;
  std::vector<PreparedRequest> all;
  for (const int prefix : {1, 2, 1, 3, 3, 1, 2}) {
    const int common = prefix == 1 ? 96 : 64;
    all.push_back(prefixed("r" + std::to_string(all.size()), prefix, common, 20, 3));
  }
  Bench bench(limits, all);
  EXPECT_EQ(computed(bench), prompt_tokens(all) - 96 - 64 - 96) << "2 had to go";
}

TEST(Prefixes, WhatAnotherHasIsNotKeptTwice) {
  ScheduleLimits limits = sharing(limits_of(1, 1));
  limits.kept_slots = 2;
  std::vector<PreparedRequest> all;
  for (const int prefix : {1, 2, 1, 1, 2, 1}) {
    all.push_back(prefixed("r" + std::to_string(all.size()), prefix, 64, 20, 3));
  }
  Bench bench(limits, all);
  EXPECT_EQ(computed(bench), prompt_tokens(all) - 4 * 64);
}

// A page that two sequences have computed each for itself: of whom it came from counts.
TEST(Prefixes, APageOfWhichThereAreTwoStaysThatOfWhomItCameFrom) {
  const std::vector<int32_t> common = prefixed("", 1, 80, 0, 1).prompt;
  const auto beginning = [&](const std::string& id, int tokens, int own, int max_tokens) {
    PreparedRequest made = prefixed(id, 0, 0, own, max_tokens);
    made.prompt.insert(made.prompt.begin(), common.begin(), common.begin() + tokens);
    return made;
  };
  ScheduleLimits limits = sharing(limits_of(3, 1));
  limits.prefill_chunk = 16;
  limits.kv_pages = 13;
  // The fourth takes the first page of the first one, then four of the second. The last one must
  // wait although the first has ended.
  Bench bench(limits, {beginning("first", 16, 4, 8), beginning("second", 80, 1, 15),
                       beginning("ends at once", 0, 5, 1), beginning("takes", 80, 2, 14),
                       beginning("all the rest", 0, 95, 1)});
  EXPECT_EQ(computed(bench), 20 + 81 + 5 + 2 + 95);
}

TEST(Prefixes, NothingIsSharedUnlessAskedFor) {
  std::vector<PreparedRequest> all = {prefixed("a", 1, 100, 3, 7, 3), prefixed("b", 1, 100, 5, 7)};
  Bench bench(limits_of(2, 1), all);
  EXPECT_EQ(computed(bench), prompt_tokens(all));
  EXPECT_EQ(bench.coordinator.counts().shared_tokens, 0);
}

// Prompts that branch at random: a tree of prefixes.
class Tree {
 public:
  explicit Tree(std::mt19937_64& random) : random_(random) {}

  std::vector<int32_t> prompt(int most) {
    std::vector<int32_t> tokens;
    const int length = 1 + below(most);
    int32_t branch = below(2);
    while (std::ssize(tokens) < length) {
      if (below(60) == 0) branch = branch * 2 + 1 + below(2);
      tokens.push_back(static_cast<int32_t>(tokens.size()) % 7 * 5000 + branch % 5000);
    }
    return tokens;
  }

 private:
  int below(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  std::mt19937_64& random_;
};

// Random requests under random limits, answers at random moments; pages that are short.
TEST(Prefixes, ThousandsOfRandomRequestsAreRightAndNoPageIsWanting) {
  std::mt19937_64 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  int64_t prompts = 0, rows = 0;
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    ScheduleLimits limits;
    limits.shares_prefixes = true;
    limits.kept_slots = below(6);
    limits.groups = 1 + below(4);
    limits.slots = limits.groups + below(30);
    limits.kv_pages = 12 + below(80);
    if (below(3) == 0) limits.table_pages = limits.kv_pages;
    limits.step_rows = 1 + below(300);
    limits.prefill_chunk = 1 + below(static_cast<int>(limits.step_rows));
    limits.order = below(2) ? Order::kInput : Order::kLongestFirst;
    limits.window = 1 + below(100);
    Tree tree(random);
    std::vector<PreparedRequest> all;
    for (int i = 0; i < 60; ++i) {
      PreparedRequest& made = all.emplace_back();
      made.request.custom_id = std::to_string(round) + "." + std::to_string(i);
      made.request.max_tokens = 1 + below(40);
      made.request.n = below(4) ? 1 : 1 + below(4);
      made.prompt = tree.prompt(150);  // 12 pages at most, with what is generated
      if (below(8) == 0) made.request.sampling.repetition_penalty = 1.5f;
    }
    const std::vector<int> eos = {13, 77};
    const int bad = below(200);  // a length after which logits are not finite
    const FakeModel model = [&](uint64_t stream, const std::vector<int32_t>& tokens) {
      return std::ssize(tokens) == bad ? std::nullopt : hashed_token(stream, tokens);
    };
    Bench bench(limits, all, model, eos);
    while (!bench.coordinator.finished()) {
      for (int formed = 0; formed < 1 + below(limits.groups); ++formed) {
        const std::optional<StepMessage> step = bench.coordinator.next_step();
        if (!step) break;
        bench.pipeline.take(*step);
        ASSERT_FALSE(HasFatalFailure());
      }
      ASSERT_LE(bench.coordinator.counts().active, limits.slots);
      ASSERT_TRUE(bench.pipeline.under_way() > 0 || bench.coordinator.finished()) << "all wait";
      if (bench.pipeline.under_way() > 0) bench.answer_one();
    }
    ASSERT_EQ(bench.done.size() + bench.failed.size(), all.size());
    for (const PreparedRequest& r : all) {
      const auto result = bench.done.find(r.request.custom_id);
      if (result != bench.done.end()) expect_right(r, result->second, eos);
      ASSERT_FALSE(HasFatalFailure());
    }
    const ScheduleCounts& counts = bench.coordinator.counts();
    EXPECT_EQ(counts.prompt_tokens - counts.shared_tokens, bench.pipeline.prompt_rows());
    prompts += counts.prompt_tokens;
    rows += bench.pipeline.prompt_rows();
  }
  EXPECT_LT(rows, prompts * 2 / 3) << "hardly anything was shared";
}

}  // namespace
}  // namespace headrace
