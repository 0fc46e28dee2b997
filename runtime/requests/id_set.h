// A set of custom_ids, kept as 64-bit hashes: a batch of ten million lines fits in memory.
//
// Two different ids share a hash with probability n^2 / 2^65 (3e-8 for a million lines). The reader
// then takes the second for a duplicate and says so; it is never lost without a word. The results
// file uses the same hash, so ids that the reader told apart are told apart there, too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace headrace {

// The same on every machine and in every version: it stands in results files ("batch_req_<hex>").
uint64_t custom_id_hash(std::string_view custom_id);
// Of an id with the digest of its line.
uint64_t custom_id_hash(std::string_view custom_id, uint64_t digest);

// Open addressing, at most three quarters full: 11 to 21 bytes an id. One thread.
class IdSet {
 public:
  // False if it was there already.
  bool insert(std::string_view custom_id) { return insert_hash(custom_id_hash(custom_id)); }
  bool contains(std::string_view custom_id) const {
    return contains_hash(custom_id_hash(custom_id));
  }
  size_t size() const { return size_; }

  bool insert_hash(uint64_t hash);
  bool contains_hash(uint64_t hash) const;

 private:
  size_t slot_of(uint64_t hash) const;
  void grow();

  std::vector<uint64_t> slots_;  // 0: free
  size_t size_ = 0;
};

}  // namespace headrace
