// What a stage has on a device, on one without hardware.
#pragma once

#include <memory>

#include "engine/device/device_ops.h"
#include "engine/device/device_weights.h"
#include "engine/stage_engine.h"
#include "tests/device/fake_device.h"

namespace headrace::test {

struct OnDevice {
  struct Sizes {
    int slots;
    int64_t micro_batch_rows, logit_rows;
  };
  OnDevice(const ModelConfig& config, WeightStore& host, const KvPageShape& page,
           int64_t page_count, const Sizes& sizes)
      : weights(device, *stream, host, {{}, sizes.slots, false}),
        pages(device.allocate(KvStore::bytes_per_page(page, host.range().layers()) * page_count)),
        scratch(
            device.allocate(StageEngine::scratch_bytes(config, host.range(), sizes.micro_batch_rows,
                                                       sizes.logit_rows, DeviceOps::kBlockFloats))),
        ops(device, *stream, kMostRows, config.d_model,
            config.learned_positions ? 0 : config.head_dim / 2, page_count) {}

  static constexpr int64_t kMostRows = 16384;
  FakeDevice device{17};
  std::unique_ptr<DeviceStream> stream = device.make_stream();
  DeviceWeights weights;
  std::unique_ptr<DeviceBuffer> pages, scratch;
  DeviceOps ops;
};

}  // namespace headrace::test
