// Perplexity against the plain model of tests/reference.
#include "runtime/perplexity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/checkpoint/checkpoint.h"
#include "runtime/error.h"
#include "tests/reference/model.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::model_path;

std::vector<int32_t> random_ids(int count) {
  std::mt19937_64 random(3);
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random() % 300));
  return ids;
}

double reference_nats(const reference::Model& model, const Checkpoint& checkpoint,
                      std::vector<int32_t> tokens) {
  std::vector<float> hidden = model.embed(tokens);
  model.layers(0, checkpoint.config().n_layers, hidden);
  const std::vector<float> logits = model.logits(hidden);
  const auto vocabulary = static_cast<size_t>(checkpoint.config().vocab_size);
  double nats = 0.0;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    const float* row = logits.data() + t * vocabulary;
    double sum = 0.0;
    for (size_t i = 0; i < vocabulary; ++i) sum += std::exp(double{row[i]});
    nats += std::log(sum) - double{row[tokens[t + 1]]};
  }
  return nats;
}

TEST(Perplexity, EqualsTheReferenceWindowByWindow) {
  const auto ids = random_ids(101);
  for (const WeightFormat weights : {WeightFormat::kNative, WeightFormat::kQ8, WeightFormat::kQ4}) {
    for (const KvFormat kv : {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4}) {
      const auto checkpoint = quantized(Checkpoint::open(model_path("llama-gqa")), weights);
      const bool int8 = kv == KvFormat::kQ8 || kv == KvFormat::kF32;
      const reference::Model model(*checkpoint, kv, int8);
      PerplexityOptions options;
      options.kv_format = kv;
      options.int8 = int8;
      options.window = 40;
      options.threads = 2;
      const Perplexity got = perplexity_of_ids(*checkpoint, options, {1}, ids);
      // 39 + 39 + 23 ids, the prefix before each.
      EXPECT_EQ(got.windows, 3);
      EXPECT_EQ(got.tokens, 101);
      double expected = 0.0;
      for (size_t at = 0; at < ids.size(); at += 39) {
        std::vector<int32_t> window = {1};
        window.insert(window.end(), ids.begin() + static_cast<long>(at),
                      ids.begin() + static_cast<long>(std::min(ids.size(), at + 39)));
        expected += reference_nats(model, *checkpoint, window);
      }
      EXPECT_NEAR(got.nats, expected, 1e-4 * expected);
      EXPECT_DOUBLE_EQ(got.value(), std::exp(got.nats / 101));
    }
  }
}

TEST(Perplexity, HasTheSameBitsOnAnyTargetAndNumberOfThreads) {
  const auto checkpoint = Checkpoint::open(model_path("opt-pre"));
  const auto ids = random_ids(70);
  std::vector<double> all;
  for (const Target target : supported_targets()) {
    for (const int threads : {1, 3}) {
      PerplexityOptions options;
      options.target = target_name(target);
      options.threads = threads;
      options.window = 33;
      options.kv_format = KvFormat::kQ4;
      const Perplexity p = perplexity_of_ids(*checkpoint, options, {}, ids);
      EXPECT_EQ(p.tokens, 32 + 32 + 3);
      all.push_back(p.nats);
    }
  }
  EXPECT_EQ(std::count(all.begin(), all.end(), all[0]), std::ssize(all));
}

TEST(Perplexity, AWindowOfOneTokenPredictsNothing) {
  const auto checkpoint = Checkpoint::open(model_path("llama-gqa"));
  PerplexityOptions options;
  options.window = 10;
  EXPECT_EQ(perplexity_of_ids(*checkpoint, options, {}, random_ids(21)).windows, 2);
}

TEST(Perplexity, WhatCannotBeMeasuredIsRefused) {
  const auto checkpoint = Checkpoint::open(model_path("llama-gqa"));  // 256 positions, 300 ids
  const auto refuse = [&](int window, const std::vector<int32_t>& ids, const std::string& part) {
    PerplexityOptions options;
    options.window = window;
    try {
      perplexity_of_ids(*checkpoint, options, {1}, ids);
      FAIL() << part;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  refuse(2, {5, 6}, "--window 2 must be 3 to 256");
  refuse(257, {5, 6}, "--window 257 must be 3 to 256");
  refuse(100, {}, "too short");
  refuse(100, {5, 300}, "token 300");
  refuse(100, {5, -1}, "token -1");
}

}  // namespace
}  // namespace headrace
