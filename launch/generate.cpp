// headrace generate: the main job.

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>

#include "launch/config_file.h"
#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/options.h"
#include "launch/ranks.h"
#include "launch/run_options.h"
#include "launch/subcommands.h"
#include "runtime/error.h"
#include "runtime/run.h"
#include "runtime/text/utf8.h"

namespace headrace {
namespace {

struct GenerateArguments {
  GenerateOptions run;
  RunArguments shared;
  std::string order = "longest", progress = "auto";
  std::string share_prefixes = "on";
  bool quiet = false;
  std::string prompt;
};

ProgressStyle progress_style(const GenerateArguments& a) {
  if (a.quiet || a.progress == "none") return ProgressStyle::kNone;
  if (a.progress == "auto")
    return isatty(STDERR_FILENO) ? ProgressStyle::kLine : ProgressStyle::kLog;
  return a.progress == "line" ? ProgressStyle::kLine : ProgressStyle::kLog;
}

void finish_arguments(GenerateArguments& a, bool has_prompt) {
  GenerateOptions& run = a.run;
  if (has_prompt) run.prompt = a.prompt;
  if (!is_valid_utf8(a.prompt)) throw UsageError("--prompt is not valid UTF-8");
  if (run.input.empty() == !run.prompt) {
    throw UsageError(
        "give either --input FILE (a batch file, - for standard input) or --prompt TEXT");
  }
  if (run.output.empty()) {
    if (!run.prompt) throw UsageError("give --output FILE for the results (- for standard output)");
    run.output = "-";
  }
  if (run.resume && run.output == "-")
    throw UsageError("--resume needs an --output file to continue");
  finish_run_options(run, a.shared);
  run.progress = progress_style(a);
  run.share_prefixes = a.share_prefixes == "on";
  run.order = a.order == "input" ? Order::kInput : Order::kLongestFirst;
}

int exit_code_of(RunEnd end) {
  switch (end) {
    case RunEnd::kDone:
      return kExitDone;
    case RunEnd::kSomeFailed:
      return kExitSomeFailed;
    case RunEnd::kInterrupted:
      spdlog::warn("interrupted; what was finished is written, run again with --resume");
      return kExitTryAgain;
  }
  return kExitInternal;
}

int generate(GenerateArguments& arguments, bool has_prompt) {
  return run_as_rank("generate", arguments.shared.peer_timeout, [&](const Wires& wires) {
    finish_arguments(arguments, has_prompt);
    return exit_code_of(run_rank(arguments.run, wires, interrupted));
  });
}

}  // namespace

void add_generate(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<GenerateArguments>();
  a->run.output.clear();
  CLI::App* sub = app.add_subcommand("generate", "Generate text for a batch of requests");
  GenerateOptions& run = a->run;
  RequestDefaults& defaults = run.defaults;
  const CLI::Validator positive = positive_number(), non_negative = number_from_0(),
                       fraction = number_from_0_to_1();

  add_model_option(*sub, run);
  add_path_option(*sub, "--input", run.input,
                  "Batch file (JSON lines, OpenAI batch or short form); - reads stdin");
  CLI::Option* prompt =
      sub->add_option("--prompt", a->prompt, "One prompt instead of a batch file; prints its text");
  sub->add_flag("--chat", run.chat,
                "Put --prompt into the model's chat template as a user's message");
  add_path_option(*sub, "--output", run.output, "Results file (JSON lines); - writes to stdout");
  sub->add_flag("--resume", run.resume, "Continue the results file of an earlier run");
  sub->add_flag("--token-ids", run.token_ids, "Add the generated token ids to each choice");
  sub->add_option("--chat-template", run.chat_template, "Use this chat template: chatml or llama3");

  sub->add_option("--max-tokens", defaults.max_tokens,
                  "Tokens to generate where a request does not say")
      ->check(positive)
      ->capture_default_str();
  sub->add_option("--temperature", defaults.sampling.temperature,
                  "Default temperature; 0 is greedy")
      ->check(non_negative)
      ->capture_default_str();
  sub->add_option("--top-p", defaults.sampling.top_p, "Default top_p")
      ->check(fraction)
      ->capture_default_str();
  sub->add_option("--top-k", defaults.sampling.top_k, "Default top_k; 0 is off")
      ->check(non_negative)
      ->capture_default_str();
  sub->add_option("--min-p", defaults.sampling.min_p, "Default min_p")
      ->check(fraction)
      ->capture_default_str();
  sub->add_option("--repetition-penalty", defaults.sampling.repetition_penalty,
                  "Default repetition penalty")
      ->check(positive)
      ->capture_default_str();
  sub->add_option("--seed", defaults.sampling.seed, "Default seed of sampled requests")
      ->capture_default_str();
  sub->add_flag("--ignore-eos", defaults.ignore_eos, "Generate on past the end-of-sequence token");

  sub->add_option("--max-batch", run.max_batch,
                  "Sequences in flight over the whole pipeline (default: what memory allows)")
      ->check(batch_size());
  sub->add_option("--order", a->order, "Which waiting request goes first")
      ->check(CLI::IsMember({"longest", "input"}))
      ->capture_default_str();
  sub->add_option("--share-prefixes", a->share_prefixes,
                  "on: what prompts have in common at their beginnings is computed once, where all "
                  "ranks' KV pages stay in memory; or off. Results are the same")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  add_run_options(*sub, run, a->shared);
  add_path_option(*sub, "--trace", run.trace,
                  "Write what every rank did when, for ui.perfetto.dev (Chrome trace JSON)");
  add_path_option(*sub, "--report", run.report, "Write the summary of the run as JSON");
  sub->add_option("--progress", a->progress,
                  "auto, line (rewritten in place), log, or none; auto is a line on a terminal")
      ->check(CLI::IsMember({"auto", "line", "log", "none"}))
      ->envname("HEADRACE_PROGRESS")  // launch/mpirun.sh knows of a terminal that ranks do not see
      ->capture_default_str();
  sub->add_flag("--quiet", a->quiet, "The same as --progress none");
  add_config_option(*sub);
  sub->footer(
      "Examples:\n"
      "  headrace generate --model model.gguf --prompt \"The capital of France is\"\n"
      "  headrace generate --model DIR --input in.jsonl --output out.jsonl\n"
      "  mpirun -np 2 headrace generate --model model.gguf --input in.jsonl --output out.jsonl "
      "--max-batch 16\n"
      "  srun --mpi=pmix headrace generate --model DIR --input in.jsonl --output out.jsonl "
      "--resume\n"
      "Exit codes: 0 done, 1 some requests failed (see their records), 2 usage, 65 bad model, 69 "
      "resource\n"
      "missing, 73 does not fit, 74 I/O, 75 a rank was lost or the run was interrupted "
      "(--resume).");
  sub->callback([a, prompt, &exit_code] { exit_code = generate(*a, prompt->count() > 0); });
}

}  // namespace headrace
