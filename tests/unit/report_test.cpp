// Clocks, trace, summary and report of a run, without one.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include "comm/local_transport.h"
#include "engine/error.h"
#include "runtime/error.h"
#include "runtime/report/clocks.h"
#include "runtime/report/host_facts.h"
#include "runtime/report/output_file.h"
#include "runtime/report/report_json.h"
#include "runtime/report/stage_report.h"
#include "runtime/report/summary.h"
#include "runtime/report/trace_text.h"

namespace headrace {
namespace {

using nlohmann::json;

// ---- clocks ----

// A clock that began an hour earlier and goes too fast.
int64_t skewed(int64_t true_time) {
  return true_time + 3'600'000'000'000 +
         static_cast<int64_t>(1e-3 * static_cast<double>(true_time));
}

TEST(Clocks, ASkewedClockIsBroughtToRank0s) {
  const auto transports = LocalTransport::create(2, std::chrono::seconds(30));
  const int64_t epoch = Timeline::now();
  const auto true_clock = [&] { return Timeline::now() - epoch; };
  const auto wrong_clock = [&] { return skewed(true_clock()); };
  constexpr auto kBetween = std::chrono::milliseconds(300);
  std::thread other([&] {
    sample_clocks(*transports[1], wrong_clock);
    std::this_thread::sleep_for(kBetween);
    sample_clocks(*transports[1], wrong_clock);
  });
  const auto begin = sample_clocks(*transports[0], true_clock);
  const auto end = sample_clocks(*transports[0], true_clock);
  other.join();
  ASSERT_EQ(begin.size(), 2u);
  const ClockFit fit(begin[1], end[1]);
  // The drift of 1e-3 moves the clock by 300 us, far more than pings within a process err.
  const int64_t error = fit.error();
  if (error > 100'000) GTEST_SKIP() << "this machine is too busy: pings err by " << error << " ns";
  EXPECT_NEAR(fit.drift(), -1e-3, 1e-3);
  for (int64_t t = end[0].local - 300'000'000; t <= end[0].local; t += 50'000'000) {
    EXPECT_NEAR(static_cast<double>(fit.to_first(skewed(t))), static_cast<double>(t),
                static_cast<double>(2 * error) + 1);
  }
}

TEST(Clocks, TheLineGoesThroughBothSamples) {
  const ClockFit fit({1'000'000, 500, 10}, {2'000'000, 1'000'600, 20});
  EXPECT_EQ(fit.to_first(1'000'000), 500);
  EXPECT_EQ(fit.to_first(2'000'000), 1'000'600);
  EXPECT_EQ(fit.to_first(1'500'000), 500'550);
  EXPECT_EQ(fit.error(), 20);
  EXPECT_EQ(ClockFit::from_json(fit.to_json()).to_first(1'500'000), 500'550);
}

TEST(Clocks, ADifferenceWithinTheErrorsIsNoDrift) {
  const ClockFit fit({1'000'000, 500, 300}, {2'000'000, 1'000'600, 20});
  EXPECT_EQ(fit.drift(), 0.0);
  EXPECT_EQ(fit.to_first(2'000'000), 1'000'600);  // the better sample
}

TEST(Clocks, Rank0IsItsOwnMeasure) {
  const auto transports = LocalTransport::create(1);
  const auto samples = sample_clocks(*transports[0], Timeline::now);
  ASSERT_EQ(samples.size(), 1u);
  EXPECT_EQ(ClockFit(samples[0], samples[0]).to_first(12345), 12345);
}

// ---- trace ----

std::string whole_text(const Timeline& timeline, size_t& pieces) {
  TraceText text(timeline, 2, "a \"host\"", ClockFit({0, 1000, 5}, {0, 1000, 5}), 0);
  std::string all;
  while (const auto piece = text.next_piece()) {
    ++pieces;
    EXPECT_LE(piece->size(), TraceText::kPieceBytes + 1000);
    all += (all.empty() ? "" : ",") + *piece;
  }
  return all;
}

json events_of(const Timeline& timeline, size_t least_pieces = 1) {
  size_t pieces = 0;
  const json events = json::parse("[" + whole_text(timeline, pieces) + "]");
  EXPECT_GE(pieces, least_pieces);
  return events;
}

TEST(Trace, NamesProcessAndThreadsAndMovesTheClock) {
  Timeline timeline(10);
  timeline.moved(Track::kWeightsIn, "read", 5'000, 7'500, 4096, {Arg::kLayer, 3});
  std::map<std::string, json> found;
  for (const json& event : events_of(timeline)) found[event.at("name")] = event;
  EXPECT_EQ(found.at("process_name").at("args").at("name"), "rank 2 on a \"host\"");
  EXPECT_EQ(found.at("thread_name").at("args").at("name"), "weights in");
  const json& read = found.at("read");
  EXPECT_EQ(read.at("ph"), "X");
  EXPECT_EQ(read.at("pid"), 2);
  EXPECT_EQ(read.at("tid"), found.at("thread_name").at("tid"));
  EXPECT_EQ(read.at("ts"), 6.0);
  EXPECT_EQ(read.at("dur"), 2.5);
  EXPECT_EQ(read.at("args"), (json{{"bytes", 4096}, {"layer", 3}}));
}

TEST(Trace, SaysWhatWasDropped) {
  Timeline timeline(2);
  for (int i = 0; i < 7; ++i) timeline.record(Track::kSend, "step", i, i + 1);
  EXPECT_NE(events_of(timeline).dump().find("5 later events were dropped"), std::string::npos);
}

// However transfers overlap, those of one thread do not.
TEST(Trace, OverlappingTransfersGetThreadsOfTheirOwn) {
  Timeline timeline(5000);
  std::mt19937 random(4);
  for (int i = 0; i < 5000; ++i) {
    const int64_t begin = random() % 1'000'000;
    timeline.moved(Track::kKvIn, "page", begin, begin + random() % 2000, 1);
  }
  std::map<int, double> over;
  size_t pages = 0;
  for (const json& event : events_of(timeline, 2)) {
    if (event.at("ph") != "X") continue;
    ++pages;
    const double begin = event.at("ts"), duration = event.at("dur");
    double& last = over[event.at("tid").get<int>()];
    ASSERT_LE(last, begin + 1e-6);
    last = begin + duration;
  }
  EXPECT_EQ(pages, 5000u);
  EXPECT_GT(over.size(), 3u);
}

TEST(Trace, ScopesNestOnOneThread) {
  Timeline timeline(10);
  const Timeline::Attach attach(timeline);
  {
    const Span step(Track::kCompute, "step");
    { const Span layer(Track::kCompute, "layer"); }
    { const Span layer(Track::kCompute, "layer"); }
  }
  std::vector<std::string> order;
  for (const json& event : events_of(timeline)) {
    if (event.at("ph") != "X") continue;
    order.push_back(event.at("name"));
    EXPECT_EQ(event.at("tid"), 0);
  }
  EXPECT_EQ(order, (std::vector<std::string>{"step", "layer", "layer"}));
}

// ---- files ----

class Files : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ / name; }
  static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("headrace-report." + std::to_string(getpid()));
};

TEST_F(Files, ATraceIsWholeJsonAfterEveryPiece) {
  const std::string file = path("trace.json");
  std::ofstream(file) << std::string(10'000, 'x');  // of an earlier run
  TraceFile trace(file);
  trace.begin(R"({"complete":false})");
  EXPECT_EQ(json::parse(read(file)).at("traceEvents").size(), 0u);
  for (size_t i = 1; i <= 5; ++i) {
    trace.append(R"({"a":1},{"b":2})",
                 R"({"complete":false,"more":")" + std::string(60 / i, '-') + "\"}");
    EXPECT_EQ(json::parse(read(file)).at("traceEvents").size(), 2 * i);
  }
  trace.end(R"({"complete":true})");
  EXPECT_EQ(json::parse(read(file)).at("otherData"), (json{{"complete", true}}));
  EXPECT_EQ(json::parse(read(file)).at("traceEvents").size(), 10u);
}

TEST_F(Files, FailuresNameOptionFileAndCure) {
  const auto message = [](auto f) -> std::string {
    try {
      f();
    } catch (const std::exception& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THROW(OutputFile("--report", path("no/such/folder")), UsageError);
  EXPECT_THROW(OutputFile("--report", folder_), UsageError);
  OutputFile full("--trace", "/dev/full");
  EXPECT_THROW(full.write_end(0, "x"), IoError);
  const std::string said = message([&] { full.write_end(0, "x"); });
  EXPECT_NE(said.find("--trace /dev/full: writing failed: No space left"), std::string::npos)
      << said;
  EXPECT_NE(said.find("results are not affected"), std::string::npos) << said;
}

TEST_F(Files, FilesOfTheRunAreNotOverwritten) {
  GenerateOptions options;
  options.model = "m";
  options.input = path("in.jsonl");
  options.output = path("out.jsonl");
  options.trace = path("trace.json");
  options.report = path("report.json");
  EXPECT_NO_THROW(refuse_shared_files(options));
  options.trace = path("./out.jsonl");  // not there yet
  EXPECT_THROW(refuse_shared_files(options), UsageError);
  std::ofstream(options.input) << "x";
  options.trace = path("link");
  std::filesystem::create_symlink(options.input, options.trace);
  EXPECT_THROW(refuse_shared_files(options), UsageError);
  options.trace = options.report;
  EXPECT_THROW(refuse_shared_files(options), UsageError);
  options.trace = options.report = "/dev/null";
  EXPECT_NO_THROW(refuse_shared_files(options));
}

// ---- summary ----

StageReport stage(int rank, std::map<Activity, int> percents) {
  StageReport s;
  s.rank = rank;
  s.host = "node" + std::to_string(rank);
  s.facts = {10 * rank, 10 * rank + 10, 2, "avx2", "a plan"};
  s.totals.wall_ns = 2'000'000'000;
  for (const auto& [activity, percent] : percents) {
    s.totals.activity_ns[static_cast<size_t>(activity)] = s.totals.wall_ns / 100 * percent;
  }
  s.totals.counts = {40, 300, 70};
  return s;
}

TEST(Bottleneck, IsTheBusiestStagesLargestShare) {
  auto first = stage(0, {{Activity::kCompute, 40}, {Activity::kPeer, 60}});
  auto second =
      stage(1, {{Activity::kCompute, 20}, {Activity::kWeights, 70}, {Activity::kPeer, 10}});
  second.totals.bytes[static_cast<size_t>(Track::kWeightsIn)] = 960'000'000;
  second.expected.rates[static_cast<size_t>(Track::kWeightsIn)] = 500e6;
  const Bottleneck found = find_bottleneck({first, second});
  EXPECT_EQ(found.rank, 1);
  EXPECT_EQ(found.resource, "weights");
  EXPECT_EQ(found.text,
            "stage 2 (rank 1 on node1): 70.0 % of its time went into waiting for weights (480.0 "
            "MB/s, 96 % of the 500.0 MB/s measured)");
}

TEST(Bottleneck, KnowsEveryResource) {
  const auto resource = [](std::map<Activity, int> percents) {
    return find_bottleneck({stage(0, std::move(percents))}).resource;
  };
  EXPECT_EQ(resource({{Activity::kCompute, 90}, {Activity::kOther, 10}}), "compute");
  EXPECT_EQ(resource({{Activity::kCompute, 40}, {Activity::kKv, 60}}), "kv");
  EXPECT_EQ(resource({{Activity::kCompute, 40}, {Activity::kOther, 60}}), "other");
  EXPECT_EQ(resource({{Activity::kCompute, 10}, {Activity::kIdle, 90}}), "input");
  EXPECT_EQ(resource({{Activity::kCompute, 30}, {Activity::kPeer, 70}}), "latency");
  EXPECT_EQ(find_bottleneck({stage(0, {{Activity::kCompute, 30}, {Activity::kPeer, 70}})}).rank,
            -1);
}

TEST(Summary, IsATableWithARowPerStageAndEndsWithTheBottleneck) {
  auto first = stage(0, {{Activity::kCompute, 80}, {Activity::kPeer, 20}});
  first.totals.bytes[static_cast<size_t>(Track::kSend)] = 2'000'000;
  first.expected.step_s = 0.04;
  const auto lines =
      summary_lines({first, stage(1, {{Activity::kCompute, 75}, {Activity::kPeer, 25}})});
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[2].substr(0, 24), "    1  0-9        80.0 %");
  EXPECT_NE(lines[2].find("50.00 (40.00 expected)"), std::string::npos) << lines[2];
  EXPECT_EQ(lines[3].substr(0, 24), "    2  10-19      75.0 %");
  EXPECT_EQ(lines[4], "stage 1 moved: send 1.9 MiB (1.0 MB/s)");
  EXPECT_EQ(lines[5].substr(0, 31), "bottleneck: stage 1 (rank 0 on ");
}

TEST(StageReport, TravelsAsJson) {
  auto sent = stage(3, {{Activity::kCompute, 61}, {Activity::kKv, 39}});
  sent.cpu = "a CPU";
  sent.load_s = 1.25;
  sent.cpu_s = 0.5;
  sent.peak_memory = 1u << 30;
  sent.dropped_events = 9;
  sent.totals.bytes = {0, 0, 12, 13, 14, 15, 16, 17, 18, 19};
  sent.totals.transfers = {0, 0, 2, 3, 4, 5, 6, 7, 8, 9};
  sent.expected.step_s = 0.5;
  sent.expected.rates[2] = 1e9;
  const StageReport got = stage_report(json::parse(to_json(sent).dump()));
  EXPECT_EQ(to_json(got), to_json(sent));
  EXPECT_EQ(got.totals.activity_ns, sent.totals.activity_ns);
  EXPECT_EQ(got.totals.bytes, sent.totals.bytes);
  EXPECT_EQ(got.expected.rates, sent.expected.rates);
  EXPECT_FALSE(got.expected.rates[1].has_value());
}

TEST(HostFacts, AreThere) {
  EXPECT_FALSE(cpu_model().empty());
  EXPECT_GT(peak_memory(), 1u << 20);
  const double before = cpu_seconds();
  const int64_t begin = Timeline::now();
  while (cpu_seconds() - before < 0.02 && Timeline::now() - begin < 20'000'000'000) {
  }
  EXPECT_GE(cpu_seconds() - before, 0.02);
}

}  // namespace
}  // namespace headrace
