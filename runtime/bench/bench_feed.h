// Feeds the coordinator with batches of random prompts, one batch after the other, and times them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/schedule/coordinator.h"

namespace headrace {

// What is measured: each batch size `repeat` times, in this order.
struct BenchShape {
  std::vector<int> batches;
  int prompt_tokens = 128;    // of each sequence
  int generate_tokens = 128;  // of each sequence, the end-of-sequence token ignored
  int repeat = 1;
  uint64_t seed = 0;

  int64_t tokens() const { return int64_t{prompt_tokens} + generate_tokens; }  // of each sequence
};

// One batch, from its first request to its last token. Times in seconds.
struct BenchRun {
  int batch = 0;
  double prefill_s = 0;  // until every sequence has its first token
  double decode_s = 0;   // the rest
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;  // in all; the first of each sequence is of its prefill
  int64_t steps = 0;
  uint64_t tokens_hash = 0;  // XXH3-64 of all token ids (int32), sequence by sequence

  double prefill_rate() const;  // prompt tokens per second of prefill_s
  double decode_rate() const;   // tokens but the first per second of decode_s; 0 if there are none
  double generated_rate() const;  // generated tokens per second of both
};

// One thread uses it. Its prompts are the same for every batch and repetition: that of sequence i
// depends on the seed, i, and the vocabulary.
class BenchFeed {
 public:
  // `now`: seconds on a steady clock. `finished` is called after each run.
  BenchFeed(const BenchShape& shape, int vocab_size, std::function<double()> now,
            std::function<void(const BenchRun&)> finished);

  // The coordinator's Feed, Done, Failed and Accepted. A batch begins when nothing of the one
  // before is left. `failed` throws ModelError.
  Coordinator::Fed next();
  void done(const RequestResult& result);
  [[noreturn]] void failed(const BadLine& line) const;
  void accepted(const ScheduleCounts& counts);

  // Those that are complete, in order.
  const std::vector<BenchRun>& runs() const { return runs_; }

 private:
  void begin();
  PreparedRequest request(int index) const;
  void end(double now);

  BenchShape shape_;
  int vocab_size_;
  std::function<double()> now_;
  std::function<void(const BenchRun&)> finished_;

  std::vector<BenchRun> runs_;
  BenchRun run_;  // the one under way
  bool under_way_ = false;
  int fed_ = 0, done_ = 0;  // sequences of it
  double start_ = 0;
  bool prefilled_ = false;
  ScheduleCounts before_;                 // when it began
  ScheduleCounts counts_;                 // now
  std::vector<std::vector<int>> tokens_;  // of each sequence
};

}  // namespace headrace
