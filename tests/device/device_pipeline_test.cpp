// Whole pipelines of devices whose hidden states pass over wires: the same tokens and logprob bits
// as one stage. Devices do their work as late as streams and events allow, and wires theirs.
#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <random>
#include <thread>

#include "comm/device_link.h"
#include "comm/local_transport.h"
#include "runtime/pipeline/pipeline.h"
#include "runtime/plan/stage_plan.h"
#include "tests/device/fake_device.h"
#include "tests/device/fake_wires.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

constexpr int kSlots = 5;
constexpr int64_t kPages = 60, kStepRows = 64;

// A letter for each stage: c on the CPU, d on a device. Hops between devices are wires, or not.
struct Cut {
  std::string stages;
  bool wires = true;
  int resident = 100;    // percent of a device's layers
  bool passing = false;  // hidden states of long steps wait on the host
};

std::string name_of(const Cut& cut) {
  return cut.stages + (cut.wires ? ", wires" : "") + (cut.passing ? ", passing" : "") + ", " +
         std::to_string(cut.resident);
}

using Results = std::map<std::string, std::string>;

class DevicePipeline : public testing::TestWithParam<const char*> {
 protected:
  DevicePipeline()
      : checkpoint_(Checkpoint::open(std::string(GetParam()).starts_with("synthetic:")
                                         ? GetParam()
                                         : test::model_path(GetParam()))),
        config_(checkpoint_->config()) {
    std::mt19937_64 random(4);
    for (int i = 0; i < 9; ++i) {
      PreparedRequest r;
      r.request.custom_id = "r" + std::to_string(i);
      r.request.max_tokens = 2 + i;
      r.request.ignore_eos = true;
      if (i % 3) r.request.sampling.top_logprobs = i % 3;
      if (i % 2) {
        r.request.sampling.temperature = 0.8f;
        r.request.sampling.seed = random();
      }
      for (uint64_t t = 1 + random() % 30; t-- > 0;) {
        r.prompt.push_back(
            static_cast<int32_t>(random() % static_cast<uint64_t>(config_.vocab_size)));
      }
      requests_.push_back(std::move(r));
    }
  }

  Stage::Sizes stage_sizes(const Cut& cut) const {
    Stage::Sizes sizes;
    sizes.slots = kSlots;
    sizes.kv_pages = kPages;
    sizes.step_rows = kStepRows;
    sizes.micro_batch_rows = cut.passing ? 4 : 24;
    sizes.logit_rows = kSlots;
    return sizes;
  }

  DeviceStage::Sizes device_sizes(const WeightLayout& layout, const Cut& cut, bool half) const {
    DeviceStage::Sizes sizes;
    sizes.half = half;
    sizes.slots = kSlots;
    sizes.kv_pages = kPages;
    sizes.step_rows = kStepRows;
    sizes.micro_batch_rows = stage_sizes(cut).micro_batch_rows;
    sizes.hidden_rows = cut.passing ? HiddenWindow::kLeastPlaces * sizes.micro_batch_rows : 0;
    sizes.logit_rows = kSlots;
    sizes.link_buffers = cut.passing ? 0 : kLinkBuffers;
    sizes.weights.half_rows = half;
    sizes.weights.passing.assign(layout.units.size(),
                                 cut.resident == 100 ? 0 : DevicePlacement::kAll);
    const StageRange& range = layout.range;
    for (int l = 0; l < range.layers(); ++l) {
      const bool stays = l * 100 < cut.resident * range.layers();
      sizes.weights.passing[layout.layer_unit(range.first_layer + l)] =
          stays ? 0 : DevicePlacement::kAll;
    }
    sizes.weights.slots = cut.resident == 100 ? 0 : 2;
    return sizes;
  }

  // A rank's part, as in runtime/rank.cpp.
  void run_rank_part(const Cut& cut, bool half, LocalTransport& transport, test::FakeHop hop,
                     Coordinator* coordinator) {
    const auto rank = static_cast<size_t>(transport.rank());
    ThreadPool threads(1, 0);
    const Cpu cpu{threads, kernels("auto")};
    MemoryBudget budget("host memory", uint64_t{1} << 30);
    WeightStore weights(*checkpoint_,
                        cut_stages(*checkpoint_, static_cast<int>(cut.stages.size()), {})[rank],
                        budget, threads);
    std::optional<DeviceStage> device;
    std::optional<Stage> stage;
    if (cut.stages[rank] == 'd') {
      device.emplace(std::make_unique<test::FakeDevice>(rank), *checkpoint_, weights, threads,
                     budget, device_sizes(weights.layout(), cut, half));
      stage.emplace(config_, weights, *device, cpu, budget, stage_sizes(cut));
    } else {
      stage.emplace(config_, weights, cpu, budget, stage_sizes(cut));
    }
    // Poisoned: what a wire passes must not be looked for on the host.
    const size_t bytes = link_buffer_bytes(config_, kStepRows);
    std::vector<Bytes> hidden(kLinkBuffers, Bytes(bytes, std::byte{0xFF}));
    std::optional<DeviceLink> link;
    if (hop.receives || hop.sends) {
      link.emplace(transport, transport, std::move(hop.receives), std::move(hop.sends),
                   device->link_memory());
    }
    ActivationLink& used = link ? static_cast<ActivationLink&>(*link) : transport;
    used.set_buffers({hidden.begin(), hidden.end()}, rank > 0);
    const std::atomic<bool> interrupted = false;
    if (coordinator) {
      run_coordinator(*coordinator, *stage, config_.d_model, {transport, used}, interrupted, [] {});
    } else {
      run_stage(*stage, config_.d_model, {transport, used});
    }
    if (link) link->close();
  }

