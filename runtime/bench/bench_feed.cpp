#include "runtime/bench/bench_feed.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <random>
#include <string>
#include <utility>

#include "engine/error.h"

namespace headrace {
namespace {

double per_second(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

}  // namespace

double BenchRun::prefill_rate() const { return per_second(prompt_tokens, prefill_s); }
double BenchRun::decode_rate() const { return per_second(generated_tokens - batch, decode_s); }
double BenchRun::generated_rate() const {
  return per_second(generated_tokens, prefill_s + decode_s);
}

BenchFeed::BenchFeed(const BenchShape& shape, int vocab_size, std::function<double()> now,
                     std::function<void(const BenchRun&)> finished)
    : shape_(shape),
      vocab_size_(vocab_size),
      now_(std::move(now)),
      finished_(std::move(finished)) {}

Coordinator::Fed BenchFeed::next() {
  if (!under_way_) {
    if (runs_.size() == shape_.batches.size() * static_cast<size_t>(shape_.repeat)) {
      return Coordinator::NoMore{};
    }
    begin();
  }
  if (fed_ == run_.batch) return Coordinator::NothingYet{};
  return request(fed_++);
}

void BenchFeed::begin() {
  run_ = {};
  run_.batch = shape_.batches[runs_.size() / static_cast<size_t>(shape_.repeat)];
  tokens_.assign(static_cast<size_t>(run_.batch), {});
  fed_ = done_ = 0;
  prefilled_ = false;
  before_ = counts_;
  under_way_ = true;
  start_ = now_();
}

PreparedRequest BenchFeed::request(int index) const {
  PreparedRequest prepared;
  prepared.request.custom_id = std::to_string(index);
  prepared.request.max_tokens = shape_.generate_tokens;
  prepared.request.ignore_eos = true;
  const auto sequence = static_cast<uint64_t>(index);
  std::seed_seq seeds{shape_.seed >> 32, shape_.seed & 0xFFFFFFFFu, sequence};
  std::mt19937_64 random(seeds);
  for (int i = 0; i < shape_.prompt_tokens; ++i) {
    prepared.prompt.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size_)));
  }
  return prepared;
}

void BenchFeed::done(const RequestResult& result) {
  ++done_;
  run_.prompt_tokens += result.prompt_tokens;
  tokens_[std::stoul(result.custom_id)] = result.choices.front().token_ids;
}

void BenchFeed::failed(const BadLine& line) const {
  throw ModelError("sequence " + line.custom_id + " of batch " + std::to_string(run_.batch) + ": " +
                   line.message);
}

void BenchFeed::accepted(const ScheduleCounts& counts) {
  const double now = now_();
  counts_ = counts;
  if (!prefilled_ && counts.first_tokens - before_.first_tokens == run_.batch) {
    prefilled_ = true;
    run_.prefill_s = now - start_;
  }
  if (done_ == run_.batch) end(now);
}

void BenchFeed::end(double now) {
  run_.decode_s = now - start_ - run_.prefill_s;
  run_.generated_tokens = counts_.generated_tokens - before_.generated_tokens;
  run_.steps = counts_.steps - before_.steps;
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (const std::vector<int>& sequence : tokens_) {
    XXH3_64bits_update(&state, sequence.data(), sequence.size() * sizeof(int));
  }
  run_.tokens_hash = XXH3_64bits_digest(&state);
  under_way_ = false;
  runs_.push_back(run_);
  finished_(run_);
}

}  // namespace headrace
