#include "runtime/report/run_report.h"

#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "engine/error.h"
#include "headrace/version.h"
#include "runtime/json_bytes.h"
#include "runtime/plan/other_memory.h"
#include "runtime/report/host_facts.h"
#include "runtime/report/report_json.h"
#include "runtime/report/summary.h"

namespace headrace {
namespace {

int64_t nanoseconds(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

}  // namespace

RunReport::RunReport(const GenerateOptions& options, Communicator& communicator)
    : options_(options),
      communicator_(communicator),
      timeline_(options.trace.empty() ? 0 : kTraceEvents),
      attach_(timeline_),
      created_(Timeline::now()) {
  mine_.rank = communicator.rank();
  mine_.host = communicator.host(communicator.rank());
  mine_.cpu = cpu_model();
}

RunReport::~RunReport() {
  if (!trace_ || finished_ || began_ == 0) return;
  try {
    append_events({timeline_, mine_.rank, mine_.host, {}, began_});
  } catch (const std::exception&) {  // the run has failed already, and says why
  }
}

template <typename Write>
void RunReport::guarded(Write write) {
  try {
    write();
  } catch (const IoError& e) {
    spdlog::error("{}", e.what());
    if (failure_.empty()) failure_ = e.what();
  }
}

void RunReport::open_files() {
  refuse_shared_files(options_);
  if (!options_.report.empty()) report_.emplace("--report", options_.report);
  if (!options_.trace.empty()) trace_.emplace(options_.trace);
}

void RunReport::begin(const StageFacts& facts) {
  mine_.facts = facts;
  if (trace_) guarded([this] { trace_->begin(trace_facts(false)); });
  if (!failure_.empty()) trace_.reset();
  mine_.load_s = static_cast<double>(Timeline::now() - created_) * 1e-9;
  observe();  // before any rank can send a step
  if (timeline_.tracing()) clocks_ = sample_clocks(communicator_, Timeline::now);
  meet();
  cpu_before_ = cpu_seconds();
  began_ = Timeline::now();
  timeline_.start();
}

void RunReport::end() {
  timeline_.stop();
  mine_.cpu_s = cpu_seconds() - cpu_before_;
}

void RunReport::finish(const RunCounts& counts, RunEnd outcome) {
  meet();  // all messages of the pipeline have come
  communicator_.observe({});
  const std::vector<StageReport> stages = collect_stages();
  if (is_first()) {
    if (options_.progress != ProgressStyle::kNone) {
      for (const std::string& line : summary_lines(stages)) spdlog::info("{}", line);
    }
    if (report_) {
      guarded([&] { report_->write_end(0, report_json(options_, stages, counts, outcome)); });
    }
  }
  if (timeline_.tracing()) is_first() ? collect_events() : send_events();
  finished_ = true;
}

void RunReport::check_files() const {
  if (!failure_.empty()) throw IoError(failure_);
}

void RunReport::meet() {
  gather(communicator_, {});
  broadcast(communicator_, {});
}

void RunReport::observe() {
  communicator_.observe([this](const Transfer& t) {
    timeline_.moved(t.sent ? Track::kSend : Track::kReceive, t.what, nanoseconds(t.begin),
                    nanoseconds(t.end), t.bytes, {Arg::kPeer, t.peer});
  });
}

std::vector<StageReport> RunReport::collect_stages() {
  mine_.totals = timeline_.totals();
  mine_.peak_memory = peak_memory();
  mine_.dropped_events = timeline_.dropped();
  std::vector<StageReport> stages;
  for (const Bytes& message : gather(communicator_, to_bytes(to_json(mine_)))) {
    stages.push_back(stage_report(from_bytes(message)));
    const StageReport& stage = stages.back();
    if (stage.dropped_events == 0) continue;
    spdlog::warn("--trace {}: rank {} had no room for its last {} events; the totals count them",
                 options_.trace, stage.rank, stage.dropped_events);
  }
  return stages;
}

// Rank 0 asks each rank in turn for its events, and for the next piece when it has written one, so
// that only one is in memory.
void RunReport::collect_events() {
  const std::vector<ClockSample> ends = sample_clocks(communicator_, Timeline::now);
  for (size_t r = 0; r < ends.size(); ++r) fits_.emplace_back(clocks_[r], ends[r]);
  append_events({timeline_, mine_.rank, mine_.host, fits_[0], began_});
  for (int r = 1; r < communicator_.size(); ++r) {
    communicator_.send(r, Channel::kSetup,
                       to_bytes({{"clock", fits_[r].to_json()}, {"origin", began_}}));
    for (;;) {
      const Bytes piece = communicator_.receive(r, Channel::kSetup);
      if (piece.empty()) break;
      const std::string_view text(reinterpret_cast<const char*>(piece.data()), piece.size());
      if (trace_) guarded([&] { trace_->append(text, trace_facts(false)); });
      if (!failure_.empty()) trace_.reset();
      communicator_.send(r, Channel::kSetup, to_bytes(nlohmann::json(trace_.has_value())));
    }
  }
  if (trace_) guarded([this] { trace_->end(trace_facts(true)); });
}

void RunReport::send_events() {
  sample_clocks(communicator_, Timeline::now);
  const nlohmann::json asked = from_bytes(communicator_.receive(0, Channel::kSetup));
  TraceText text(timeline_, mine_.rank, mine_.host, ClockFit::from_json(asked.at("clock")),
                 asked.at("origin"));
  bool wanted = true;
  while (wanted) {
    const auto piece = text.next_piece();
    if (!piece) break;
    communicator_.send(0, Channel::kSetup, text_bytes(*piece));
    wanted = from_bytes(communicator_.receive(0, Channel::kSetup)).get<bool>();
  }
  communicator_.send(0, Channel::kSetup, {});
}

void RunReport::append_events(TraceText text) {
  while (trace_) {
    const auto piece = text.next_piece();
    if (!piece) return;
    guarded([&] { trace_->append(*piece, trace_facts(false)); });
    if (!failure_.empty()) trace_.reset();
  }
}

std::string RunReport::trace_facts(bool complete) const {
  nlohmann::json clocks = nlohmann::json::array();
  for (size_t r = 0; r < fits_.size(); ++r) {
    clocks.push_back({{"rank", r},
                      {"offset_ns", fits_[r].offset()},
                      {"drift_ppm", 1e6 * fits_[r].drift()},
                      {"error_ns", fits_[r].error()}});
  }
  return nlohmann::json{{"headrace", HEADRACE_VERSION}, {"complete", complete}, {"clocks", clocks}}
      .dump();
}

}  // namespace headrace
