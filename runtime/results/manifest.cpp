#include "runtime/results/manifest.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/error.h"
#include "runtime/error.h"
#include "runtime/requests/strict_json.h"
#include "runtime/results/file_io.h"
#include "runtime/results/result_json.h"

namespace headrace {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // as it is written

constexpr int kVersion = 2;
constexpr size_t kMaxBytes = size_t{1} << 20;

OrderedJson fields_of(const Manifest& manifest) {
  const SamplingParams& sampling = manifest.defaults.sampling;
  OrderedJson bias = Json::object();
  for (const auto& [token, value] : sampling.logit_bias) {
    bias[std::to_string(token)] = printable(value);
  }
  return OrderedJson{{"headrace_manifest", kVersion},
                     {"model_name", manifest.model_name},
                     {"model_fingerprint", manifest.model_fingerprint},
                     {"tokenizer", manifest.tokenizer},
                     {"chat_prompt", manifest.chat_prompt},
                     {"token_ids", manifest.token_ids},
                     {"numerics", manifest.numerics},
                     {"max_tokens", manifest.defaults.max_tokens},
                     {"ignore_eos", manifest.defaults.ignore_eos},
                     {"temperature", printable(sampling.temperature)},
                     {"top_p", printable(sampling.top_p)},
                     {"top_k", sampling.top_k},
                     {"min_p", printable(sampling.min_p)},
                     {"repetition_penalty", printable(sampling.repetition_penalty)},
                     {"seed", sampling.seed},
                     {"logit_bias", std::move(bias)},
                     {"top_logprobs",
                      sampling.top_logprobs ? OrderedJson(*sampling.top_logprobs) : OrderedJson()}};
}

std::string text_of(const OrderedJson& json, int indent) {
  return json.dump(indent, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

// A value for a message.
std::string short_text(const Json& json) {
  std::string text = json.dump(-1, ' ', /*ensure_ascii=*/true);
  if (text.size() > 200) text = text.substr(0, 200) + "...";
  return text;
}

Json read_manifest(const std::string& path) {
  const OpenFile file(path, O_RDONLY, "read");
  std::string text(kMaxBytes + 1, '\0');
  text.resize(file.read_up_to(text.data(), text.size()));
  std::string reason = "is longer than 1 MiB";
  if (text.size() <= kMaxBytes) {
    try {
      StrictJson json = parse_strict_json(text);
      if (json.value.is_object()) return std::move(json.value);
      reason = "is not a JSON object";
    } catch (const JsonError& error) {
      reason = std::string("is not JSON: ") + error.what();
    }
  }
  throw UsageError(path + " is not a manifest that headrace wrote, it " + reason +
                   ". Move it and the results file away and run without --resume");
}

}  // namespace

std::string manifest_path(const std::string& output_path) { return output_path + ".manifest.json"; }

bool manifest_exists(const std::string& output_path) {
  struct stat status {};
  return ::stat(manifest_path(output_path).c_str(), &status) == 0;
}

void write_manifest(const std::string& output_path, const Manifest& manifest) {
  const std::string path = manifest_path(output_path);
  const std::string fresh = path + ".tmp";
  {
    const OpenFile file(fresh, O_WRONLY | O_CREAT | O_TRUNC, "write");
    file.write_all(text_of(fields_of(manifest), 2) + "\n");
    file.sync();
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) throw_io("renaming " + fresh, errno);
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const OpenFile directory(parent.empty() ? "." : parent, O_RDONLY | O_DIRECTORY, "sync");
  directory.sync();
}

void check_manifest(const std::string& output_path, const Manifest& manifest) {
  const std::string path = manifest_path(output_path);
  const Json there = read_manifest(path);
  // As text and back: strings that are not UTF-8 compare as they were written.
  const Json here = Json::parse(text_of(fields_of(manifest), -1));
  std::string differences;
  for (const auto& [field, value] : here.items()) {
    const auto old = there.find(field);
    if (old != there.end() && *old == value) continue;
    differences += "\n  " + field + ": " + (old == there.end() ? "(not there)" : short_text(*old)) +
                   " in the manifest, " + short_text(value) + " now";
  }
  for (const auto& [field, value] : there.items()) {
    if (here.contains(field)) continue;
    differences += "\n  " + short_text(field) + ": " + short_text(value) +
                   " in the manifest, unknown to this version";
  }
  if (differences.empty()) return;
  throw UsageError("cannot resume " + output_path + ": it was made with other settings, see " +
                   path + differences +
                   "\nRun with the settings of the manifest, or give another --output");
}

}  // namespace headrace
