// The coordinator: owns the requests on rank 0, admits them into slots, forms the steps that keep
// the pipeline full, takes the sampled tokens back and retires what is finished.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/requests/request.h"
#include "runtime/results/result.h"
#include "runtime/schedule/kv_slots.h"
#include "runtime/schedule/step_message.h"
#include "runtime/text/text_stream.h"
#include "runtime/text/tokenizer.h"

namespace headrace {

// A request that can be served: its prompt in tokens, checked against the model's limits.
struct PreparedRequest {
  Request request;  // its prompt may be gone
  std::vector<int32_t> prompt;
};

enum class Order { kLongestFirst, kInput };

struct ScheduleLimits {
  int slots = 1;               // sequences in flight over the whole pipeline
  int groups = 1;              // steps in flight: at least as many as stages, or stages wait
  int64_t kv_pages = 0;        // of the stage that has fewest
  int64_t sequence_pages = 0;  // that one sequence may have
  // Sequences whose prompts begin alike share KV pages; every stage must be able to. So many slots
  // besides those of sequences in flight keep what sequences hold that have ended.
  bool shares_prefixes = false;
  int kept_slots = 0;
  // Of all sequences in flight, shared pages counted for each that has them.
  int64_t table_pages = std::numeric_limits<int64_t>::max();
  int64_t step_rows = 512;      // rows of a step, at most
  int64_t prefill_chunk = 128;  // prompt tokens per sequence and step
  Order order = Order::kLongestFirst;
  // No sequence decodes while one in flight has no token yet, so that both can be timed apart.
  bool prompts_first = false;
  // Sequences read ahead, among which the longest goes first, and the memory they may take; one is
  // always read.
  int window = 1024;
  int64_t window_bytes = 2 << 20;
};

struct ScheduleCounts {
  int64_t requests_done = 0;
  int64_t prompt_tokens = 0;  // fed to the pipeline so far, or taken over
  int64_t shared_tokens = 0;  // of them, taken over from sequences that begin alike
  int64_t generated_tokens = 0;
  int64_t first_tokens = 0;  // sequences that have got at least one token so far
  int64_t steps = 0;
  int active = 0;  // sequences in slots
};

class Coordinator {
 public:
  // What the feed has: a request, nothing yet (input comes in slowly), or nothing any more. `idle`:
  // the pipeline has nothing to do, so the feed may wait a moment for input.
  struct NothingYet {};
  struct NoMore {};
  using Fed = std::variant<PreparedRequest, NothingYet, NoMore>;
  using Feed = std::function<Fed(bool idle)>;
  using Done = std::function<void(const RequestResult&)>;
  using Failed = std::function<void(const BadLine&)>;
  using Accepted = std::function<void(const ScheduleCounts&)>;

  // `tokenizer` may be null (token ids in, token ids out, no text). `eos`: ids that end a sequence.
  Coordinator(const ScheduleLimits& limits, const Tokenizer* tokenizer, std::vector<int> eos,
              Feed feed, Done done, Failed failed);
  ~Coordinator();
  // `accepted` is called at the end of each accept(), after what it caused (Done, Failed).
  void watch(Accepted accepted) { accepted_ = std::move(accepted); }

  // The next step, or nullopt if every group is under way or nothing is to be done.
  std::optional<StepMessage> next_step();
  // The answer to the oldest step under way.
  void accept(const StepResult& result);

  bool steps_under_way() const { return !under_way_.empty(); }
  // Nothing in flight, nothing waiting, and the feed is at its end.
  bool finished();
  // True as long as some request has no result yet.
  bool unfinished() const { return !feed_ended_ || !waiting_.empty() || counts_.active > 0; }
  // Admits and forms no more steps; those under way can still be accepted.
  void stop() { stopping_ = true; }

  const ScheduleCounts& counts() const { return counts_; }

 private:
  struct RequestState;
  struct Sequence;
  struct StepUnderWay {
    uint64_t step;
    std::vector<int32_t> slots;
  };

  void read_ahead();
  void take_over();
  void admit();
  std::vector<Sequence*> pick_ready();
  void add_rows(StepMessage& message, const std::vector<Sequence*>& chosen);
  void take_token(Sequence& sequence, const SampledToken& token);
  void retire(Sequence& sequence, const char* finish_reason);
  void fail(Sequence& sequence, std::string message);
  void free_slot(Sequence& sequence);
  bool is_wanted(const KvSlots::Content& content) const;

  ScheduleLimits limits_;
  const Tokenizer* tokenizer_;
  std::vector<int> eos_;
  Feed feed_;
  Done done_;
  Failed failed_;
  Accepted accepted_;

  // Sequences that wait for a slot, the next one to admit first.
  struct Waits {
    bool operator()(const std::unique_ptr<Sequence>& a, const std::unique_ptr<Sequence>& b) const;
  };
  std::set<std::unique_ptr<Sequence>, Waits> waiting_;
  std::unordered_map<uint64_t, int64_t> beginnings_;  // of those, how many have each
  std::vector<std::unique_ptr<Sequence>> slots_;      // null: free
  KvSlots kv_;
  std::vector<Admission> admissions_;  // since the last step message
  std::deque<StepUnderWay> under_way_;
  int64_t read_ = 0;
  int64_t waiting_bytes_ = 0;  // of the sequences that wait
  uint64_t step_ = 0;
  bool feed_ended_ = false;
  bool stopping_ = false;
  ScheduleCounts counts_;
};

}  // namespace headrace
