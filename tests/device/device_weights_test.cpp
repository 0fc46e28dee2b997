// Weights that pass through a device's slots while kernels use them, on a device that does its work
// in any order that streams and events allow.
#include "engine/device/device_weights.h"

#include <gtest/gtest.h>

#include <optional>

#include "engine/device/device_module.h"
#include "engine/device/timed_device.h"
#include "engine/error.h"
#include "engine/ops/linear.h"
#include "engine/ops/vector_ops.h"
#include "engine/timeline.h"
#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"
#include "tests/unit/memory_checkpoint.h"
#ifdef CUDA_MODULE
#include "tests/device/cuda_module.h"
#endif

namespace headrace {
namespace {

using test::FakeDevice;
using test::MemoryCheckpoint;

constexpr int kLayers = 4;
constexpr int64_t kRows = 3, kWidth = 256, kFfn = 768, kVocabulary = 3000;
constexpr StageRange kAll{0, kLayers, true, true};

ModelConfig model_config() {
  ModelConfig config = test::small_llama();
  config.n_layers = kLayers;
  config.d_model = config.d_embed = kWidth;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 64;
  config.d_ffn = kFfn;
  config.vocab_size = kVocabulary;
  config.tied_head = false;
  config.qkv_bias = true;
  return config;
}

// Where the host has the weights; none: all in memory.
struct HostShape {
  std::optional<int> percent = {};  // of what need not be in memory
  bool head_in_memory = true;
};

class DeviceWeightsTest : public testing::Test {
 protected:
  // `placement`: of the device, whose residents the host does without.
  std::unique_ptr<WeightStore> store(const HostShape& shape,
                                     const DevicePlacement& placement = {}) {
    const WeightLayout all = weight_layout(model_, kAll);
    std::vector<uint64_t> ends;
    for (size_t u = 0; u < all.units.size(); ++u) {
      ends.push_back(DeviceWeights::host_end(all, placement, u));
    }
    if (!shape.percent) {
      return std::make_unique<WeightStore>(model_, kAll, budget_, threads_, false, ends);
    }
    const WeightLayout layout = up_to(all, ends);
    if (!offload_) {
      offload_ =
          OffloadFile::open_or_build({testing::TempDir() + "device_weights", UINT64_MAX}, model_,
                                     kAll, all, budget_, threads_, [](const std::string&) {});
    }
    const uint64_t least = smallest_placement(layout, false);
    const uint64_t bytes =
        least + (layout.image_bytes() - least) * static_cast<uint64_t>(*shape.percent) / 100;
    WeightPlacement on_host =
        place_weights(layout, bytes, {kReadBlock, false, shape.head_in_memory});
    on_host.ends = ends;
    return std::make_unique<WeightStore>(
        model_, kAll, WeightOffload{on_host, *offload_, [] { return make_io_queue(8); }, true},
        budget_, threads_);
  }

  // What each matrix makes of x: of all layers, then of the head.
  std::vector<std::vector<float>> expected() {
    const auto host = store({});
    std::vector<std::vector<float>> all;
    const auto add = [&](const Linear& w) {
      auto& y = all.emplace_back(static_cast<size_t>(kRows * w.weight.rows), kNan);
      linear(cpu_, x_.data(), kRows, w.weight, w.bias, y.data());
    };
    for (int layer = 0; layer < kLayers; ++layer) {
      const LayerWeights& w = host->acquire_layer(layer);
      for (const auto matrix : kLayerMatrices) add(w.*matrix);
      add_norm(w.mlp_norm, all);
      host->release_layer(layer);
    }
    add(host->acquire_head());
    host->release_head();
    return all;
  }

  void add_norm(const Norm& norm, std::vector<std::vector<float>>& all) {
    auto& y = all.emplace_back(static_cast<size_t>(kRows * kWidth), kNan);
    rms_norm(cpu_, x_.data(), kRows, kWidth, norm.weight, 1e-5f, y.data());
  }

