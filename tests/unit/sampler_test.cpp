// The sampler against a plain reference that sorts everything and sums in double.
#include "runtime/pipeline/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/ops/canonical.h"
#include "tests/ops/op_test.h"
#include "tests/reference/sampler.h"

namespace headrace {
namespace {

Admission admission(const SamplingParams& sampling, int prompt_tokens, uint64_t stream = 5) {
  return {0, prompt_tokens, stream, sampling};
}

// One sequence's sampler, on one target.
class OneSlot {
 public:
  OneSlot(const Admission& admitted, int64_t vocab_size,
          Target target = supported_targets().front())
      : sampler_(kernels(target), 1, vocab_size) {
    sampler_.admit(admitted);
  }
  // The token that follows `seen`, all of the sequence's tokens.
  SampledToken sample(std::span<const int32_t> seen, std::vector<float> logits) {
    sampler_.observe(0, seen.subspan(observed_));
    observed_ = seen.size();
    return sampler_.sample(0, std::ssize(seen) - 1, logits);
  }

 private:
  Sampler sampler_;
  size_t observed_ = 0;
};

SampledToken sample_once(const SamplingParams& sampling, std::span<const int32_t> seen,
                         const std::vector<float>& logits) {
  OneSlot slot(admission(sampling, static_cast<int>(seen.size())), std::ssize(logits));
  return slot.sample(seen, logits);
}

const std::vector<int32_t> kPrompt = {1, 4, 4, 2};

TEST(Sampler, GreedyTakesTheHighestAndOfEqualsTheLowestId) {
  EXPECT_EQ(sample_once({}, kPrompt, {1, 3, 2, 3, 3}).chosen.token, 1);
  EXPECT_EQ(sample_once({}, kPrompt, {-7, -7, -7}).chosen.token, 0);
  EXPECT_EQ(sample_once({}, kPrompt, {-kInf, -kInf, -1e30f, -kInf}).chosen.token, 2);
  std::vector<float> logits(1000, 0.0f);
  logits[701] = logits[999] = 1e-30f;
  EXPECT_EQ(sample_once({}, kPrompt, logits).chosen.token, 701);
}

TEST(Sampler, TheBestTokenIsWhatWouldBeSampled) {
  const std::vector<std::vector<float>> all = {{1, 3, 2, 3}, {-kInf, 2, 1},  {kNan, 3, 1},
                                               {1, kInf, 2}, {-kInf, -kInf}, {1, 2, kNan}};
  for (const std::vector<float>& logits : all) {
    BestToken best;
    for (size_t id = 0; id < logits.size(); ++id) {
      if (logits[id] > best.logit) best = {static_cast<int32_t>(id), logits[id], best.has_nan};
      best.has_nan |= std::isnan(logits[id]);
    }
    const SampledToken expected = sample_once({}, kPrompt, logits);
    const SampledToken got = Sampler::best(0, best);
    EXPECT_EQ(got.finite, expected.finite);
    EXPECT_EQ(got.slot, expected.slot);
    EXPECT_EQ(got.chosen.token, expected.chosen.token);
  }
}

TEST(Sampler, OnlyPlainGreedyRequestsDoWithTheBestToken) {
  EXPECT_TRUE(SamplingParams{}.takes_best());
  SamplingParams filtered;  // what is cut off is never the best one
  filtered.top_k = 3;
  filtered.top_p = 0.5f;
  EXPECT_TRUE(filtered.takes_best());
  std::vector<SamplingParams> others(4);
  others[0].temperature = 0.1f;
  others[1].repetition_penalty = 1.1f;
  others[2].logit_bias = {{1, 1.0f}};
  others[3].top_logprobs = 0;
  for (const SamplingParams& sampling : others) EXPECT_FALSE(sampling.takes_best());
}

TEST(Sampler, LogitBiasIsAdded) {
  SamplingParams sampling;
  sampling.logit_bias = {{0, 2.5f}, {2, -100.0f}};
  EXPECT_EQ(sample_once(sampling, kPrompt, {1, 3, 9}).chosen.token, 0);
  sampling.logit_bias = {{0, 2.0f}};  // equal now: the lower id
  EXPECT_EQ(sample_once(sampling, kPrompt, {1, 3, 2}).chosen.token, 0);
}

// As transformers' RepetitionPenaltyLogitsProcessor: each seen token once, however often it came;
// negative logits are multiplied, the others divided.
TEST(Sampler, RepetitionPenaltyCountsPromptAndGeneratedTokensOnce) {
  SamplingParams sampling;
  sampling.repetition_penalty = 2.0f;
  // 4 was seen twice: 7 / 2 = 3.5, not 7 / 4.
  EXPECT_EQ(sample_once(sampling, kPrompt, {3, 0, 0, 0, 7}).chosen.token, 4);
  EXPECT_EQ(sample_once(sampling, kPrompt, {4, 0, 0, 0, 7}).chosen.token, 0);
  // Negative: -1 * 2 = -2 falls behind -1.5.
  EXPECT_EQ(sample_once(sampling, kPrompt, {-9, -1, -9, -1.5f, -9}).chosen.token, 3);
  // Below 1 it attracts.
  sampling.repetition_penalty = 0.5f;
  EXPECT_EQ(sample_once(sampling, kPrompt, {3, 2, 0, 0, 0}).chosen.token, 1);

  sampling.repetition_penalty = 2.0f;
  OneSlot slot(admission(sampling, 4), 5);
  const std::vector<float> logits = {3, 0, 0, 2.9f, 5};
  std::vector<int32_t> seen = kPrompt;
  EXPECT_EQ(slot.sample(seen, logits).chosen.token, 0);
  seen.push_back(0);  // generated: 0 is now worth 1.5
  EXPECT_EQ(slot.sample(seen, logits).chosen.token, 3);
}

TEST(Sampler, ANewSequenceInASlotHasSeenNothing) {
  SamplingParams sampling;
  sampling.repetition_penalty = 2.0f;
  Sampler sampler(kernels("auto"), 2, 3);
  sampler.admit({1, 1, 0, sampling});
  sampler.observe(1, std::vector<int32_t>{0});
  std::vector<float> logits = {3, 2, 0};
  EXPECT_EQ(sampler.sample(1, 0, logits).chosen.token, 1);
  sampler.admit({1, 1, 0, sampling});
  sampler.observe(1, std::vector<int32_t>{2});
  logits = {3, 2, 0};
  EXPECT_EQ(sampler.sample(1, 0, logits).chosen.token, 0);
}

// Of a prompt whose beginning no step brings in.
TEST(Sampler, ThePromptOfAnAdmissionHasBeenSeen) {
  SamplingParams sampling;
  sampling.repetition_penalty = 2.0f;
  Admission admitted = admission(sampling, 4);
  admitted.prompt = {4, 0, 4, 2};
  Sampler sampler(kernels("auto"), 1, 5);
  sampler.admit(admitted);
  sampler.observe(0, std::vector<int32_t>{2});
  std::vector<float> logits = {3, 2, 0, 1, 3.9f};
  EXPECT_EQ(sampler.sample(0, 3, logits).chosen.token, 1);
}

TEST(Sampler, LogitsThatAreNotFiniteAreReported) {
  SamplingParams drawn;
  drawn.temperature = 1.0f;
  SamplingParams reported;
  reported.top_logprobs = 2;
  for (const SamplingParams& sampling : {SamplingParams{}, drawn, reported}) {
    EXPECT_FALSE(sample_once(sampling, kPrompt, {-kInf, -kInf, -kInf}).finite);
    EXPECT_FALSE(sample_once(sampling, kPrompt, {kNan, kNan, kNan}).finite);
    EXPECT_FALSE(sample_once(sampling, kPrompt, {1, kInf, 2}).finite);
    EXPECT_FALSE(sample_once(sampling, kPrompt, {1, 5, kNan}).finite) << "one NaN among numbers";
    EXPECT_FALSE(sample_once(sampling, kPrompt, {kNan, 5, 1}).finite);
    EXPECT_TRUE(sample_once(sampling, kPrompt, {-kInf, 5, 1}).finite);
  }
}

TEST(Sampler, AnImpossibleTokenIsNeverDrawn) {
  SamplingParams sampling;
  for (const float temperature : {0.3f, 1.0f, 100.0f}) {
    for (const float top_p : {1.0f, 0.99f}) {
      sampling.temperature = temperature;
      sampling.top_p = top_p;
      OneSlot slot(admission(sampling, 0), 40);
      std::vector<float> logits(40, -kInf);
      for (int id = 1; id < 39; id += 3) logits[static_cast<size_t>(id)] = 0.1f * float(id);
      std::vector<int32_t> seen = {0};
      for (int i = 0; i < 3000; ++i) {
        const int token = slot.sample(seen, logits).chosen.token;
        ASSERT_TRUE(std::isfinite(logits[static_cast<size_t>(token)])) << token;
        seen.push_back(token);
      }
    }
  }
}

TEST(Sampler, TinyAndHugeTemperatures) {
  const std::vector<float> logits = {1.0f, 1.5f, -3.0f, 1.4999f};
  SamplingParams sampling;
  for (const float tiny : {1e-30f, 1e-44f, 1e-6f}) {
    sampling.temperature = tiny;
    std::vector<int32_t> seen;
    for (int i = 0; i < 100; ++i) {
      seen.push_back(0);
      EXPECT_EQ(sample_once(sampling, seen, logits).chosen.token, 1) << tiny;
    }
  }
  sampling.temperature = 1e30f;  // all alike
  std::vector<int> counts(4);
  OneSlot slot(admission(sampling, 0), 4);
  std::vector<int32_t> seen = {0};
  for (int i = 0; i < 4000; ++i) {
    const SampledToken token = slot.sample(seen, logits);
    ASSERT_TRUE(token.finite);
    ++counts[static_cast<size_t>(token.chosen.token)];
    seen.push_back(0);
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);
}

TEST(Sampler, ATokenDependsOnSeedStreamAndIndexOnly) {
  SamplingParams sampling;
  sampling.temperature = 1.0f;
  sampling.seed = 9;
  const std::vector<float> logits(500, 0.0f);
  const auto draw = [&](uint64_t seed, uint64_t stream, int prompt, int position) {
    sampling.seed = seed;
    Sampler sampler(kernels("auto"), 3, 500);
    sampler.admit({2, prompt, stream, sampling});
    std::vector<float> copy = logits;
    return sampler.sample(2, position, copy).chosen.token;
  };
  const int token = draw(9, 5, 4, 10);
  EXPECT_EQ(draw(9, 5, 14, 20), token) << "the same index after a longer prompt";
  int changed = 0;
  for (int i = 1; i <= 20; ++i) {
    changed += draw(9 + i, 5, 4, 10) != token;
    changed += draw(9, 5 + i, 4, 10) != token;
    changed += draw(9, 5, 4, 10 + i) != token;
  }
  EXPECT_GT(changed, 55);
}

// Random parameters over random logits.
SamplingParams random_sampling(Random& random) {
  SamplingParams sampling;
  const auto one_of = [&](std::initializer_list<float> values) {
    return *(values.begin() + random.below(std::ssize(values)));
  };
  sampling.temperature = one_of({0.0f, 0.2f, 0.7f, 1.0f, 1.0f, 2.5f});
  sampling.top_p = one_of({1.0f, 1.0f, 0.95f, 0.5f, 0.01f});
  sampling.top_k = static_cast<int>(one_of({0, 0, 1, 5, 50, 1e6f}));
  sampling.min_p = one_of({0.0f, 0.0f, 0.05f, 0.9f});
  sampling.repetition_penalty = one_of({1.0f, 1.0f, 1.3f, 0.8f});
  sampling.seed = random.bits();
  return sampling;
}

TEST(Sampler, EqualsTheReference) {
  Random random(17);
  int unclear = 0, drawn = 0;
  for (int round = 0; round < 6000; ++round) {
    const auto vocab_size = 1 + random.below(round % 50 == 0 ? 6000 : 400);
    std::vector<float> logits = random.floats(vocab_size, round % 3 ? 4.0f : 12.0f);
    if (round % 4 == 0) {
      for (float& logit : logits) logit = std::round(logit);  // many are equal
    }
    if (round % 5 == 0) logits[static_cast<size_t>(random.below(vocab_size))] = -kInf;
    if (round % 5 == 0 && vocab_size == 1) continue;
    SamplingParams sampling = random_sampling(random);
    for (int id = 0; id < vocab_size && round % 3 == 0; id += 7) {
      sampling.logit_bias.emplace_back(id, random.unit() * 5.0f);
    }
    std::vector<int32_t> seen;
    for (int64_t i = 0; i < 1 + random.below(30); ++i) {
      seen.push_back(static_cast<int32_t>(random.below(vocab_size)));
    }
    const Admission admitted =
        admission(sampling, 1 + static_cast<int>(random.below(std::ssize(seen))), random.bits());
    const reference::Choice expected = reference::choose(admitted, seen, logits);
    std::vector<int> got;
    for (const Target target : supported_targets()) {
      OneSlot slot(admitted, vocab_size, target);
      got.push_back(slot.sample(seen, logits).chosen.token);
    }
    EXPECT_EQ(std::count(got.begin(), got.end(), got.front()), std::ssize(got))
        << "targets differ in round " << round;
    ++drawn;
    if (expected.margin < 3e-7) {
      ++unclear;
      continue;
    }
    EXPECT_EQ(got.front(), expected.token)
        << "round " << round << ", vocabulary " << vocab_size << ", temperature "
        << sampling.temperature << ", top_k " << sampling.top_k << ", top_p " << sampling.top_p
        << ", min_p " << sampling.min_p;
  }
  EXPECT_LT(unclear, drawn / 100);
}

// Vocabularies of real size whose tokens are all about equally likely: the sums are long, and a cut
// by top_p lies far down the order.
TEST(Sampler, FlatDistributionsOverManyTokens) {
  constexpr int64_t kVocab = 151936;
  Random random(23);
  std::vector<float> logits = random.floats(kVocab, 0.05f);
  int unclear = 0, drawn = 0;
  double seconds = 0.0;
  for (const auto& [top_p, min_p] : std::vector<std::pair<float, float>>{
           {1.0f, 0.0f}, {0.999f, 0.0f}, {0.5f, 0.0f}, {0.99999f, 0.0f}, {1.0f, 0.97f}}) {
    SamplingParams sampling;
    sampling.temperature = 1.0f;
    sampling.top_p = top_p;
    sampling.min_p = min_p;
    OneSlot slot(admission(sampling, 0), kVocab);
    std::vector<int32_t> seen = {0};
    for (int i = 0; i < 15; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const int token = slot.sample(seen, logits).chosen.token;
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      const reference::Choice expected = reference::choose(admission(sampling, 0), seen, logits);
      ++drawn;
      if (expected.margin < 3e-8) {
        ++unclear;
      } else {
        EXPECT_EQ(token, expected.token) << "top_p " << top_p << ", min_p " << min_p;
      }
      seen.push_back(token);
    }
  }
  EXPECT_LT(unclear, drawn / 10);
  std::printf("%d of %d draws unclear, %.2f ms per draw\n", unclear, drawn, 1e3 * seconds / drawn);
  // Against a search whose cost grows with the square of the prefix; not a measurement.
  EXPECT_LT(seconds / drawn, 0.5);
}

TEST(Sampler, DrawsFollowTheDistribution) {
  constexpr int kVocab = 50, kDraws = 40000;
  Random random(3);
  const std::vector<float> logits = random.floats(kVocab, 2.0f);
  SamplingParams sampling;
  for (const float temperature : {0.5f, 1.0f, 1.7f}) {
    sampling.temperature = temperature;
    OneSlot slot(admission(sampling, 0), kVocab);
    std::vector<int> counts(kVocab);
    std::vector<int32_t> seen = {0};
    for (int i = 0; i < kDraws; ++i) {
      ++counts[static_cast<size_t>(slot.sample(seen, logits).chosen.token)];
      seen.push_back(0);
    }
    std::vector<float> scaled = logits;
    for (float& logit : scaled) logit /= temperature;
    const std::vector<double> expected = reference::log_softmax(scaled);
    double chi_square = 0.0, rest = 0.0;
    int cells = 0, rest_count = 0;
    for (size_t id = 0; id < kVocab; ++id) {
      const double count = kDraws * std::exp(expected[id]);
      if (count < 10) {  // too few to count on their own
        rest += count, rest_count += counts[id];
        continue;
      }
      chi_square += (counts[id] - count) * (counts[id] - count) / count;
      ++cells;
    }
    if (rest > 0) chi_square += (rest_count - rest) * (rest_count - rest) / std::max(rest, 1.0);
    EXPECT_LT(chi_square, cells + 5 * std::sqrt(2.0 * cells)) << "temperature " << temperature;
    EXPECT_GT(cells, 20);
  }
}

TEST(Sampler, TopKAndTopPKeepWhatTheyShould) {
  // Probabilities 0.4, 0.3, 0.2, 0.1.
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.1f),
                                     std::log(0.3f)};
  const auto drawn = [&](float top_p, int top_k, float min_p) {
    SamplingParams sampling;
    sampling.temperature = 1.0f;
    sampling.top_p = top_p, sampling.top_k = top_k, sampling.min_p = min_p;
    OneSlot slot(admission(sampling, 0), 4);
    std::vector<int32_t> seen = {0};
    std::vector<int> ids(4);
    for (int i = 0; i < 300; ++i) {
      ids[static_cast<size_t>(slot.sample(seen, logits).chosen.token)] = 1;
      seen.push_back(0);
    }
    return ids;
  };
  EXPECT_EQ(drawn(1.0f, 0, 0.0f), (std::vector{1, 1, 1, 1}));
  EXPECT_EQ(drawn(1.0f, 2, 0.0f), (std::vector{0, 1, 0, 1}));
  EXPECT_EQ(drawn(0.65f, 0, 0.0f), (std::vector{0, 1, 0, 1}));
  EXPECT_EQ(drawn(0.75f, 0, 0.0f), (std::vector{1, 1, 0, 1}));
  EXPECT_EQ(drawn(0.01f, 0, 0.0f), (std::vector{0, 1, 0, 0})) << "the best one always stays";
  EXPECT_EQ(drawn(1.0f, 0, 0.45f), (std::vector{1, 1, 0, 1}));
  // top_p counts within top_k: 0.4 / 0.7 = 0.57.
  EXPECT_EQ(drawn(0.55f, 2, 0.0f), (std::vector{0, 1, 0, 0}));
  EXPECT_EQ(drawn(0.55f, 0, 0.0f), (std::vector{0, 1, 0, 1}));
}

