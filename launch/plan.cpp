// headrace plan: what a run would put where, and how fast it should be.

#include <cstdio>
#include <memory>

#include "launch/config_file.h"
#include "launch/exit_code.h"
#include "launch/options.h"
#include "launch/ranks.h"
#include "launch/run_options.h"
#include "launch/subcommands.h"
#include "runtime/error.h"
#include "runtime/json_bytes.h"
#include "runtime/plan/plan_text.h"
#include "runtime/rank.h"

namespace headrace {
namespace {

struct PlanArguments {
  RunOptions run;
  RunArguments shared;
  int64_t tokens = 0, prompt_tokens = 0;
};

// The plans of all stages, on rank 0.
std::vector<std::string> gather_plans(const Rank& rank, Communicator& ranks) {
  std::vector<std::string> plans;
  for (const Bytes& plan : gather(ranks, text_bytes(plan_table(rank.plan(), rank.rates())))) {
    plans.emplace_back(reinterpret_cast<const char*>(plan.data()), plan.size());
  }
  return plans;
}

int plan(PlanArguments& a) {
  return run_as_rank("plan", a.shared.peer_timeout, [&](const Wires& wires) {
    finish_run_options(a.run, a.shared);
    if (a.prompt_tokens > 0 && a.prompt_tokens >= a.tokens) {
      throw UsageError("--prompt-tokens needs a larger --tokens: the rest of them are generated");
    }
    const int64_t prompt = a.prompt_tokens > 0 ? a.prompt_tokens : a.tokens / 2;
    const RequestSizes requests{a.tokens, a.tokens, prompt, 0};
    const Rank rank(a.run, wires, requests, false);
    const auto plans = gather_plans(rank, wires.communicator);
    for (size_t r = 0; r < plans.size(); ++r) {
      std::printf("stage %zu of %zu on %s\n%s", r + 1, plans.size(),
                  wires.communicator.host(static_cast<int>(r)).c_str(), plans[r].c_str());
    }
    wires.communicator.finish();
    return int{kExitDone};
  });
}

}  // namespace

void add_plan(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<PlanArguments>();
  CLI::App* sub =
      app.add_subcommand("plan", "Show what a run would put where, and how fast it should be");
  add_model_option(*sub, a->run);
  sub->add_option("--max-batch", a->run.max_batch,
                  "Sequences in flight over the whole pipeline (default: what is fastest)")
      ->check(batch_size());
  sub->add_option("--tokens", a->tokens,
                  "Prompt and generated tokens of a sequence (default: 1024)")
      ->check(positive_number());
  sub->add_option("--prompt-tokens", a->prompt_tokens,
                  "How many of --tokens are the prompt's (default: half of them)")
      ->check(positive_number());
  add_run_options(*sub, a->run, a->shared);
  add_config_option(*sub);
  sub->footer(
      "Nothing is built or run, but the machine's speed is measured for a second.\n"
      "Examples:\n"
      "  headrace plan --model model.gguf --host-memory 900MiB --max-batch 32 --tokens 96\n"
      "  mpirun -np 2 headrace plan --model DIR");
  sub->callback([a, &exit_code] { exit_code = plan(*a); });
}

}  // namespace headrace