  // The same on a device, in several sweeps; of the last one, or of the first that differs.
  std::vector<std::vector<float>> on_device(const HostShape& shape, Device& device,
                                            const DevicePlacement& placement) {
    constexpr int kSweeps = 3;
    const auto host = store(shape, placement);
    const auto compute = device.make_stream();
    std::vector<std::unique_ptr<DevicePin>> pins;
    for (const std::span<std::byte> buffer : host->buffers()) pins.push_back(device.pin(buffer));
    const auto x = device.allocate(x_.size() * sizeof(float));
    device.copy_in(*compute, x->data(), std::as_bytes(std::span(x_)));
    std::vector<std::unique_ptr<DeviceBuffer>> results;
    const auto result = [&](int64_t width) {
      const auto bytes = static_cast<size_t>(kRows * width) * sizeof(float);
      return results.emplace_back(device.allocate(bytes))->as<float>();
    };
    const auto norm = [&](const Norm& n) {
      device.normalise(*compute, {kWidth, n.weight, nullptr, 1e-5f}, x->as<float>(), kRows,
                       result(kWidth));
    };
    std::vector<std::vector<float>> all;
    DeviceWeights weights(device, *compute, *host, placement);
    weights.load(model_, threads_, budget_, 1 << 20);
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      results.clear();
      for (int layer = 0; layer < kLayers; ++layer) {
        const LayerWeights& w = weights.acquire_layer(layer);
        for (const auto matrix : kLayerMatrices) {
          const Linear& m = w.*matrix;
          device.linear_panels(*compute, x->as<float>(), kRows, m.weight, m.bias, 0,
                               m.weight.panel_count(), result(m.weight.rows));
        }
        norm(w.mlp_norm);
        weights.release_layer(layer);
      }
      float* const logits = result(kVocabulary);
      const Linear& head = weights.acquire_head();
      for (int64_t done = 0; done < head.weight.panel_count();) {
        const Panels panels = weights.await(head, done);
        device.linear_panels(*compute, x->as<float>(), kRows, panels.weight, nullptr, panels.first,
                             panels.end, logits);
        done = panels.end;
        weights.done_with(head, done);
      }
      weights.release_head();
      all.clear();
      for (const auto& buffer : results) {
        auto& y = all.emplace_back(buffer->size() / sizeof(float));
        device.copy_out(*compute, std::as_writable_bytes(std::span(y)), buffer->data());
      }
      compute->synchronize();
      if (!equal(expected_, all)) break;
    }
    return all;
  }

  static bool equal(const std::vector<std::vector<float>>& a,
                    const std::vector<std::vector<float>>& b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
      if (!same_bits(a[i], b[i])) return false;
    }
    return true;
  }

  MemoryCheckpoint model_{model_config(), {}};
  MemoryBudget budget_{"host memory", uint64_t{1} << 30};
  ThreadPool threads_{2, 0};
  Cpu cpu_{threads_, kernels("auto")};
  std::unique_ptr<OffloadFile> offload_;
  const std::vector<float> x_ = Random(3).floats(kRows * kFfn);
  const std::vector<std::vector<float>> expected_ = expected();
};

const HostShape kShapes[] = {{}, {0, true}, {0, false}, {40, true}, {40, false}, {90, true}};

constexpr int kAllPass = DevicePlacement::kAll;
// Embedding, layers, head.
const DevicePlacement kPlacements[] = {{{}, 2},
                                       {{}, 3},
                                       {{}, 5},
                                       {{0, 4, 4, 4, 4, 0}, 2},
                                       {{kAllPass, 6, 0, 3, kAllPass, kAllPass}, 2},
                                       {{kAllPass, 0, 1, 0, 0, 0}, 3},
                                       {{0, 0, 5, 0, 7, kAllPass}, 4}};

std::string text_of(const HostShape& shape, const DevicePlacement& placement) {
  std::string text = std::to_string(shape.percent.value_or(100)) + " % in memory, " +
                     std::to_string(placement.slots) + " slots, passing";
  for (const int matrices : placement.passing) {
    text += " " + (matrices == kAllPass ? "all" : std::to_string(matrices));
  }
  return text;
}