TEST(Sampler, LogprobsAreTheModelsOwn) {
  Random random(31);
  for (int round = 0; round < 300; ++round) {
    const auto vocab_size = 25 + random.below(round % 20 == 0 ? 150000 : 500);
    const std::vector<float> logits = random.floats(vocab_size, round % 2 ? 3.0f : 15.0f);
    const std::vector<double> expected = reference::log_softmax(logits);
    SamplingParams sampling = random_sampling(random);  // none of it counts
    sampling.logit_bias = {{3, 4.0f}};
    sampling.top_logprobs = static_cast<int>(random.below(21));
    const SampledToken token = sample_once(sampling, std::vector<int32_t>{1, 3}, logits);
    ASSERT_TRUE(token.finite);
    const auto close = [&](const TokenLogprob& got) {
      const double want = expected[static_cast<size_t>(got.token)];
      // 1e-6, and half a unit in the last place of a float that is larger than 8.
      EXPECT_NEAR(got.logprob, want, 1e-6 + std::abs(want) * 0x1p-24) << "token " << got.token;
    };
    close(token.chosen);
    ASSERT_EQ(std::ssize(token.alternatives), *sampling.top_logprobs);
    std::vector<int> order(logits.size());
    for (size_t id = 0; id < order.size(); ++id) order[id] = static_cast<int>(id);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    for (size_t i = 0; i < token.alternatives.size(); ++i) {
      EXPECT_EQ(token.alternatives[i].token, order[i]);
      close(token.alternatives[i]);
    }
  }
}

