#include "engine/device/staged_rows.h"

#include <exception>
#include <stdexcept>

namespace headrace {
namespace {

std::span<float> part(float* rows, int64_t first, int64_t count, int64_t width) {
  return {rows + first * width, static_cast<size_t>(count * width)};
}

}  // namespace

StagedRows::StagedRows(Device& device, DeviceStream& compute, MemoryBudget& budget,
                       const Sizes& sizes)
    : device_(device),
      compute_(compute),
      sizes_(sizes),
      memory_(budget.allocate(host_bytes(sizes), "activations")),
      q_(memory_.as<float>()),
      k_(q_ + sizes.rows * sizes.q_width),
      v_(k_ + sizes.rows * sizes.kv_width),
      out_(v_ + sizes.rows * sizes.kv_width),
      pin_(device.pin({memory_.data(), memory_.size()})),
      copies_(device.make_stream()),
      computed_(device.make_event()),
      arrived_(device.make_event()) {}

StagedRows::~StagedRows() {
  try {
    copies_->synchronize();
    compute_.synchronize();
  } catch (const std::exception&) {
    // What failed was said to who waited for it, and nothing is left that runs.
  }
}

void StagedRows::send(std::span<const AttentionSequence> sequences, const float* q, const float* k,
                      const float* v) {
  if (std::ssize(sequences) > sizes_.rows) throw std::logic_error("StagedRows: too many rows");
  runs_.clear();
  for (int64_t row = 0; row < std::ssize(sequences); ++row) {
    const int64_t at = sequences[static_cast<size_t>(row)].first_row;
    if (runs_.empty() || runs_.back().first_row + runs_.back().rows != at) {
      runs_.push_back({at, row, 0});
    }
    ++runs_.back().rows;
  }
  device_.record(compute_, *computed_);
  device_.wait(*copies_, *computed_);
  const auto copy = [&](const float* from, float* to, int64_t width) {
    for (const Run& run : runs_) {
      device_.copy_out(*copies_, std::as_writable_bytes(part(to, run.staged, run.rows, width)),
                       reinterpret_cast<const std::byte*>(from + run.first_row * width));
    }
  };
  copy(q, q_, sizes_.q_width);
  copy(k, k_, sizes_.kv_width);
  copy(v, v_, sizes_.kv_width);
  device_.record(*copies_, *arrived_);
}

HostRows::Rows StagedRows::receive() {
  arrived_->synchronize();
  return {q_, k_, v_, out_};
}

// In the stream of the ops, after what they attend to themselves. f16 is made by a kernel that
// reads the host's memory, as it would not wait for long copies of weights before it.
void StagedRows::send_back(Operand* out) {
  const int64_t width = sizes_.q_width;
  for (const Run& run : runs_) {
    const std::span<float> rows = part(out_, run.staged, run.rows, width);
    if (sizes_.half) {
      device_.to_half(compute_, rows.data(), std::ssize(rows),
                      reinterpret_cast<Half*>(out) + run.first_row * width);
    } else {
      device_.copy_in(
          compute_,
          reinterpret_cast<std::byte*>(reinterpret_cast<float*>(out) + run.first_row * width),
          std::as_bytes(rows));
    }
  }
}

}  // namespace headrace