TEST_F(DeviceWeightsTest, KernelsSeeTheHostsWeights) {
  for (const HostShape& shape : kShapes) {
    for (const DevicePlacement& placement : kPlacements) {
      for (uint64_t seed = 0; seed < 8; ++seed) {
        SCOPED_TRACE(text_of(shape, placement) + ", seed " + std::to_string(seed));
        FakeDevice device(seed);
        const auto got = on_device(shape, device, placement);
        ASSERT_EQ(expected_.size(), got.size());
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_TRUE(same_bits(expected_[i], got[i])) << "result " << i;
        }
      }
    }
  }
}

#ifdef CUDA_MODULE
TEST_F(DeviceWeightsTest, KernelsOfAGpuSeeTheHostsWeights) {
  std::unique_ptr<DeviceModule> module;
  try {
    module = open_device_module(test::cuda_module());
    module->count();
  } catch (const ResourceMissing& e) {
    GTEST_SKIP() << e.what();
  }
  const auto device = module->open(0);
  for (const HostShape& shape : kShapes) {
    for (const DevicePlacement& placement : kPlacements) {
      SCOPED_TRACE(text_of(shape, placement));
      EXPECT_TRUE(equal(expected_, on_device(shape, *device, placement)));
    }
  }
}
#endif

// Low-bit layers for few rows are left as they are, whether they stay or pass through.
TEST_F(DeviceWeightsTest, FewRowsFindLowBitLayersAsTheyAre) {
  const auto is_expanded = [&](DType format, DType other, int64_t rows, bool is_resident) {
    MemoryCheckpoint::Options options;
    options.matrix_format = [=](Role role, int) { return role == Role::kUp ? other : format; };
    const MemoryCheckpoint model(model_config(), options);
    WeightStore host(model, kAll, budget_, threads_);
    FakeDevice device(1);
    const auto compute = device.make_stream();
    std::vector<std::unique_ptr<DevicePin>> pins;
    for (const std::span<std::byte> buffer : host.buffers()) pins.push_back(device.pin(buffer));
    DevicePlacement placement{{}, 2, true};
    placement.passing.assign(host.layout().units.size(), is_resident ? 0 : DevicePlacement::kAll);
    DeviceWeights weights(device, *compute, host, placement);
    weights.load(model, threads_, budget_, 1 << 20);
    weights.expect_rows(rows);
    int expanded = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      const LayerWeights& w = weights.acquire_layer(layer);
      for (const auto matrix : kLayerMatrices) {
        const PackedMatrix& m = (w.*matrix).weight;
        expanded += m.half_rows ? 1 : 0;
        const auto rows_bytes = static_cast<size_t>(m.rows * m.cols) * sizeof(Half);
        EXPECT_GE(weights.room().size(), m.half_rows ? 0 : rows_bytes);
      }
      weights.release_layer(layer);
    }
    compute->synchronize();
    EXPECT_TRUE(expanded == 0 || expanded == 7 * kLayers) << expanded;
    return expanded > 0;
  };
  for (const bool is_resident : {false, true}) {
    for (const DType low_bit : {DType::kQ8_0, DType::kG4}) {
      EXPECT_FALSE(is_expanded(low_bit, low_bit, 1, is_resident));
      EXPECT_FALSE(is_expanded(low_bit, DType::kQ6_K, kFewRows, is_resident));
      EXPECT_TRUE(is_expanded(low_bit, low_bit, kFewRows + 1, is_resident));
      // What is not low-bit passes through as it is stored, and is expanded.
      EXPECT_EQ(is_expanded(low_bit, DType::kF16, 1, false), true);
    }
    EXPECT_TRUE(is_expanded(DType::kF16, DType::kF16, 1, is_resident));
  }
}