  Results run(const Cut& cut, bool half) {
    const size_t ranks = cut.stages.size();
    const auto transports =
        LocalTransport::create(static_cast<int>(ranks), std::chrono::seconds(60));
    ScheduleLimits limits;
    limits.slots = kSlots;
    limits.groups = static_cast<int>(ranks);
    limits.kv_pages = kPages;
    limits.step_rows = kStepRows;
    limits.prefill_chunk = 16;
    Results results;
    size_t fed = 0;
    Coordinator coordinator(
        limits, nullptr, {},
        [&](bool) -> Coordinator::Fed {
          if (fed == requests_.size()) return Coordinator::NoMore{};
          return requests_[fed++];
        },
        [&](const RequestResult& result) { results[result.custom_id] = exact(result); },
        [](const BadLine& line) { ADD_FAILURE() << line.message; });
    test::FakeNet net;
    std::vector<test::FakeHop> hops(ranks + 1);  // to each rank
    int wires = 0;
    for (size_t r = 1; r < ranks; ++r) {
      if (!cut.wires || cut.stages[r - 1] != 'd' || cut.stages[r] != 'd') continue;
      hops[r] = test::make_fake_hop(net, 20 + r);
      ++wires;
    }
    std::vector<std::thread> threads;
    for (size_t r = 0; r < ranks; ++r) {
      threads.emplace_back([&, r] {
        try {
          run_rank_part(cut, half, *transports[r],
                        {std::move(hops[r + 1].sends), std::move(hops[r].receives)},
                        r == 0 ? &coordinator : nullptr);
        } catch (const std::exception& e) {
          ADD_FAILURE() << "rank " << r << ": " << e.what();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(net.closed_ends(), 2 * wires);
    EXPECT_EQ(net.aborted_transfers(), 0);
    return results;
  }

  // Tokens and the bits of their logprobs.
  static std::string exact(const RequestResult& result) {
    std::string text;
    const auto put = [&](const TokenLogprob& t) {
      text +=
          std::to_string(t.token) + ":" + std::to_string(std::bit_cast<uint32_t>(t.logprob)) + " ";
    };
    for (const ChoiceResult& choice : result.choices) {
      for (const int token : choice.token_ids) text += std::to_string(token) + " ";
      for (const TokenLogprob& t : choice.logprobs) put(t);
      for (const auto& list : choice.alternatives) {
        for (const TokenLogprob& t : list) put(t);
      }
    }
    return text;
  }

  std::vector<Cut> cuts(bool with_cpu) const {
    std::vector<Cut> all = {{"dd"}, {"dd", true, 0}, {"dd", false}};
    all.push_back({"d", false, 100, true});
    all.push_back({"dd", false, 0, true});
    if (with_cpu) all.push_back({"cd"});
    if (config_.n_layers < 3) return all;
    all.push_back({"ddd"});
    if (!with_cpu) return all;
    for (const char* stages : {"ddc", "cdd"}) all.push_back({stages});
    return all;
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  const ModelConfig& config_;
  std::vector<PreparedRequest> requests_;
};

TEST_P(DevicePipeline, Float32HasTheBitsOfOneCpu) {
  const Results alone = run({"c"}, false);
  ASSERT_EQ(alone.size(), requests_.size());
  for (const Cut& cut : cuts(true)) {
    SCOPED_TRACE(name_of(cut));
    EXPECT_EQ(run(cut, false), alone);
  }
}

TEST_P(DevicePipeline, HalfHasTheBitsOfOneDevice) {
  const Results alone = run({"d"}, true);
  ASSERT_EQ(alone.size(), requests_.size());
  for (const Cut& cut : cuts(false)) {
    SCOPED_TRACE(name_of(cut));
    EXPECT_EQ(run(cut, true), alone);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, DevicePipeline,
                         testing::Values("llama-gqa", "opt-post", "qwen2-tied", "qwen3-tied",
                                         "synthetic:tiny-llama:q8"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return !std::isalnum(c); },
                               '_');
                           return name;
                         });

}  // namespace
}  // namespace headrace
