#include "engine/checkpoint/dtype.h"

#include <array>
#include <cassert>

namespace headrace {
namespace {

constexpr uint32_t kNotGgml = ~uint32_t{0};

struct Entry {
  DType dtype;
  DTypeInfo info;
  uint32_t ggml_type;
};

// In the order of the enum, so that a DType is an index.
constexpr std::array<Entry, kDTypeCount> kEntries = {{
    {DType::kF32, {"F32", 1, 4}, 0},
    {DType::kF16, {"F16", 1, 2}, 1},
    {DType::kBF16, {"BF16", 1, 2}, 30},
    {DType::kQ8_0, {"Q8_0", 32, 34}, 8},
    {DType::kQ4_0, {"Q4_0", 32, 18}, 2},
    {DType::kQ4_1, {"Q4_1", 32, 20}, 3},
    {DType::kQ5_0, {"Q5_0", 32, 22}, 6},
    {DType::kQ5_1, {"Q5_1", 32, 24}, 7},
    {DType::kQ2_K, {"Q2_K", 256, 84}, 10},
    {DType::kQ3_K, {"Q3_K", 256, 110}, 11},
    {DType::kQ4_K, {"Q4_K", 256, 144}, 12},
    {DType::kQ5_K, {"Q5_K", 256, 176}, 13},
    {DType::kQ6_K, {"Q6_K", 256, 210}, 14},
    {DType::kG8, {"G8", 64, 68}, kNotGgml},
    {DType::kG4, {"G4", 64, 36}, kNotGgml},
}};

constexpr bool entries_follow_the_enum() {
  for (int i = 0; i < kDTypeCount; ++i) {
    if (static_cast<int>(kEntries[static_cast<size_t>(i)].dtype) != i) return false;
  }
  return true;
}
static_assert(entries_follow_the_enum());

constexpr std::array<DType, kDTypeCount> make_all() {
  std::array<DType, kDTypeCount> all{};
  for (size_t i = 0; i < all.size(); ++i) all[i] = kEntries[i].dtype;
  return all;
}
constexpr std::array<DType, kDTypeCount> kAll = make_all();

}  // namespace

const DTypeInfo& dtype_info(DType dtype) { return kEntries[static_cast<size_t>(dtype)].info; }

std::span<const DType> all_dtypes() { return kAll; }

bool is_ggml(DType dtype) { return kEntries[static_cast<size_t>(dtype)].ggml_type != kNotGgml; }

std::optional<DType> dtype_from_ggml(uint32_t type) {
  for (const Entry& entry : kEntries) {
    if (entry.ggml_type == type && is_ggml(entry.dtype)) return entry.dtype;
  }
  return std::nullopt;
}

uint32_t ggml_type(DType dtype) { return kEntries[static_cast<size_t>(dtype)].ggml_type; }

std::string supported_ggml_types() {
  std::string list;
  for (const Entry& entry : kEntries) {
    if (!is_ggml(entry.dtype)) continue;
    if (!list.empty()) list += ", ";
    list += std::string(entry.info.name) + " (" + std::to_string(entry.ggml_type) + ")";
  }
  return list;
}

size_t row_bytes(DType dtype, int64_t elements) {
  const DTypeInfo& info = dtype_info(dtype);
  assert(elements >= 0 && elements % info.block_elements == 0);
  return static_cast<size_t>(elements / info.block_elements) *
         static_cast<size_t>(info.block_bytes);
}

}  // namespace headrace
