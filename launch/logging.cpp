#include "launch/logging.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "launch/shown.h"

namespace headrace {
namespace {

// %* in a pattern: the message.
class ShownMessage : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    const std::string text = shown({message.payload.data(), message.payload.size()});
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<ShownMessage>();
  }
};

void set_pattern(const std::string& pattern) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<ShownMessage>('*').set_pattern(pattern);
  spdlog::set_formatter(std::move(formatter));
}

volatile std::sig_atomic_t code_when_ended = 0;

}  // namespace

void set_up_logging() {
  spdlog::set_default_logger(spdlog::stderr_color_mt("headrace"));
  set_pattern("%^%H:%M:%S %L%$ %*");
}

bool is_first_of_job() {
  // mpirun; srun --mpi=pmix; another mpirun, which is refused; srun. The first that is set counts:
  // the batch script sets the last, too.
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name)) return std::string_view(rank) == "0";
  }
  return true;
}

void log_as_rank(const Communicator& communicator) {
  if (communicator.size() == 1) return;
  set_pattern("%^%H:%M:%S %L%$ [rank " + std::to_string(communicator.rank()) + " on " +
              communicator.host(communicator.rank()) + "] %*");
}

void wait_for_rank_0(double peer_timeout, int exit_code) {
  code_when_ended = exit_code;
  std::signal(SIGTERM, [](int) { _exit(code_when_ended); });
  std::this_thread::sleep_for(std::chrono::duration<double>(std::min(3.0, peer_timeout / 2)));
}

}  // namespace headrace
