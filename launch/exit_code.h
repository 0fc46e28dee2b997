// The one place where errors become exit codes and last words.
#pragma once

namespace headrace {

enum ExitCode : int {
  kExitDone = 0,
  kExitSomeFailed = 1,        // some requests failed; their records say why
  kExitUsage = 2,             // command line or configuration
  kExitBadModel = 65,         // model or input file
  kExitResourceMissing = 69,  // vector target, GPU, launcher
  kExitInternal = 70,         // a bug
  kExitDoesNotFit = 73,
  kExitIo = 74,
  kExitTryAgain = 75,  // a peer was lost, or interrupted: continue with --resume
};

// The code of the exception being handled. Call in a catch block, as report_error.
int error_code();
// Logs the exception being handled and returns its code.
int report_error();

}  // namespace headrace
