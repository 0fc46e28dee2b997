#include "engine/checkpoint/dtype.h"

#include <array>
#include <cassert>
#include <cstring>

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
    {DType::kQ8_0, {"Q8_0", 32, 34, 0}, 8},
    {DType::kQ4_0, {"Q4_0", 32, 18, 0}, 2},
    {DType::kQ4_1, {"Q4_1", 32, 20, 0, 2}, 3},
    {DType::kQ5_0, {"Q5_0", 32, 22, 0}, 6},
    {DType::kQ5_1, {"Q5_1", 32, 24, 0, 2}, 7},
    {DType::kQ2_K, {"Q2_K", 256, 84, 80, 82}, 10},
    {DType::kQ3_K, {"Q3_K", 256, 110, 108}, 11},
    {DType::kQ4_K, {"Q4_K", 256, 144, 0, 2}, 12},
    {DType::kQ5_K, {"Q5_K", 256, 176, 0, 2}, 13},
    {DType::kQ6_K, {"Q6_K", 256, 210, 208}, 14},
    {DType::kG8, {"G8", 64, 68, 0, 2}, kNotGgml},
    {DType::kG4, {"G4", 64, 36, 0, 2}, kNotGgml},
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

constexpr uint16_t kF16Exponent = 0x7C00, kBF16Exponent = 0x7F80;
constexpr uint32_t kF32Exponent = 0x7F800000;

// NaN and infinity have all bits of the exponent.
template <typename Bits>
bool not_finite(const std::byte* element, Bits exponent) {
  Bits bits;
  std::memcpy(&bits, element, sizeof bits);
  return (bits & exponent) == exponent;
}

template <typename Bits>
int64_t first_not_finite(const std::byte* row, int64_t elements, Bits exponent) {
  const auto at = [row](int64_t i) { return row + i * static_cast<int64_t>(sizeof(Bits)); };
  int found = 0;  // without a way out of the loop, which is then one of vectors
  for (int64_t i = 0; i < elements; ++i) found |= not_finite(at(i), exponent) ? 1 : 0;
  if (found == 0) return -1;
  int64_t first = 0;
  while (!not_finite(at(first), exponent)) ++first;
  return first;
}

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

int64_t first_not_finite(DType dtype, int64_t elements, const std::byte* row) {
  if (dtype == DType::kF32) return first_not_finite(row, elements, kF32Exponent);
  if (dtype == DType::kF16) return first_not_finite(row, elements, kF16Exponent);
  if (dtype == DType::kBF16) return first_not_finite(row, elements, kBF16Exponent);
  const DTypeInfo& info = dtype_info(dtype);
  for (int64_t k = 0; k < elements; k += info.block_elements, row += info.block_bytes) {
    if (not_finite(row + info.scale_at, kF16Exponent)) return k;
    if (info.min_at >= 0 && not_finite(row + info.min_at, kF16Exponent)) return k;
  }
  return -1;
}

}  // namespace headrace
