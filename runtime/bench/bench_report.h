// The figures of a bench, as a table for people and as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/bench/bench_feed.h"

namespace headrace {

// Of some repetitions; the median of an even number is the mean of the two in the middle.
struct Spread {
  double min = 0, median = 0, max = 0;
};
// `values` must not be empty.
Spread spread_of(std::vector<double> values);

struct BenchRank {
  std::string host;
  std::string cpu;  // "model name" of /proc/cpuinfo
  int threads = 0;
  std::string target;  // vector instructions
  int first_layer = 0, end_layer = 0;
  double load_s = 0;          // from the start of the rank until its weights are in memory
  uint64_t peak_bytes = 0;    // VmHWM: most memory the process had resident
  uint64_t budget_bytes = 0;  // host memory it might take
  // Of the plan, made for the largest batch; 0: nothing comes from disk, or it was not predicted.
  uint64_t streamed_bytes = 0;  // of weights, in a step
  double disk_rate = 0;         // bytes per second, measured at the start
  // Seconds of a round, in which each sequence gets a token.
  double expected_compute_s = 0, expected_disk_s = 0, expected_round_s = 0;
};

struct BenchReport {
  std::string version;
  std::string model;        // as the command line names it
  std::string name;         // the model's own
  std::string format;       // "GGUF v3"
  std::string fingerprint;  // of the model
  std::string numerics;     // "kv=f16 math=f32 wire=f32"
  int64_t prefill_chunk = 0;
  BenchShape shape;
  double load_s = 0;  // until every rank was ready
  std::vector<BenchRank> ranks;
  std::vector<BenchRun> runs;  // batch by batch; less than asked for if the bench was interrupted

  bool complete() const;
};

// A line per batch size with the spread of the three rates; above it what was measured, below it
// the memory of each rank.
std::string bench_table(const BenchReport& report);
// The schema is in bench_report.md.
std::string bench_json(const BenchReport& report);

}  // namespace headrace
