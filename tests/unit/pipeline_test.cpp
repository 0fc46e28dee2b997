// Whole pipelines in one process, a thread per rank: the same tokens and logprob bits however the
// work is cut, and the tokens that transformers gave.
#include "runtime/pipeline/pipeline.h"

#include <gtest/gtest.h>

#include <bit>
#include <exception>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "comm/local_transport.h"
#include "runtime/plan/stage_plan.h"
#include "tests/reference/model.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::model_path;

// How a run is cut. Nothing of it may change a result.
struct Cut {
  int ranks = 1;
  int slots = 4;
  int64_t prefill_chunk = 1000;
  int64_t micro_batch_rows = 256;
  int64_t step_rows = 512;
  int threads = 1;
  Order order = Order::kInput;
  int64_t kv_pages = 1000;
  Target target = supported_targets().front();
  bool shares_prefixes = false;
};

std::string describe(const Cut& cut) {
  return std::to_string(cut.ranks) + " ranks, " + std::to_string(cut.slots) + " slots, chunks of " +
         std::to_string(cut.prefill_chunk) + ", micro-batches of " +
         std::to_string(cut.micro_batch_rows) + ", steps of " + std::to_string(cut.step_rows) +
         ", " + std::to_string(cut.threads) + " threads, " + std::to_string(cut.kv_pages) +
         " pages, " + target_name(cut.target);
}

std::unique_ptr<Checkpoint> open_model(const std::string& name) {
  return Checkpoint::open(name.starts_with("synthetic:") ? name : model_path(name));
}

int kept_slots(const Cut& cut) { return cut.shares_prefixes ? 3 : 0; }

using Results = std::map<std::string, RequestResult>;

// A rank's part, as in runtime/run.cpp.
void run_rank_part(const Checkpoint& checkpoint, const Cut& cut, KvFormat kv_format,
                   LocalTransport& transport, Coordinator* coordinator,
                   const std::atomic<bool>& interrupted) {
  const ModelConfig& config = checkpoint.config();
  ThreadPool threads(cut.threads, 0);
  const Cpu cpu{threads, kernels(cut.target)};
  MemoryBudget budget("host memory", uint64_t{1} << 30);
  WeightStore weights(checkpoint,
                      cut_stages(checkpoint, cut.ranks, {})[static_cast<size_t>(transport.rank())],
                      budget, threads);
  Stage::Sizes sizes;
  sizes.slots = cut.slots;
  sizes.kept_slots = kept_slots(cut);
  sizes.kv_pages = cut.kv_pages;
  sizes.step_rows = cut.step_rows;
  sizes.micro_batch_rows = cut.micro_batch_rows;
  sizes.kv_format = kv_format;
  Stage stage(config, weights, cpu, budget, sizes);
  std::vector<Buffer> hidden;
  std::vector<ActivationLink::HiddenBuffer> spans;
  for (int i = 0; i < kLinkBuffers; ++i) {
    hidden.push_back(budget.allocate(link_buffer_bytes(config, cut.step_rows), "activations"));
    spans.emplace_back(hidden.back().data(), link_buffer_bytes(config, cut.step_rows));
  }
  transport.set_buffers(spans, transport.rank() > 0);
  const Wires wires{transport, transport};
  if (coordinator) {
    run_coordinator(*coordinator, stage, config.d_model, wires, interrupted, [] {});
  } else {
    run_stage(stage, config.d_model, wires);
  }
}

