#include "runtime/requests/id_set.h"

#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace headrace {

uint64_t custom_id_hash(std::string_view custom_id) {
  return XXH3_64bits(custom_id.data(), custom_id.size());
}

uint64_t custom_id_hash(std::string_view custom_id, uint64_t digest) {
  return XXH3_64bits_withSeed(custom_id.data(), custom_id.size(), digest);
}

namespace {

// 0 marks a free slot, so the one id that hashes to 0 shares the place of those that hash to 1.
uint64_t occupied(uint64_t hash) { return hash == 0 ? 1 : hash; }

}  // namespace

bool IdSet::contains_hash(uint64_t hash) const {
  if (slots_.empty()) return false;
  hash = occupied(hash);
  return slots_[slot_of(hash)] == hash;
}

bool IdSet::insert_hash(uint64_t hash) {
  if (4 * (size_ + 1) > 3 * slots_.size()) grow();
  hash = occupied(hash);
  const size_t slot = slot_of(hash);
  if (slots_[slot] == hash) return false;
  slots_[slot] = hash;
  ++size_;
  return true;
}

// Where `hash` stands, or the free slot where it belongs. The table is never full.
size_t IdSet::slot_of(uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = static_cast<size_t>(hash) & mask;
  while (slots_[slot] != 0 && slots_[slot] != hash) slot = (slot + 1) & mask;
  return slot;
}

void IdSet::grow() {
  std::vector<uint64_t> old(slots_.empty() ? 64 : 2 * slots_.size(), 0);
  std::swap(old, slots_);
  for (const uint64_t hash : old) {
    if (hash != 0) slots_[slot_of(hash)] = hash;
  }
}

}  // namespace headrace
