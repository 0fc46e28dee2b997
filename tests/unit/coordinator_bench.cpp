#include "tests/unit/coordinator_bench.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/schedule/stream_key.h"

namespace headrace::test {
namespace {

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

}  // namespace

PreparedRequest request(const std::string& id, int prompt_tokens, int max_tokens, int n) {
  PreparedRequest made;
  made.request.custom_id = id;
  made.request.max_tokens = max_tokens;
  made.request.n = n;
  for (int i = 0; i < prompt_tokens; ++i) made.prompt.push_back((i * 31 + prompt_tokens) % 100);
  return made;
}

std::vector<PreparedRequest> requests_of(int count, int prompt_tokens, int max_tokens) {
  std::vector<PreparedRequest> all;
  for (int i = 0; i < count; ++i) {
    all.push_back(request("r" + std::to_string(i), prompt_tokens, max_tokens));
  }
  return all;
}

ScheduleLimits limits_of(int slots, int groups) {
  ScheduleLimits limits;
  limits.slots = slots;
  limits.groups = groups;
  limits.kv_pages = 100000;
  limits.order = Order::kInput;
  return limits;
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

Bench::Bench(const ScheduleLimits& schedule, std::vector<PreparedRequest> all, FakeModel model,
             std::vector<int> eos, const Tokenizer* tok)
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

std::map<uint64_t, std::vector<int32_t>> Bench::prompts() const {
  std::map<uint64_t, std::vector<int32_t>> by_stream;
  for (const PreparedRequest& r : requests) {
    for (int c = 0; c < r.request.n; ++c) {
      by_stream[stream_key(r.request.custom_id, c)] = r.prompt;
    }
  }
  return by_stream;
}

Coordinator::Fed Bench::next(bool idle) {
  asked_idle = idle;
  if (fed == held_back) return Coordinator::NothingYet{};
  if (fed == requests.size()) return Coordinator::NoMore{};
  return requests[fed++];
}

std::vector<StepMessage> Bench::form_all() {
  std::vector<StepMessage> formed;
  while (std::optional<StepMessage> step = coordinator.next_step()) {
    pipeline.take(*step);
    formed.push_back(std::move(*step));
    if (testing::Test::HasFatalFailure()) break;
  }
  return formed;
}

bool Bench::run(int most_turns) {
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

}  // namespace headrace::test
