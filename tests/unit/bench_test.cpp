// The feed of a bench on a real coordinator with a clock of the test's own, and its statistics.
#include <gtest/gtest.h>

#include <deque>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/error.h"
#include "runtime/bench/bench_feed.h"
#include "runtime/bench/bench_report.h"

namespace headrace {
namespace {

TEST(SpreadOf, MedianOfOddAndEvenNumbers) {
  const auto expect = [](std::vector<double> values, double min, double median, double max) {
    const Spread s = spread_of(std::move(values));
    EXPECT_EQ(s.min, min);
    EXPECT_EQ(s.median, median);
    EXPECT_EQ(s.max, max);
  };
  expect({3}, 3, 3, 3);
  expect({5, 1}, 1, 3, 5);
  expect({9, 1, 4}, 1, 4, 9);
  expect({4, 1, 9, 2}, 1, 3, 9);
}

TEST(BenchRun, Rates) {
  BenchRun run;
  run.batch = 4;
  run.prefill_s = 2;
  run.decode_s = 8;
  run.prompt_tokens = 40;
  run.generated_tokens = 28;
  EXPECT_EQ(run.prefill_rate(), 20);
  EXPECT_EQ(run.decode_rate(), 3);
  EXPECT_EQ(run.generated_rate(), 2.8);
  run.decode_s = 0;
  run.generated_tokens = 4;
  EXPECT_EQ(run.decode_rate(), 0);
  EXPECT_EQ(run.generated_rate(), 2);
}

// Answers steps in order with one token per sampling item; a second of the clock passes before each
// answer.
class BenchLoop {
 public:
  explicit BenchLoop(const BenchShape& shape, int groups, int vocabulary = 50)
      : feed_(
            shape, vocabulary, [this] { return now_; }, [this](const BenchRun&) { ++reported_; }),
        coordinator_(
            limits(groups), nullptr, {2}, [this](bool) { return feed_.next(); },
            [this](const RequestResult& result) { feed_.done(result); },
            [this](const BadLine& line) { feed_.failed(line); }) {
    coordinator_.watch([this](const ScheduleCounts& counts) { feed_.accepted(counts); });
  }

  void run(bool finite = true) {
    std::deque<StepMessage> steps;
    while (!coordinator_.finished()) {
      if (auto step = coordinator_.next_step()) {
        for (const KvChange& change : step->changes) held_.erase(change.slot);
        for (const Admission& admission : step->admissions) {
          EXPECT_TRUE(held_.insert(admission.slot).second) << "slot " << admission.slot;
        }
        for (const int32_t token : step->tokens) {
          EXPECT_GE(token, 0);
          EXPECT_LT(token, 50);
        }
        steps.push_back(std::move(*step));
        continue;
      }
      if (steps.empty()) throw std::logic_error("nothing to do, but not finished");
      now_ += 1;
      StepResult result{steps.front().step, {}};
      for (const StepItem& item : steps.front().items) {
        if (item.sample) result.tokens.push_back({item.slot, finite, {2, 0.0f}, {}});
      }
      steps.pop_front();
      coordinator_.accept(result);
    }
  }

  const std::vector<BenchRun>& runs() const { return feed_.runs(); }
  int reported() const { return reported_; }
  double now() const { return now_; }

 private:
  static ScheduleLimits limits(int groups) {
    ScheduleLimits limits;
    limits.slots = 4;
    limits.groups = groups;
    limits.kv_pages = 4;
    limits.step_rows = 8;
    limits.prefill_chunk = 4;
    limits.prompts_first = true;
    return limits;
  }

