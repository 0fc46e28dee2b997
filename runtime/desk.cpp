#include "runtime/desk.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/timeline.h"
#include "runtime/error.h"

namespace headrace {

Desk::Desk(const GenerateOptions& options, const Rank& rank, Communicator& communicator,
           int64_t lines)
    : options_(options),
      communicator_(communicator),
      tokenizer_(Tokenizer::open(options.model)),
      reader_(open_input(options)),
      results_(results_options(), manifest(rank)),
      preparer_(rank.checkpoint().config(), tokenizer_.get(), chat_template(),
                std::min(rank.limits().kv_pages, rank.limits().sequence_pages) * kPageTokens),
      progress_(lines - results_.resumed(), options.progress),
      coordinator_(
          in_order(rank.limits()), tokenizer_.get(), rank.checkpoint().config().eos_token_ids,
          [this](bool idle) { return next(idle); },
          [this](const RequestResult& result) { done(result); },
          [this](const BadLine& line) { failed(line); }) {
  if (results_.resumed() > 0) {
    spdlog::info("{} requests were done before and are kept", results_.resumed());
  }
}

void Desk::check(const GenerateOptions& options) {
  const std::string& name = options.chat_template;
  if (!name.empty() && !ChatTemplate::named(name, "")) {
    throw UsageError("--chat-template " + name + " is not known; use " +
                     ChatTemplate::known_names());
  }
  ResultsFile::check_path(options.output, options.resume);
}

// Opened before the results file, which a wrong --input would leave behind empty.
std::optional<RequestReader> Desk::open_input(const GenerateOptions& options) {
  if (options.prompt) return std::nullopt;
  return std::optional<RequestReader>(std::in_place, options.input, options.defaults);
}

ResultsFile::Options Desk::results_options() const {
  ResultsFile::Options results;
  results.path = options_.output;
  results.resume = options_.resume;
  results.token_ids = options_.token_ids;
  if (tokenizer_) {
    results.token_text = [this](int token) {
      return tokenizer_->decode(std::vector{token}, false);
    };
    results.token_raw_bytes = [this](int token) { return std::string(tokenizer_->bytes(token)); };
    results.is_special = [this](int token) { return tokenizer_->is_special(token); };
  }
  return results;
}

Manifest Desk::manifest(const Rank& rank) const {
  Manifest made;
  made.model_name = rank.checkpoint().config().name;
  made.model_fingerprint = rank.checkpoint().fingerprint();
  made.defaults = options_.defaults;
  made.numerics = rank.numerics();
  if (tokenizer_) made.tokenizer = tokenizer_->fingerprint();
  if (const auto chat = chat_template()) {
    made.chat_prompt = chat->render({{"user", kSampleMessage}});
  }
  made.token_ids = options_.token_ids;
  return made;
}

std::optional<ChatTemplate> Desk::chat_template() const {
  const std::string bos = tokenizer_ ? tokenizer_->bos_token() : "";
  if (!options_.chat_template.empty()) return ChatTemplate::named(options_.chat_template, bos);
  return tokenizer_ ? ChatTemplate::recognise(tokenizer_->chat_template(), bos) : std::nullopt;
}

ScheduleLimits Desk::in_order(ScheduleLimits limits) const {
  limits.order = options_.order;
  return limits;
}

Coordinator::Fed Desk::next(bool idle) {
  const Communicator::Idle waiting(communicator_, Communicator::Idle::kForInput);
  for (;;) {
    if (reader_ && !input_ready(idle)) return Coordinator::NothingYet{};
    auto line = next_line();
    if (!line) return Coordinator::NoMore{};
    if (const auto* bad = std::get_if<BadLine>(&*line)) {
      if (!results_.has(bad->custom_id, bad->digest)) failed(*bad);
      continue;
    }
    auto& request = std::get<Request>(*line);
    if (results_.has(request.custom_id, request.digest)) continue;
    auto prepared = preparer_.prepare(std::move(request));
    if (auto* ready = std::get_if<PreparedRequest>(&prepared)) return std::move(*ready);
    failed(std::get<BadLine>(prepared));
  }
}

bool Desk::input_ready(bool idle) {
  if (!idle) return reader_->ready(0);
  const Wait wait(Wait::kIdle);
  return reader_->ready(100);
}

std::optional<std::variant<Request, BadLine>> Desk::next_line() {
  if (reader_) return reader_->next();
  if (std::exchange(prompt_taken_, true)) return std::nullopt;
  Request request;
  request.custom_id = "prompt";
  request.digest = line_digest((options_.chat ? "chat: " : "text: ") + *options_.prompt);
  request.max_tokens = options_.defaults.max_tokens;
  request.ignore_eos = options_.defaults.ignore_eos;
  request.sampling = options_.defaults.sampling;
  if (options_.chat) {
    request.endpoint = Endpoint::kChatCompletions;
    request.prompt = std::vector<ChatMessage>{{"user", *options_.prompt}};
  } else {
    request.prompt = *options_.prompt;
  }
  return request;
}

void Desk::done(const RequestResult& result) {
  if (!plain_text()) return results_.append(result);
  if (std::printf("%s\n", result.choices.front().text.c_str()) < 0 || std::fflush(stdout) != 0) {
    throw IoError(std::string("writing to standard output failed: ") + std::strerror(errno));
  }
}

void Desk::failed(const BadLine& line) {
  ++failed_;
  progress_.clear_line();
  spdlog::warn("{}{}", options_.prompt ? "" : line.custom_id + ": ", line.message);
  if (!plain_text()) results_.append(line);
}

RunEnd Desk::close(bool interrupted) {
  results_.close();
  progress_.finish(coordinator_.counts(), failed_);
  if (interrupted && coordinator_.unfinished()) return RunEnd::kInterrupted;
  return failed_ + results_.resumed_errors() > 0 ? RunEnd::kSomeFailed : RunEnd::kDone;
}

RunCounts Desk::counts() const {
  const ScheduleCounts& counts = coordinator_.counts();
  return {counts.requests_done, failed_,
          results_.resumed(),   counts.prompt_tokens,
          counts.shared_tokens, counts.generated_tokens};
}

}  // namespace headrace
