// Request -> prompt tokens, checked against the model's limits.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>

#include "engine/model/config.h"
#include "runtime/requests/request.h"
#include "runtime/schedule/coordinator.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace headrace {

class RequestPreparer {
 public:
  // `tokenizer` may be null (synthetic models): then only prompts of token ids can be served. The
  // template may be absent: then chat requests cannot. `kv_tokens`: what the KV cache holds in all.
  RequestPreparer(const ModelConfig& config, const Tokenizer* tokenizer,
                  std::optional<ChatTemplate> chat_template, int64_t kv_tokens);

  // A request that can be served, or why not.
  std::variant<PreparedRequest, BadLine> prepare(Request request) const;

 private:
  std::vector<int32_t> prompt_tokens(const Request& request) const;
  std::vector<int32_t> encoded(const Request& request) const;
  void check_limits(const Request& request, int64_t prompt_tokens) const;

  const ModelConfig& config_;
  const Tokenizer* tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  int64_t kv_tokens_;
};

}  // namespace headrace
