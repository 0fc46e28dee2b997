// headrace generate: the main job.

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "comm/launcher.h"
#include "comm/local_transport.h"
#include "comm/mpi_transport.h"
#include "launch/config_file.h"
#include "launch/exit_code.h"
#include "launch/logging.h"
#include "launch/options.h"
#include "launch/subcommands.h"
#include "runtime/error.h"
#include "runtime/run.h"

namespace headrace {
namespace {

std::atomic<bool> interrupted{false};

void on_signal(int) { interrupted = true; }

void handle_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESETHAND;  // a second one ends the process at once
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  // Writing past a limit or to a closed pipe is an error code that gets reported, not a signal.
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
}

// True if a launcher started this process as one of several (or one) MPI ranks.
bool under_launcher() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("PMIX_RANK")) return true;
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (tasks && std::atoi(tasks) > 1) {
    throw UsageError("srun started several tasks that do not know each other; use srun --mpi=pmix");
  }
  return false;
}

struct GenerateArguments {
  RunOptions run;
  std::string split, kv = "f16", host_memory, prefill_chunk = "128", order = "longest";
  std::string progress = "auto";
  bool quiet = false;
  std::string prompt;
  double peer_timeout = 60.0;
};

ProgressStyle progress_style(const GenerateArguments& a) {
  if (a.quiet || a.progress == "none") return ProgressStyle::kNone;
  if (a.progress == "auto")
    return isatty(STDERR_FILENO) ? ProgressStyle::kLine : ProgressStyle::kLog;
  return a.progress == "line" ? ProgressStyle::kLine : ProgressStyle::kLog;
}

void finish_arguments(GenerateArguments& a, bool has_prompt) {
  RunOptions& run = a.run;
  if (has_prompt) run.prompt = a.prompt;
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
  if (!a.split.empty()) run.split = parse_list("--split", a.split);
  if (!a.host_memory.empty()) run.host_memory = parse_size("--host-memory", a.host_memory);
  run.kv_format = a.kv == "f32" ? KvFormat::kF32 : KvFormat::kF16;
  run.progress = progress_style(a);
  run.order = a.order == "input" ? Order::kInput : Order::kLongestFirst;
  if (a.prefill_chunk == "all") {
    run.prefill_chunk = 0;
  } else {
    const auto values = parse_list("--prefill-chunk", a.prefill_chunk);
    if (values.size() != 1) throw UsageError("--prefill-chunk takes one number, or all");
    run.prefill_chunk = values.front();
  }
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
  handle_signals();
  if (!under_launcher()) {
    finish_arguments(arguments, has_prompt);
    const auto transport = std::move(LocalTransport::create(1).front());
    return exit_code_of(run_rank(arguments.run, {*transport, *transport}, interrupted));
  }
  std::error_code no_folder;
  remove_leftovers_of_dead_jobs("/dev/shm", std::filesystem::temp_directory_path(no_folder));
  MpiTransport transport(arguments.peer_timeout, [](const std::string& why) {
    spdlog::error("{}", why);
    _exit(kExitTryAgain);
  });
  log_as_rank(transport);
  try {
    finish_arguments(arguments, has_prompt);
    return exit_code_of(run_rank(arguments.run, {transport, transport}, interrupted));
  } catch (...) {
    // Where all ranks find the same (a wrong option, a lost peer), rank 0 says it and ends the job.
    if (transport.rank() != 0) wait_for_rank_0();
    const int code = report_error();
    transport.abort(code);
    return code;
  }
}

}  // namespace

void add_generate(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<GenerateArguments>();
  a->run.output.clear();
  CLI::App* sub = app.add_subcommand("generate", "Generate text for a batch of requests");
  RunOptions& run = a->run;
  RequestDefaults& defaults = run.defaults;
  const CLI::Validator positive = positive_number(), non_negative = number_from_0(),
                       fraction = number_from_0_to_1();

  sub->add_option("--model", run.model,
                  "Hugging Face directory, GGUF file, or synthetic:<shape>[:bf16|q8|...]")
      ->required();
  sub->add_option("--input", run.input,
                  "Batch file (JSON lines, OpenAI batch or short form); - reads stdin");
  CLI::Option* prompt =
      sub->add_option("--prompt", a->prompt, "One prompt instead of a batch file; prints its text");
  sub->add_flag("--chat", run.chat,
                "Put --prompt into the model's chat template as a user's message");
  sub->add_option("--output", run.output, "Results file (JSON lines); - writes to stdout");
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
      ->check(positive);
  sub->add_option("--threads", run.threads,
                  "Compute threads per rank (default: the node's cores over its ranks)")
      ->check(positive);
  sub->add_option("--split", a->split, "Layers per stage, as 10,14 (default: by cost)");
  sub->add_option("--prefill-chunk", a->prefill_chunk,
                  "Prompt tokens per sequence and step, or all")
      ->capture_default_str();
  sub->add_option("--order", a->order, "Which waiting request goes first")
      ->check(CLI::IsMember({"longest", "input"}))
      ->capture_default_str();
  sub->add_option("--host-memory", a->host_memory,
                  "Memory budget per rank, as 8GiB (default: 90% of what is free)");
  sub->add_option("--kv", a->kv, "Format of the KV cache")
      ->check(CLI::IsMember({"f16", "f32"}))
      ->capture_default_str();
  sub->add_option("--target", run.target, "Vector instructions: auto, avx512, avx2 or scalar")
      ->check(CLI::IsMember({"auto", "avx512", "avx2", "scalar"}))
      ->capture_default_str();
  sub->add_option("--peer-timeout", a->peer_timeout,
                  "Seconds without a sign of life after which a rank is lost")
      ->check(positive)
      ->capture_default_str();
  sub->add_option("--trace", run.trace,
                  "Write what every rank did when, for ui.perfetto.dev (Chrome trace JSON)");
  sub->add_option("--report", run.report, "Write the summary of the run as JSON");
  sub->add_option("--progress", a->progress,
                  "auto, line (rewritten in place), log, or none; auto is a line on a terminal")
      ->check(CLI::IsMember({"auto", "line", "log", "none"}))
      ->capture_default_str();
  sub->add_flag("--quiet", a->quiet, "The same as --progress none, and no summary");
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
