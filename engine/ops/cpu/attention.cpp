#include "engine/ops/attention.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/half.h"
#include "engine/ops/cpu/cpu.h"

namespace headrace {
namespace {

constexpr float kF16Max = 65504.0f;

constexpr KvFormat kKvFormats[] = {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4};

void put(KvFormat format, std::byte* to, float value) {
  if (format == KvFormat::kF32) {
    std::memcpy(to, &value, 4);
  } else {
    const uint16_t bits = f32_to_f16(std::clamp(value, -kF16Max, kF16Max));
    std::memcpy(to, &bits, 2);
  }
}

// K and V of one token and head into the slot of a page, as they are.
void store_plain(const KvPageShape& shape, const float* k, const float* v, size_t slot,
                 std::byte* k_to, std::byte* v_to) {
  const size_t element = kv_element_bytes(shape.format);
  const auto stride = static_cast<size_t>(shape.v_stride());
  k_to += slot * element;
  v_to += slot * stride * element;
  for (int d = 0; d < shape.head_dim; ++d) {
    put(shape.format, k_to + d * kPageTokens * element, k[d]);
    put(shape.format, v_to + d * element, v[d]);
  }
  for (size_t d = shape.head_dim; d < stride; ++d) put(shape.format, v_to + d * element, 0.0f);
}

// Groups of one token's K or V -> codes [v_stride], zero past the end, and scales and minima at the
// token's slot.
void quantize_row(const KvPageShape& shape, const float* row, size_t slot, std::byte* part,
                  std::vector<uint8_t>& codes) {
  codes.assign(shape.v_stride(), 0);
  std::byte* minima = part + shape.scale_bytes() / 2;
  for (int first = 0; first < shape.head_dim; first += kQuantGroup) {
    float group[kQuantGroup];
    const int count = std::min(kQuantGroup, shape.head_dim - first);
    for (int i = 0; i < count; ++i) group[i] = std::clamp(row[first + i], -kF16Max, kF16Max);
    const int levels = (1 << kv_code_bits(shape.format)) - 1;
    const GroupScale scale = quantize_group(std::span(group, count), levels, &codes[first]);
    const size_t at = (first / kQuantGroup * kPageTokens + slot) * 2;
    std::memcpy(part + at, &scale.scale, 2);
    std::memcpy(minima + at, &scale.minimum, 2);
  }
}

// The same as store_plain for q8 and q4.
void store_quantised(const KvPageShape& shape, const float* k, const float* v, size_t slot,
                     std::byte* k_to, std::byte* v_to) {
  thread_local std::vector<uint8_t> codes;
  const bool paired = shape.format == KvFormat::kQ4;
  const size_t stride = shape.v_stride(), row_bytes = paired ? stride / 2 : stride;
  const auto byte = [&](size_t i) {
    return static_cast<std::byte>(paired ? codes[2 * i] | codes[2 * i + 1] << 4 : codes[i]);
  };
  quantize_row(shape, k, slot, k_to, codes);
  std::byte* k_codes = k_to + shape.scale_bytes();
  const size_t k_rows = paired ? (shape.head_dim + 1) / 2 : shape.head_dim;
  for (size_t i = 0; i < k_rows; ++i) k_codes[i * kPageTokens + slot] = byte(i);
  quantize_row(shape, v, slot, v_to, codes);
  std::byte* v_codes = v_to + shape.scale_bytes() + slot * row_bytes;
  for (size_t i = 0; i < row_bytes; ++i) v_codes[i] = byte(i);
}

// Up to kMaxQueries queries that share a sequence and a KV head: consecutive (row, head in group).
struct TileItem {
  int sequence;
  int kv_head;
  int64_t first;  // row within the sequence * heads per KV head + head
  int count;
};

}  // namespace

const char* kv_format_name(KvFormat format) {
  switch (format) {
    case KvFormat::kF16:
      return "f16";
    case KvFormat::kF32:
      return "f32";
    case KvFormat::kQ8:
      return "q8";
    case KvFormat::kQ4:
      return "q4";
  }
  return "?";
}

KvFormat kv_format_of(std::string_view name) {
  for (const KvFormat format : kKvFormats) {
    if (name == kv_format_name(format)) return format;
  }
  throw std::invalid_argument("there is no KV format \"" + std::string(name) +
                              "\"; use f16, f32, q8 or q4");
}

void store_kv(const Cpu& cpu, const KvPageShape& shape,
              std::span<const AttentionSequence> sequences, const float* k, const float* v) {
  const auto store = shape.is_quantised() ? store_quantised : store_plain;
  const int64_t width = shape.kv_heads * shape.head_dim;
  cpu.threads.parallel_for(static_cast<int64_t>(sequences.size()), [&](int64_t i) {
    const AttentionSequence& s = sequences[i];
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t position = s.first_position + r;
      std::byte* page = s.pages[position / kPageTokens];
      const auto slot = static_cast<size_t>(position % kPageTokens);
      for (int h = 0; h < shape.kv_heads; ++h) {
        const float* k_row = k + (s.first_row + r) * width + h * shape.head_dim;
        const float* v_row = v + (s.first_row + r) * width + h * shape.head_dim;
        store(shape, k_row, v_row, slot, page + shape.k_offset(h), page + shape.v_offset(h));
      }
    }
  });
}

void attention(const Cpu& cpu, const KvPageShape& shape,
               std::span<const AttentionSequence> sequences, int heads, float scale, const float* q,
               float* out) {
  const int group = heads / shape.kv_heads;  // query heads per KV head
  std::vector<TileItem> items;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t queries = sequences[s].rows * group;
    for (int64_t first = 0; first < queries; first += AttentionTile::kMaxQueries) {
      const auto count =
          static_cast<int>(std::min<int64_t>(AttentionTile::kMaxQueries, queries - first));
      for (int h = 0; h < shape.kv_heads; ++h)
        items.push_back({static_cast<int>(s), h, first, count});
    }
  }

  cpu.threads.parallel_for(static_cast<int64_t>(items.size()), [&](int64_t i) {
    const TileItem& item = items[i];
    const AttentionSequence& s = sequences[item.sequence];
    AttentionTile tile{};
    tile.queries = item.count;
    tile.head_dim = shape.head_dim;
    tile.v_stride = shape.v_stride();
    tile.format = shape.format;
    tile.scale = scale;
    for (int j = 0; j < item.count; ++j) {
      const int64_t row = (item.first + j) / group;
      const int64_t head = item.kv_head * group + (item.first + j) % group;
      const int64_t at = ((s.first_row + row) * heads + head) * shape.head_dim;
      tile.q[j] = q + at;
      tile.out[j] = out + at;
      tile.position[j] = s.first_position + row;
    }
    const int64_t pages = tile.position[item.count - 1] / kPageTokens + 1;
    thread_local std::vector<const std::byte*> k_pages, v_pages;
    thread_local std::vector<float> scratch;
    if (shape.is_quantised()) scratch.resize(size_t{2} * kPageTokens * shape.v_stride());
    tile.scratch = scratch.data();
    k_pages.resize(pages);
    v_pages.resize(pages);
    for (int64_t p = 0; p < pages; ++p) {
      k_pages[p] = s.pages[p] + shape.k_offset(item.kv_head);
      v_pages[p] = s.pages[p] + shape.v_offset(item.kv_head);
    }
    tile.k_pages = k_pages.data();
    tile.v_pages = v_pages.data();
    cpu.kernels.attend(tile);
  });
}

}  // namespace headrace
