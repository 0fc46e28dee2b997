// headrace bench: how fast a model runs here, at several batch sizes.

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "engine/error.h"
#include "launch/config_file.h"
#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/options.h"
#include "launch/ranks.h"
#include "launch/run_options.h"
#include "launch/shown.h"
#include "launch/subcommands.h"
#include "runtime/bench/bench.h"
#include "runtime/error.h"
#include "runtime/results/file_io.h"

namespace headrace {
namespace {

struct BenchArguments {
  BenchOptions bench;
  RunArguments shared;
  std::string batches = "1,4,16,64", json;
};

void finish_arguments(BenchArguments& a) {
  a.bench.shape.batches = parse_list("--batch", a.batches);
  if (a.bench.shape.batches.empty()) throw UsageError("--batch is empty; write it as 1,4,16,64");
  for (const int batch : a.bench.shape.batches) {
    if (batch > kLargestBatch) {
      throw UsageError("--batch " + std::to_string(batch) + " is too large; the most is " +
                       std::to_string(kLargestBatch));
    }
  }
  finish_run_options(a.bench, a.shared);
}

// The file for the JSON. Opened before the bench, so that a wrong name is not found after it; what
// the file holds stays until there are figures to put in its place.
class JsonFile {
 public:
  explicit JsonFile(const std::string& path)
      : is_new_(!std::filesystem::exists(std::filesystem::symlink_status(path))),
        file_(path, O_WRONLY | O_CREAT, "write") {}
  ~JsonFile() {
    if (is_new_ && !written_) unlink(file_.path().c_str());
  }
  JsonFile(const JsonFile&) = delete;
  JsonFile& operator=(const JsonFile&) = delete;

  void write(const std::string& text) {
    if (ftruncate(file_.fd(), 0) != 0 && errno != EINVAL) {  // EINVAL: a pipe or a device
      throw_io("emptying " + file_.path(), errno);
    }
    written_ = true;
    file_.write_all(text);
  }

 private:
  bool is_new_;  // only a file that this process made may be removed
  bool written_ = false;
  OpenFile file_;
};

int bench(BenchArguments& a) {
  return run_as_rank("bench", a.shared.peer_timeout, [&](const Wires& wires) {
    finish_arguments(a);
    std::optional<JsonFile> json;
    if (wires.is_first() && !a.json.empty()) json.emplace(a.json);
    const auto report = run_bench(a.bench, wires, interrupted);
    if (!report) return int{kExitDone};
    if (std::fputs(shown(bench_table(*report)).c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
      throw IoError(std::string("writing to standard output failed: ") + std::strerror(errno));
    }
    if (json) json->write(bench_json(*report));
    return int{report->complete() ? kExitDone : kExitTryAgain};
  });
}

}  // namespace

void add_bench(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<BenchArguments>();
  CLI::App* sub = app.add_subcommand("bench", "Measure tokens per second at several batch sizes");
  BenchShape& shape = a->bench.shape;
  const CLI::Validator positive = positive_number();
  add_model_option(*sub, a->bench);
  sub->add_option("--batch", a->batches, "Batch sizes: sequences that run at once")
      ->capture_default_str();
  sub->add_option("--prompt-tokens", shape.prompt_tokens, "Prompt of each sequence")
      ->check(positive)
      ->capture_default_str();
  sub->add_option("--generate-tokens", shape.generate_tokens, "Tokens to generate for each")
      ->check(positive)
      ->capture_default_str();
  sub->add_option("--repeat", shape.repeat, "Runs of each batch size")
      ->check(positive)
      ->capture_default_str();
  sub->add_option("--seed", shape.seed, "Of the random prompts")
      ->check(number_from_0())
      ->capture_default_str();
  add_path_option(*sub, "--json", a->json,
                  "File for all figures; the table goes to standard output");
  add_run_options(*sub, a->bench, a->shared);
  add_config_option(*sub);
  sub->footer(
      "The model is loaded once; prompts are random token ids, the end-of-sequence token is\n"
      "ignored. prefill: until every sequence has its first token; decode: the rest; generated:\n"
      "all generated tokens over both.\n"
      "Examples:\n"
      "  headrace bench --model model.gguf --batch 1,16 --repeat 5 --json bench.json\n"
      "  mpirun -np 2 headrace bench --model synthetic:qwen2.5-7b:q8 --batch 32");
  sub->callback([a, &exit_code] { exit_code = bench(*a); });
}

}  // namespace headrace
