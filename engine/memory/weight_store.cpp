#include "engine/memory/weight_store.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/error.h"
#include "engine/half.h"

namespace headrace {
namespace {

constexpr size_t kAlignment = 64;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool is_vector(Role role) {
  switch (role) {
    case Role::kFinalNorm:
    case Role::kFinalNormBias:
    case Role::kAttnNorm:
    case Role::kAttnNormBias:
    case Role::kQBias:
    case Role::kKBias:
    case Role::kVBias:
    case Role::kOBias:
    case Role::kMlpNorm:
    case Role::kMlpNormBias:
    case Role::kGateBias:
    case Role::kUpBias:
    case Role::kDownBias:
      return true;
    default:
      return false;
  }
}

size_t stored_bytes(Role role, const TensorInfo& tensor) {
  return aligned(is_vector(role)
                     ? static_cast<size_t>(tensor.cols) * sizeof(float)
                     : PackedMatrix::packed_bytes(tensor.dtype, tensor.rows, tensor.cols));
}

constexpr std::array kLayerRoles = {
    Role::kAttnNorm, Role::kAttnNormBias, Role::kQ,       Role::kQBias,
    Role::kK,        Role::kKBias,        Role::kV,       Role::kVBias,
    Role::kO,        Role::kOBias,        Role::kMlpNorm, Role::kMlpNormBias,
    Role::kGate,     Role::kGateBias,     Role::kUp,      Role::kUpBias,
    Role::kDown,     Role::kDownBias};

std::vector<Role> embedding_roles(const ModelConfig& config) {
  std::vector<Role> roles = {Role::kTokenEmbedding};
  if (config.learned_positions) roles.push_back(Role::kPositionEmbedding);
  if (config.has_projections()) roles.push_back(Role::kProjectIn);
  return roles;
}

// Roles that only the head needs; a tied head on the only stage shares the embedding.
std::vector<Role> head_roles(const Checkpoint& checkpoint, const StageRange& range) {
  const ModelConfig& config = checkpoint.config();
  std::vector<Role> roles;
  if (!(config.tied_head && range.is_first)) roles.push_back(Role::kHead);
  if (config.has_projections()) roles.push_back(Role::kProjectOut);
  if (config.has_final_norm) {
    roles.push_back(Role::kFinalNorm);
    if (config.norm == NormKind::kLayer) roles.push_back(Role::kFinalNormBias);
  }
  return roles;
}

template <typename Roles>
size_t group_bytes(const Checkpoint& checkpoint, const Roles& roles, int layer) {
  size_t bytes = 0;
  for (const Role role : roles) {
    if (const TensorInfo* tensor = checkpoint.find(role, layer))
      bytes += stored_bytes(role, *tensor);
  }
  return bytes;
}

}  // namespace

// Loads the tensors of one group (a layer, the embedding, the head) into one buffer.
class WeightStore::Loader {
 public:
  Loader(const Checkpoint& checkpoint, ThreadPool& threads, Buffer& buffer, int layer)
      : checkpoint_(checkpoint), threads_(threads), next_(buffer.data()), layer_(layer) {}

  PackedMatrix matrix(Role role) {
    const TensorInfo* tensor = checkpoint_.find(role, layer_);
    if (!tensor) return {};
    PackedMatrix matrix{tensor->dtype, tensor->rows, tensor->cols, next_};
    threads_.parallel_for(matrix.panel_count(),
                          [&](int64_t p) { pack(role, *tensor, p, matrix.panel_bytes()); });
    next_ += stored_bytes(role, *tensor);
    return matrix;
  }

  // As float32; null if the model has no such tensor.
  const float* vector(Role role) {
    const TensorInfo* tensor = checkpoint_.find(role, layer_);
    if (!tensor) return nullptr;
    auto* values = reinterpret_cast<float*>(next_);
    std::vector<std::byte> raw(tensor->bytes);
    checkpoint_.read(*tensor, 0, raw);
    for (int64_t i = 0; i < tensor->cols; ++i)
      values[i] = element(*tensor, raw, source_row(role, i));
    next_ += stored_bytes(role, *tensor);
    return values;
  }

  Linear linear(Role weight, Role bias) {
    const PackedMatrix matrix_view = matrix(weight);
    return {matrix_view, vector(bias)};
  }

  Norm norm(Role weight, Role bias) {
    const float* values = vector(weight);
    return {values, vector(bias)};
  }

