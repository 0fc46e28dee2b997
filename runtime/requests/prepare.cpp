#include "runtime/requests/prepare.h"

#include <stdexcept>

#include "runtime/error.h"

namespace headrace {
namespace {

// Why one request cannot be served.
class Refused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace

RequestPreparer::RequestPreparer(const ModelConfig& config, const Tokenizer* tokenizer,
                                 std::optional<ChatTemplate> chat_template, int64_t kv_tokens)
    : config_(config),
      tokenizer_(tokenizer),
      chat_template_(std::move(chat_template)),
      kv_tokens_(kv_tokens) {}

std::variant<PreparedRequest, BadLine> RequestPreparer::prepare(Request request) const {
  try {
    std::vector<int32_t> tokens = prompt_tokens(request);
    check_limits(request, static_cast<int64_t>(tokens.size()));
    request.prompt = {};  // many of them may wait
    return PreparedRequest{std::move(request), std::move(tokens)};
  } catch (const Refused& refused) {
    return BadLine{request.custom_id, "invalid_request", refused.what(), request.digest};
  } catch (const TextError& error) {
    return BadLine{request.custom_id, "invalid_request", error.what(), request.digest};
  }
}

std::vector<int32_t> RequestPreparer::prompt_tokens(const Request& request) const {
  if (const auto* ids = std::get_if<std::vector<int>>(&request.prompt)) {
    for (const int id : *ids) {
      if (id < 0 || id >= config_.vocab_size) {
        throw Refused("prompt: token id " + std::to_string(id) +
                      " is not in the model's vocabulary of " + std::to_string(config_.vocab_size));
      }
    }
    return {ids->begin(), ids->end()};
  }
  std::vector<int32_t> tokens = encoded(request);
  for (const int32_t id : tokens) {
    if (id >= 0 && id < config_.vocab_size) continue;
    throw Refused("prompt: the tokenizer gives token id " + std::to_string(id) +
                  ", which is not in the model's vocabulary of " +
                  std::to_string(config_.vocab_size) +
                  "; tokenizer and weights do not belong together, fetch the model again");
  }
  return tokens;
}

std::vector<int32_t> RequestPreparer::encoded(const Request& request) const {
  if (!tokenizer_)
    throw Refused("prompt: this model has no tokenizer; give the prompt as token ids");
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    std::vector<int32_t> tokens = tokenizer_->prefix();
    const std::vector<int> encoded = tokenizer_->encode(*text);
    tokens.insert(tokens.end(), encoded.begin(), encoded.end());
    return tokens;
  }
  if (!chat_template_) {
    throw Refused(
        "messages: the model has no chat template that headrace knows; name one with "
        "--chat-template (" +
        ChatTemplate::known_names() + ")");
  }
  return tokenizer_->encode(
      chat_template_->render(std::get<std::vector<ChatMessage>>(request.prompt)));
}

void RequestPreparer::check_limits(const Request& request, int64_t prompt_tokens) const {
  const int64_t total = prompt_tokens + request.max_tokens;
  if (prompt_tokens == 0) throw Refused("prompt: it is empty");
  if (prompt_tokens >= config_.max_positions) {
    throw Refused("prompt: " + std::to_string(prompt_tokens) +
                  " tokens do not fit the model's context of " +
                  std::to_string(config_.max_positions) + "; shorten it");
  }
  if (total > config_.max_positions) {
    throw Refused("max_tokens: " + std::to_string(prompt_tokens) + " prompt tokens and " +
                  std::to_string(request.max_tokens) +
                  " generated ones exceed the model's context of " +
                  std::to_string(config_.max_positions) + "; at most " +
                  std::to_string(config_.max_positions - prompt_tokens) + " can be generated");
  }
  if (total > kv_tokens_) {
    throw Refused("prompt and max_tokens need " + std::to_string(total) +
                  " tokens of KV cache and there is room for " + std::to_string(kv_tokens_) +
                  "; lower max_tokens, or run this request with more memory (--host-memory) or "
                  "ranks and into another --output");
  }
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (id < 0 || id >= config_.vocab_size) {
      throw Refused("logit_bias: token id " + std::to_string(id) +
                    " is not in the model's vocabulary of " + std::to_string(config_.vocab_size));
    }
  }
}

}  // namespace headrace