TEST(Sampler, NoLogprobsUnlessAskedFor) {
  const SampledToken token = sample_once({}, kPrompt, {1, 2, 3});
  EXPECT_TRUE(token.alternatives.empty());
  EXPECT_EQ(token.chosen.logprob, 0.0f);
  SamplingParams sampling;
  sampling.top_logprobs = 20;  // more than there are tokens
  EXPECT_EQ(sample_once(sampling, kPrompt, {1, 2, 3}).alternatives.size(), 3u);
}

TEST(Sampler, EveryTargetGivesTheSameBits) {
  Random random(41);
  for (int round = 0; round < 200; ++round) {
    const auto vocab_size = 1 + random.below(3000);
    const std::vector<float> logits = random.floats(vocab_size, 10.0f);
    SamplingParams sampling = random_sampling(random);
    sampling.top_logprobs = 3;
    std::vector<float> bits;
    std::vector<int> tokens;
    for (const Target target : supported_targets()) {
      OneSlot slot(admission(sampling, 1), vocab_size, target);
      const SampledToken token = slot.sample(std::vector<int32_t>{0, 0}, logits);
      std::vector<float> own = {token.chosen.logprob};
      std::vector<int> own_tokens = {token.chosen.token};
      for (const TokenLogprob& other : token.alternatives) {
        own.push_back(other.logprob);
        own_tokens.push_back(other.token);
      }
      if (bits.empty()) bits = own, tokens = own_tokens;
      EXPECT_TRUE(same_bits(bits, own)) << target_name(target);
      EXPECT_EQ(tokens, own_tokens) << target_name(target);
    }
  }
}

TEST(CanonicalLog, EqualsTheLogarithm) {
  Random random(2);
  const auto check = [](double x) {
    const double expected = std::log(x);
    EXPECT_NEAR(canonical_log(x), expected, std::abs(expected) * 1e-15) << x;
  };
  for (int i = 0; i < 100000; ++i) {
    check(std::ldexp(1.0 + static_cast<double>(random.below(1ll << 52)) * 0x1p-52,
                     static_cast<int>(random.below(2000)) - 1000));
    check(1.0 + random.unit() * 1e-3);
    check(0.7 + random.unit() * 0.02);
  }
  EXPECT_EQ(canonical_log(1.0), 0.0);
}

}  // namespace
}  // namespace headrace
