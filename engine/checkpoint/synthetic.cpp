#include "engine/checkpoint/synthetic.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "engine/checkpoint/file_checkpoint.h"
#include "engine/error.h"
#include "engine/half.h"
#include "engine/model/shapes.h"

namespace headrace {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor bytes are little-endian");

// Elements are made in units of 32 consecutive ones: a block of Q8_0 or Q4_0, or 32 plain values.
constexpr int kUnit = 32;
constexpr size_t kMaxUnitBytes = kUnit * sizeof(float);

// The finaliser of the SplitMix64 generator: a bijection whose output bits all depend on all input
// bits.
constexpr uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// How a tensor's values are drawn: mean + uniform noise of this half-width.
struct Recipe {
  uint64_t seed = 0;
  DType dtype = DType::kF32;
  float mean = 0.0f;
  float half_width = 0.0f;
};

// The `count` random words of unit `unit`; words beyond 8 belong to the unit's block scale.
template <size_t count>
std::array<uint64_t, count> words(const Recipe& recipe, uint64_t unit) {
  constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
  std::array<uint64_t, count> out;
  for (size_t i = 0; i < count; ++i) out[i] = mix(recipe.seed + (unit * 9 + i + 1) * kStep);
  return out;
}

std::array<float, kUnit> plain_values(const Recipe& recipe, uint64_t unit) {
  const auto random = std::bit_cast<std::array<int16_t, kUnit>>(words<8>(recipe, unit));
  const float scale = recipe.half_width * 0x1p-15f;
  std::array<float, kUnit> values;
  for (size_t i = 0; i < kUnit; ++i) {
    const float noise = static_cast<float>(random[i]) * scale;
    values[i] = recipe.mean + noise;
  }
  return values;
}

// The scale of a quantised block: within a quarter of the tensor's own, with a random sign, so that
// the asymmetric range of Q4_0 does not give the weights a mean.
uint16_t block_scale(float scale, uint64_t random) {
  const float vary = 0.75f + static_cast<float>(random & 0xFFFF) * 0x1p-17f;
  const float value = scale * vary;
  return f32_to_f16((random >> 63) != 0 ? -value : value);
}

// Writes the bytes of one unit; `out` has room for them.
void make_unit(const Recipe& recipe, uint64_t unit, std::byte* out) {
  switch (recipe.dtype) {
    case DType::kF32: {
      const auto values = plain_values(recipe, unit);
      std::memcpy(out, values.data(), sizeof(values));
      return;
    }
    case DType::kF16: {
      const auto values = plain_values(recipe, unit);
      std::array<uint16_t, kUnit> halves;
      for (size_t i = 0; i < kUnit; ++i) halves[i] = f32_to_f16(values[i]);
      std::memcpy(out, halves.data(), sizeof(halves));
      return;
    }
    case DType::kBF16: {
      const auto values = plain_values(recipe, unit);
      std::array<uint16_t, kUnit> halves;
      for (size_t i = 0; i < kUnit; ++i) halves[i] = f32_to_bf16(values[i]);
      std::memcpy(out, halves.data(), sizeof(halves));
      return;
    }
    case DType::kQ8_0: {
      const auto random = words<5>(recipe, unit);
      const uint16_t scale = block_scale(recipe.half_width / 128.0f, random[4]);
      std::memcpy(out, &scale, sizeof(scale));
      std::memcpy(out + sizeof(scale), random.data(), kUnit);
      return;
    }
    case DType::kQ4_0: {
      const auto random = words<3>(recipe, unit);
      const uint16_t scale = block_scale(recipe.half_width / 8.0f, random[2]);
      std::memcpy(out, &scale, sizeof(scale));
      std::memcpy(out + sizeof(scale), random.data(), kUnit / 2);
      return;
    }
    default:
      throw ModelError(std::string("synthetic weights of type ") + dtype_name(recipe.dtype) +
                       " cannot be made");
  }
}

struct WeightFormat {
  const char* name;
  DType dtype;
};
constexpr WeightFormat kFormats[] = {
    {"f32", DType::kF32},   {"f16", DType::kF16}, {"bf16", DType::kBF16}, {"q8", DType::kQ8_0},
    {"q8_0", DType::kQ8_0}, {"q4", DType::kQ4_0}, {"q4_0", DType::kQ4_0}};

DType weight_format(const std::string& model, std::string_view name) {
  std::string list;
  for (const WeightFormat& format : kFormats) {
    if (name == format.name) return format.dtype;
    list += (list.empty() ? "" : ", ") + std::string(format.name);
  }
  throw ModelError(model + ": there is no synthetic weight format \"" + std::string(name) +
                   "\"; choose one of " + list);
}

uint64_t seed_number(const std::string& model, std::string_view text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw ModelError(model + ": the seed \"" + std::string(text) +
                     "\" is not a whole number from 0 on");
  }
  return seed;
}

