#include "runtime/bench/bench.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <nlohmann/json.hpp>

#include "comm/launcher.h"
#include "engine/error.h"
#include "engine/memory/kv_store.h"
#include "headrace/version.h"
#include "runtime/error.h"
#include "runtime/json_bytes.h"
#include "runtime/rank.h"
#include "runtime/report/host_facts.h"
#include "runtime/teardown.h"

namespace headrace {
namespace {

using nlohmann::json;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Bytes facts_of(const Rank& rank, double load_s) {
  return to_bytes({
      {"host", own_host()},
      {"cpu", cpu_model()},
      {"threads", rank.threads()},
      {"target", rank.target()},
      {"first_layer", rank.range().first_layer},
      {"end_layer", rank.range().end_layer},
      {"load_s", load_s},
      {"peak_bytes", peak_memory()},
      {"budget_bytes", rank.budget().limit()},
      {"streamed_bytes", rank.plan().streamed},
      {"disk_rate", rank.plan().needs_disk() ? rank.rates().disk : 0.0},
      {"expected_compute_s", rank.plan().compute_s},
      {"expected_disk_s", rank.plan().disk_s},
      {"expected_round_s", rank.plan().round_s},
  });
}

BenchRank rank_from(const Bytes& bytes) {
  const json facts = from_bytes(bytes);
  BenchRank rank;
  facts.at("host").get_to(rank.host);
  facts.at("cpu").get_to(rank.cpu);
  facts.at("threads").get_to(rank.threads);
  facts.at("target").get_to(rank.target);
  facts.at("first_layer").get_to(rank.first_layer);
  facts.at("end_layer").get_to(rank.end_layer);
  facts.at("load_s").get_to(rank.load_s);
  facts.at("peak_bytes").get_to(rank.peak_bytes);
  facts.at("budget_bytes").get_to(rank.budget_bytes);
  facts.at("streamed_bytes").get_to(rank.streamed_bytes);
  facts.at("disk_rate").get_to(rank.disk_rate);
  facts.at("expected_compute_s").get_to(rank.expected_compute_s);
  facts.at("expected_disk_s").get_to(rank.expected_disk_s);
  facts.at("expected_round_s").get_to(rank.expected_round_s);
  return rank;
}

void check_context(const BenchShape& shape, const ModelConfig& config) {
  const int64_t tokens = shape.tokens();
  if (tokens <= config.max_positions) return;
  throw UsageError("--prompt-tokens and --generate-tokens add up to " + std::to_string(tokens) +
                   ", more than the model's context of " + std::to_string(config.max_positions));
}

// A batch is measured as a whole, so its KV cache must be there as a whole.
void check_fit(const BenchOptions& options, const Rank& rank) {
  const int64_t each = KvStore::pages_for(options.shape.tokens());
  const int64_t room = rank.limits().kv_pages, need = each * options.max_batch;
  if (need <= room) return;
  const auto tokens = [](int64_t pages) { return std::to_string(pages * kPageTokens) + " tokens"; };
  throw DoesNotFit("batch " + std::to_string(options.max_batch) + " does not fit\n  KV cache     " +
                   tokens(need) + " needed (" + tokens(each) + " a sequence)\n  room         " +
                   tokens(room) + " on the rank that has least\n  budget       " +
                   format_bytes(rank.budget().limit()) + " on rank 0\nmeasure batches up to " +
                   std::to_string(room / each) +
                   ", or shorter sequences, or give more --host-memory or ranks");
}

void say(const BenchRun& run) {
  spdlog::info("batch {}: prefill {:.2f} s, decode {:.2f} s, {:.1f} generated tokens/s", run.batch,
               run.prefill_s, run.decode_s, run.generated_rate());
}

std::vector<BenchRun> measure(Rank& rank, const BenchOptions& options,
                              const std::atomic<bool>& interrupted) {
  BenchFeed feed(options.shape, rank.checkpoint().config().vocab_size, seconds_now, say);
  ScheduleLimits limits = rank.limits();
  // A batch is there as a whole, first its prompts, then its decoding.
  limits.prompts_first = true;
  limits.window = std::max(limits.window, options.max_batch);
  limits.window_bytes = std::numeric_limits<int64_t>::max();
  Coordinator coordinator(
      limits, nullptr, {}, [&](bool) { return feed.next(); },
      [&](const RequestResult& result) { feed.done(result); },
      [&](const BadLine& line) { feed.failed(line); });
  coordinator.watch([&](const ScheduleCounts& counts) { feed.accepted(counts); });
  rank.coordinate(coordinator, interrupted, [] {});
  return feed.runs();
}

BenchReport describe(const BenchOptions& options, const Rank& rank) {
  const Checkpoint& checkpoint = rank.checkpoint();
  BenchReport report;
  report.version = HEADRACE_VERSION;
  report.model = options.model;
  report.name = checkpoint.config().name;
  report.format = checkpoint.format();
  report.fingerprint = checkpoint.fingerprint();
  report.numerics = rank.numerics();
  report.prefill_chunk = options.prefill_chunk;
  report.shape = options.shape;
  return report;
}

}  // namespace

std::optional<BenchReport> run_bench(BenchOptions options, const Wires& wires,
                                     const std::atomic<bool>& interrupted) {
  const BenchShape& shape = options.shape;
  options.max_batch = *std::max_element(shape.batches.begin(), shape.batches.end());
  options.takes_requests = false;
  options.share_prefixes = false;  // every prompt is measured
  Communicator& ranks = wires.communicator;
  const double start = seconds_now();
  Teardown teardown(wires, options.peer_timeout);
  Rank rank(options, wires, {shape.tokens(), shape.tokens(), shape.prompt_tokens, 0}, true,
            &interrupted);
  check_context(shape, rank.checkpoint().config());
  if (wires.is_first()) check_fit(options, rank);
  double load_s = 0, all_loaded_s = 0;
  std::vector<BenchRun> runs;
  teardown.limit_after([&] {
    rank.load();
    load_s = seconds_now() - start;
    gather(ranks, {});  // nothing is measured before all are ready
    all_loaded_s = seconds_now() - start;
    if (wires.is_first()) {
      runs = measure(rank, options, interrupted);
    } else {
      rank.follow();
    }
  });
  const std::vector<Bytes> facts = gather(ranks, facts_of(rank, load_s));
  std::optional<BenchReport> report;
  if (wires.is_first()) {
    report = describe(options, rank);
    report->load_s = all_loaded_s;
    report->runs = std::move(runs);
    for (const Bytes& fact : facts) {
      report->ranks.push_back(rank_from(fact));
    }
  }
  rank.finish();
  return report;
}

}  // namespace headrace
