// headrace perplexity: how well a model predicts a text.

#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>

#include "engine/error.h"
#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/options.h"
#include "launch/subcommands.h"
#include "runtime/perplexity.h"

namespace headrace {
namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file) throw IoError("cannot read --text " + path + "; check that the file is there");
  return text;
}

}  // namespace

void add_perplexity(CLI::App& app, int& exit_code) {
  struct Arguments {
    PerplexityOptions options;
    std::string text, host_memory, math = "f32";
  };
  auto a = std::make_shared<Arguments>();
  PerplexityOptions& options = a->options;
  CLI::App* sub = app.add_subcommand("perplexity", "Measure how well a model predicts a text");
  add_path_option(*sub, "--model", options.model, "Hugging Face directory or GGUF file")
      ->required();
  add_path_option(*sub, "--text", a->text, "The text, a UTF-8 file")->required();
  sub->add_option("--window", options.window, "Tokens a prediction can look back on")
      ->check(positive_number())
      ->capture_default_str();
  sub->add_option("--threads", options.threads, "Compute threads (default: all cores it may use)")
      ->check(positive_number());
  sub->add_option("--host-memory", a->host_memory,
                  "Memory budget, as 8GiB (default: what is free, but a margin)");
  add_weights_option(*sub, options.weights);
  add_kv_option(*sub, options.kv_format);
  add_target_option(*sub, options.target);
  sub->add_option("--math", a->math,
                  "Arithmetic of linear layers: f32, or int8 where weights are quantised")
      ->check(CLI::IsMember({"f32", "int8"}))
      ->capture_default_str();
  sub->footer(
      "Prints exp of the mean -log(probability) of the text's tokens: lower is better. Use it to\n"
      "compare --weights, --kv and --math on one model and text.\n"
      "Example:\n  headrace perplexity --model DIR --text text.txt --weights q4");
  sub->callback([a, &exit_code] {
    if (!a->host_memory.empty()) {
      a->options.host_memory = parse_size("--host-memory", a->host_memory);
    }
    a->options.int8 = a->math == "int8";
    const Perplexity p = measure_perplexity(a->options, read_text(a->text));
    std::printf("perplexity   %.6f\ntokens       %lld in %lld windows of up to %d\n", p.value(),
                static_cast<long long>(p.tokens), static_cast<long long>(p.windows),
                a->options.window);
    exit_code = kExitDone;
  });
}

}  // namespace headrace
