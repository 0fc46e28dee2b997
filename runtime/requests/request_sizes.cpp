#include "runtime/requests/request_sizes.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <variant>
#include <vector>

#include "runtime/requests/request_reader.h"
#include "runtime/results/result.h"

namespace headrace {
namespace {

constexpr size_t kUsualOf = 1000;  // requests
constexpr int64_t kTemplateTokens = 64;  // that a chat template adds to a message
constexpr int64_t kBytesPerToken = 3;    // of usual text; a token has one byte at least

RequestSizes sizes_of(const Prompt& prompt, int max_tokens) {
  int64_t bytes = 0, messages = 0;
  if (const auto* ids = std::get_if<std::vector<int>>(&prompt)) {
    const int64_t tokens = std::ssize(*ids) + max_tokens;
    return {tokens, tokens, std::ssize(*ids)};
  }
  if (const auto* text = std::get_if<std::string>(&prompt)) bytes = std::ssize(*text);
  if (const auto* chat = std::get_if<std::vector<ChatMessage>>(&prompt)) {
    for (const ChatMessage& message : *chat) bytes += std::ssize(message.content);
    messages = std::ssize(*chat) + 1;
  }
  const int64_t around = messages * kTemplateTokens + 1;
  const int64_t usual = bytes / kBytesPerToken + around;
  return {usual + max_tokens, bytes + around + max_tokens, usual};
}

// Of each token its log-probability and a vector of the alternatives to it, in vectors that double.
// Ids and text are next to nothing beside the token's KV cache.
int64_t logprob_bytes(int max_tokens, const std::optional<int>& top) {
  constexpr int64_t kEach = sizeof(TokenLogprob), kList = sizeof(std::vector<TokenLogprob>);
  return top ? max_tokens * (2 * (kEach + kList) + *top * kEach) : 0;
}

}  // namespace

RequestSizes sizes_of_prompt(const std::string& prompt, const RequestDefaults& defaults) {
  RequestSizes sizes = sizes_of(std::vector<ChatMessage>{{"user", prompt}}, defaults.max_tokens);
  sizes.sequences = 1;
  sizes.sampled = !defaults.sampling.takes_best();
  sizes.logprobs = logprob_bytes(defaults.max_tokens, defaults.sampling.top_logprobs);
  sizes.lines = 1;
  return sizes;
}

RequestSizes sizes_of_requests(const std::string& input, const RequestDefaults& defaults) {
  if (comes_once(input)) return {};
  RequestReader reader(input, defaults);
  std::vector<RequestSizes> first;
  RequestSizes sizes;
  sizes.lines = 0;
  while (const auto item = reader.next()) {
    ++sizes.lines;
    const auto* request = std::get_if<Request>(&*item);
    if (!request) continue;
    const RequestSizes one = sizes_of(request->prompt, request->max_tokens);
    if (first.size() < kUsualOf) first.push_back(one);
    sizes.sequences += request->n;
    sizes.longest = std::max(sizes.longest, one.longest);
    sizes.sampled |= !request->sampling.takes_best();
    sizes.logprobs = std::max(sizes.logprobs,
                              logprob_bytes(request->max_tokens, request->sampling.top_logprobs));
  }
  if (first.empty()) return sizes;
  // Nine in ten are not longer.
  const auto place = first.begin() + std::ssize(first) * 9 / 10;
  std::ranges::nth_element(first, place, {}, &RequestSizes::usual);
  sizes.usual = place->usual;
  sizes.prompt = place->prompt;
  return sizes;
}

RequestSizes from_rank_0(Communicator& communicator, const RequestSizes& sizes) {
  Bytes bytes(sizeof sizes);
  std::memcpy(bytes.data(), &sizes, sizeof sizes);
  bytes = broadcast(communicator, std::move(bytes));
  RequestSizes result;
  std::memcpy(&result, bytes.data(), std::min(bytes.size(), sizeof result));
  return result;
}

}  // namespace headrace
