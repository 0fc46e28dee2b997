#include "engine/memory/weight_layout.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "engine/error.h"
#include "engine/half.h"
#include "engine/io/file.h"

namespace headrace {
namespace {

constexpr uint64_t kMatrixAlignment = 64;
constexpr uint64_t kVectorAlignment = 16;  // floats

constexpr uint64_t round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// In the order of use.
constexpr std::array kLayerMatrices = {Role::kQ,    Role::kK,  Role::kV,   Role::kO,
                                       Role::kGate, Role::kUp, Role::kDown};
constexpr std::array kLayerVectors = {
    Role::kAttnNorm, Role::kAttnNormBias, Role::kQBias,       Role::kKBias,    Role::kVBias,
    Role::kOBias,    Role::kMlpNorm,      Role::kMlpNormBias, Role::kGateBias, Role::kUpBias,
    Role::kDownBias, Role::kQNorm,        Role::kKNorm};
constexpr std::array kEmbeddingMatrices = {Role::kTokenEmbedding, Role::kPositionEmbedding,
                                           Role::kProjectIn};
constexpr std::array kHeadMatrices = {Role::kHead, Role::kProjectOut};
constexpr std::array kHeadVectors = {Role::kFinalNorm, Role::kFinalNormBias};

class LayoutBuilder {
 public:
  LayoutBuilder(const Checkpoint& checkpoint, const StageRange& range) : checkpoint_(checkpoint) {
    layout_.range = range;
  }

  void add_unit(WeightUnit::Kind kind, int layer, std::span<const Role> matrices,
                std::span<const Role> vectors) {
    WeightUnit unit;
    unit.kind = kind;
    unit.layer = layer;
    for (const Role role : matrices) {
      const TensorInfo* tensor = find(role, layer);
      if (!tensor) continue;
      PlacedMatrix matrix{role, tensor, round_up(unit.image_bytes, kMatrixAlignment),
                          panel_bytes(tensor->dtype, tensor->cols)};
      unit.image_bytes = matrix.offset + matrix.bytes();
      unit.matrices.push_back(matrix);
    }
    unit.image_bytes = io_aligned(unit.image_bytes);
    for (const Role role : vectors) {
      const TensorInfo* tensor = find(role, layer);
      if (!tensor) continue;
      unit.vectors.push_back({role, tensor, layout_.vector_floats});
      layout_.vector_floats += round_up(static_cast<uint64_t>(tensor->cols), kVectorAlignment);
    }
    layout_.units.push_back(std::move(unit));
  }

  WeightLayout take() { return std::move(layout_); }

 private:
  const TensorInfo* find(Role role, int layer) const {
    return has_role(checkpoint_.config(), role) ? &checkpoint_.require(role, layer) : nullptr;
  }

