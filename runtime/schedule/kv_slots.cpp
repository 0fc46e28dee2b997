#include "runtime/schedule/kv_slots.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "engine/memory/kv_store.h"

namespace headrace {
namespace {

// Fewer pages are computed about as soon as they come.
constexpr int64_t kWorthWaiting = 2;

// Whether both have page `page`, and the same.
bool is_common(std::span<const int32_t> a, std::span<const int32_t> b, int64_t page) {
  const auto first = static_cast<size_t>(page * kPageTokens), end = first + kPageTokens;
  return end <= std::min(a.size(), b.size()) &&
         std::equal(a.begin() + first, a.begin() + end, b.begin() + first);
}

int64_t common_pages(std::span<const int32_t> a, std::span<const int32_t> b) {
  int64_t page = 0;
  while (is_common(a, b, page)) ++page;
  return page;
}

// Of a sequence with this prompt, those that it need not compute if all are there.
int64_t most_shared(std::span<const int32_t> tokens, std::span<const int32_t> prompt) {
  return std::min(common_pages(tokens, prompt), (std::ssize(prompt) - 1) / kPageTokens);
}

}  // namespace

KvSlots::KvSlots(const Limits& limits)
    : limits_(limits),
      ledger_(limits.pages, limits.slots + limits.kept),
      contents_(static_cast<size_t>(limits.slots + limits.kept)),
      beginnings_(contents_.size()) {
  for (int32_t slot = limits.slots + limits.kept; slot-- > 0;) free_.push_back(slot);
}

bool KvSlots::admit(Content& content, int64_t pages) {
  if (table_pages_ + pages > limits_.table_pages) return false;
  content.number_ = admitted_ + 1;
  const Prefix prefix = find(content);
  if (!ledger_.fits(prefix.ready.slot, prefix.ready.pages, pages)) return false;
  ++admitted_;
  ++busy_;
  table_pages_ += pages;
  content.slot = free_.back();
  free_.pop_back();
  contents_[content.slot] = &content;
  beginnings_[content.slot] = beginning(content.prompt());
  take_over(content, prefix.ready);
  while (pages - ledger_.pages(content.slot) > ledger_.free_pages()) give_up_oldest();
  ledger_.grow(content.slot, pages);
  await(content, prefix.awaited);
  return true;
}

bool KvSlots::waits(const Content& content) const {
  if (content.awaited_slot < 0) return false;
  const Content* const other = contents_[content.awaited_slot];
  const bool is_there = other && other->number_ == content.awaited_number;
  return is_there && other->fed < content.awaited_tokens;
}

void KvSlots::take_over(Content& content) {
  const bool has_all = content.taken / kPageTokens == (content.prompt_tokens - 1) / kPageTokens;
  if (has_all || content.has_begun() || waits(content)) return;
  const Prefix prefix = find(content);
  take_over(content, prefix.ready);
  await(content, prefix.awaited);
}

// What earlier steps have fed, and what a sequence that was admitted earlier will feed: nobody
// waits for one that waits for him.
KvSlots::Prefix KvSlots::find(const Content& content) const {
  Prefix best;
  best.ready.pages = content.taken / kPageTokens;
  const uint64_t wanted = limits_.shares ? beginning(content.prompt()) : 0;
  if (wanted == 0) return best;
  for (int32_t slot = 0; slot < std::ssize(contents_); ++slot) {
    const Content* const other = contents_[slot];
    if (beginnings_[slot] != wanted || other == &content) continue;
    const int64_t fed = other->fed / kPageTokens;
    const bool is_older = other->number_ < content.number_;
    // To be better it must have the page after the best ones in common, too.
    const bool may_be_ready =
        fed > best.ready.pages && is_common(other->tokens, content.prompt(), best.ready.pages);
    const bool may_be_awaited =
        is_older && is_common(other->tokens, content.prompt(), best.awaited.pages);
    if (!may_be_ready && !may_be_awaited) continue;
    const int64_t common = most_shared(other->tokens, content.prompt());
    const int64_t ready = std::min(common, fed);
    if (ready > best.ready.pages) best.ready = {slot, ready};
    if (is_older && common > best.awaited.pages) best.awaited = {slot, common};
  }
  if (best.awaited.pages < best.ready.pages + kWorthWaiting) best.awaited = {};
  return best;
}

void KvSlots::take_over(Content& content, const Source& source) {
  const int64_t first = content.taken / kPageTokens;
  if (source.pages <= first) return;
  changes_.push_back({content.slot, source.slot, static_cast<int32_t>(source.pages)});
  ledger_.share(content.slot, source.slot, first, source.pages);
  tokens_taken_ += (source.pages - first) * kPageTokens;
  content.fed = content.taken = source.pages * kPageTokens;
  if (const auto kept = kept_.find(source.slot); kept != kept_.end()) kept->second.used = ++used_;
}

void KvSlots::await(Content& content, const Source& source) const {
  content.awaited_slot = source.slot;
  if (source.slot < 0) return;
  content.awaited_number = contents_[source.slot]->number_;
  content.awaited_tokens = source.pages * kPageTokens;
}

uint64_t KvSlots::beginning(std::span<const int32_t> prompt) {
  if (std::ssize(prompt) < kPageTokens) return 0;
  return std::max<uint64_t>(1, XXH3_64bits(prompt.data(), kPageTokens * sizeof(int32_t)));
}

int64_t KvSlots::pages_for(const Content& content, std::span<const int32_t> prompt) {
  return std::min(most_shared(content.tokens, prompt), content.fed / kPageTokens);
}

int64_t KvSlots::pages_elsewhere(const Content& content) const {
  int64_t most = 0;
  for (int32_t slot = 0; slot < std::ssize(contents_); ++slot) {
    const Content* const other = contents_[slot];
    if (beginnings_[slot] != beginnings_[content.slot] || other == &content) continue;
    const int64_t fed = other->fed / kPageTokens;
    if (fed <= most || !is_common(other->tokens, content.tokens, most)) continue;
    most = std::max(most, std::min(common_pages(other->tokens, content.tokens), fed));
  }
  return most;
}

void KvSlots::release(Content& content) {
  --busy_;
  table_pages_ -= ledger_.pages(content.slot);
  free_slot(content.slot);
}

void KvSlots::keep(Content& content) {
  if (limits_.kept == 0) return release(content);
  const int64_t pages = KvStore::pages_for(content.fed);
  while (std::ssize(kept_) == limits_.kept ||
         (!kept_.empty() && kept_table_pages_ + pages > limits_.table_pages)) {
    give_up_oldest();
  }
  --busy_;
  table_pages_ -= ledger_.pages(content.slot);
  kept_table_pages_ += pages;
  ledger_.keep(content.slot, pages);
  Kept& kept = kept_[content.slot] = {std::move(content), ++used_};
  kept.content.tokens.resize(static_cast<size_t>(kept.content.fed));
  kept.content.tokens.shrink_to_fit();
  contents_[kept.content.slot] = &kept.content;
}

void KvSlots::give_up_oldest() {
  const auto oldest =
      std::ranges::min_element(kept_, {}, [](const auto& entry) { return entry.second.used; });
  if (oldest == kept_.end()) throw std::logic_error("KvSlots: out of pages");
  const int32_t slot = oldest->first;
  kept_table_pages_ -= ledger_.pages(slot);
  kept_.erase(oldest);
  free_slot(slot);
}

void KvSlots::free_slot(int32_t slot) {
  changes_.push_back({slot});
  ledger_.release(slot);
  contents_[slot] = nullptr;
  beginnings_[slot] = 0;
  free_.push_back(slot);
}

std::vector<KvChange> KvSlots::take_changes() { return std::exchange(changes_, {}); }

}  // namespace headrace
