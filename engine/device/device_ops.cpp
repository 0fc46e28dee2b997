#include "engine/device/device_ops.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace headrace {
namespace {

constexpr int kStagings = 4;

std::span<std::byte> bytes_of(float* floats, int64_t count) {
  return std::as_writable_bytes(std::span(floats, static_cast<size_t>(count)));
}

}  // namespace

DeviceOps::DeviceOps(Device& device, DeviceStream& stream, int64_t step_rows, int64_t width,
                     int rope_half, int64_t pages)
    : device_(device),
      stream_(stream),
      hidden_(device.allocate(static_cast<size_t>(step_rows * width) * sizeof(float))),
      tables_(device.allocate(static_cast<size_t>(step_rows) * sizeof(AttentionSequence) +
                              static_cast<size_t>(pages) * sizeof(std::byte*))),
      rope_half_(rope_half) {
  if (rope_half > 0) {
    const size_t bytes = static_cast<size_t>(step_rows * rope_half) * sizeof(float);
    cos_ = device.allocate(bytes);
    sin_ = device.allocate(bytes);
  }
  for (int i = 0; i < kStagings; ++i) staging_.push_back({{}, device.make_event()});
}

DeviceOps::~DeviceOps() {
  try {
    stream_.synchronize();
  } catch (const std::exception&) {
    // What failed was said to who waited for it, and nothing is left that runs.
  }
}

float* DeviceOps::enter(float* host, int64_t floats) {
  bring(*hidden_, {host, static_cast<size_t>(floats)});
  return hidden_->as<float>();
}

void DeviceOps::leave(float* host, int64_t floats) {
  device_.copy_out(stream_, bytes_of(host, floats), hidden_->data());
  stream_.synchronize();
}

float* DeviceOps::fetch(float* from, int64_t floats) {
  fetched_.resize(static_cast<size_t>(floats));
  device_.copy_out(stream_, bytes_of(fetched_.data(), floats),
                   reinterpret_cast<const std::byte*>(from));
  stream_.synchronize();
  return fetched_.data();
}

void DeviceOps::set_rope(const RopeTable& host) {
  bring(*cos_, host.all_cos());
  bring(*sin_, host.all_sin());
}

void DeviceOps::rms_norm(const float* x, int64_t rows, int64_t n, const float* weight, float eps,
                         float* y) {
  device_.rms_norm(stream_, x, rows, n, weight, eps, y);
}

void DeviceOps::layer_norm(const float* x, int64_t rows, int64_t n, const float* weight,
                           const float* bias, float eps, float* y) {
  device_.layer_norm(stream_, x, rows, n, weight, bias, eps, y);
}

void DeviceOps::add(float* x, const float* y, int64_t rows, int64_t n) {
  device_.add(stream_, x, y, rows, n);
}

void DeviceOps::relu(float* x, int64_t rows, int64_t n) { device_.relu(stream_, x, rows, n); }

void DeviceOps::apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) {
  const int64_t first = first_row * rope_half_;
  device_.apply_rope(stream_, cos_->as<float>() + first, sin_->as<float>() + first, x, rows, heads,
                     head_dim);
}

void DeviceOps::linear_panels(const float* x, int64_t rows, const PackedMatrix& w,
                              const float* bias, int64_t first, int64_t end, float* y) {
  device_.linear_panels(stream_, x, rows, w, bias, first, end, y);
}

void DeviceOps::gate_panels(const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
                            int64_t first, int64_t end, float* gate) {
  device_.gate_panels(stream_, x, rows, w, bias, first, end, gate);
}

void DeviceOps::attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences,
                       int heads, float scale, const float* q, const float* k, const float* v,
                       float* out) {
  upload(sequences);
  const auto* on_device = tables_->as<AttentionSequence>();
  int64_t most_rows = 0;
  for (const AttentionSequence& s : sequences) most_rows = std::max(most_rows, s.rows);
  device_.store_kv(stream_, shape, on_device, std::ssize(sequences), most_rows, k, v);
  device_.attention(stream_, shape, on_device, std::ssize(sequences), most_rows, heads, scale, q,
                    out);
}

// The sequences, then their page tables. The stream itself copies them, so that who reads what was
// there before has done so.
void DeviceOps::upload(std::span<const AttentionSequence> sequences) {
  const auto table_bytes = [](const AttentionSequence& s) {
    const int64_t pages = (s.first_position + s.rows + kPageTokens - 1) / kPageTokens;
    return static_cast<size_t>(pages) * sizeof(std::byte*);
  };
  size_t bytes = sequences.size_bytes();
  for (const AttentionSequence& s : sequences) bytes += table_bytes(s);
  Staging& staging = stage(bytes);
  size_t at = sequences.size_bytes();
  for (size_t i = 0; i < sequences.size(); ++i) {
    AttentionSequence s = sequences[i];
    std::memcpy(staging.bytes.data() + at, s.pages, table_bytes(s));
    s.pages = reinterpret_cast<std::byte* const*>(tables_->data() + at);
    std::memcpy(staging.bytes.data() + i * sizeof s, &s, sizeof s);
    at += table_bytes(s);
  }
  bring(*tables_, staging);
}

DeviceOps::Staging& DeviceOps::stage(size_t bytes) {
  Staging& staging = staging_[std::exchange(next_, (next_ + 1) % staging_.size())];
  staging.copied->synchronize();
  staging.bytes.resize(bytes);
  return staging;
}

void DeviceOps::bring(DeviceBuffer& to, Staging& from) {
  if (from.bytes.size() > to.size()) throw std::logic_error("DeviceOps: a step is too large");
  device_.copy_in(stream_, to.data(), from.bytes);
  device_.record(stream_, *from.copied);
}

void DeviceOps::bring(DeviceBuffer& to, std::span<const float> host) {
  if (host.empty()) return;
  Staging& staging = stage(host.size_bytes());
  std::memcpy(staging.bytes.data(), host.data(), host.size_bytes());
  bring(to, staging);
}

}  // namespace headrace
