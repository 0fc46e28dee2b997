#include "engine/device/device_ops.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace headrace {
namespace {

constexpr size_t kMostRecordings = 192;

const float* floats(const Operand* x) { return reinterpret_cast<const float*>(x); }

std::span<std::byte> bytes_of(float* floats, int64_t count) {
  return std::as_writable_bytes(std::span(floats, static_cast<size_t>(count)));
}

// Bytes of `rows` times `n` of them.
template <typename T>
size_t bytes_for(int64_t rows, int64_t n = 1) {
  return static_cast<size_t>(rows * n) * sizeof(T);
}

// Sequences and page tables of a step.
size_t table_bytes(const DeviceOps::Sizes& sizes) {
  return bytes_for<AttentionSequence>(sizes.step_rows) + bytes_for<std::byte*>(sizes.pages);
}

size_t rope_bytes(const DeviceOps::Sizes& sizes) {
  return bytes_for<float>(sizes.step_rows, sizes.rope_half);
}

// The most that goes to the device at once.
size_t staged_bytes(const DeviceOps::Sizes& sizes) {
  return std::max(
      {bytes_for<int32_t>(sizes.step_rows, 2), bytes_for<BestToken>(sizes.sequences),
       bytes_for<AttentionSequence>(sizes.sequences) + bytes_for<std::byte*>(sizes.pages)});
}

size_t fetched_bytes(const DeviceOps::Sizes& sizes) {
  return std::max(bytes_for<float>(sizes.logits), bytes_for<BestToken>(sizes.sequences));
}

}  // namespace

uint64_t DeviceOps::bytes(const Sizes& sizes) {
  return bytes_for<float>(sizes.hidden_rows, sizes.width) + 2 * rope_bytes(sizes) +
         bytes_for<int32_t>(sizes.step_rows, 2) + bytes_for<BestToken>(sizes.sequences) +
         table_bytes(sizes);
}

uint64_t DeviceOps::host_bytes(const Sizes& sizes) {
  return PinnedRoom::size_for(fetched_bytes(sizes)) + 2 * PinnedRoom::size_for(rope_bytes(sizes)) +
         PinnedRing::size_for(staged_bytes(sizes));
}

DeviceOps::DeviceOps(Device& device, DeviceStream& stream, const Sizes& sizes)
    : device_(device),
      stream_(stream),
      hidden_(device.allocate(bytes_for<float>(sizes.hidden_rows, sizes.width))),
      tables_(device.allocate(table_bytes(sizes))),
      best_(device.allocate(bytes_for<BestToken>(sizes.sequences))),
      ids_(device.allocate(bytes_for<int32_t>(sizes.step_rows, 2))),
      rope_half_(sizes.rope_half),
      fetched_(device, fetched_bytes(sizes)),
      staging_(device, staged_bytes(sizes)),
      cos_(make_rope_half(sizes)),
      sin_(make_rope_half(sizes)) {}

DeviceOps::~DeviceOps() { wait_for_all(); }

void DeviceOps::wait_for_all() noexcept {
  try {
    stream_.synchronize();
  } catch (const std::exception&) {
    // What failed was said to who waited for it, and nothing is left that runs.
  }
}

float* DeviceOps::enter(float* host, int64_t floats) {
  const bool arrived = std::exchange(place_.arrived, false);
  if (floats == 0 || arrived) return hidden();
  const auto bytes = bytes_of(host, floats);
  if (bytes.size() > hidden_->size()) throw std::logic_error("DeviceOps: a step is too large");
  device_.copy_in(stream_, reinterpret_cast<std::byte*>(hidden()), bytes);
  return hidden();
}

float* DeviceOps::enter(const EmbeddingTables& tables, const EmbeddingRows& rows) {
  if (bytes_for<float>(std::ssize(rows.tokens), tables.tokens.cols) > hidden_->size()) {
    throw std::logic_error("DeviceOps: a step is too large");
  }
  embed(tables, rows, hidden());
  return hidden();
}

void DeviceOps::embed(const EmbeddingTables& tables, const EmbeddingRows& rows, float* x) {
  std::vector<int32_t> ids(rows.tokens.begin(), rows.tokens.end());
  ids.insert(ids.end(), rows.positions.begin(), rows.positions.end());
  bring(*ids_, std::as_bytes(std::span(ids)));
  const auto* tokens = ids_->as<int32_t>();
  device_.embed(stream_, tables, tokens,
                rows.positions.empty() ? nullptr : tokens + rows.tokens.size(),
                std::ssize(rows.tokens), x);
}

