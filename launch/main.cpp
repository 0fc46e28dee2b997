// The headrace program. The only place, with the other files of this room, that reads the command
// line and the environment.

#include "headrace/version.h"
#include "launch/exit_code.h"
#include "launch/logging.h"
#include "launch/subcommands.h"

int main(int argc, char** argv) {
  headrace::set_up_logging();
  int exit_code = headrace::kExitDone;
  CLI::App app("headrace: batch text generation with language models too big for one machine");
  app.set_version_flag("--version", "headrace " HEADRACE_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);
  app.failure_message([](const CLI::App* failed, const CLI::Error& e) {
    return std::string(e.what()) + "\nSee: headrace " + failed->get_name() + " --help\n";
  });
  headrace::add_generate(app, exit_code);
  headrace::add_inspect(app, exit_code);
  headrace::add_tokenize(app, exit_code);
  app.footer(
      "First try: headrace generate --model model.gguf --prompt \"The capital of France is\"");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? headrace::kExitDone : headrace::kExitUsage;
  } catch (...) {
    return headrace::report_error();
  }
  return exit_code;
}
