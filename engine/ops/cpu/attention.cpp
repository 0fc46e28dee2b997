#include "engine/ops/attention.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/ops/cpu/cpu.h"

namespace headrace {
namespace {

constexpr KvFormat kKvFormats[] = {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4};

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
  const int64_t width = shape.kv_heads * shape.head_dim;
  cpu.threads.parallel_for(static_cast<int64_t>(sequences.size()), [&](int64_t i) {
    const AttentionSequence& s = sequences[i];
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t position = s.first_position + r;
      std::byte* const page = s.pages[position / kPageTokens];
      const auto token = static_cast<int>(position % kPageTokens);
      for (int h = 0; h < shape.kv_heads; ++h) {
        const int64_t at = (s.first_row + r) * width + h * shape.head_dim;
        for (int g = 0; g < shape.groups(); ++g) {
          store_kv_group(shape, true, k + at, g, token, page + shape.k_offset(h));
          store_kv_group(shape, false, v + at, g, token, page + shape.v_offset(h));
        }
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