// The parts between the colons of "<shape>[:<format>[:<seed>]]".
struct Spec {
  std::string_view shape, format = "bf16", seed = "0";

  explicit Spec(std::string_view text) {
    for (std::string_view* part : {&shape, &format, &seed}) {
      const size_t colon = part == &seed ? text.npos : text.find(':');
      *part = text.substr(0, colon);
      if (colon == text.npos) return;
      text.remove_prefix(colon + 1);
    }
  }
};

bool is_norm(Role role) {
  return role == Role::kFinalNorm || role == Role::kAttnNorm || role == Role::kMlpNorm ||
         role == Role::kQNorm || role == Role::kKNorm;
}

class SyntheticCheckpoint : public Checkpoint {
 public:
  explicit SyntheticCheckpoint(const std::string& model) {
    const Spec spec(std::string_view(model).substr(kSyntheticPrefix.size()));
    config_ = named_shape(spec.shape);
    const DType format = weight_format(model, spec.format);
    seed_ = seed_number(model, spec.seed);
    files_ = {model};
    for (Role role : all_roles()) {
      if (!is_layer_role(role)) add_tensor(role, 0, format);
    }
    for (int layer = 0; layer < config_.n_layers; ++layer) {
      for (Role role : all_roles()) {
        if (is_layer_role(role)) add_tensor(role, layer, format);
      }
    }
    file_bytes_ = {end_};
    finish(model);
  }

  void read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const override {
    check_range(tensor, offset, out.size());
    const auto entry = recipes_.find(tensor.name);
    if (entry == recipes_.end()) {
      throw ModelError(files_[0] + ": there is no tensor \"" + tensor.name + "\"");
    }
    const Recipe& recipe = entry->second;
    const size_t unit_bytes = static_cast<size_t>(kUnit / dtype_info(recipe.dtype).block_elements) *
                              static_cast<size_t>(dtype_info(recipe.dtype).block_bytes);
    uint64_t unit = offset / unit_bytes;
    size_t skip = offset % unit_bytes;
    while (!out.empty()) {
      if (skip == 0 && out.size() >= unit_bytes) {
        make_unit(recipe, unit, out.data());
        out = out.subspan(unit_bytes);
      } else {
        std::array<std::byte, kMaxUnitBytes> whole;
        make_unit(recipe, unit, whole.data());
        const size_t part = std::min(out.size(), unit_bytes - skip);
        std::memcpy(out.data(), whole.data() + skip, part);
        out = out.subspan(part);
        skip = 0;
      }
      ++unit;
    }
  }

  std::string format() const override { return "synthetic"; }

 protected:
  std::vector<std::string> names(Role role, int layer) const override {
    if (!is_layer_role(role)) return {role_name(role)};
    return {"layers." + std::to_string(layer) + "." + role_name(role)};
  }

 private:
  void add_tensor(Role role, int layer, DType format) {
    if (!has_role(config_, role) || (role == Role::kHead && config_.tied_head)) return;
    const RoleShape shape = role_shape(config_, role);
    TensorInfo tensor;
    tensor.name = names(role, layer).front();
    tensor.rows = shape.rows;
    tensor.cols = shape.cols;
    tensor.dtype = DType::kF32;
    if (shape.rows > 1) {
      const bool whole_blocks = shape.cols % dtype_info(format).block_elements == 0;
      tensor.dtype = whole_blocks ? format : DType::kF16;
    }
    tensor.offset = end_;
    tensor.bytes = row_bytes(tensor.dtype, shape.rows * shape.cols);
    end_ += tensor.bytes;
    recipes_[tensor.name] = recipe(role, tensor);
    tensors_.push_back(std::move(tensor));
  }

  Recipe recipe(Role role, const TensorInfo& tensor) const {
    std::string key = config_.name + "/" + tensor.name;
    if (seed_ != 0) key += "#" + std::to_string(seed_);
    // Uniform noise of half-width w has the standard deviation w / sqrt(3).
    double deviation = 0.02;
    if (tensor.rows > 1) deviation = 1.0 / std::sqrt(static_cast<double>(tensor.cols));
    // The two matrices that write to the residual stream are damped, so that it does not grow with
    // the number of layers.
    if (role == Role::kO || role == Role::kDown) deviation /= std::sqrt(2.0 * config_.n_layers);
    Recipe recipe;
    recipe.seed = XXH3_64bits(key.data(), key.size());
    recipe.dtype = tensor.dtype;
    recipe.mean = is_norm(role) ? 1.0f : 0.0f;
    recipe.half_width = static_cast<float>(deviation * std::sqrt(3.0));
    return recipe;
  }

  uint64_t seed_ = 0;
  uint64_t end_ = 0;
  std::unordered_map<std::string, Recipe> recipes_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_synthetic(const std::string& model) {
  return std::make_unique<SyntheticCheckpoint>(model);
}

}  // namespace headrace
