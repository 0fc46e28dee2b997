// Slots of the pipeline and what their KV pages hold: gives them to sequences, with room to their
// ends, and lets sequences that begin alike share the pages of what they have in common.
//
// K and V of a token depend on the tokens up to it and on nothing else, so full pages of equal
// beginnings are equal bit for bit. A stage goes through messages in order, so that pages which
// earlier steps feed are there when a later one's rows are computed; a page that is shared is full,
// and nobody writes it again.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "runtime/schedule/page_ledger.h"
#include "runtime/schedule/step_message.h"

namespace headrace {

class KvSlots {
 public:
  struct Limits {
    int slots = 1;  // of sequences in flight
    // Besides them, for what sequences that have ended hold; 0 where pages are not shared.
    int kept = 0;
    bool shares = false;
    int64_t pages = 0;
    // Of all sequences in flight, shared ones counted for each that has them; and of all that are
    // kept.
    int64_t table_pages = 0;
  };

  // A sequence in a slot.
  struct Content {
    std::vector<int32_t> tokens;  // the prompt, then those generated
    int64_t prompt_tokens = 0;
    int64_t fed = 0;    // whose K and V are, or are being, computed or taken over
    int64_t taken = 0;  // of them, taken over
    int32_t slot = -1;

    bool has_begun() const { return fed > taken; }
    uint64_t number() const { return number_; }  // in order of admission
    std::span<const int32_t> prompt() const {
      return {tokens.data(), static_cast<size_t>(prompt_tokens)};
    }

   private:
    friend KvSlots;
    uint64_t number_ = 0;
    // It waits until the sequence with this number, in this slot, has fed so many tokens.
    int32_t awaited_slot = -1;
    uint64_t awaited_number = 0;
    int64_t awaited_tokens = 0;
  };

  explicit KvSlots(const Limits& limits);

  // All sequences that may be in flight are.
  bool is_full() const { return busy_ == limits_.slots; }
  // Where that is not so, gives the sequence a slot and `pages` pages, those included that it takes
  // over at once. False: there are too few. Until release() or keep() `content` must stay where it
  // is.
  bool admit(Content& content, int64_t pages);
  // Before each step, in order of admission: a sequence that has not begun takes over what has
  // come.
  void take_over(Content& content);
  // Not in the next step, since a sequence admitted before it is feeding pages that both have.
  bool waits(const Content& content) const;
  // The sequence has ended.
  void release(Content& content);
  // The same, but what it holds stays as long as the pages are not wanted.
  void keep(Content& content);

  bool shares() const { return limits_.shares; }
  // A hash of the first page of a prompt, of which sequences that share pages have the same; 0
  // where it has no full page.
  static uint64_t beginning(std::span<const int32_t> prompt);
  // Of the slot's sequence; 0 where there is none.
  uint64_t beginning(int32_t slot) const { return beginnings_[slot]; }
  // Full pages of `content` that a sequence with this prompt can take over: not that of its last
  // token, which it computes for what comes after it.
  static int64_t pages_for(const Content& content, std::span<const int32_t> prompt);
  // How many pages from its beginning can be had from another slot as well.
  int64_t pages_elsewhere(const Content& content) const;

  // Since the last call, in order.
  std::vector<KvChange> take_changes();
  int64_t tokens_taken() const { return tokens_taken_; }

 private:
  struct Source {
    int32_t slot = -1;
    int64_t pages = 0;
  };
  struct Prefix {
    Source ready, awaited;
  };
  struct Kept {
    Content content;
    uint64_t used;  // last, by used_
  };
  Prefix find(const Content& content) const;
  void take_over(Content& content, const Source& source);
  void await(Content& content, const Source& source) const;
  void give_up_oldest();
  void free_slot(int32_t slot);

  Limits limits_;
  PageLedger ledger_;
  std::vector<const Content*> contents_;  // by slot; null: free
  std::vector<uint64_t> beginnings_;      // by slot
  std::vector<int32_t> free_;
  std::map<int32_t, Kept> kept_;  // by slot
  std::vector<KvChange> changes_;
  uint64_t admitted_ = 0, used_ = 0;
  int64_t busy_ = 0, table_pages_ = 0, kept_table_pages_ = 0, tokens_taken_ = 0;
};

}  // namespace headrace