void DeviceOps::leave(float* host, int64_t floats) {
  if (!place_.stays) {
    device_.copy_out(stream_, bytes_of(host, floats), reinterpret_cast<std::byte*>(hidden()));
  }
  stream_.synchronize();
}

const Operand* DeviceOps::enter_operand(float* host, int64_t rows, int64_t n) {
  return reinterpret_cast<const Operand*>(enter(host, rows * n));
}

void DeviceOps::leave_rows(float* host, int64_t width, std::span<const int64_t> rows) {
  for (size_t begin = 0, end = 0; begin < rows.size(); begin = end) {
    while (end < rows.size() && rows[end] - rows[begin] == static_cast<int64_t>(end - begin)) ++end;
    const auto count = static_cast<int64_t>(end - begin);
    device_.copy_out(stream_, bytes_of(host + static_cast<int64_t>(begin) * width, count * width),
                     reinterpret_cast<std::byte*>(hidden() + rows[begin] * width));
  }
  stream_.synchronize();
}

float* DeviceOps::fetch(float* from, int64_t floats) {
  const auto host = fetched_.of(static_cast<size_t>(floats) * sizeof(float));
  device_.copy_out(stream_, host, reinterpret_cast<const std::byte*>(from));
  stream_.synchronize();
  return reinterpret_cast<float*>(host.data());
}

void DeviceOps::begin_best(int64_t rows) {
  const std::vector<BestToken> none(static_cast<size_t>(rows));
  bring(*best_, std::as_bytes(std::span(none)));
}

void DeviceOps::find_best(const float* logits, int64_t first_row, int64_t rows, int64_t width,
                          int64_t id) {
  device_.find_best(stream_, logits, rows, width, id, best_->as<BestToken>() + first_row);
}

void DeviceOps::take_best(std::span<BestToken> host) {
  const auto room = fetched_.of(host.size_bytes());
  device_.copy_out(stream_, room, best_->data());
  stream_.synchronize();
  std::memcpy(host.data(), room.data(), room.size());
}

void DeviceOps::set_rope(const RopeTable& host) {
  bring(cos_, host.all_cos());
  bring(sin_, host.all_sin());
}

void DeviceOps::normalise(const RowNorm& norm, const float* x, int64_t rows, float* y) {
  device_.normalise(stream_, norm, x, rows, y);
}

void DeviceOps::normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) {
  normalise(norm, x, rows, reinterpret_cast<float*>(y));
}

const Operand* DeviceOps::operand(const float* x, int64_t, int64_t, float*) {
  return reinterpret_cast<const Operand*>(x);
}

void DeviceOps::apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) {
  const int64_t first = first_row * rope_half_;
  device_.apply_rope(stream_, cos_.device->as<float>() + first, sin_.device->as<float>() + first, x,
                     rows, heads, head_dim);
}

void DeviceOps::linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w,
                              const float* bias, int64_t first, int64_t end, float* y) {
  device_.linear_panels(stream_, floats(x), rows, w, bias, first, end, y);
}

void DeviceOps::add_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                           int64_t first, int64_t end, float* room, float* y) {
  linear_panels(x, rows, w, bias, first, end, room);
  if (end == w.panel_count()) device_.add(stream_, y, room, rows, w.rows);
}

void DeviceOps::relu_panels(const Operand* x, int64_t rows, const PackedMatrix& w,
                            const float* bias, int64_t first, int64_t end, float* inner) {
  linear_panels(x, rows, w, bias, first, end, inner);
  if (end == w.panel_count()) device_.relu(stream_, inner, rows, w.rows);
}

void DeviceOps::gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w,
                            const float* bias, int64_t first, int64_t end, float* inner) {
  device_.gate_panels(stream_, floats(x), rows, w, bias, first, end, inner);
}

const Operand* DeviceOps::activated(float* inner, int64_t, int64_t) {
  return reinterpret_cast<const Operand*>(inner);
}

void DeviceOps::attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences,
                       int heads, float scale, const float* q, const float* k, const float* v,
                       Operand* out) {
  const AttentionSequence* const on_device = store(shape, sequences, k, v);
  device_.attention(stream_, shape, on_device, std::ssize(sequences), most_rows(sequences), heads,
                    scale, q, reinterpret_cast<float*>(out));
}

