#include "engine/device/half_ops.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace headrace {
namespace {

// What is inside a gated MLP may be larger than f16 holds; a power of two changes no other bit.
constexpr float kGatedScale = 0x1p-4f;

const Half* halves(const Operand* x) { return reinterpret_cast<const Half*>(x); }
Half* halves(Operand* x) { return reinterpret_cast<Half*>(x); }
const Operand* operands(const Half* x) { return reinterpret_cast<const Operand*>(x); }

size_t elements(int64_t rows, int64_t width, size_t bytes) {
  return static_cast<size_t>(rows * width) * bytes;
}

}  // namespace

HalfOps::HalfOps(Device& device, DeviceStream& stream, const Sizes& sizes,
                 std::span<std::byte> room)
    : DeviceOps(device, stream, sizes),
      room_(room),
      entered_(device.allocate(elements(sizes.sequences, sizes.width, sizeof(Half)))),
      attended_(device.allocate(
          elements(sizes.micro_batch_rows, sizes.float_attention_width, sizeof(float)))) {
  if (sizes.gated_width == 0) return;
  up_ = device.allocate(elements(sizes.micro_batch_rows, sizes.gated_width, sizeof(float)));
  gated_ = device.allocate(elements(sizes.micro_batch_rows, sizes.gated_width, sizeof(Half)));
}

uint64_t HalfOps::bytes(const Sizes& sizes) {
  return elements(sizes.sequences, sizes.width, sizeof(Half)) +
         elements(sizes.micro_batch_rows, sizes.gated_width, sizeof(float) + sizeof(Half)) +
         elements(sizes.micro_batch_rows, sizes.float_attention_width, sizeof(float));
}

const Operand* HalfOps::enter_operand(float* host, int64_t rows, int64_t n) {
  if (elements(rows, n, sizeof(Half)) > entered_->size()) {
    throw std::logic_error("HalfOps: more rows than there are sequences");
  }
  device_.to_half(stream_, enter(host, rows * n), rows * n, entered_->as<Half>());
  return operands(entered_->as<Half>());
}

void HalfOps::normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) {
  device_.normalise(stream_, norm, x, rows, halves(y));
}

const Operand* HalfOps::operand(const float* x, int64_t rows, int64_t n, float* room) {
  auto* const y = reinterpret_cast<Half*>(room);
  device_.to_half(stream_, x, rows * n, y);
  return operands(y);
}

void HalfOps::linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w,
                            const float* bias, int64_t first, int64_t end, float* y) {
  multiply({.x = halves(x), .rows = rows, .bias = bias, .y = y, .stride = w.rows}, w, first, end);
}

bool HalfOps::linear_together(const Operand* x, int64_t rows, std::span<const Projection> all) {
  if (!all[0].weight.half_rows) return packed_together(x, rows, all);
  const Projection &first = all[0], &second = all[1];
  const PackedMatrix& w = first.weight;
  const auto weights = [](const Projection& p) {
    return reinterpret_cast<const Half*>(p.weight.panels);
  };
  const HalfProduct product{.x = halves(x),
                            .rows = rows,
                            .w = weights(first),
                            .outputs = w.rows,
                            .inputs = w.cols,
                            .bias = first.bias,
                            .y = first.y,
                            .stride = w.rows,
                            .count = static_cast<int>(all.size()),
                            .w_apart = weights(second) - weights(first),
                            .bias_apart = first.bias ? second.bias - first.bias : 0,
                            .y_apart = second.y - first.y};
  for (size_t i = 0; i < all.size(); ++i) {
    const Projection& p = all[i];
    const auto n = static_cast<int64_t>(i);
    const bool is_alike = p.weight.half_rows && p.weight.split >= w.panel_count() &&
                          p.weight.rows == w.rows && p.weight.cols == w.cols &&
                          !p.bias == !first.bias;
    if (!is_alike || weights(p) != product.w + n * product.w_apart ||
        p.y != first.y + n * product.y_apart ||
        (p.bias && p.bias != first.bias + n * product.bias_apart)) {
      return false;
    }
  }
  if (rows > 0) device_.multiply(stream_, product);
  return true;
}

