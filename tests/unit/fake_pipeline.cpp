#include "tests/unit/fake_pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace headrace::test {

std::optional<int> hashed_token(uint64_t stream, const std::vector<int32_t>& tokens) {
  uint64_t hash = stream;
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint64_t>(token)) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  }
  return static_cast<int>(hash % 100);
}

FakePipeline::FakePipeline(const ScheduleLimits& limits, FakeModel model,
                           std::map<uint64_t, std::vector<int32_t>> prompts)
    : limits_(limits),
      model_(std::move(model)),
      prompts_(std::move(prompts)),
      budget_("host memory", uint64_t{1} << 30),
      kv_({1, 1, KvFormat::kF16}, 1, limits.kv_pages, limits.slots + limits.kept_slots, budget_),
      least_free_pages_(limits.kv_pages) {}

void FakePipeline::take(const StepMessage& message) {
  ASSERT_FALSE(message.stop);
  ASSERT_EQ(message.step, ++last_step_);
  for (const KvChange& change : message.changes) {
    make(change, message.step);
    if (testing::Test::HasFatalFailure()) return;
  }
  for (const Admission& admission : message.admissions) {
    ASSERT_GE(admission.slot, 0);
    ASSERT_LT(admission.slot, limits_.slots + limits_.kept_slots);
    ASSERT_FALSE(slots_.contains(admission.slot)) << "slot " << admission.slot << " is taken";
    ASSERT_TRUE(prompts_.contains(admission.stream));
    ASSERT_TRUE(streams_.insert(admission.stream).second) << "a sequence is admitted twice";
    const std::vector<int32_t>& prompt = prompts_[admission.stream];
    ASSERT_EQ(admission.prompt_tokens, std::ssize(prompt));
    const bool is_penalised = admission.sampling.repetition_penalty != 1.0f;
    ASSERT_EQ(admission.prompt, is_penalised ? prompt : std::vector<int32_t>{});
    slots_[admission.slot] = {admission, prompt, 0, false};
    admitted_.push_back(admission.stream);
  }
  for (const KvChange& change : message.changes) {
    if (change.from < 0) continue;
    ASSERT_TRUE(slots_.contains(change.slot)) << "pages are taken over for nobody";
    Sequence& sequence = slots_[change.slot];
    ASSERT_LT(taken_[change.slot] * kPageTokens, std::ssize(sequence.known));
    sequence.fed = taken_[change.slot] * kPageTokens;
  }
  ASSERT_FALSE(message.items.empty());
  ASSERT_LE(message.rows(), limits_.step_rows);
  int64_t row = 0;
  for (const StepItem& item : message.items) {
    ASSERT_GT(item.rows, 0);
    ASSERT_LE(row + item.rows, message.rows());
    check_item(item, message.tokens.data() + row, message.step);
    if (testing::Test::HasFatalFailure()) return;
    row += item.rows;
  }
  ASSERT_EQ(row, message.rows());
  least_free_pages_ = std::min(least_free_pages_, kv_.free_pages());
  steps_.push_back(message);
  ASSERT_LE(std::ssize(steps_), limits_.groups);
}

void FakePipeline::make(const KvChange& change, uint64_t step) {
  const int32_t slot = change.slot;
  if (change.from < 0) {
    ASSERT_TRUE(slots_.contains(slot)) << "slot " << slot << " is released but was not taken";
    ASSERT_FALSE(slots_[slot].in_flight) << "slot " << slot << " is released in flight";
    slots_.erase(slot);
    taken_.erase(slot);
    kv_.release(slot);
    return;
  }
  const bool has_begun = slots_.contains(slot) && slots_[slot].fed > taken_[slot] * kPageTokens;
  ASSERT_FALSE(has_begun) << "slot " << slot << " takes pages over that it has computed";
  ASSERT_GT(change.pages, taken_[slot]) << "nothing is taken over";
  ASSERT_NO_THROW(kv_.share(slot, change.from, change.pages));
  taken_[slot] = change.pages;
  for (int32_t i = 0; i < change.pages; ++i) {
    const Page& page = pages_.at(kv_.pages(slot, 0)[i]);
    ASSERT_EQ(page.filled, kPageTokens) << "a page is taken over that is not full";
    ASSERT_LT(page.step, step) << "a page is taken over before it is fed";
  }
}

