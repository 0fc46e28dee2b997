#include "runtime/text/bpe.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <queue>
#include <utility>

#include "runtime/text/utf8.h"

namespace headrace {
namespace {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

struct Candidate {
  int rank;
  int position;  // of the left symbol; among equal ranks the leftmost goes first
  int left;
  int right;

  bool operator>(const Candidate& other) const {
    return std::pair(rank, position) > std::pair(other.rank, other.position);
  }
};

struct Symbol {
  int id;
  int previous;  // positions; -1: none
  int next;
};

}  // namespace

// Ids of pre-tokens seen before. Bounded: a shard that is full starts afresh.
class Bpe::Cache {
 public:
  static constexpr size_t kLongestPiece = 64;  // bytes

  // A small vocabulary gets a small cache.
  explicit Cache(size_t tokens)
      : shard_entries_(std::clamp(tokens, kShards, kMostEntries) / kShards) {}

  bool append_if_known(std::string_view piece, std::vector<int>& out) {
    Shard& shard = shard_of(piece);
    const std::lock_guard lock(shard.mutex);
    const auto found = shard.ids.find(piece);
    if (found == shard.ids.end()) return false;
    out.insert(out.end(), found->second.begin(), found->second.end());
    return true;
  }

  void add(std::string_view piece, const std::vector<int>& ids) {
    Shard& shard = shard_of(piece);
    const std::lock_guard lock(shard.mutex);
    if (shard.ids.size() >= shard_entries_) shard.ids.clear();
    shard.ids.emplace(piece, ids);
  }

 private:
  static constexpr size_t kShards = 16;
  static constexpr size_t kMostEntries = 32768;

  struct Shard {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<int>, StringHash, std::equal_to<>> ids;
  };

  Shard& shard_of(std::string_view piece) { return shards_[StringHash{}(piece) % kShards]; }

  const size_t shard_entries_;
  std::array<Shard, kShards> shards_;
};

Bpe::Bpe(Tables tables)
    : tables_(std::move(tables)), cache_(std::make_unique<Cache>(tables_.merges.size())) {}
Bpe::~Bpe() = default;

void Bpe::encode(std::string_view piece, std::vector<int>& out) const {
  const bool cached = piece.size() <= Cache::kLongestPiece;
  if (cached && cache_->append_if_known(piece, out)) return;
  std::vector<int> ids;
  const auto whole =
      tables_.whole.empty() ? tables_.whole.end() : tables_.whole.find(std::string(piece));
  if (whole != tables_.whole.end()) {
    ids.push_back(whole->second);
  } else {
    ids = merge(piece);
  }
  if (cached) cache_->add(piece, ids);
  out.insert(out.end(), ids.begin(), ids.end());
}

std::vector<int> Bpe::first_symbols(std::string_view piece) const {
  std::vector<int> ids;
  ids.reserve(piece.size());
  bool unknown_before = false;
  for (const char c : piece) {
    const int id = tables_.byte_ids[static_cast<uint8_t>(c)];
    if (id >= 0) {
      ids.push_back(id);
    } else {
      add_unknown(ids, unknown_before);
    }
    unknown_before = id < 0;
  }
  return ids;
}

std::vector<int> Bpe::first_characters(std::string_view piece) const {
  std::vector<int> ids;
  bool unknown_before = false;
  for (size_t at = 0; at < piece.size();) {
    const size_t begin = at;
    const auto known = tables_.characters.find(next_character(piece, at));
    const std::string_view bytes = piece.substr(begin, at - begin);
    const auto id_of = [&](char c) { return tables_.byte_ids[static_cast<uint8_t>(c)]; };
    const bool is_known = known != tables_.characters.end();
    const bool has_bytes =
        !is_known && std::all_of(bytes.begin(), bytes.end(), [&](char c) { return id_of(c) >= 0; });
    if (is_known) {
      ids.push_back(known->second);
    } else if (has_bytes) {
      for (const char c : bytes) ids.push_back(id_of(c));
    } else {
      add_unknown(ids, unknown_before);
    }
    unknown_before = !is_known && !has_bytes;
  }
  return ids;
}

void Bpe::add_unknown(std::vector<int>& ids, bool after_unknown) const {
  if (tables_.unknown >= 0 && !(after_unknown && tables_.fuse_unknown)) {
    ids.push_back(tables_.unknown);
  }
}

// The symbols form a linked list over their first positions; a heap holds the merges that were
// possible when they were seen, and those whose pair has changed since are dropped when they
// surface.
std::vector<int> Bpe::merge(std::string_view piece) const {
  std::vector<int> ids = tables_.by_character ? first_characters(piece) : first_symbols(piece);
  if (ids.size() < 2) return ids;

  std::vector<Symbol> symbols;
  symbols.reserve(ids.size());
  for (int i = 0; const int id : ids) {
    symbols.push_back({id, i - 1, i + 1 < static_cast<int>(ids.size()) ? i + 1 : -1});
    ++i;
  }
  const auto at = [&](int position) -> Symbol& { return symbols[static_cast<size_t>(position)]; };

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](int position) {
    if (position < 0 || at(position).next < 0) return;
    const int left = at(position).id;
    const int right = at(at(position).next).id;
    const auto found = tables_.merges.find(key(left, right));
    if (found != tables_.merges.end()) {
      candidates.push({found->second.rank, position, left, right});
    }
  };
  for (int i = 0; i + 1 < static_cast<int>(symbols.size()); ++i) consider(i);

  constexpr int kMerged = -1;  // id of a symbol that went into its left neighbour
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = at(best.position);
    if (left.id != best.left || left.next < 0 || at(left.next).id != best.right) continue;
    left.id = tables_.merges.at(key(best.left, best.right)).result;
    at(left.next).id = kMerged;
    left.next = at(left.next).next;
    if (left.next >= 0) at(left.next).previous = best.position;
    consider(left.previous);
    consider(best.position);
  }

  ids.clear();
  for (int i = 0; i >= 0; i = at(i).next) ids.push_back(at(i).id);
  return ids;
}

}  // namespace headrace