bool HalfOps::packed_together(const Operand* x, int64_t rows, std::span<const Projection> all) {
  std::vector<PackedProduct> products;
  for (const Projection& p : all) {
    const PackedMatrix& w = p.weight;
    if (w.half_rows || room_.size() < static_cast<size_t>(w.rows * w.cols) * sizeof(Half)) {
      return false;
    }
    const HalfProduct product{.x = halves(x),
                              .rows = rows,
                              .outputs = w.rows,
                              .inputs = w.cols,
                              .bias = p.bias,
                              .y = p.y,
                              .stride = w.rows};
    products.push_back({product, w});
  }
  if (rows > 0) {
    device_.multiply_packed(stream_, products, reinterpret_cast<Half*>(room_.data()));
  }
  return true;
}

void HalfOps::add_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                         int64_t first, int64_t end, float*, float* y) {
  const bool gated = gated_ && halves(x) == gated_->as<Half>();
  multiply({.x = halves(x),
            .rows = rows,
            .bias = bias,
            .scale = gated ? 1.0f / kGatedScale : 1.0f,
            .result = HalfProduct::Result::kAdded,
            .y = y,
            .stride = w.rows},
           w, first, end);
}

void HalfOps::relu_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                          int64_t first, int64_t end, float* inner) {
  multiply({.x = halves(x),
            .rows = rows,
            .bias = bias,
            .result = HalfProduct::Result::kReluHalf,
            .y = inner,
            .stride = w.rows},
           w, first, end);
}

void HalfOps::gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                          int64_t first, int64_t end, float* inner) {
  const int64_t begin = first * kPanelRows, width = std::min(end * kPanelRows, w.rows) - begin;
  // As if the panels were the whole matrix, so that they lie side by side.
  float* const y = up_->as<float>() - begin;
  multiply({.x = halves(x), .rows = rows, .bias = bias, .y = y, .stride = width}, w, first, end);
  device_.silu_multiply(stream_, inner + begin, up_->as<float>(), rows, width, w.rows, kGatedScale,
                        gated_->as<Half>() + begin);
}

const Operand* HalfOps::activated(float* inner, int64_t, int64_t) {
  return gated_ ? operands(gated_->as<Half>()) : reinterpret_cast<const Operand*>(inner);
}

void HalfOps::attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences,
                     int heads, float scale, const float* q, const float* k, const float* v,
                     Operand* out) {
  const AttentionSequence* const on_device = store(shape, sequences, k, v);
  const int64_t count = std::ssize(sequences), most = most_rows(sequences);
  if (shape.format == KvFormat::kF16) {
    device_.attention(stream_, shape, on_device, count, most, heads, scale, q, halves(out));
    return;
  }
  auto* const attended = attended_->as<float>();
  device_.attention(stream_, shape, on_device, count, most, heads, scale, q, attended);
  // The rows of a visit lie together, but for the host's between them, which come back later.
  const int64_t width = int64_t{heads} * shape.head_dim;
  const int64_t begin = sequences.front().first_row * width;
  const int64_t end = (sequences.back().first_row + sequences.back().rows) * width;
  device_.to_half(stream_, attended + begin, end - begin, halves(out) + begin);
}

// The product with panels [first, end) of w, in pieces that lie together or have room as rows.
void HalfOps::multiply(HalfProduct product, const PackedMatrix& w, int64_t first, int64_t end) {
  if (product.rows == 0) return;
  const HalfProduct whole = product;
  product.inputs = w.cols;
  const auto row_bytes = static_cast<uint64_t>(w.cols) * sizeof(Half);
  const auto in_room = static_cast<int64_t>(room_.size() / row_bytes) / kPanelRows;
  if (!w.half_rows && in_room == 0) throw std::logic_error("HalfOps: there is no room for rows");
  for (int64_t begin = first; begin < end;) {
    int64_t until = begin < w.split ? std::min(end, w.split) : end;
    if (!w.half_rows) until = std::min(until, begin + in_room);
    const int64_t row = begin * kPanelRows;
    product.outputs = std::min(until * kPanelRows, w.rows) - row;
    product.bias = whole.bias ? whole.bias + row : nullptr;
    product.y = whole.result == HalfProduct::Result::kReluHalf
                    ? static_cast<void*>(static_cast<Half*>(whole.y) + row)
                    : static_cast<void*>(static_cast<float*>(whole.y) + row);
    if (w.half_rows) {
      product.w = reinterpret_cast<const Half*>(w.panel(begin));
      device_.multiply(stream_, product);
    } else {
      const PackedProduct packed{product, w, begin};
      device_.multiply_packed(stream_, {&packed, 1}, reinterpret_cast<Half*>(room_.data()));
    }
    begin = until;
  }
}

}  // namespace headrace
