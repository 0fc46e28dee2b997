#include "runtime/run.h"

#include <optional>

#include "runtime/desk.h"
#include "runtime/rank.h"

namespace headrace {

RunEnd run_rank(const GenerateOptions& options, const Wires& wires,
                const std::atomic<bool>& interrupted) {
  Rank rank(options, wires);
  std::optional<Desk> desk;
  if (wires.is_first()) {
    const Communicator::Idle reading_back(wires.communicator);  // a long results file takes time
    desk.emplace(options, rank.checkpoint(), rank.limits(), wires.communicator);
  }
  rank.load();

  RunEnd end = RunEnd::kDone;
  if (desk) {
    rank.coordinate(desk->coordinator(), interrupted, [&] { desk->show_progress(); });
    end = desk->close(interrupted);
  } else {
    rank.follow();
  }
  wires.communicator.finish();
  return end;
}

}  // namespace headrace
