#include "runtime/run.h"

#include <optional>

#include "runtime/desk.h"
#include "runtime/rank.h"
#include "runtime/report/run_report.h"
#include "runtime/teardown.h"

namespace headrace {

RunEnd run_rank(const GenerateOptions& options, const Wires& wires,
                const std::atomic<bool>& interrupted) {
  Teardown teardown(wires, options.peer_timeout);
  RunReport report(options, wires.communicator);
  RequestSizes sizes;
  if (wires.is_first()) {
    report.open_files();
    Desk::check(options);
    sizes = options.prompt ? sizes_of_prompt(*options.prompt, options.defaults)
                           : sizes_of_requests(options.input, options.defaults);
  }
  Rank rank(options, wires, sizes, true, &interrupted);
  std::optional<Desk> desk;
  if (wires.is_first()) {
    const Communicator::Idle reading_back(wires.communicator);  // a long results file takes time
    desk.emplace(options, rank, wires.communicator, sizes.lines);
  }
  RunEnd end = RunEnd::kDone;
  teardown.limit_after([&] {
    rank.load();
    report.expect(rank.expected());
    report.begin(rank.facts());
    if (desk) {
      rank.coordinate(desk->coordinator(), interrupted, [&] { desk->show_progress(); });
      report.end();
      end = desk->close(interrupted);
    } else {
      rank.follow();
      report.end();
    }
    report.finish(desk ? desk->counts() : RunCounts{}, end);
    rank.finish();
  });
  report.check_files();
  return end;
}

}  // namespace headrace
