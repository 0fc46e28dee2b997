// Right tokens (promise 2), one level down: logits of the engine against those of transformers, for
// the last token of each golden prompt, with a float32 KV cache.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/checkpoint/checkpoint.h"
#include "engine/stage_engine.h"
#include "tests/unit/engine_logits.h"

namespace headrace {
namespace {

constexpr float kTolerance = 2e-3f;  // of one logit

std::string in_folder(const char* variable, const std::string& name) {
  const char* folder = std::getenv(variable);
  return folder ? (std::filesystem::path(folder) / name).string() : "";
}

struct Logits {
  std::vector<float> values;

  double mean() const {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }
  double l2() const {
    return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
  }
  std::vector<int> best(int count) const {
    std::vector<int> ids(values.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                      [&](int a, int b) { return values[a] > values[b]; });
    ids.resize(count);
    return ids;
  }
};

// A whole model on one stage.
class Engine {
 public:
  explicit Engine(const std::string& model)
      : checkpoint_(Checkpoint::open(model)),
        weights_(*checkpoint_, {0, config().n_layers, true, true}, budget_, threads_),
        kv_({config().n_kv_heads, config().head_dim, KvFormat::kF32}, config().n_layers, kPages, 1,
            budget_),
        engine_(config(), weights_, kv_, {threads_, kernels("auto")}, budget_, kRows) {}

  Logits last_logits(const std::vector<int32_t>& prompt) {
    const auto rows = static_cast<int64_t>(prompt.size());
    const BatchItem item{0, 0, rows};
    std::vector<float> hidden(rows * config().d_model);
    engine_.embed({&item, 1}, prompt, hidden.data());
    engine_.sweep({&item, 1}, hidden.data());
    engine_.release(0);
    Logits logits{std::vector<float>(config().vocab_size)};
    test::logits_of(engine_, hidden.data() + (rows - 1) * config().d_model, 1, logits.values);
    return logits;
  }

 private:
  static constexpr int64_t kPages = 64, kRows = 64;

  const ModelConfig& config() const { return checkpoint_->config(); }

  ThreadPool threads_{2, 0};
  MemoryBudget budget_{"host memory", uint64_t{4} << 30};
  std::unique_ptr<Checkpoint> checkpoint_;
  WeightStore weights_;
  KvStore kv_;
  StageEngine engine_;
};

void compare(const std::string& model, const std::string& golden) {
  const std::string golden_path = in_folder("HEADRACE_SHARED", "golden/" + golden);
  const std::string model_path = in_folder("HEADRACE_MODELS", model);
  std::ifstream file(golden_path);
  if (!file) GTEST_SKIP() << "HEADRACE_SHARED has no golden/" << golden;
  if (!std::filesystem::exists(model_path)) GTEST_SKIP() << "HEADRACE_MODELS has no " << model;

  Engine engine(model_path);
  const auto document = nlohmann::json::parse(file);
  ASSERT_FALSE(document.at("prompts").empty());
  for (const auto& prompt : document.at("prompts")) {
    SCOPED_TRACE(prompt.at("name").get<std::string>());
    const Logits logits = engine.last_logits(prompt.at("prompt_ids"));
    const auto& top5 = prompt.at("top5");
    std::vector<int> expected_ids;
    float worst = 0.0f;
    for (const auto& entry : top5) {
      expected_ids.push_back(entry.at("id"));
      worst = std::max(
          worst, std::fabs(logits.values[expected_ids.back()] - entry.at("logit").get<float>()));
    }
    EXPECT_LE(worst, kTolerance);
    EXPECT_EQ(logits.best(5), expected_ids);
    EXPECT_NEAR(logits.mean(), prompt.at("logits_mean").get<double>(), kTolerance);
    // What the norm can differ by if no logit differs by more.
    const double norm_tolerance = kTolerance * std::sqrt(static_cast<double>(logits.values.size()));
    EXPECT_NEAR(logits.l2(), prompt.at("logits_l2").get<double>(), norm_tolerance);
    std::printf("%-28s top-5 within %.2g, mean within %.2g, L2 within %.2g\n",
                prompt.at("name").get<std::string>().c_str(), worst,
                std::fabs(logits.mean() - prompt.at("logits_mean").get<double>()),
                std::fabs(logits.l2() - prompt.at("logits_l2").get<double>()));
  }
}

TEST(EngineLogits, SmolLM2) { compare("SmolLM2-135M-Instruct.Q4_1.gguf", "smol.json"); }
TEST(EngineLogits, SmolLM2Safetensors) { compare("SmolLM2-135M-Instruct-hf", "smol.json"); }
TEST(EngineLogits, Qwen) { compare("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen.json"); }

struct Tiny {
  const char* model;
  const char* goldens;
};

class TinyLogits : public testing::TestWithParam<Tiny> {};

TEST_P(TinyLogits, EqualTransformers) {
  const std::string folder = std::string(HEADRACE_TEST_DATA) + "/models/";
  std::ifstream file(folder + GetParam().goldens + "/goldens.json");
  ASSERT_TRUE(file);
  Engine engine(folder + GetParam().model);
  const auto document = nlohmann::json::parse(file);
  ASSERT_FALSE(document.at("results").empty());
  for (const auto& result : document.at("results")) {
    const Logits logits = engine.last_logits(result.at("prompt"));
    std::vector<int> expected_ids;
    for (const auto& [id, logit] : result.at("top5").get<std::vector<std::pair<int, float>>>()) {
      expected_ids.push_back(id);
      EXPECT_NEAR(logits.values[id], logit, kTolerance);
    }
    EXPECT_EQ(logits.best(5), expected_ids);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, TinyLogits,
    testing::Values(Tiny{"llama-gqa", "llama-gqa"}, Tiny{"llama-rope3", "llama-rope3"},
                    Tiny{"llama-rope3.F32.gguf", "llama-rope3"},
                    Tiny{"llama-linear-bias", "llama-linear-bias"},
                    Tiny{"qwen2-tied", "qwen2-tied"}, Tiny{"qwen2-untied", "qwen2-untied"},
                    Tiny{"qwen3-tied", "qwen3-tied"}, Tiny{"mistral", "mistral"},
                    Tiny{"opt-pre", "opt-pre"}, Tiny{"opt-post", "opt-post"}),
    [](const auto& tiny) {
      std::string name = tiny.param.model;
      for (char& c : name) c = c == '-' || c == '.' ? '_' : c;
      return name;
    });

}  // namespace
}  // namespace headrace
