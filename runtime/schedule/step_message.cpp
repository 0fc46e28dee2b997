#include "runtime/schedule/step_message.h"

#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace headrace {
namespace {

// What one element takes in a message at least (its own lists empty).
constexpr size_t kChangeBytes = 12, kAdmissionBytes = 56, kItemBytes = 17, kSampledBytes = 17,
                 kPairBytes = 8;

class Writer {
 public:
  template <typename T>
  requires std::is_arithmetic_v<T>
  void put(T value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    out_.insert(out_.end(), bytes, bytes + sizeof value);
  }
  template <typename T, typename PutElement>
  void list(const std::vector<T>& values, PutElement put_element) {
    put(static_cast<uint32_t>(values.size()));
    for (const T& value : values) put_element(value);
  }
  std::vector<std::byte> take() { return std::move(out_); }

 private:
  std::vector<std::byte> out_;
};

class Reader {
 public:
  explicit Reader(const std::vector<std::byte>& bytes) : bytes_(bytes) {}

  template <typename T>
  requires std::is_arithmetic_v<T>
  void get(T& value) {
    if (bytes_.size() - at_ < sizeof value) throw std::runtime_error("step message is cut short");
    if constexpr (std::is_same_v<T, bool>) {
      if (std::to_integer<int>(bytes_[at_]) > 1)
        throw std::runtime_error("step message has a flag that is neither 0 nor 1");
    }
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
  }
  // `least_bytes`: of one element in the message, so that a wrong count takes no memory.
  template <typename T, typename GetElement>
  void list(std::vector<T>& values, size_t least_bytes, GetElement get_element) {
    uint32_t count = 0;
    get(count);
    if (count > (bytes_.size() - at_) / least_bytes)
      throw std::runtime_error("step message has a wrong count");
    values.resize(count);
    for (T& value : values) get_element(value);
  }
  void end() const {
    if (at_ != bytes_.size()) throw std::runtime_error("step message is too long");
  }

 private:
  const std::vector<std::byte>& bytes_;
  size_t at_ = 0;
};

// One description of each type's fields for both directions: `f` is Writer::put or Reader::get.
template <typename F, typename S>
void sampling_fields(F f, S& s) {
  f(s.temperature), f(s.top_p), f(s.top_k), f(s.min_p), f(s.repetition_penalty), f(s.seed);
}

template <typename F, typename C>
void change_fields(F f, C& c) {
  f(c.slot), f(c.from), f(c.pages);
}

template <typename F, typename I>
void item_fields(F f, I& i) {
  f(i.slot), f(i.rows), f(i.first_position), f(i.sample);
}

}  // namespace

std::vector<std::byte> encode(const StepMessage& message) {
  Writer w;
  const auto put = [&](auto value) { w.put(value); };
  put(message.step), put(message.stop);
  w.list(message.changes, [&](const KvChange& change) { change_fields(put, change); });
  w.list(message.admissions, [&](const Admission& a) {
    put(a.slot), put(a.prompt_tokens), put(a.stream);
    sampling_fields(put, a.sampling);
    put(a.sampling.top_logprobs.value_or(-1));
    w.list(a.sampling.logit_bias, [&](const auto& bias) { put(bias.first), put(bias.second); });
    w.list(a.prompt, put);
  });
  w.list(message.items, [&](const StepItem& item) { item_fields(put, item); });
  w.list(message.tokens, put);
  put(message.idle_ns);
  return w.take();
}

StepMessage decode_step_message(const std::vector<std::byte>& bytes) {
  Reader r(bytes);
  const auto get = [&](auto& value) { r.get(value); };
  StepMessage message;
  get(message.step), get(message.stop);
  r.list(message.changes, kChangeBytes, [&](KvChange& change) { change_fields(get, change); });
  r.list(message.admissions, kAdmissionBytes, [&](Admission& a) {
    get(a.slot), get(a.prompt_tokens), get(a.stream);
    sampling_fields(get, a.sampling);
    int top = -1;
    get(top);
    if (top >= 0) a.sampling.top_logprobs = top;
    r.list(a.sampling.logit_bias, kPairBytes,
           [&](auto& bias) { get(bias.first), get(bias.second); });
    r.list(a.prompt, sizeof(int32_t), get);
  });
  r.list(message.items, kItemBytes, [&](StepItem& item) { item_fields(get, item); });
  r.list(message.tokens, sizeof(int32_t), get);
  get(message.idle_ns);
  r.end();
  return message;
}

std::vector<std::byte> encode(const StepResult& result) {
  Writer w;
  const auto put = [&](auto value) { w.put(value); };
  const auto put_logprob = [&](const TokenLogprob& t) { put(t.token), put(t.logprob); };
  put(result.step);
  w.list(result.tokens, [&](const SampledToken& t) {
    put(t.slot), put(t.finite);
    put_logprob(t.chosen);
    w.list(t.alternatives, put_logprob);
  });
  return w.take();
}

StepResult decode_step_result(const std::vector<std::byte>& bytes) {
  Reader r(bytes);
  const auto get = [&](auto& value) { r.get(value); };
  const auto get_logprob = [&](TokenLogprob& t) { get(t.token), get(t.logprob); };
  StepResult result;
  get(result.step);
  r.list(result.tokens, kSampledBytes, [&](SampledToken& t) {
    get(t.slot), get(t.finite);
    get_logprob(t.chosen);
    r.list(t.alternatives, kPairBytes, get_logprob);
  });
  r.end();
  return result;
}

}  // namespace headrace