Results run_pipeline(const Checkpoint& checkpoint, const std::vector<PreparedRequest>& requests,
                     const Cut& cut, KvFormat kv_format) {
  const auto transports = LocalTransport::create(cut.ranks, std::chrono::seconds(30));
  ScheduleLimits limits;
  limits.slots = cut.slots;
  limits.groups = std::min(cut.ranks, cut.slots);
  limits.kv_pages = cut.kv_pages;
  limits.step_rows = cut.step_rows;
  limits.prefill_chunk = cut.prefill_chunk;
  limits.order = cut.order;
  limits.shares_prefixes = cut.shares_prefixes;
  limits.kept_slots = kept_slots(cut);
  Results results;
  size_t fed = 0;
  Coordinator coordinator(
      limits, nullptr, checkpoint.config().eos_token_ids,
      [&](bool) -> Coordinator::Fed {
        if (fed == requests.size()) return Coordinator::NoMore{};
        return requests[fed++];
      },
      [&](const RequestResult& result) {
        EXPECT_TRUE(results.emplace(result.custom_id, result).second);
      },
      [](const BadLine& line) { ADD_FAILURE() << line.custom_id << ": " << line.message; });

  const std::atomic<bool> interrupted = false;
  std::vector<std::thread> ranks;
  for (int r = 0; r < cut.ranks; ++r) {
    ranks.emplace_back([&, r] {
      try {
        run_rank_part(checkpoint, cut, kv_format, *transports[static_cast<size_t>(r)],
                      r == 0 ? &coordinator : nullptr, interrupted);
      } catch (const std::exception& e) {
        ADD_FAILURE() << "rank " << r << ": " << e.what();
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(results.size(), requests.size());
  return results;
}

// Text of all that a result holds, floats as bits.
std::string exact(const RequestResult& result) {
  std::string text;
  const auto put = [&](const TokenLogprob& t) {
    text +=
        std::to_string(t.token) + ":" + std::to_string(std::bit_cast<uint32_t>(t.logprob)) + " ";
  };
  for (const ChoiceResult& choice : result.choices) {
    text += choice.finish_reason + ": ";
    for (const int token : choice.token_ids) text += std::to_string(token) + " ";
    for (const TokenLogprob& t : choice.logprobs) put(t);
    for (const auto& list : choice.alternatives) {
      for (const TokenLogprob& t : list) put(t);
    }
    text += "\n";
  }
  return text;
}

std::vector<PreparedRequest> varied_requests(const ModelConfig& config) {
  std::mt19937_64 random(21);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  std::vector<PreparedRequest> requests;
  for (int i = 0; i < 20; ++i) {
    PreparedRequest r;
    r.request.custom_id = "r" + std::to_string(i);
    r.request.max_tokens = 1 + below(20);
    r.request.n = i % 5 == 4 ? 3 : 1;
    r.request.ignore_eos = i % 2;
    if (i % 3) r.request.sampling.top_logprobs = i % 4;
    if (i % 2) {
      r.request.sampling.temperature = 0.5f + 0.2f * static_cast<float>(i % 5);
      r.request.sampling.top_p = i % 4 == 1 ? 0.9f : 1.0f;
      r.request.sampling.top_k = i % 4 == 3 ? 40 : 0;
      r.request.sampling.seed = random();
    }
    if (i % 4 == 0) r.request.sampling.repetition_penalty = 1.3f;
    for (int t = 1 + below(i == 3 ? 90 : 30); t-- > 0;)
      r.prompt.push_back(below(config.vocab_size));
    requests.push_back(std::move(r));
  }
  return requests;
}

std::vector<Cut> all_cuts(int layers) {
  std::vector<Cut> cuts;
  for (int ranks = 1; ranks <= std::min(layers, 4); ++ranks) {
    cuts.push_back({.ranks = ranks});
    cuts.push_back({.ranks = ranks, .slots = 40});
    cuts.push_back({.ranks = ranks, .slots = 16, .prefill_chunk = 7});
    cuts.push_back({.ranks = ranks, .slots = 3, .micro_batch_rows = 1, .threads = 2});
    cuts.push_back({.ranks = ranks,
                    .slots = 9,
                    .prefill_chunk = 16,
                    .micro_batch_rows = 5,
                    .step_rows = 20,
                    .threads = 2,
                    .order = Order::kLongestFirst});
    cuts.push_back({.ranks = ranks, .slots = 16, .prefill_chunk = 64, .kv_pages = 8});
  }
  for (const Target target : supported_targets()) cuts.push_back({.ranks = 2, .target = target});
  return cuts;
}

class PipelineOfModel : public testing::TestWithParam<std::string> {};

TEST_P(PipelineOfModel, GivesTheSameBitsHoweverItIsCut) {
  const auto checkpoint = open_model(GetParam());
  const auto requests = varied_requests(checkpoint->config());
  for (const KvFormat kv : {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4}) {
    const Results alone = run_pipeline(*checkpoint, requests, {.slots = 1}, kv);
    for (const Cut& cut : all_cuts(checkpoint->config().n_layers)) {
      SCOPED_TRACE(describe(cut) + ", " + kv_format_name(kv));
      const Results got = run_pipeline(*checkpoint, requests, cut, kv);
      for (const auto& [id, result] : alone) {
        ASSERT_TRUE(got.contains(id));
        ASSERT_EQ(exact(got.at(id)), exact(result)) << id;
      }
    }
  }
}

// Those of varied_requests, behind one of two beginnings.
std::vector<PreparedRequest> requests_with_prefixes(const ModelConfig& config) {
  std::vector<PreparedRequest> requests = varied_requests(config);
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<int32_t> prefix;
    for (size_t t = 0; t < 50; ++t) {
      prefix.push_back(static_cast<int32_t>((t * t + 7 * (i % 2)) % config.vocab_size));
    }
    requests[i].prompt.insert(requests[i].prompt.begin(), prefix.begin(), prefix.end());
  }
  return requests;
}

TEST_P(PipelineOfModel, GivesTheSameBitsWherePrefixesAreShared) {
  const auto checkpoint = open_model(GetParam());
  const auto requests = requests_with_prefixes(checkpoint->config());
  for (const KvFormat kv : {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4}) {
    const Results alone = run_pipeline(*checkpoint, requests, {.slots = 1}, kv);
    for (Cut cut : all_cuts(checkpoint->config().n_layers)) {
      if (cut.target != supported_targets().front()) continue;
      cut.shares_prefixes = true;
      SCOPED_TRACE(describe(cut) + ", " + kv_format_name(kv));
      const Results got = run_pipeline(*checkpoint, requests, cut, kv);
      for (const auto& [id, result] : alone) {
        ASSERT_TRUE(got.contains(id));
        ASSERT_EQ(exact(got.at(id)), exact(result)) << id;
      }
    }
  }
}

// The greedy continuations of the plain reference model.
TEST_P(PipelineOfModel, GivesTheTokensOfTheReference) {
  const auto checkpoint = open_model(GetParam());
  std::vector<PreparedRequest> requests = varied_requests(checkpoint->config());
  for (PreparedRequest& r : requests) {
    r.request.sampling = {};
    r.request.ignore_eos = true;
    r.request.n = 1;
    r.request.max_tokens = std::min(r.request.max_tokens, 12);
  }
  for (const KvFormat kv : {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4}) {
    const reference::Model model(*checkpoint, kv);
    const Results got =
        run_pipeline(*checkpoint, requests, {.ranks = 2, .slots = 5, .prefill_chunk = 9}, kv);
    for (const PreparedRequest& r : requests) {
      EXPECT_EQ(got.at(r.request.custom_id).choices[0].token_ids,
                model.greedy(r.prompt, r.request.max_tokens))
          << r.request.custom_id;
    }
  }
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Tiny, PipelineOfModel,
                         testing::Values("llama-gqa", "llama-linear-bias", "llama-rope3.Q4_0.gguf",
                                         "opt-post", "opt-pre", "qwen2-tied", "qwen2-untied",
                                         "qwen3-tied", "synthetic:tiny-llama:q8",
                                         "synthetic:tiny-opt"),
                         test_name);

class PipelineGoldens : public testing::TestWithParam<std::string> {};

// Greedy continuations by Hugging Face transformers in float32 (tests/make_tiny_models.py).
TEST_P(PipelineGoldens, GivesTheTokensOfTransformers) {
  const auto checkpoint = open_model(GetParam());
  const auto goldens =
      nlohmann::json::parse(test::read_file(model_path(GetParam()) + "/goldens.json"));
  std::vector<PreparedRequest> requests;
  for (const auto& golden : goldens.at("results")) {
    PreparedRequest r;
    r.prompt = golden.at("prompt").get<std::vector<int32_t>>();
    r.request.custom_id = std::to_string(requests.size());
    r.request.max_tokens = static_cast<int>(golden.at("greedy").size());
    r.request.ignore_eos = true;
    requests.push_back(std::move(r));
  }
  ASSERT_GE(requests.size(), 4u);
  for (int ranks = 1; ranks <= checkpoint->config().n_layers; ++ranks) {
    const Results got = run_pipeline(
        *checkpoint, requests, {.ranks = ranks, .slots = 3, .prefill_chunk = 7}, KvFormat::kF32);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(got.at(std::to_string(i)).choices[0].token_ids,
                goldens["results"][i].at("greedy").get<std::vector<int>>())
          << "prompt " << i << ", " << ranks << " ranks";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, PipelineGoldens,
                         testing::Values("llama-gqa", "llama-linear-bias", "llama-rope3",
                                         "opt-post", "opt-pre", "qwen2-tied", "qwen2-untied",
                                         "qwen3-tied", "mistral"),
                         test_name);

TEST(Pipeline, AnInterruptEndsTheRunAfterTheStepsUnderWay) {
  const auto checkpoint = open_model("synthetic:tiny-opt");
  const auto transports = LocalTransport::create(4, std::chrono::seconds(30));
  std::vector<PreparedRequest> requests = varied_requests(checkpoint->config());
  ScheduleLimits limits;
  limits.slots = 4;
  limits.groups = 4;
  limits.kv_pages = 1000;
  std::atomic<bool> interrupted = false;
  size_t fed = 0, done = 0;
  Coordinator coordinator(
      limits, nullptr, {},
      [&](bool) -> Coordinator::Fed {
        if (fed == requests.size()) return Coordinator::NoMore{};
        return requests[fed++];
      },
      [&](const RequestResult&) { interrupted = ++done == 2; }, [](const BadLine&) {});
  std::vector<std::thread> ranks;
  for (int r = 0; r < 4; ++r) {
    ranks.emplace_back([&, r] {
      run_rank_part(*checkpoint, {.ranks = 4}, KvFormat::kF16, *transports[static_cast<size_t>(r)],
                    r == 0 ? &coordinator : nullptr, interrupted);
    });
  }
  for (std::thread& rank : ranks) rank.join();  // every rank leaves
  EXPECT_TRUE(coordinator.finished());
  EXPECT_TRUE(coordinator.unfinished());
  EXPECT_FALSE(coordinator.steps_under_way());
  EXPECT_LT(done, requests.size());
}

}  // namespace
}  // namespace headrace