  const Checkpoint& checkpoint_;
  WeightLayout layout_;
};

// The row of the file that holds row `row` in Rope's half-split order.
int64_t source_row(const Checkpoint& checkpoint, Role role, int64_t row) {
  const bool rotated =
      role == Role::kQ || role == Role::kK || role == Role::kQBias || role == Role::kKBias;
  if (!rotated || !checkpoint.qk_rows_interleaved()) return row;
  const int64_t dim = checkpoint.config().head_dim, i = row % dim;
  return row - i + i % (dim / 2) * 2 + i / (dim / 2);
}

// Every token of every request meets what is in a layer or the head. Of the embedding it meets the
// rows of its own tokens: a damaged one fails only the requests that have it.
bool must_be_finite(const ModelConfig& config, Role role) {
  return role == Role::kTokenEmbedding ? config.tied_head : role != Role::kPositionEmbedding;
}

void pack_one_panel(const Checkpoint& checkpoint, const PlacedMatrix& matrix, int64_t panel,
                    std::byte* out) {
  const TensorInfo& tensor = *matrix.tensor;
  const size_t stride = row_bytes(tensor.dtype, tensor.cols);
  const int64_t first = panel * kPanelRows;
  const int64_t count = std::min<int64_t>(kPanelRows, tensor.rows - first);
  std::array<int64_t, kPanelRows> source;
  for (int64_t r = 0; r < count; ++r) source[r] = source_row(checkpoint, matrix.role, first + r);
  const auto [low, high] = std::minmax_element(source.begin(), source.begin() + count);

  thread_local std::vector<std::byte> raw;
  raw.resize((*high - *low + 1) * stride);
  checkpoint.read(tensor, *low * stride, raw);
  std::array<const std::byte*, kPanelRows> rows{};
  for (int64_t r = 0; r < count; ++r) {
    rows[r] = raw.data() + (source[r] - *low) * stride;
    if (!must_be_finite(checkpoint.config(), matrix.role)) continue;
    const int64_t column = first_not_finite(tensor.dtype, tensor.cols, rows[r]);
    if (column >= 0) checkpoint.refuse_not_finite(tensor, source[r], column);
  }
  pack_panel(tensor.dtype, tensor.cols, rows, out);
}

float element(const TensorInfo& tensor, const std::vector<std::byte>& raw, int64_t i) {
  uint16_t half;
  switch (tensor.dtype) {
    case DType::kF32: {
      float value;
      std::memcpy(&value, raw.data() + i * 4, 4);
      return value;
    }
    case DType::kF16:
      std::memcpy(&half, raw.data() + i * 2, 2);
      return f16_to_f32(half);
    case DType::kBF16:
      std::memcpy(&half, raw.data() + i * 2, 2);
      return bf16_to_f32(half);
    default:
      throw std::logic_error("a norm or bias of a low-bit format");  // Checkpoint refuses it
  }
}

}  // namespace

std::string WeightUnit::name() const {
  switch (kind) {
    case Kind::kEmbedding:
      return "embedding";
    case Kind::kHead:
      return "head";
    case Kind::kLayer:
      break;
  }
  return "layer " + std::to_string(layer);
}

const PlacedMatrix* WeightUnit::find(Role role) const {
  const auto it = std::find_if(matrices.begin(), matrices.end(),
                               [&](const PlacedMatrix& m) { return m.role == role; });
  return it == matrices.end() ? nullptr : &*it;
}

const PlacedVector* WeightUnit::find_vector(Role role) const {
  const auto it = std::find_if(vectors.begin(), vectors.end(),
                               [&](const PlacedVector& v) { return v.role == role; });
  return it == vectors.end() ? nullptr : &*it;
}

uint64_t WeightLayout::image_bytes() const {
  uint64_t bytes = 0;
  for (const WeightUnit& unit : units) bytes += unit.image_bytes;
  return bytes;
}

WeightLayout weight_layout(const Checkpoint& checkpoint, const StageRange& range) {
  LayoutBuilder builder(checkpoint, range);
  if (range.is_first) builder.add_unit(WeightUnit::Kind::kEmbedding, 0, kEmbeddingMatrices, {});
  for (int layer = range.first_layer; layer < range.end_layer; ++layer) {
    builder.add_unit(WeightUnit::Kind::kLayer, layer, kLayerMatrices, kLayerVectors);
  }
  const bool shared = checkpoint.config().tied_head && range.is_first && range.is_last;
  if (range.is_last) {
    const std::span<const Role> all(kHeadMatrices);
    builder.add_unit(WeightUnit::Kind::kHead, 0, shared ? all.subspan(1) : all, kHeadVectors);
  }
  WeightLayout layout = builder.take();
  layout.shares_head = shared;
  return layout;
}

void pack_image(const Checkpoint& checkpoint, const WeightUnit& unit, uint64_t from,
                std::span<std::byte> out, ThreadPool& threads) {
  const uint64_t to = from + out.size();
  std::fill(out.begin(), out.end(), std::byte{0});
  for (const PlacedMatrix& matrix : unit.matrices) {
    const uint64_t begin = std::max(from, matrix.offset);
    const uint64_t end = std::min(to, matrix.offset + matrix.bytes());
    if (begin >= end) continue;
    const auto first = static_cast<int64_t>((begin - matrix.offset) / matrix.panel_bytes);
    const auto last = static_cast<int64_t>((end - 1 - matrix.offset) / matrix.panel_bytes);
    threads.parallel_for(last - first + 1, [&](int64_t i) {
      const uint64_t at = matrix.offset + static_cast<uint64_t>(first + i) * matrix.panel_bytes;
      if (at >= from && at + matrix.panel_bytes <= to) {
        return pack_one_panel(checkpoint, matrix, first + i, out.data() + (at - from));
      }
      std::vector<std::byte> whole(matrix.panel_bytes);
      pack_one_panel(checkpoint, matrix, first + i, whole.data());
      const uint64_t cut_begin = std::max(at, from),
                     cut_end = std::min(at + matrix.panel_bytes, to);
      std::memcpy(out.data() + (cut_begin - from), whole.data() + (cut_begin - at),
                  cut_end - cut_begin);
    });
  }
}

void drop_sources(const Checkpoint& checkpoint, const WeightUnit& unit, uint64_t from,
                  uint64_t to) {
  for (const PlacedMatrix& m : unit.matrices) {
    const uint64_t begin = std::max(from, m.offset), end = std::min(to, m.offset + m.bytes());
    if (begin >= end) continue;
    const uint64_t per_panel = kPanelRows * row_bytes(m.tensor->dtype, m.tensor->cols);
    const uint64_t first = (begin - m.offset) / m.panel_bytes * per_panel;
    const uint64_t last = ((end - 1 - m.offset) / m.panel_bytes + 1) * per_panel;
    checkpoint.drop_cache(*m.tensor, first, std::min(last, m.tensor->bytes) - first);
  }
}

void read_vector(const Checkpoint& checkpoint, const PlacedVector& vector, std::span<float> out) {
  std::vector<std::byte> raw(vector.tensor->bytes);
  checkpoint.read(*vector.tensor, 0, raw);
  const int64_t column = first_not_finite(vector.tensor->dtype, vector.tensor->cols, raw.data());
  if (column >= 0) checkpoint.refuse_not_finite(*vector.tensor, 0, column);
  for (int64_t i = 0; i < vector.tensor->cols; ++i) {
    out[i] = element(*vector.tensor, raw, source_row(checkpoint, vector.role, i));
  }
}

}  // namespace headrace
