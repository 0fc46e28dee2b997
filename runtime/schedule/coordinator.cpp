#include "runtime/schedule/coordinator.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "engine/memory/kv_store.h"
#include "runtime/schedule/stream_key.h"

namespace headrace {

// What the choices of one request share.
struct Coordinator::RequestState {
  PreparedRequest prepared;
  RequestResult result;
  int unfinished = 0;
  bool failed = false;
};

struct Coordinator::Sequence {
  std::shared_ptr<RequestState> request;
  int choice = 0;
  int64_t arrival = 0;  // order of reading
  int64_t length = 0;   // prompt and most tokens to generate
  Order order = Order::kInput;
  int64_t waiting_bytes = 0;  // that it takes while it waits
  uint64_t beginning = 0;     // of its prompt, see KvSlots

  KvSlots::Content content;  // from when it gets a slot
  uint64_t last_step = 0;
  bool in_flight = false;
  std::optional<TextStream> text;

  const Request& asked() const { return request->prepared.request; }
  bool is_in_prompt() const { return std::ssize(content.tokens) == content.prompt_tokens; }
  int64_t unfed() const { return std::ssize(content.tokens) - content.fed; }
  int64_t pages() const { return KvStore::pages_for(length); }
  ChoiceResult& result() const { return request->result.choices[choice]; }
};

namespace {

// About what a sequence takes besides its request, with the places in sets and lists.
constexpr int64_t kSequenceBytes = 512;

int64_t bytes_of(const PreparedRequest& prepared) {
  const Request& request = prepared.request;
  int64_t bytes = 2 * kSequenceBytes + std::ssize(request.custom_id) + std::ssize(request.model) +
                  std::ssize(prepared.prompt) * static_cast<int64_t>(sizeof(int32_t)) +
                  std::ssize(request.sampling.logit_bias) *
                      static_cast<int64_t>(sizeof(request.sampling.logit_bias.front()));
  for (const std::string& stop : request.stop) bytes += std::ssize(stop) + kSequenceBytes / 8;
  return bytes;
}

}  // namespace

bool Coordinator::Waits::operator()(const std::unique_ptr<Sequence>& a,
                                    const std::unique_ptr<Sequence>& b) const {
  if (a->order == Order::kLongestFirst && a->length != b->length) return a->length > b->length;
  return std::pair(a->arrival, a->choice) < std::pair(b->arrival, b->choice);
}

Coordinator::Coordinator(const ScheduleLimits& limits, const Tokenizer* tokenizer,
                         std::vector<int> eos, Feed feed, Done done, Failed failed)
    : limits_(limits),
      tokenizer_(tokenizer),
      eos_(std::move(eos)),
      feed_(std::move(feed)),
      done_(std::move(done)),
      failed_(std::move(failed)),
      slots_(limits.slots + limits.kept_slots),
      kv_({limits.slots, limits.kept_slots, limits.shares_prefixes, limits.kv_pages,
           limits.table_pages}) {}

Coordinator::~Coordinator() = default;

std::optional<StepMessage> Coordinator::next_step() {
  if (stopping_ || under_way_.size() >= static_cast<size_t>(limits_.groups)) return std::nullopt;
  read_ahead();
  take_over();
  admit();
  const std::vector<Sequence*> chosen = pick_ready();
  counts_.prompt_tokens += kv_.tokens_taken() - counts_.shared_tokens;
  counts_.shared_tokens = kv_.tokens_taken();
  if (chosen.empty()) return std::nullopt;
  StepMessage message;
  message.step = ++step_;
  message.changes = kv_.take_changes();
  message.admissions = std::exchange(admissions_, {});
  add_rows(message, chosen);

  StepUnderWay step{message.step, {}};
  for (const StepItem& item : message.items) step.slots.push_back(item.slot);
  under_way_.push_back(std::move(step));
  ++counts_.steps;
  return message;
}

void Coordinator::read_ahead() {
  while (!feed_ended_ && waiting_.size() < static_cast<size_t>(limits_.window) &&
         (waiting_.empty() || waiting_bytes_ < limits_.window_bytes)) {
    Fed next = feed_(/*idle=*/waiting_.empty() && counts_.active == 0);
    feed_ended_ = std::holds_alternative<NoMore>(next);
    auto* prepared = std::get_if<PreparedRequest>(&next);
    if (!prepared) return;
    auto state = std::make_shared<RequestState>();
    state->prepared = std::move(*prepared);
    const Request& request = state->prepared.request;
    state->result.custom_id = request.custom_id;
    state->result.digest = request.digest;
    state->result.endpoint = request.endpoint;
    state->result.model = request.model;
    state->result.prompt_tokens = static_cast<int>(state->prepared.prompt.size());
    state->result.choices.resize(request.n);
    state->unfinished = request.n;
    for (int choice = 0; choice < request.n; ++choice) {
      auto sequence = std::make_unique<Sequence>();
      sequence->request = state;
      sequence->choice = choice;
      sequence->arrival = read_;
      sequence->length = static_cast<int64_t>(state->prepared.prompt.size()) + request.max_tokens;
      sequence->order = limits_.order;
      sequence->waiting_bytes = choice == 0 ? bytes_of(state->prepared) : kSequenceBytes;
      waiting_bytes_ += sequence->waiting_bytes;
      sequence->beginning = KvSlots::beginning(state->prepared.prompt);
      ++beginnings_[sequence->beginning];
      waiting_.insert(std::move(sequence));
    }
    ++read_;
  }
}

// Before others are admitted: pages that sequences have in common are free then, and those that
// they wait for have not been given up.
void Coordinator::take_over() {
  if (!kv_.shares()) return;
  std::vector<Sequence*> waiting;
  for (const auto& sequence : slots_) {
    if (sequence && !sequence->content.has_begun()) waiting.push_back(sequence.get());
  }
  std::ranges::sort(waiting, {}, [](const Sequence* s) { return s->content.number(); });
  for (Sequence* const sequence : waiting) kv_.take_over(sequence->content);
}

// Fills free slots from the queue, as long as the KV cache holds the next sequence to its end.
void Coordinator::admit() {
  while (!waiting_.empty() && !kv_.is_full()) {
    Sequence& next = **waiting_.begin();
    const bool is_void = next.request->failed;
    if (!is_void) {
      next.content.tokens = next.request->prepared.prompt;
      next.content.prompt_tokens = std::ssize(next.content.tokens);
      if (!kv_.admit(next.content, next.pages())) return;
    }
    std::unique_ptr<Sequence> sequence = std::move(waiting_.extract(waiting_.begin()).value());
    waiting_bytes_ -= sequence->waiting_bytes;
    if (--beginnings_[sequence->beginning] == 0) beginnings_.erase(sequence->beginning);
    if (is_void) continue;
    const Request& request = sequence->asked();
    if (tokenizer_) sequence->text.emplace(*tokenizer_, request.stop);

    Admission admission;
    admission.slot = sequence->content.slot;
    admission.prompt_tokens = static_cast<int32_t>(sequence->content.prompt_tokens);
    admission.stream = stream_key(request.custom_id, sequence->choice);
    admission.sampling = request.sampling;
    if (kv_.shares() && request.sampling.repetition_penalty != 1.0f) {
      admission.prompt = sequence->content.tokens;
    }
    admissions_.push_back(std::move(admission));
    slots_[sequence->content.slot] = std::move(sequence);
    ++counts_.active;
  }
}

// The sequences that travel together next, those first that have waited longest: an even share of
// all active ones, and no more than leaves a share for every other group that is not under way.
std::vector<Coordinator::Sequence*> Coordinator::pick_ready() {
  const auto in_prompt = [](const std::unique_ptr<Sequence>& sequence) {
    return sequence && sequence->is_in_prompt();
  };
  const bool only_prompts =
      limits_.prompts_first && std::any_of(slots_.begin(), slots_.end(), in_prompt);
  std::vector<Sequence*> ready;
  for (const auto& sequence : slots_) {
    if (!sequence || sequence->in_flight || (only_prompts && !in_prompt(sequence))) continue;
    if (!kv_.waits(sequence->content)) ready.push_back(sequence.get());
  }
  std::stable_sort(ready.begin(), ready.end(), [](const Sequence* a, const Sequence* b) {
    return a->last_step < b->last_step;
  });
  const auto groups = static_cast<size_t>(limits_.groups);
  const size_t idle_groups = groups - under_way_.size();
  const auto parts = [](size_t sequences, size_t of) { return (sequences + of - 1) / of; };
  const size_t share = std::min(parts(static_cast<size_t>(counts_.active), groups),
                                parts(ready.size(), idle_groups));
  if (ready.size() > share) ready.resize(share);
  return ready;
}

// One row for each sequence that decodes, then prompt chunks as far as the step has room.
void Coordinator::add_rows(StepMessage& message, const std::vector<Sequence*>& chosen) {
  int64_t room = limits_.step_rows;
  for (const bool decode : {true, false}) {
    for (Sequence* sequence : chosen) {
      if (sequence->in_flight || (sequence->unfed() == 1) != decode || room == 0) continue;
      const int64_t rows = std::min({sequence->unfed(), limits_.prefill_chunk, room});
      const bool all_fed = rows == sequence->unfed();
      KvSlots::Content& content = sequence->content;
      message.items.push_back({content.slot, static_cast<int32_t>(rows), content.fed, all_fed});
      const auto first = content.tokens.begin() + content.fed;
      message.tokens.insert(message.tokens.end(), first, first + rows);
      if (sequence->is_in_prompt()) counts_.prompt_tokens += rows;
      content.fed += rows;
      sequence->in_flight = true;
      sequence->last_step = message.step;
      room -= rows;
    }
  }
}

void Coordinator::accept(const StepResult& result) {
  if (under_way_.empty() || under_way_.front().step != result.step) {
    throw std::logic_error("the result of step " + std::to_string(result.step) +
                           " came out of order");
  }
  const StepUnderWay step = std::move(under_way_.front());
  under_way_.pop_front();
  for (const int32_t slot : step.slots) slots_[slot]->in_flight = false;
  for (const SampledToken& token : result.tokens) take_token(*slots_.at(token.slot), token);
  if (accepted_) accepted_(counts_);
}

void Coordinator::take_token(Sequence& sequence, const SampledToken& token) {
  if (sequence.request->failed) return free_slot(sequence);  // another choice of it has failed
  if (!token.finite) {
    return fail(sequence, "the model's logits are not finite (NaN or infinity) after " +
                              std::to_string(sequence.content.fed) +
                              " tokens; check the model's weights");
  }
  ++counts_.generated_tokens;
  const Request& request = sequence.asked();
  ChoiceResult& choice = sequence.result();
  sequence.content.tokens.push_back(token.chosen.token);
  choice.token_ids.push_back(token.chosen.token);
  counts_.first_tokens += choice.token_ids.size() == 1;
  if (request.sampling.top_logprobs) {
    choice.logprobs.push_back(token.chosen);
    choice.alternatives.push_back(token.alternatives);
  }
  const bool at_eos =
      !request.ignore_eos && std::find(eos_.begin(), eos_.end(), token.chosen.token) != eos_.end();
  const bool at_stop = !at_eos && sequence.text && sequence.text->push(token.chosen.token);
  if (at_eos || at_stop) {
    retire(sequence, "stop");
  } else if (choice.token_ids.size() == static_cast<size_t>(request.max_tokens)) {
    retire(sequence, "length");
  }
}

void Coordinator::retire(Sequence& sequence, const char* finish_reason) {
  sequence.result().finish_reason = finish_reason;
  if (sequence.text) sequence.result().text = sequence.text->text();
  const std::shared_ptr<RequestState> request = sequence.request;
  free_slot(sequence);
  if (--request->unfinished > 0) return;
  ++counts_.requests_done;
  done_(request->result);
}

void Coordinator::fail(Sequence& sequence, std::string message) {
  sequence.request->failed = true;
  const Request& request = sequence.asked();
  failed_({request.custom_id, "model_error", std::move(message), request.digest});
  free_slot(sequence);
}

void Coordinator::free_slot(Sequence& sequence) {
  const int32_t slot = sequence.content.slot;
  is_wanted(sequence.content) ? kv_.keep(sequence.content) : kv_.release(sequence.content);
  --counts_.active;
  slots_[slot].reset();
}

// Somebody waits who would take over more of it than of any other sequence.
bool Coordinator::is_wanted(const KvSlots::Content& content) const {
  const uint64_t beginning = kv_.beginning(content.slot);
  if (!kv_.shares() || beginning == 0) return false;
  const int64_t elsewhere = kv_.pages_elsewhere(content);
  const auto wants = [&](const Sequence& sequence) {
    return sequence.beginning == beginning && !sequence.request->failed &&
           KvSlots::pages_for(content, sequence.request->prepared.prompt) > elsewhere;
  };
  for (int32_t slot = 0; slot < std::ssize(slots_); ++slot) {
    if (!slots_[slot] || kv_.beginning(slot) != beginning) continue;
    if (!slots_[slot]->content.has_begun() && wants(*slots_[slot])) return true;
  }
  return beginnings_.contains(beginning) &&
         std::ranges::any_of(waiting_, [&](const auto& sequence) { return wants(*sequence); });
}

bool Coordinator::finished() {
  if (!under_way_.empty()) return false;
  if (stopping_) return true;
  read_ahead();
  return feed_ended_ && waiting_.empty() && counts_.active == 0;
}

}  // namespace headrace
