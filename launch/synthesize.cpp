// headrace synthesize: random weights of a named shape as a file that other programs read, too.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "engine/checkpoint/gguf_writer.h"
#include "engine/checkpoint/hf_writer.h"
#include "engine/checkpoint/synthetic.h"
#include "engine/error.h"
#include "engine/memory/budget.h"
#include "engine/model/shapes.h"
#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/options.h"
#include "launch/ranks.h"
#include "launch/subcommands.h"
#include "runtime/error.h"
#include "runtime/report/host_facts.h"

namespace headrace {
namespace {

struct SynthesizeArguments {
  std::string shape, format, out;
  uint64_t seed = 0;
  int threads = 0;
  bool force = false;
  bool quiet = false;
};

struct Interrupted {};

std::string rate(uint64_t bytes, std::chrono::steady_clock::time_point start) {
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const double per_second = static_cast<double>(bytes) / std::max(seconds.count(), 1e-9);
  return format_bytes(static_cast<uint64_t>(per_second)) + "/s";
}

PlannedModel plan_output(const Checkpoint& source, const std::string& out) {
  const ModelConfig& config = source.config();
  const bool gguf = out.ends_with(".gguf");
  const std::string reason =
      gguf ? no_gguf_because(config) : no_hf_directory_because(source.require(Role::kDown).dtype);
  if (!reason.empty()) throw UsageError(out + ": " + reason);
  return gguf ? plan_gguf(source) : plan_hf_directory(source);
}

int synthesize(const SynthesizeArguments& a) {
  const std::string model =
      std::string(kSyntheticPrefix) + a.shape + ":" + a.format + ":" + std::to_string(a.seed);
  std::unique_ptr<Checkpoint> source;
  try {
    source = Checkpoint::open(model);
  } catch (const ModelError& e) {  // here the command line is wrong, not a file
    throw UsageError(e.what());
  }
  const PlannedModel plan = plan_output(*source, a.out);
  const std::string in_way = in_the_way(a.out, plan.is_directory, a.force);
  if (!in_way.empty()) throw UsageError(in_way);

  handle_signals();
  ThreadPool threads(a.threads > 0 ? a.threads : cores_of_this_process().for_one_of(1));
  const auto start = std::chrono::steady_clock::now();
  auto last_said = start;
  try {
    write_model(*source, plan, a.out, a.force, threads, [&](uint64_t written) {
      if (interrupted) throw Interrupted();
      const auto now = std::chrono::steady_clock::now();
      if (a.quiet || now < last_said + std::chrono::seconds(1)) return;
      last_said = now;
      const double percent =
          100.0 * static_cast<double>(written) / static_cast<double>(plan.bytes());
      spdlog::info("{}: {:.0f}% of {}, {}", a.out, percent, format_bytes(plan.bytes()),
                   rate(written, start));
    });
  } catch (const Interrupted&) {
    spdlog::warn("interrupted; nothing was written");
    return kExitTryAgain;
  }
  if (!a.quiet) {
    const auto written = Checkpoint::open(a.out);
    spdlog::info("{}: {}, {} tensors, {} written in all, {}, fingerprint {}", a.out,
                 written->format(), written->tensors().size(), format_bytes(plan.bytes()),
                 rate(plan.bytes(), start), written->fingerprint());
  }
  return kExitDone;
}

}  // namespace

void add_synthesize(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<SynthesizeArguments>();
  CLI::App* sub = app.add_subcommand(
      "synthesize", "Write random weights of a named shape as a file that other programs read");
  std::string shapes;
  for (const std::string& name : shape_names()) shapes += (shapes.empty() ? "" : ", ") + name;
  sub->add_option("shape", a->shape, "One of " + shapes)->required();
  sub->add_option("format", a->format, "Of the matrices: f32, f16, bf16; GGUF also q8_0, q4_0")
      ->required();
  add_path_option(*sub, "out", a->out,
                  "A GGUF file if it ends in .gguf, else a Hugging Face directory")
      ->required();
  sub->add_option("--seed", a->seed, "Other weights of the same shape")
      ->check(number_from_0())
      ->capture_default_str();
  sub->add_option("--threads", a->threads,
                  "Threads that make weights (default: all cores it may use)")
      ->check(positive_number());
  sub->add_flag("--force", a->force, "Replace what is there");
  sub->add_flag("--quiet", a->quiet, "Say nothing but errors");
  sub->footer(
      "The weights are those of --model synthetic:<shape>:<format>:<seed>. There is no tokenizer:\n"
      "prompts are token ids.\n"
      "Example:\n  headrace synthesize qwen2.5-1.5b q8_0 model.gguf");
  sub->callback([a, &exit_code] { exit_code = synthesize(*a); });
}

}  // namespace headrace
