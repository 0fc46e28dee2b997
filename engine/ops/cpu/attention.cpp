#include "engine/ops/attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/half.h"
#include "engine/ops/cpu/cpu.h"

namespace headrace {
namespace {

constexpr float kF16Max = 65504.0f;

void put(KvFormat format, std::byte* to, float value) {
  if (format == KvFormat::kF32) {
    std::memcpy(to, &value, 4);
  } else {
    const uint16_t bits = f32_to_f16(std::clamp(value, -kF16Max, kF16Max));
    std::memcpy(to, &bits, 2);
  }
}

// Up to kMaxQueries queries that share a sequence and a KV head: consecutive (row, head in group).
struct TileItem {
  int sequence;
  int kv_head;
  int64_t first;  // row within the sequence * heads per KV head + head
  int count;
};

}  // namespace

void store_kv(const Cpu& cpu, const KvPageShape& shape,
              std::span<const AttentionSequence> sequences, const float* k, const float* v) {
  const size_t element = kv_element_bytes(shape.format);
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
        std::byte* k_to = page + shape.k_offset(h) + slot * element;
        std::byte* v_to = page + shape.v_offset(h) + slot * shape.v_stride() * element;
        for (int d = 0; d < shape.head_dim; ++d) {
          put(shape.format, k_to + d * kPageTokens * element, k_row[d]);
          put(shape.format, v_to + d * element, v_row[d]);
        }
        for (int d = shape.head_dim; d < shape.v_stride(); ++d)
          put(shape.format, v_to + d * element, 0.0f);
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
