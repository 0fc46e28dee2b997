#include "runtime/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string>

#include "comm/deadline.h"
#include "runtime/desk.h"
#include "runtime/rank.h"
#include "runtime/report/run_report.h"

namespace headrace {

namespace {

// What a rank has is given back after an error; a GPU that hangs never lets go of its memory.
void limit_teardown(std::optional<Deadline>& limit, double peer_timeout, const Wires& wires,
                    const std::string& error) {
  constexpr double kLeast = 10;
  if (!wires.give_up) return;
  const double seconds = std::max(kLeast, peer_timeout);
  limit.emplace(std::chrono::duration<double>(seconds), [&wires, seconds, error] {
    wires.give_up(error + "\nand this rank could not be ended within " +
                  std::to_string(std::lround(seconds)) +
                  " s: a GPU or disk hangs; see to it, and run again with --resume");
  });
}

}  // namespace

RunEnd run_rank(const GenerateOptions& options, const Wires& wires,
                const std::atomic<bool>& interrupted) {
  std::optional<Deadline> teardown;  // outlives what it is for
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
  try {
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
  } catch (const std::exception& e) {
    limit_teardown(teardown, options.peer_timeout, wires, e.what());
    throw;
  }
  report.finish(desk ? desk->counts() : RunCounts{}, end);
  rank.finish();
  report.check_files();
  return end;
}

}  // namespace headrace