  double now_ = 100;
  int reported_ = 0;
  std::set<int32_t> held_;
  BenchFeed feed_;
  Coordinator coordinator_;
};

TEST(BenchFeed, OneSequenceIsTimedStepByStep) {
  BenchShape shape;
  shape.batches = {1};
  shape.prompt_tokens = 10;
  shape.generate_tokens = 5;
  BenchLoop loop(shape, 1);
  loop.run();
  ASSERT_EQ(loop.runs().size(), 1u);
  const BenchRun& run = loop.runs().front();
  EXPECT_EQ(run.prefill_s, 3);  // 4 + 4 + 2 rows
  EXPECT_EQ(run.decode_s, 4);   // one step for each token but the first
  EXPECT_EQ(run.steps, 7);
  EXPECT_EQ(run.prompt_tokens, 10);
  EXPECT_EQ(run.generated_tokens, 5);
}

TEST(BenchFeed, BatchesFollowOneAnotherAndAddUp) {
  for (const int groups : {1, 2, 3}) {
    SCOPED_TRACE(groups);
    BenchShape shape;
    shape.batches = {1, 4, 3};
    shape.prompt_tokens = 6;
    shape.generate_tokens = 7;
    shape.repeat = 2;
    BenchLoop loop(shape, groups);
    loop.run();
    ASSERT_EQ(loop.runs().size(), 6u);
    EXPECT_EQ(loop.reported(), 6);
    double sum = 0;
    for (size_t i = 0; i < loop.runs().size(); ++i) {
      const BenchRun& run = loop.runs()[i];
      EXPECT_EQ(run.batch, shape.batches[i / 2]);
      EXPECT_EQ(run.prompt_tokens, 6 * run.batch);
      EXPECT_EQ(run.generated_tokens, 7 * run.batch);
      EXPECT_GT(run.prefill_s, 0);
      EXPECT_GT(run.decode_s, 0);
      EXPECT_EQ(run.tokens_hash, loop.runs()[i / 2 * 2].tokens_hash);
      sum += run.prefill_s + run.decode_s;
    }
    EXPECT_EQ(sum, loop.now() - 100);
  }
}

TEST(BenchFeed, EverySequenceDecodesFromTheFirstDecodingStepOn) {
  BenchShape shape;
  shape.batches = {4};
  shape.prompt_tokens = 5;
  shape.generate_tokens = 6;
  BenchLoop loop(shape, 1);
  loop.run();
  const BenchRun& run = loop.runs().at(0);
  EXPECT_EQ(run.prefill_s, 3);  // 20 rows, 8 in a step
  EXPECT_EQ(run.decode_s, 5);
  EXPECT_EQ(run.decode_rate(), 4);
}

TEST(BenchFeed, ASingleTokenIsAllPrefill) {
  BenchShape shape;
  shape.batches = {3};
  shape.prompt_tokens = 5;
  shape.generate_tokens = 1;
  BenchLoop loop(shape, 2);
  loop.run();
  const BenchRun& run = loop.runs().at(0);
  EXPECT_EQ(run.decode_s, 0);
  EXPECT_EQ(run.decode_rate(), 0);
}

TEST(BenchFeed, PromptsDependOnSeedAndSequenceOnly) {
  const auto prompts = [](uint64_t seed, int batch) {
    BenchShape shape;
    shape.batches = {batch};
    shape.seed = seed;
    BenchFeed feed(
        shape, 1000, [] { return 0.0; }, [](const BenchRun&) {});
    std::vector<std::vector<int32_t>> all;
    for (int i = 0; i < batch; ++i) {
      all.push_back(std::get<PreparedRequest>(feed.next()).prompt);
    }
    EXPECT_TRUE(std::holds_alternative<Coordinator::NothingYet>(feed.next()));
    return all;
  };
  const auto four = prompts(1, 4);
  EXPECT_EQ(four[0].size(), 128u);
  EXPECT_EQ(prompts(1, 1)[0], four[0]);
  EXPECT_NE(four[0], four[1]);
  EXPECT_NE(prompts(2, 1)[0], four[0]);
  EXPECT_NE(prompts(uint64_t{1} << 32, 1)[0], prompts(0, 1)[0]);
}

TEST(BenchFeed, ModelsWhoseLogitsAreNotFiniteAreNamed) {
  BenchShape shape;
  shape.batches = {2};
  shape.prompt_tokens = 3;
  shape.generate_tokens = 3;
  BenchLoop loop(shape, 1);
  EXPECT_THROW(loop.run(/*finite=*/false), ModelError);
}

BenchReport report_of(std::vector<BenchRun> runs, int repeat) {
  BenchReport report;
  report.name = "tiny";
  report.shape.repeat = repeat;
  report.shape.batches = {1, 8};
  report.ranks.push_back({"node1", "a CPU", 2, "avx2", 0, 3, 0.5, 1 << 20, 2 << 20});
  report.runs = std::move(runs);
  return report;
}

BenchRun run_of(int batch, double prefill_s, double decode_s, int64_t generated) {
  BenchRun run;
  run.batch = batch;
  run.prefill_s = prefill_s;
  run.decode_s = decode_s;
  run.prompt_tokens = 10 * batch;
  run.generated_tokens = generated;
  return run;
}

TEST(BenchReport, JsonHasEveryRunAndTheirSpread) {
  const auto report = report_of(
      {run_of(1, 1, 2, 5), run_of(1, 2, 4, 5), run_of(8, 2, 2, 24), run_of(8, 4, 2, 24)}, 2);
  EXPECT_TRUE(report.complete());
  const auto json = nlohmann::json::parse(bench_json(report));
  EXPECT_TRUE(json["complete"].get<bool>());
  ASSERT_EQ(json["batches"].size(), 2u);
  const auto& one = json["batches"][0];
  EXPECT_EQ(one["batch"], 1);
  EXPECT_EQ(one["prefill_tokens_per_s"],
            (nlohmann::json{{"min", 5}, {"median", 7.5}, {"max", 10}}));
  EXPECT_EQ(one["decode_tokens_per_s"], (nlohmann::json{{"min", 1}, {"median", 1.5}, {"max", 2}}));
  EXPECT_EQ(one["runs"].size(), 2u);
  EXPECT_EQ(json["batches"][1]["generated_tokens_per_s"]["max"], 6);
  EXPECT_EQ(json["ranks"][0]["peak_memory_bytes"], 1 << 20);
}

TEST(BenchReport, WhatIsMissingIsNull) {
  const auto report = report_of({run_of(1, 1, 0, 1)}, 2);
  EXPECT_FALSE(report.complete());
  const auto json = nlohmann::json::parse(bench_json(report));
  EXPECT_FALSE(json["complete"].get<bool>());
  ASSERT_EQ(json["batches"].size(), 1u);
  EXPECT_TRUE(json["batches"][0]["decode_tokens_per_s"].is_null());
  const std::string table = bench_table(report);
  EXPECT_NE(table.find("   -"), std::string::npos) << table;
  EXPECT_NE(table.find("interrupted"), std::string::npos) << table;
}

}  // namespace
}  // namespace headrace
