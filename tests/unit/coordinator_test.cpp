#include "runtime/schedule/coordinator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>

#include "runtime/schedule/stream_key.h"
#include "tests/unit/fake_pipeline.h"
#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

using test::FakeModel;
using test::FakePipeline;
using test::hashed_token;

PreparedRequest request(const std::string& id, int prompt_tokens, int max_tokens, int n = 1) {
  PreparedRequest made;
  made.request.custom_id = id;
  made.request.max_tokens = max_tokens;
  made.request.n = n;
  for (int i = 0; i < prompt_tokens; ++i) made.prompt.push_back((i * 31 + prompt_tokens) % 100);
  return made;
}

ScheduleLimits limits_of(int slots, int groups) {
  ScheduleLimits limits;
  limits.slots = slots;
  limits.groups = groups;
  limits.kv_pages = 100000;
  limits.order = Order::kInput;
  return limits;
}

// A coordinator, its requests, the pipeline that it drives, and what came of them.
struct Bench {
  Bench(const ScheduleLimits& schedule, std::vector<PreparedRequest> all,
        FakeModel model = hashed_token, std::vector<int> eos = {}, const Tokenizer* tok = nullptr)
      : limits(schedule),
        requests(std::move(all)),
        pipeline(schedule, std::move(model), prompts()),
        coordinator(
            schedule, tok, std::move(eos), [this](bool idle) { return next(idle); },
            [this](const RequestResult& result) {
              EXPECT_TRUE(done.emplace(result.custom_id, result).second) << "finished twice";
              order_done.push_back(result.custom_id);
            },
            [this](const BadLine& line) {
              EXPECT_TRUE(failed.emplace(line.custom_id, line).second) << "failed twice";
            }) {}

  std::map<uint64_t, std::vector<int32_t>> prompts() const {
    std::map<uint64_t, std::vector<int32_t>> by_stream;
    for (const PreparedRequest& r : requests) {
      for (int c = 0; c < r.request.n; ++c) {
        by_stream[stream_key(r.request.custom_id, c)] = r.prompt;
      }
    }
    return by_stream;
  }

  Coordinator::Fed next(bool idle) {
    asked_idle = idle;
    if (fed == held_back) return Coordinator::NothingYet{};
    if (fed == requests.size()) return Coordinator::NoMore{};
    return requests[fed++];
  }

  // Forms steps until none can be formed; their messages.
  std::vector<StepMessage> form_all() {
    std::vector<StepMessage> formed;
    while (std::optional<StepMessage> step = coordinator.next_step()) {
      pipeline.take(*step);
      formed.push_back(std::move(*step));
      if (testing::Test::HasFatalFailure()) break;
    }
    return formed;
  }
  void answer_one() { coordinator.accept(pipeline.answer()); }

  // As runtime/pipeline does it. False if nothing moves any more.
  bool run(int most_turns = 1000000) {
    while (!coordinator.finished()) {
      form_all();
      if (testing::Test::HasFatalFailure() || most_turns-- == 0) return false;
      if (pipeline.under_way() > 0) {
        answer_one();
      } else if (!coordinator.finished()) {
        ADD_FAILURE() << "requests wait and nothing is under way";
        return false;
      }
    }
    return true;
  }

  ScheduleLimits limits;
  std::vector<PreparedRequest> requests;
  size_t fed = 0;
  FakePipeline pipeline;
  std::map<std::string, RequestResult> done;
  std::map<std::string, BadLine> failed;
  std::vector<std::string> order_done;
  size_t held_back = SIZE_MAX;  // requests that are there; more come later
  bool asked_idle = false;      // what the feed was told last
  Coordinator coordinator;
};

// What a request must give under hashed_token, generated alone.
ChoiceResult expected_choice(const PreparedRequest& r, int choice, const std::vector<int>& eos) {
  ChoiceResult expected;
  std::vector<int32_t> tokens = r.prompt;
  expected.finish_reason = "length";
  while (std::ssize(expected.token_ids) < r.request.max_tokens) {
    const int token = *hashed_token(stream_key(r.request.custom_id, choice), tokens);
    tokens.push_back(token);
    expected.token_ids.push_back(token);
    if (!r.request.ignore_eos && std::count(eos.begin(), eos.end(), token) > 0) {
      expected.finish_reason = "stop";
      break;
    }
  }
  return expected;
}

void expect_right(const PreparedRequest& r, const RequestResult& result,
                  const std::vector<int>& eos) {
  EXPECT_EQ(result.custom_id, r.request.custom_id);
  EXPECT_EQ(result.prompt_tokens, std::ssize(r.prompt));
  ASSERT_EQ(std::ssize(result.choices), r.request.n);
  for (int c = 0; c < r.request.n; ++c) {
    const ChoiceResult& got = result.choices[static_cast<size_t>(c)];
    const ChoiceResult expected = expected_choice(r, c, eos);
    ASSERT_EQ(got.token_ids, expected.token_ids) << r.request.custom_id << ", choice " << c;
    EXPECT_EQ(got.finish_reason, expected.finish_reason);
    const bool reported = r.request.sampling.top_logprobs.has_value();
    EXPECT_EQ(got.logprobs.size(), reported ? got.token_ids.size() : 0);
    EXPECT_EQ(got.alternatives.size(), reported ? got.token_ids.size() : 0);
  }
}

std::vector<PreparedRequest> requests_of(int count, int prompt_tokens, int max_tokens) {
  std::vector<PreparedRequest> all;
  for (int i = 0; i < count; ++i) {
    all.push_back(request("r" + std::to_string(i), prompt_tokens, max_tokens));
  }
  return all;
}

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
  EXPECT_EQ(second[0].released.size(), 1u);
  ASSERT_EQ(second[0].admissions.size(), 1u);
  EXPECT_EQ(second[0].admissions[0].stream, stream_key("c", 0));
  EXPECT_EQ(second[0].admissions[0].slot, second[0].released[0]);
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