const AttentionSequence* DeviceOps::store(const KvPageShape& shape,
                                          std::span<const AttentionSequence> sequences,
                                          const float* k, const float* v) {
  const AttentionSequence* const on_device = upload(sequences);
  device_.store_kv(stream_, shape, on_device, std::ssize(sequences), most_rows(sequences), k, v);
  return on_device;
}

int64_t DeviceOps::most_rows(std::span<const AttentionSequence> sequences) {
  int64_t most = 0;
  for (const AttentionSequence& s : sequences) most = std::max(most, s.rows);
  return most;
}

bool DeviceOps::repeat(int64_t rows) {
  const RecordingKey key(rows, hidden());
  const auto found = recordings_.find(key);
  if (found == recordings_.end()) {
    if (recordings_.size() == kMostRecordings) recordings_.clear();
    recordings_.emplace(key, nullptr);
    return false;
  }
  if (found->second) {
    device_.replay(stream_, *found->second);
    return true;
  }
  recorded_ = key;
  device_.record(stream_);
  return false;
}

void DeviceOps::end_repeat() {
  if (!recorded_) return;
  std::unique_ptr<DeviceRecording>& recording = recordings_[*recorded_];
  recorded_.reset();
  recording = device_.end_recording(stream_);
  device_.replay(stream_, *recording);
}

// The sequences, then their page tables, which layers of a step may share. The stream itself copies
// them, so that who reads what was there before has done so.
const AttentionSequence* DeviceOps::upload(std::span<const AttentionSequence> sequences) {
  const Tables key{sequences.data(), sequences.front().pages};
  if (const auto found = uploaded_.find(key); found != uploaded_.end()) return found->second;
  const auto table_bytes = [](const AttentionSequence& s) {
    const int64_t pages = (s.first_position + s.rows + kPageTokens - 1) / kPageTokens;
    return static_cast<size_t>(pages) * sizeof(std::byte*);
  };
  size_t bytes = sequences.size_bytes();
  for (const AttentionSequence& s : sequences) bytes += table_bytes(s);
  if (uploaded_.empty() || tables_used_ + bytes > tables_->size()) {
    uploaded_.clear();
    tables_used_ = 0;
  }
  if (bytes > tables_->size()) throw std::logic_error("DeviceOps: a step is too large");
  std::byte* const to = tables_->data() + tables_used_;
  tables_used_ += bytes;
  const std::span<std::byte> staged = staging_.take(bytes);
  size_t at = sequences.size_bytes();
  for (size_t i = 0; i < sequences.size(); ++i) {
    AttentionSequence s = sequences[i];
    std::memcpy(staged.data() + at, s.pages, table_bytes(s));
    s.pages = reinterpret_cast<std::byte* const*>(to + at);
    std::memcpy(staged.data() + i * sizeof s, &s, sizeof s);
    at += table_bytes(s);
  }
  device_.copy_in(stream_, to, staged);
  staging_.sent(stream_);
  const auto* const on_device = reinterpret_cast<const AttentionSequence*>(to);
  uploaded_.emplace(key, on_device);
  return on_device;
}

void DeviceOps::bring(DeviceBuffer& to, std::span<const std::byte> host) {
  if (host.empty()) return;
  if (host.size() > to.size()) throw std::logic_error("DeviceOps: a step is too large");
  const std::span<std::byte> staged = staging_.take(host.size());
  std::memcpy(staged.data(), host.data(), host.size());
  device_.copy_in(stream_, to.data(), staged);
  staging_.sent(stream_);
}

DeviceOps::RopeHalf DeviceOps::make_rope_half(const Sizes& sizes) {
  const size_t bytes = rope_bytes(sizes);
  return {device_.allocate(bytes), PinnedRoom(device_, bytes), device_.make_event()};
}

void DeviceOps::bring(RopeHalf& half, std::span<const float> values) {
  if (values.empty()) return;
  half.copied->synchronize();
  const std::span<std::byte> staged = half.host.of(values.size_bytes());
  std::memcpy(staged.data(), values.data(), values.size_bytes());
  device_.copy_in(stream_, half.device->data(), staged);
  device_.record(stream_, *half.copied);
}

}  // namespace headrace