 private:
  static float element(const TensorInfo& tensor, const std::vector<std::byte>& raw, int64_t i) {
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
        throw ModelError("tensor " + tensor.name + ": type " + dtype_name(tensor.dtype) +
                         " is not supported for norms and biases; use F32, F16 or BF16");
    }
  }

  // The row of the file that holds row `row` in Rope's half-split order.
  int64_t source_row(Role role, int64_t row) const {
    const bool rotated =
        role == Role::kQ || role == Role::kK || role == Role::kQBias || role == Role::kKBias;
    if (!rotated || !checkpoint_.qk_rows_interleaved()) return row;
    const int64_t dim = checkpoint_.config().head_dim, i = row % dim;
    return row - i + i % (dim / 2) * 2 + i / (dim / 2);
  }

  void pack(Role role, const TensorInfo& tensor, int64_t panel, size_t panel_bytes) const {
    const size_t stride = row_bytes(tensor.dtype, tensor.cols);
    const int64_t first = panel * kPanelRows;
    const int64_t count = std::min<int64_t>(kPanelRows, tensor.rows - first);
    std::array<int64_t, kPanelRows> source;
    for (int64_t r = 0; r < count; ++r) source[r] = source_row(role, first + r);
    const auto [low, high] = std::minmax_element(source.begin(), source.begin() + count);

    thread_local std::vector<std::byte> raw;
    raw.resize((*high - *low + 1) * stride);
    checkpoint_.read(tensor, *low * stride, raw);
    std::array<const std::byte*, kPanelRows> rows{};
    for (int64_t r = 0; r < count; ++r) rows[r] = raw.data() + (source[r] - *low) * stride;
    pack_panel(tensor.dtype, tensor.cols, rows, next_ + panel * panel_bytes);
  }

  const Checkpoint& checkpoint_;
  ThreadPool& threads_;
  std::byte* next_;
  int layer_;
};

WeightStore::WeightStore(const Checkpoint& checkpoint, const StageRange& range,
                         MemoryBudget& budget, ThreadPool& threads)
    : range_(range) {
  const auto loader = [&](const auto& roles, int layer) {
    buffers_.push_back(budget.allocate(group_bytes(checkpoint, roles, layer), "weights"));
    return Loader(checkpoint, threads, buffers_.back(), layer);
  };
  if (range.is_first) {
    Loader load = loader(embedding_roles(checkpoint.config()), 0);
    embedding_.tokens = load.matrix(Role::kTokenEmbedding);
    if (checkpoint.config().learned_positions)
      embedding_.positions = load.matrix(Role::kPositionEmbedding);
    if (checkpoint.config().has_projections())
      embedding_.project_in = load.matrix(Role::kProjectIn);
  }
  for (int layer = range.first_layer; layer < range.end_layer; ++layer) {
    Loader load = loader(kLayerRoles, layer);
    LayerWeights w;
    w.attn_norm = load.norm(Role::kAttnNorm, Role::kAttnNormBias);
    w.q = load.linear(Role::kQ, Role::kQBias);
    w.k = load.linear(Role::kK, Role::kKBias);
    w.v = load.linear(Role::kV, Role::kVBias);
    w.o = load.linear(Role::kO, Role::kOBias);
    w.mlp_norm = load.norm(Role::kMlpNorm, Role::kMlpNormBias);
    w.gate = load.linear(Role::kGate, Role::kGateBias);
    w.up = load.linear(Role::kUp, Role::kUpBias);
    w.down = load.linear(Role::kDown, Role::kDownBias);
    layers_.push_back(w);
  }
  if (range.is_last) {
    Loader load = loader(head_roles(checkpoint, range), 0);
    const bool shared = checkpoint.config().tied_head && range.is_first;
    head_.head = shared ? embedding_.tokens : load.matrix(Role::kHead);
    if (checkpoint.config().has_projections()) head_.project_out = load.matrix(Role::kProjectOut);
    if (checkpoint.config().has_final_norm) {
      head_.final_norm = load.norm(Role::kFinalNorm, Role::kFinalNormBias);
    }
  }
}

uint64_t WeightStore::bytes_needed(const Checkpoint& checkpoint, const StageRange& range) {
  uint64_t bytes = 0;
  if (range.is_first) bytes += group_bytes(checkpoint, embedding_roles(checkpoint.config()), 0);
  for (int layer = range.first_layer; layer < range.end_layer; ++layer) {
    bytes += group_bytes(checkpoint, kLayerRoles, layer);
  }
  if (range.is_last) bytes += group_bytes(checkpoint, head_roles(checkpoint, range), 0);
  return bytes;
}

}  // namespace headrace
