#include "runtime/bench/bench_report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/memory/budget.h"

namespace headrace {
namespace {

using Json = nlohmann::ordered_json;

struct Rate {
  const char* name;
  double (BenchRun::*of)() const;
};
constexpr Rate kRates[] = {{"prefill_tokens_per_s", &BenchRun::prefill_rate},
                           {"decode_tokens_per_s", &BenchRun::decode_rate},
                           {"generated_tokens_per_s", &BenchRun::generated_rate}};

// The runs of each batch size that has any.
std::vector<std::vector<BenchRun>> by_batch(const BenchReport& report) {
  std::vector<std::vector<BenchRun>> groups;
  for (size_t i = 0; i < report.runs.size(); ++i) {
    if (i % static_cast<size_t>(report.shape.repeat) == 0) groups.emplace_back();
    groups.back().push_back(report.runs[i]);
  }
  return groups;
}

Spread spread_of_rate(const std::vector<BenchRun>& runs, const Rate& rate) {
  std::vector<double> values;
  for (const BenchRun& run : runs) values.push_back((run.*rate.of)());
  return spread_of(std::move(values));
}

// With a single token per sequence nothing is decoded.
bool has_rate(const std::vector<BenchRun>& runs, const Rate& rate) {
  return spread_of_rate(runs, rate).max > 0;
}

std::string three_columns(const std::vector<BenchRun>& runs, const Rate& rate) {
  if (!has_rate(runs, rate)) return fmt::format("  {:>9} {:>9} {:>9}", "-", "-", "-");
  const Spread s = spread_of_rate(runs, rate);
  return fmt::format("  {:9.1f} {:9.1f} {:9.1f}", s.min, s.median, s.max);
}

Json json_of(const BenchRank& rank, size_t number) {
  return {{"rank", number},
          {"host", rank.host},
          {"cpu", rank.cpu},
          {"threads", rank.threads},
          {"target", rank.target},
          {"layers", {rank.first_layer, rank.end_layer}},
          {"load_s", rank.load_s},
          {"peak_memory_bytes", rank.peak_bytes},
          {"host_memory_bytes", rank.budget_bytes},
          {"streamed_bytes", rank.streamed_bytes},
          {"disk_bytes_per_s", rank.disk_rate},
          {"expected_compute_s", rank.expected_compute_s},
          {"expected_disk_s", rank.expected_disk_s},
          {"expected_round_s", rank.expected_round_s}};
}

Json json_of(const BenchRun& run) {
  return {{"prefill_s", run.prefill_s},
          {"decode_s", run.decode_s},
          {"prompt_tokens", run.prompt_tokens},
          {"generated_tokens", run.generated_tokens},
          {"steps", run.steps},
          {"tokens_hash", fmt::format("{:016x}", run.tokens_hash)}};
}

Json json_of(const std::vector<BenchRun>& runs) {
  Json json = {{"batch", runs.front().batch}};
  for (const Rate& rate : kRates) {
    const Spread s = spread_of_rate(runs, rate);
    json[rate.name] =
        has_rate(runs, rate) ? Json{{"min", s.min}, {"median", s.median}, {"max", s.max}} : Json();
  }
  json["runs"] = Json::array();
  for (const BenchRun& run : runs) json["runs"].push_back(json_of(run));
  return json;
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
  return {values.front(), median, values.back()};
}

bool BenchReport::complete() const {
  return runs.size() == shape.batches.size() * static_cast<size_t>(shape.repeat);
}

std::string bench_table(const BenchReport& report) {
  std::string text = fmt::format(
      "{} ({}), {} prompt + {} generated tokens, {} rank{}, {} run{} per batch size, loaded in "
      "{:.2f} s\n",
      report.name, report.format, report.shape.prompt_tokens, report.shape.generate_tokens,
      report.ranks.size(), report.ranks.size() == 1 ? "" : "s", report.shape.repeat,
      report.shape.repeat == 1 ? "" : "s", report.load_s);
  text += fmt::format("{:>5}  {:^29}  {:^29}  {:^29}\n", "batch", "prefill tok/s", "decode tok/s",
                      "generated tok/s");
  text += fmt::format("{:>5}", "");
  for (int i = 0; i < 3; ++i) {
    text += fmt::format("  {:>9} {:>9} {:>9}", "min", "median", "max");
  }
  text += "\n";
  for (const std::vector<BenchRun>& runs : by_batch(report)) {
    text += fmt::format("{:>5}", runs.front().batch);
    for (const Rate& rate : kRates) text += three_columns(runs, rate);
    text += "\n";
  }
  for (size_t r = 0; r < report.ranks.size(); ++r) {
    const BenchRank& rank = report.ranks[r];
    text += fmt::format("rank {} on {}: layers {}-{}, {} thread{}, {}, peak memory {}; {}\n", r,
                        rank.host, rank.first_layer, rank.end_layer - 1, rank.threads,
                        rank.threads == 1 ? "" : "s", rank.target, format_bytes(rank.peak_bytes),
                        rank.cpu);
  }
  if (!report.complete()) text += "interrupted: not all runs were done\n";
  return text;
}

std::string bench_json(const BenchReport& report) {
  Json json = {{"headrace", report.version},
               {"complete", report.complete()},
               {"model", report.model},
               {"name", report.name},
               {"format", report.format},
               {"fingerprint", report.fingerprint},
               {"numerics", report.numerics},
               {"prefill_chunk", report.prefill_chunk},
               {"prompt_tokens", report.shape.prompt_tokens},
               {"generate_tokens", report.shape.generate_tokens},
               {"repeat", report.shape.repeat},
               {"seed", report.shape.seed},
               {"load_s", report.load_s},
               {"ranks", Json::array()},
               {"batches", Json::array()}};
  for (size_t r = 0; r < report.ranks.size(); ++r) {
    json["ranks"].push_back(json_of(report.ranks[r], r));
  }
  for (const std::vector<BenchRun>& runs : by_batch(report)) {
    json["batches"].push_back(json_of(runs));
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace headrace