// What a part of each layer takes, and what it saves.
TEST_F(DeviceWeightsTest, PartsOfLayersTakeTheirBytes) {
  const WeightLayout layout = weight_layout(model_, kAll);
  const auto matrix = [&](size_t i) { return layout.units[1].matrices[i].bytes(); };
  uint64_t layer = 0;
  for (size_t i = 0; i < 7; ++i) layer += matrix(i);
  const DevicePlacement all{{kAllPass, 7, 7, 7, 7, 0}, 2}, some{{kAllPass, 5, 5, 0, 5, 0}, 2};
  EXPECT_EQ(
      DeviceWeights::resident_bytes(layout, some) - DeviceWeights::resident_bytes(layout, all),
      layer + 3 * (matrix(5) + matrix(6)));
  EXPECT_EQ(DeviceWeights::passing_bytes(layout, all) - DeviceWeights::passing_bytes(layout, some),
            layer + 3 * (matrix(5) + matrix(6)));
  EXPECT_EQ(DeviceWeights::slot_bytes(layout, all) - DeviceWeights::slot_bytes(layout, some),
            matrix(5) + matrix(6));
  for (const DevicePlacement& placement : {all, some}) {
    FakeDevice device(1);
    const auto host = store({}, placement);
    const auto compute = device.make_stream();
    const DeviceWeights weights(device, *compute, *host, placement);
    const uint64_t taken = device.allocated() + DeviceWeights::resident_bytes(layout, placement);
    EXPECT_LE(taken, DeviceWeights::bytes_needed(layout, placement));
    EXPECT_GT(taken + 4096, DeviceWeights::bytes_needed(layout, placement));
  }
}

// The first test sees waits that are missing.
TEST_F(DeviceWeightsTest, NothingWorksWithoutWaits) {
  using Fault = FakeDevice::Fault;
  for (const Fault fault : {Fault::kStreamsDoNotWait, Fault::kHostDoesNotWait}) {
    bool differs = false;
    for (uint64_t seed = 0; seed < 20 && !differs; ++seed) {
      FakeDevice device(seed, fault);
      differs = !equal(expected_, on_device({0, false}, device, {{}, 2}));
    }
    EXPECT_TRUE(differs) << static_cast<int>(fault);
  }
}

// What is copied next does not wait for what is computed now, as long as there are slots.
TEST_F(DeviceWeightsTest, CopiesRunAheadOfKernels) {
  FakeDevice device(1);
  const auto host = store({0, false});
  const auto compute = device.make_stream();
  DeviceWeights weights(device, *compute, *host, {{}, kLayers - 1, false});
  int layer = 0;
  const auto next = [&] {
    weights.acquire_layer(layer);
    weights.release_layer(layer++);
  };
  device.hold(*compute);
  for (int i = 0; i < kLayers - 1; ++i) next();
  EXPECT_THROW(next(), std::logic_error) << "all slots are in use";
  device.let_go();
}

// So does what the host computes between two layers, as long as it need not wait for its disk.
TEST_F(DeviceWeightsTest, CopiesOfTheNextLayersAreQueuedWithALayer) {
  const WeightLayout layout = weight_layout(model_, kAll);
  uint64_t layer_bytes = 0;
  for (const PlacedMatrix& m : layout.units[layout.layer_unit(0)].matrices) {
    layer_bytes += m.bytes();
  }
  Timeline timeline;
  const Timeline::Attach attach(timeline);
  timeline.start();
  const auto copied = [&] {
    return timeline.totals().bytes[static_cast<size_t>(Track::kWeightsToGpu)];
  };
  TimedDevice device(std::make_unique<FakeDevice>(1), [] {});
  const auto host = store({});
  std::vector<std::unique_ptr<DevicePin>> pins;
  for (const std::span<std::byte> buffer : host->buffers()) pins.push_back(device.pin(buffer));
  const auto compute = device.make_stream();
  DeviceWeights weights(device, *compute, *host, {{}, 3, false});
  const uint64_t before = copied();  // norms and biases
  weights.acquire_layer(0);
  EXPECT_EQ(copied() - before, 3 * layer_bytes);  // as many as there are slots
  weights.release_layer(0);
  weights.acquire_layer(1);
  EXPECT_EQ(copied() - before, 4 * layer_bytes);
}

}  // namespace
}  // namespace headrace
