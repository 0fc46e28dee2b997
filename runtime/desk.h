// Rank 0's side of a run: requests in, results out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "comm/communicator.h"
#include "engine/checkpoint/checkpoint.h"
#include "runtime/rank.h"
#include "runtime/report/progress.h"
#include "runtime/report/stage_report.h"
#include "runtime/requests/prepare.h"
#include "runtime/requests/request_reader.h"
#include "runtime/results/results_file.h"
#include "runtime/run.h"
#include "runtime/schedule/coordinator.h"
#include "runtime/text/tokenizer.h"

namespace headrace {

// Feeds the coordinator with the requests of the input that have no result yet, and takes what it
// finishes. One thread uses it.
class Desk {
 public:
  // Opens tokenizer, input and results file, of options that check() has let pass. The arguments
  // must outlive the desk. `lines`: of the
  // input, for the progress; negative: not known. Throws UsageError, ModelError, IoError.
  Desk(const GenerateOptions& options, const Rank& rank, Communicator& communicator, int64_t lines);

  // Refuses what needs no model to be refused. Throws UsageError, IoError.
  static void check(const GenerateOptions& options);

  Coordinator& coordinator() { return coordinator_; }
  void show_progress() { progress_.update(coordinator_.counts(), failed_); }
  // All results are on disk on return. Throws IoError.
  RunEnd close(bool interrupted);
  RunCounts counts() const;

 private:
  static std::optional<RequestReader> open_input(const GenerateOptions& options);
  ResultsFile::Options results_options() const;
  Manifest manifest(const Rank& rank) const;
  std::optional<ChatTemplate> chat_template() const;
  ScheduleLimits in_order(ScheduleLimits limits) const;
  bool plain_text() const { return options_.prompt && options_.output == "-"; }

  // The next request that is neither done already nor wrong.
  Coordinator::Fed next(bool idle);
  bool input_ready(bool idle);  // when idle, waits a moment
  std::optional<std::variant<Request, BadLine>> next_line();
  void done(const RequestResult& result);
  void failed(const BadLine& line);

  const GenerateOptions& options_;
  Communicator& communicator_;
  std::unique_ptr<Tokenizer> tokenizer_;  // null: the model has none
  std::optional<RequestReader> reader_;   // none for --prompt
  ResultsFile results_;
  RequestPreparer preparer_;
  Progress progress_;
  int64_t failed_ = 0;
  bool prompt_taken_ = false;
  Coordinator coordinator_;
};

}  // namespace headrace
