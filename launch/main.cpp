// The headrace program. The only place, with the other files of this room, that reads the command
// line and the environment.

#include <spdlog/spdlog.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "headrace/version.h"
#include "launch/exit_code.h"
#include "launch/logging.h"
#include "launch/run_options.h"
#include "launch/subcommands.h"
#include "runtime/error.h"

namespace {

int run(int argc, char** argv) {
  int exit_code = headrace::kExitDone;
  CLI::App app("headrace: batch text generation with language models too big for one machine",
               "headrace");
  app.set_version_flag("--version", "headrace " HEADRACE_VERSION);
  app.require_subcommand(1);
  app.failure_message([](const CLI::App* all, const CLI::Error& e) {
    const auto subs = all->get_subcommands();  // the one that was named
    const auto unknown = all->remaining();
    const std::string what = subs.empty() && !unknown.empty()
                                 ? unknown.front() + " is not a subcommand or option of headrace"
                                 : e.what();
    return what + "\nSee: headrace " + (subs.empty() ? "" : subs.front()->get_name() + " ") +
           "--help\n";
  });
  headrace::add_generate(app, exit_code);
  headrace::add_bench(app, exit_code);
  headrace::add_plan(app, exit_code);
  headrace::add_doctor(app, exit_code);
  headrace::add_inspect(app, exit_code);
  headrace::add_tokenize(app, exit_code);
  headrace::add_perplexity(app, exit_code);
  headrace::add_synthesize(app, exit_code);
  headrace::add_clean(app, exit_code);
  app.footer(
      "First try: headrace generate --model model.gguf --prompt \"The capital of France is\"");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const bool is_help = e.get_exit_code() == 0, first = headrace::is_first_of_job();
    if (is_help && !first) return headrace::kExitDone;
    if (!first) headrace::wait_for_rank_0(headrace::kDefaultPeerTimeout, headrace::kExitUsage);
    return app.exit(e) == 0 ? headrace::kExitDone : headrace::kExitUsage;
  } catch (...) {
    if (!headrace::is_first_of_job()) {
      headrace::wait_for_rank_0(headrace::kDefaultPeerTimeout, headrace::error_code());
    }
    return headrace::report_error();
  }
  return exit_code;
}

// What was printed has gone out, or this was not done.
int after_output(int exit_code) {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  const int error = errno;
  if ((flushed && std::ferror(stdout) == 0) || exit_code != headrace::kExitDone) return exit_code;
  spdlog::error("writing to standard output failed{}; see to its space or to who reads it",
                error == 0 ? "" : std::string(": ") + std::strerror(error));
  return headrace::kExitIo;
}

}  // namespace

int main(int argc, char** argv) {
  headrace::set_up_logging();
  return after_output(run(argc, argv));
}
