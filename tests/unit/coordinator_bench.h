// A coordinator with its requests and the pipeline that it drives, for tests.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/schedule/coordinator.h"
#include "tests/unit/fake_pipeline.h"

namespace headrace::test {

// The prompt is a function of its length.
PreparedRequest request(const std::string& id, int prompt_tokens, int max_tokens, int n = 1);

// Requests r0, r1, ...
std::vector<PreparedRequest> requests_of(int count, int prompt_tokens, int max_tokens);

// Plenty of KV pages; requests in input order.
ScheduleLimits limits_of(int slots, int groups);

// That the result is what hashed_token gives when the request is generated alone.
void expect_right(const PreparedRequest& r, const RequestResult& result,
                  const std::vector<int>& eos);

// A coordinator, its requests, the pipeline, and what came of them.
struct Bench {
  Bench(const ScheduleLimits& schedule, std::vector<PreparedRequest> all,
        FakeModel model = hashed_token, std::vector<int> eos = {}, const Tokenizer* tok = nullptr);

  // Forms steps until none can be formed; their messages.
  std::vector<StepMessage> form_all();
  void answer_one() { coordinator.accept(pipeline.answer()); }
  // As runtime/pipeline does it. False if nothing moves any more.
  bool run(int most_turns = 1000000);

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

 private:
  std::map<uint64_t, std::vector<int32_t>> prompts() const;
  Coordinator::Fed next(bool idle);
};

}  // namespace headrace::test
