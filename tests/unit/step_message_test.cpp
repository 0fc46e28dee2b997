#include "runtime/schedule/step_message.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>

#include "tests/unit/child_process.h"

namespace headrace {
namespace {

using Message = std::vector<std::byte>;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t bits() { return engine_(); }
  size_t below(size_t n) { return engine_() % n; }
  int32_t integer() { return static_cast<int32_t>(engine_()); }
  // Any float but NaN, which would not equal itself.
  float number() {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(engine_()));
    return std::isnan(value) ? 0.5f : value;
  }

 private:
  std::mt19937_64 engine_;
};

StepMessage random_step(Random& random, size_t most) {
  StepMessage message;
  message.step = random.bits();
  message.stop = random.below(2);
  message.idle_ns = static_cast<int64_t>(random.below(1000000));
  for (size_t i = random.below(most + 1); i-- > 0;) {
    message.changes.push_back({random.integer(), random.integer(), random.integer()});
  }
  for (size_t i = random.below(most + 1); i-- > 0;) {
    Admission a;
    a.slot = random.integer();
    a.prompt_tokens = random.integer();
    a.stream = random.bits();
    a.sampling.temperature = random.number();
    a.sampling.top_p = random.number();
    a.sampling.top_k = random.integer();
    a.sampling.min_p = random.number();
    a.sampling.repetition_penalty = random.number();
    a.sampling.seed = random.bits();
    if (random.below(2)) a.sampling.top_logprobs = static_cast<int>(random.below(21));
    for (size_t b = random.below(most + 1); b-- > 0;) {
      a.sampling.logit_bias.emplace_back(random.integer(), random.number());
    }
    for (size_t p = random.below(most + 1); p-- > 0;) a.prompt.push_back(random.integer());
    message.admissions.push_back(a);
  }
  for (size_t i = random.below(most + 1); i-- > 0;) {
    message.items.push_back({random.integer(), random.integer(),
                             static_cast<int64_t>(random.bits()), random.below(2) == 1});
  }
  for (size_t i = random.below(20 * most + 1); i-- > 0;) message.tokens.push_back(random.integer());
  return message;
}

StepResult random_result(Random& random, size_t most) {
  StepResult result;
  result.step = random.bits();
  for (size_t i = random.below(most + 1); i-- > 0;) {
    SampledToken token{
        random.integer(), random.below(2) == 1, {random.integer(), random.number()}, {}};
    for (size_t a = random.below(21); a-- > 0;) {
      token.alternatives.push_back({random.integer(), random.number()});
    }
    result.tokens.push_back(token);
  }
  return result;
}

void expect_equal(const StepMessage& a, const StepMessage& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.stop, b.stop);
  EXPECT_EQ(a.idle_ns, b.idle_ns);
  ASSERT_EQ(a.changes.size(), b.changes.size());
  for (size_t i = 0; i < a.changes.size(); ++i) {
    EXPECT_EQ(a.changes[i].slot, b.changes[i].slot);
    EXPECT_EQ(a.changes[i].from, b.changes[i].from);
    EXPECT_EQ(a.changes[i].pages, b.changes[i].pages);
  }
  EXPECT_EQ(a.tokens, b.tokens);
  ASSERT_EQ(a.admissions.size(), b.admissions.size());
  for (size_t i = 0; i < a.admissions.size(); ++i) {
    EXPECT_EQ(a.admissions[i].slot, b.admissions[i].slot);
    EXPECT_EQ(a.admissions[i].prompt_tokens, b.admissions[i].prompt_tokens);
    EXPECT_EQ(a.admissions[i].stream, b.admissions[i].stream);
    EXPECT_TRUE(a.admissions[i].sampling == b.admissions[i].sampling);
    EXPECT_EQ(a.admissions[i].prompt, b.admissions[i].prompt);
  }
  ASSERT_EQ(a.items.size(), b.items.size());
  for (size_t i = 0; i < a.items.size(); ++i) {
    EXPECT_EQ(a.items[i].slot, b.items[i].slot);
    EXPECT_EQ(a.items[i].rows, b.items[i].rows);
    EXPECT_EQ(a.items[i].first_position, b.items[i].first_position);
    EXPECT_EQ(a.items[i].sample, b.items[i].sample);
  }
}

void expect_equal(const TokenLogprob& a, const TokenLogprob& b) {
  EXPECT_EQ(a.token, b.token);
  EXPECT_EQ(a.logprob, b.logprob);
}

void expect_equal(const StepResult& a, const StepResult& b) {
  EXPECT_EQ(a.step, b.step);
  ASSERT_EQ(a.tokens.size(), b.tokens.size());
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    EXPECT_EQ(a.tokens[i].slot, b.tokens[i].slot);
    EXPECT_EQ(a.tokens[i].finite, b.tokens[i].finite);
    expect_equal(a.tokens[i].chosen, b.tokens[i].chosen);
    ASSERT_EQ(a.tokens[i].alternatives.size(), b.tokens[i].alternatives.size());
    for (size_t j = 0; j < a.tokens[i].alternatives.size(); ++j) {
      expect_equal(a.tokens[i].alternatives[j], b.tokens[i].alternatives[j]);
    }
  }
}

