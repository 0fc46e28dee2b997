// Seeing what a run does: collects every rank's timeline on rank 0 and writes the summary, the
// report file and the trace.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "engine/timeline.h"
#include "runtime/report/clocks.h"
#include "runtime/report/output_file.h"
#include "runtime/report/stage_report.h"
#include "runtime/report/trace_text.h"
#include "runtime/run.h"

namespace headrace {

// Every rank makes one and calls, in this order, on the thread that runs the stage:
//   open_files   (rank 0)  before anything else, so that a wrong path is refused early; what the
//                files hold stays until there is something to write
//   begin        when the stage is loaded; returns when all are
//   end          when the stage's loop is over
//   finish       after the results are closed
// It attaches its timeline to the thread that makes it. Must outlive the communicator's halt().
class RunReport {
 public:
  RunReport(const GenerateOptions& options, Communicator& communicator);
  // A run that fails leaves what rank 0 saw of it in the trace.
  ~RunReport();
  RunReport(const RunReport&) = delete;
  RunReport& operator=(const RunReport&) = delete;

  Timeline& timeline() { return timeline_; }
  // What the plan expects of this rank's stage. Before finish.
  void expect(const Expected& expected) { mine_.expected = expected; }

  // Throws UsageError, IoError.
  void open_files();
  void begin(const StageFacts& facts);
  void end();
  // All ranks call it; `counts` and `outcome` are rank 0's.
  // Does not throw if a file cannot be written, but logs it: see check_files. Throws PeerLost.
  void finish(const RunCounts& counts, RunEnd outcome);
  // Throws IoError if the trace or the report could not be written. After Communicator::finish.
  void check_files() const;

 private:
  void meet();  // all ranks have come here
  void observe();
  std::vector<StageReport> collect_stages();
  void collect_events();
  void send_events();
  void append_events(TraceText text);
  std::string trace_facts(bool complete) const;
  // A file that fails is given up, and the first failure kept.
  template <typename Write>
  void guarded(Write write);
  bool is_first() const { return communicator_.rank() == 0; }

  const GenerateOptions& options_;
  Communicator& communicator_;
  Timeline timeline_;
  Timeline::Attach attach_;
  int64_t created_;
  int64_t began_ = 0;  // origin of the trace, on rank 0's clock
  double cpu_before_ = 0;
  StageReport mine_;
  std::vector<ClockSample> clocks_;  // at begin; rank 0
  std::vector<ClockFit> fits_;       // rank 0, after the end
  bool finished_ = false;
  std::optional<TraceFile> trace_;  // rank 0; gone once it has failed
  std::optional<OutputFile> report_;
  std::string failure_;  // first one of a file
};

}  // namespace headrace
