// What a run takes in and what it goes on with: requests; results with their manifest.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/error.h"
#include "engine/model/shapes.h"
#include "runtime/error.h"
#include "runtime/requests/prepare.h"
#include "runtime/requests/request_reader.h"
#include "runtime/results/manifest.h"
#include "runtime/results/result_json.h"
#include "runtime/results/results_file.h"
#include "tests/fuzz/readers.h"
#include "tests/unit/model_files.h"
#include "tests/unit/text_test_util.h"

namespace headrace::fuzz {
namespace {

using nlohmann::json;

constexpr int64_t kKvTokens = 4096;

const RequestPreparer& preparer() {
  static const ModelConfig config = named_shape("opt-125m");
  static const auto tokenizer = Tokenizer::open(test::text_data("gpt2").string());
  static const RequestPreparer made(config, tokenizer.get(), ChatTemplate::named("chatml", ""),
                                    kKvTokens);
  return made;
}

// The record of a line that cannot be served is a line of JSON with its id.
void check_record(const BadLine& bad) {
  promise(!bad.code.empty() && !bad.message.empty(), "an error without code or message");
  const std::string line = error_line(bad);
  promise(line.find('\n') == std::string::npos, "a record of several lines");
  promise(json::parse(line).at("custom_id") == bad.custom_id, "a record with another id");
}

// True for a request that can be computed.
bool serves(const std::variant<Request, BadLine>& item) {
  if (const auto* bad = std::get_if<BadLine>(&item)) {
    check_record(*bad);
    return false;
  }
  const auto prepared = preparer().prepare(std::get<Request>(item));
  if (const auto* bad = std::get_if<BadLine>(&prepared)) {
    check_record(*bad);
    return false;
  }
  const auto& request = std::get<PreparedRequest>(prepared);
  const auto tokens = static_cast<int64_t>(request.prompt.size()) + request.request.max_tokens;
  promise(!request.prompt.empty() && tokens <= kKvTokens, "a prompt of no or too many tokens");
  const SamplingParams& sampling = request.request.sampling;
  promise(request.request.n >= 1 && request.request.n <= 128 && sampling.temperature >= 0 &&
              sampling.temperature <= 100 && sampling.top_p > 0 && sampling.top_p <= 1 &&
              sampling.top_k >= 0 && sampling.min_p >= 0 && sampling.repetition_penalty > 0,
          "sampling parameters out of range");
  return true;
}

Manifest manifest() {
  Manifest made;
  made.model_name = "a model";
  made.model_fingerprint = "0123456789abcdef";
  made.numerics = "kv=f16";
  return made;
}

ResultsFile resume(const std::string& path) {
  ResultsFile::Options options;
  options.path = path;
  options.resume = true;
  options.token_ids = true;
  return ResultsFile(std::move(options), manifest());
}

RequestResult result(const std::string& id) {
  RequestResult made;
  made.custom_id = id;
  made.prompt_tokens = 3;
  made.choices = {ChoiceResult{"some \"text\"\n", {1, 2}, "length", {}, {}},
                  ChoiceResult{"caf\u00e9", {7}, "stop", {{7, -0.5f}}, {{{7, -0.5f}, {8, -2.0f}}}}};
  return made;
}

// The records of a file that can be gone on with; nullopt: it is refused.
std::optional<int64_t> records(const std::string& path, const std::string& folder) {
  try {
    const ResultsFile file = resume(path);
    promise(file.resumed_errors() <= file.resumed(), "more errors than records");
    return file.resumed();
  } catch (const UsageError& error) {
    promise_named(error.what(), folder);
  } catch (const IoError& error) {
    promise_named(error.what(), folder);
  }
  return std::nullopt;
}

bool has(const ResultsFile& file, const std::string& id) {
  try {
    return file.has(id, 0);
  } catch (const UsageError&) {
    return true;  // of another line
  }
}

// What is there stays, what is new is added.
void go_on(const std::string& path, int64_t before) {
  std::string id = "another";
  {
    ResultsFile file = resume(path);
    while (has(file, id)) id += "-";
    file.append(result(id));
    file.close();
  }
  const ResultsFile file = resume(path);
  promise(file.resumed() == before + 1 && has(file, id), "a resume lost or doubled a record");
}

}  // namespace

bool accepts_requests(const std::string& folder, const std::string& input) {
  const std::string path = folder + "/in.jsonl";
  test::write_file(path, input);
  RequestReader reader(path, {});
  std::set<std::string> ids;
  bool all_served = true;
  while (const auto item = reader.next()) {
    const std::string& id =
        std::visit([](const auto& i) -> const std::string& { return i.custom_id; }, *item);
    promise(!id.empty() && ids.insert(id).second, "an id is empty or stands twice: " + id);
    all_served = serves(*item) && all_served;
  }
  return all_served;
}

std::vector<std::string> requests_seeds(const std::string&) {
  return {
      R"({"custom_id":"a","method":"POST","url":"/v1/completions","body":{"model":"m","prompt":"p",)"
      R"("max_tokens":5,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"n":3,"seed":-1,)"
      R"("repetition_penalty":1.5,"stop":["x","y"],"logprobs":4,"ignore_eos":true,)"
      R"("logit_bias":{"20":-100,"3":1.5},"stream":false,"user":"u"}})",
      R"({"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":{"messages":[)"
      R"({"role":"developer","content":"s"},{"role":"user","content":[{"type":"text","text":"x "},)"
      R"({"type":"text","text":"h\u00e9\ud83d\ude00"}]},{"role":"assistant","content":"z"}],)"
      R"("logprobs":true,"top_logprobs":2,"max_completion_tokens":9,"tools":[]}})",
      "\xef\xbb\xbf{\"prompt\":[1,2,3]}\r\n\n{\"prompt\":\"caf\xc3\xa9 <|im_end|>\"}\n"
      R"({"custom_id":"c","messages":[{"role":"user","content":"hi"}],"seed":null,"stop":"."})"
      "\n{\"prompt\":\"again\",\"best_of\":1,\"echo\":false,\"presence_penalty\":0}",
  };
}

// The manifest, then the results.
bool accepts_results(const std::string& folder, const std::string& input) {
  const std::vector<std::string> parts = parts_of(input, 2);
  const std::string path = folder + "/out.jsonl";
  if (parts.size() > 1) {
    test::write_file(manifest_path(path), parts.front());
  } else {
    std::filesystem::remove(manifest_path(path));
  }
  test::write_file(path, parts.back());
  const std::optional<int64_t> held = records(path, folder);
  if (held) go_on(path, *held);
  return held.has_value();
}

std::vector<std::string> results_seeds(const std::string& folder) {
  const std::string path = folder + "/seed.jsonl";
  {
    ResultsFile file = resume(path);
    file.append(result("a"));
    file.append(BadLine{"line-2", "invalid_json", "line 2: not JSON"});
    file.append(result("b\u00e9"));
    file.close();
  }
  return {test::read_file(manifest_path(path)) + std::string(1, '\0') + test::read_file(path)};
}

}  // namespace headrace::fuzz
