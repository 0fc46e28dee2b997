#include "engine/ops/attention.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/ops/cpu/cpu.h"

namespace headrace {
namespace {

constexpr KvFormat kKvFormats[] = {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4};

struct alignas(64) CacheLine {
  float floats[16];
};

struct TileItem {
  size_t sequence;
  int kv_head;
  int64_t tile;
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
  cpu.threads.parallel_for(static_cast<int64_t>(sequences.size()), [&](int64_t i) {
    const AttentionSequence& sequence = sequences[static_cast<size_t>(i)];
    const int64_t pieces = store_pieces(shape, sequence);
    for (int64_t piece = 0; piece < pieces; ++piece) store_piece(shape, sequence, piece, k, v);
  });
}

void attention(const Cpu& cpu, const KvPageShape& shape,
               std::span<const AttentionSequence> sequences, int heads, float scale, const float* q,
               float* out) {
  std::vector<TileItem> items;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t tiles = query_tiles(sequences[s].rows, heads / shape.kv_heads);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int h = 0; h < shape.kv_heads; ++h) items.push_back({s, h, tile});
    }
  }

  cpu.threads.parallel_for(static_cast<int64_t>(items.size()), [&](int64_t i) {
    const TileItem& item = items[i];
    const AttentionSequence& s = sequences[item.sequence];
    AttentionTile tile{query_tile(shape, s, item.tile, item.kv_head, heads, q, out)};
    tile.head_dim = shape.head_dim;
    tile.v_stride = shape.v_stride();
    tile.format = shape.format;
    tile.scale = scale;
    const int64_t pages = tile.position[tile.queries - 1] / kPageTokens + 1;
    thread_local std::vector<const std::byte*> k_pages, v_pages;
    thread_local std::vector<CacheLine> scratch;
    scratch.resize(static_cast<size_t>(2 * QueryTile::kMost * shape.v_stride()) / 16);
    tile.scratch = scratch.data()->floats;
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