TEST(Coordinator, EndOfSequenceStopsUnlessIgnored) {
  // Every token is 42; 42 ends a sequence.
  const FakeModel model = [](uint64_t, const std::vector<int32_t>&) { return 42; };
  std::vector<PreparedRequest> all = {request("stops", 3, 10), request("goes on", 3, 10)};
  all[1].request.ignore_eos = true;
  Bench bench(limits_of(2, 1), all, model, {7, 42});
  ASSERT_TRUE(bench.run());
  EXPECT_EQ(bench.done.at("stops").choices[0].token_ids, (std::vector{42}));
  EXPECT_EQ(bench.done.at("stops").choices[0].finish_reason, "stop");
  EXPECT_EQ(bench.done.at("goes on").choices[0].token_ids, std::vector<int>(10, 42));
  EXPECT_EQ(bench.done.at("goes on").choices[0].finish_reason, "length");
}

TEST(Coordinator, StopStringsEndASequenceAcrossTokenBorders) {
  const auto tokenizer = Tokenizer::open(test::text_data("gpt2").string());
  const std::vector<int> answer = tokenizer->encode("One two. STOP three");
  const FakeModel model = [&](uint64_t, const std::vector<int32_t>& tokens) {
    return answer.at(tokens.size() - 3);
  };
  std::vector<PreparedRequest> all = {request("cut", 3, static_cast<int>(answer.size())),
                                      request("whole", 3, static_cast<int>(answer.size()))};
  all[0].request.stop = {"never", "o. ST"};
  Bench bench(limits_of(2, 1), all, model, {}, tokenizer.get());
  ASSERT_TRUE(bench.run());
  const ChoiceResult& cut = bench.done.at("cut").choices[0];
  EXPECT_EQ(cut.text, "One tw");
  EXPECT_EQ(cut.finish_reason, "stop");
  EXPECT_LT(cut.token_ids.size(), answer.size());
  const ChoiceResult& whole = bench.done.at("whole").choices[0];
  EXPECT_EQ(whole.text, "One two. STOP three");
  EXPECT_EQ(whole.finish_reason, "length");
}

TEST(Coordinator, LogprobsAreKeptWhereAskedFor) {
  std::vector<PreparedRequest> all = {request("with", 3, 4), request("without", 3, 4)};
  all[0].request.sampling.top_logprobs = 2;
  Bench bench(limits_of(2, 1), all);
  ASSERT_TRUE(bench.run());
  for (const PreparedRequest& r : all) expect_right(r, bench.done.at(r.request.custom_id), {});
  const ChoiceResult& choice = bench.done.at("with").choices[0];
  EXPECT_EQ(choice.logprobs[2].token, choice.token_ids[2]);
  EXPECT_EQ(choice.alternatives[2].size(), 2u);
}

TEST(Coordinator, EveryChoiceHasItsOwnStream) {
  Bench bench(limits_of(3, 2), {request("many", 4, 6, 8), request("one", 4, 6)});
  ASSERT_TRUE(bench.run());
  expect_right(bench.requests[0], bench.done.at("many"), {});
  std::set<std::vector<int>> distinct;
  for (const ChoiceResult& choice : bench.done.at("many").choices) {
    distinct.insert(choice.token_ids);
  }
  EXPECT_EQ(distinct.size(), 8u);
}

TEST(Coordinator, LogitsThatAreNotFiniteFailTheirRequestOnly) {
  for (const int bad_choice : {0, 2, 4}) {
    std::vector<PreparedRequest> all = requests_of(12, 4, 6);
    all.insert(all.begin() + 3, request("bad", 4, 6, 5));
    const uint64_t bad = stream_key("bad", bad_choice);
    const FakeModel model = [&](uint64_t stream, const std::vector<int32_t>& tokens) {
      return stream == bad && tokens.size() == 7 ? std::nullopt : hashed_token(stream, tokens);
    };
    // Three slots: of the failed request, some choices run, some wait.
    Bench bench(limits_of(3, 2), all, model);
    ASSERT_TRUE(bench.run());
    ASSERT_EQ(bench.failed.size(), 1u);
    const BadLine& line = bench.failed.at("bad");
    EXPECT_EQ(line.code, "model_error");
    EXPECT_NE(line.message.find("not finite"), std::string::npos) << line.message;
    EXPECT_NE(line.message.find("after 7 tokens"), std::string::npos) << line.message;
    EXPECT_EQ(bench.done.size(), 12u);
    for (const PreparedRequest& r : all) {
      if (r.request.custom_id != "bad") expect_right(r, bench.done.at(r.request.custom_id), {});
    }
    EXPECT_EQ(bench.coordinator.counts().active, 0);
  }
}

// Its other choices are given up: those that run when their next token comes, those that wait
// without getting a slot.
TEST(Coordinator, AFailedRequestTakesNothingMore) {
  std::vector<PreparedRequest> all = {request("bad", 4, 20, 6), request("good", 4, 20)};
  const std::map<uint64_t, std::vector<int32_t>> good = {{stream_key("good", 0), {}}};
  const FakeModel model = [&](uint64_t stream, const std::vector<int32_t>& tokens) {
    return tokens.size() >= 7 && !good.contains(stream) ? std::nullopt
                                                        : hashed_token(stream, tokens);
  };
  Bench bench(limits_of(3, 1), all, model);
  ASSERT_TRUE(bench.run());
  EXPECT_EQ(bench.failed.size(), 1u);
  expect_right(all[1], bench.done.at("good"), {});
  EXPECT_EQ(bench.pipeline.admitted().size(), 4u) << "choices 0, 1 and 2, then the good one";
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
