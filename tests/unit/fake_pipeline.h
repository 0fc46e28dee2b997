// Plays the stages of a pipeline for the tests of the coordinator: checks every step message as
// strictly as a stage would have to trust it, keeps a real KvStore and what its pages hold, and
// answers steps in order with tokens that are a function of the sequence so far.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "engine/memory/kv_store.h"
#include "runtime/schedule/coordinator.h"

namespace headrace::test {

// A token, or nullopt for logits that are not finite.
using FakeModel =
    std::function<std::optional<int>(uint64_t stream, const std::vector<int32_t>& tokens)>;

// A token below 100 that depends on every token before it.
std::optional<int> hashed_token(uint64_t stream, const std::vector<int32_t>& tokens);

class FakePipeline {
 public:
  // `prompts` by stream.
  FakePipeline(const ScheduleLimits& limits, FakeModel model,
               std::map<uint64_t, std::vector<int32_t>> prompts);

  void take(const StepMessage& message);
  // The answer to the oldest step.
  StepResult answer();

  int under_way() const { return static_cast<int>(steps_.size()); }
  int64_t free_pages() const { return kv_.free_pages(); }
  int64_t least_free_pages() const { return least_free_pages_; }
  // Tokens of prompts that were computed.
  int64_t prompt_rows() const { return prompt_rows_; }
  // Streams in the order in which they got slots.
  const std::vector<uint64_t>& admitted() const { return admitted_; }

 private:
  struct Sequence {
    Admission admission;
    std::vector<int32_t> known;  // prompt and generated tokens
    int64_t fed = 0;
    bool in_flight = false;
  };
  // Its tokens, and the last step that fed one.
  struct Page {
    std::array<int32_t, kPageTokens> tokens;
    int filled = 0;
    uint64_t step = 0;
  };
  void make(const KvChange& change, uint64_t step);
  void check_item(const StepItem& item, const int32_t* tokens, uint64_t step);
  void write(int slot, int64_t position, int32_t token, uint64_t step);
  void check_pages(int slot) const;

  ScheduleLimits limits_;
  FakeModel model_;
  std::map<uint64_t, std::vector<int32_t>> prompts_;
  MemoryBudget budget_;
  KvStore kv_;
  std::map<int, Sequence> slots_;  // in flight, or ended and not released yet
  std::map<int, int64_t> taken_;   // pages that a slot has taken over
  std::unordered_map<const std::byte*, Page> pages_;
  std::deque<StepMessage> steps_;
  std::set<uint64_t> streams_;
  std::vector<uint64_t> admitted_;
  uint64_t last_step_ = 0;
  int64_t least_free_pages_;
  int64_t prompt_rows_ = 0;
};

}  // namespace headrace::test