void FakePipeline::write(int slot, int64_t position, int32_t token, uint64_t step) {
  const std::byte* const address = kv_.pages(slot, 0)[position / kPageTokens];
  Page& page = pages_[address];
  const auto place = static_cast<int>(position % kPageTokens);
  if (place == 0) {  // nobody else has it now or later but who finds it full
    page = {};
    for (const auto& [other, sequence] : slots_) {
      const int64_t others = other == slot ? 0 : KvStore::pages_for(sequence.fed);
      for (int64_t i = 0; i < others; ++i) {
        ASSERT_NE(kv_.pages(other, 0)[i], address) << "two slots write a page";
      }
    }
  }
  ASSERT_EQ(page.filled, place) << "a page is written that is not the slot's own";
  page.tokens[place] = token;
  page.filled = place + 1;
  page.step = step;
}

// That all tokens of the sequence are where its attention finds them.
void FakePipeline::check_pages(int slot) const {
  const Sequence& sequence = slots_.at(slot);
  for (int64_t i = 0; i < sequence.fed; i += kPageTokens) {
    const Page& page = pages_.at(kv_.pages(slot, 0)[i / kPageTokens]);
    const int64_t tokens = std::min<int64_t>(kPageTokens, sequence.fed - i);
    ASSERT_GE(page.filled, tokens);
    ASSERT_TRUE(
        std::equal(page.tokens.begin(), page.tokens.begin() + tokens, sequence.known.begin() + i))
        << "slot " << slot << " attends to tokens of another sequence from " << i << " on";
  }
}

void FakePipeline::check_item(const StepItem& item, const int32_t* tokens, uint64_t step) {
  ASSERT_TRUE(slots_.contains(item.slot)) << "slot " << item.slot << " was never admitted";
  Sequence& sequence = slots_[item.slot];
  ASSERT_FALSE(sequence.in_flight) << "slot " << item.slot << " is in two steps at once";
  sequence.in_flight = true;
  ASSERT_EQ(item.first_position, sequence.fed) << "positions are not consecutive";
  ASSERT_LE(sequence.fed + item.rows, std::ssize(sequence.known));
  ASSERT_LE(item.rows, std::max<int64_t>(limits_.prefill_chunk, 1));
  for (int i = 0; i < item.rows; ++i) {
    ASSERT_EQ(tokens[i], sequence.known[static_cast<size_t>(sequence.fed + i)]);
  }
  ASSERT_NO_THROW(kv_.reserve(item.slot, sequence.fed + item.rows)) << "the KV cache is overbooked";
  for (int i = 0; i < item.rows; ++i) {
    write(item.slot, sequence.fed + i, tokens[i], step);
    if (testing::Test::HasFatalFailure()) return;
  }
  const int64_t prompt = sequence.admission.prompt_tokens;
  prompt_rows_ += std::clamp<int64_t>(prompt - sequence.fed, 0, item.rows);
  sequence.fed += item.rows;
  ASSERT_EQ(item.sample, sequence.fed == std::ssize(sequence.known));
  check_pages(item.slot);
}

StepResult FakePipeline::answer() {
  const StepMessage message = std::move(steps_.front());
  steps_.pop_front();
  StepResult result{message.step, {}};
  for (const StepItem& item : message.items) {
    Sequence& sequence = slots_.at(item.slot);
    sequence.in_flight = false;
    if (!item.sample) continue;
    const std::optional<int> token = model_(sequence.admission.stream, sequence.known);
    SampledToken sampled{item.slot, token.has_value(), {token.value_or(0), -0.5f}, {}};
    const auto alternatives = sequence.admission.sampling.top_logprobs.value_or(0);
    for (int i = 0; i < alternatives; ++i) sampled.alternatives.push_back({i, -1.0f});
    if (token) sequence.known.push_back(*token);
    result.tokens.push_back(std::move(sampled));
  }
  return result;
}

}  // namespace headrace::test