TEST(StepMessage, RoundTrips) {
  Random random(1);
  for (int i = 0; i < 500; ++i) {
    const StepMessage message = random_step(random, 8);
    expect_equal(message, decode_step_message(encode(message)));
    const StepResult result = random_result(random, 12);
    expect_equal(result, decode_step_result(encode(result)));
  }
  expect_equal(StepMessage{}, decode_step_message(encode(StepMessage{})));
  expect_equal(StepResult{}, decode_step_result(encode(StepResult{})));
}

// Logprob bits travel as they are, NaN and -0 too.
TEST(StepMessage, FloatsKeepTheirBits) {
  for (const float value : {-0.0f, std::numeric_limits<float>::quiet_NaN(),
                            -std::numeric_limits<float>::infinity(), 1e-45f}) {
    StepResult result{3, {{1, true, {7, value}, {{8, value}}}}};
    const StepResult got = decode_step_result(encode(result));
    EXPECT_EQ(std::bit_cast<uint32_t>(got.tokens.at(0).chosen.logprob),
              std::bit_cast<uint32_t>(value));
    EXPECT_EQ(std::bit_cast<uint32_t>(got.tokens.at(0).alternatives.at(0).logprob),
              std::bit_cast<uint32_t>(value));
  }
}

// What a decoder makes of bytes: nothing thrown, the documented error, or a fault of the program.
template <typename Decode>
bool is_refused(Decode decode, const Message& bytes) {
  try {
    decode(bytes);
    return false;
  } catch (const std::runtime_error&) {
    return true;
  } catch (const std::exception& e) {
    ADD_FAILURE() << "another error: " << e.what();
    return true;
  }
}

TEST(StepMessage, EveryTruncationIsRefused) {
  Random random(2);
  for (int i = 0; i < 30; ++i) {
    const Message step = encode(random_step(random, 4));
    for (size_t size = 0; size < step.size(); ++size) {
      ASSERT_TRUE(is_refused(decode_step_message, Message(step.begin(), step.begin() + size)))
          << size << " of " << step.size();
    }
    const Message result = encode(random_result(random, 4));
    for (size_t size = 0; size < result.size(); ++size) {
      ASSERT_TRUE(is_refused(decode_step_result, Message(result.begin(), result.begin() + size)))
          << size << " of " << result.size();
    }
  }
}

TEST(StepMessage, BytesThatAreLeftOverAreRefused) {
  Random random(3);
  Message step = encode(random_step(random, 4));
  step.push_back(std::byte{0});
  EXPECT_TRUE(is_refused(decode_step_message, step));
  Message result = encode(random_result(random, 4));
  result.push_back(std::byte{0});
  EXPECT_TRUE(is_refused(decode_step_result, result));
}

// A count that promises more elements than the message has bytes for: the elements are larger in
// memory, so the count is checked against what each takes in the message.
TEST(StepMessage, AWrongCountIsRefusedBeforeMemoryIsTaken) {
  constexpr size_t kZeros = 8 << 20;
  constexpr size_t kChanges = sizeof(uint64_t) + 1;  // after step and stop
  constexpr size_t kAdmissions = kChanges + sizeof(uint32_t);
  constexpr size_t kResultTokens = sizeof(uint64_t);
  for (const uint32_t count : {0xFFFFFFFFu, 0x7FFFFFFFu, uint32_t{kZeros}, uint32_t{kZeros / 2}}) {
    Message bytes(kZeros);
    const int64_t before = test::peak_bytes();
    std::memcpy(bytes.data() + kChanges, &count, sizeof count);
    EXPECT_TRUE(is_refused(decode_step_message, bytes)) << count;
    bytes.assign(kZeros, std::byte{0});
    std::memcpy(bytes.data() + kAdmissions, &count, sizeof count);
    EXPECT_TRUE(is_refused(decode_step_message, bytes)) << count;
    bytes.assign(kZeros, std::byte{0});
    std::memcpy(bytes.data() + kResultTokens, &count, sizeof count);
    EXPECT_TRUE(is_refused(decode_step_result, bytes)) << count;
    EXPECT_LT(test::peak_bytes() - before, 64 << 20) << count;
  }
}

TEST(StepMessage, DamagedBytesAreRefusedOrRead) {
  Random random(4);
  int refused = 0, read = 0;
  for (int i = 0; i < 20000; ++i) {
    Message bytes = i % 2 ? encode(random_step(random, 3)) : encode(random_result(random, 3));
    for (size_t changes = 1 + random.below(4); changes-- > 0;) {
      bytes[random.below(bytes.size())] = static_cast<std::byte>(random.bits());
    }
    const bool bad =
        i % 2 ? is_refused(decode_step_message, bytes) : is_refused(decode_step_result, bytes);
    bad ? ++refused : ++read;
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(read, 100);
}

TEST(StepMessage, NoiseIsRefused) {
  Random random(5);
  for (int i = 0; i < 2000; ++i) {
    Message bytes(20 + random.below(2000));
    for (std::byte& b : bytes) b = static_cast<std::byte>(random.bits() | 1);
    EXPECT_TRUE(is_refused(decode_step_message, bytes));
    EXPECT_TRUE(is_refused(decode_step_result, bytes));
  }
}

// A truth value is 0 or 1 and nothing else.
TEST(StepMessage, AFlagOfAnotherValueIsRefused) {
  Message bytes = encode(StepMessage{});
  bytes[sizeof(uint64_t)] = std::byte{2};
  EXPECT_TRUE(is_refused(decode_step_message, bytes));
}

}  // namespace
}  // namespace headrace
