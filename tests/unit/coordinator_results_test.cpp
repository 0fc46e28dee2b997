// When a sequence ends, and what its request is told.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "runtime/schedule/coordinator.h"
#include "runtime/schedule/stream_key.h"
#include "tests/unit/coordinator_bench.h"
#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

using test::Bench;
using test::expect_right;
using test::FakeModel;
using test::hashed_token;
using test::limits_of;
using test::request;
using test::requests_of;

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

}  // namespace
}  // namespace headrace
