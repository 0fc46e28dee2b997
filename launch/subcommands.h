// One function per subcommand; each adds its options and sets the exit code when it has run.
#pragma once

#include <CLI/CLI.hpp>

namespace headrace {

void add_bench(CLI::App& app, int& exit_code);
void add_clean(CLI::App& app, int& exit_code);
void add_doctor(CLI::App& app, int& exit_code);
void add_generate(CLI::App& app, int& exit_code);
void add_inspect(CLI::App& app, int& exit_code);
void add_perplexity(CLI::App& app, int& exit_code);
void add_plan(CLI::App& app, int& exit_code);
void add_synthesize(CLI::App& app, int& exit_code);
void add_tokenize(CLI::App& app, int& exit_code);

}  // namespace headrace
