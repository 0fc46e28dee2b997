#include "launch/exit_code.h"

#include <spdlog/spdlog.h>

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "comm/error.h"
#include "engine/error.h"
#include "runtime/error.h"

namespace headrace {
namespace {

constexpr size_t kLongestMessage = 16384;

// Messages quote names from files, which may be long.
std::string cut(std::string text) {
  if (text.size() > kLongestMessage) text.replace(kLongestMessage, std::string::npos, "...");
  return text;
}

// What the exception being handled is, and what is said of it.
std::pair<ExitCode, std::string> outcome() {
  const auto as = [](const std::exception& e, ExitCode code) {
    return std::pair(code, cut(e.what()));
  };
  try {
    throw;
  } catch (const UsageError& e) {
    return as(e, kExitUsage);
  } catch (const ModelError& e) {
    return as(e, kExitBadModel);
  } catch (const DeviceLost& e) {
    return as(e, kExitTryAgain);
  } catch (const ResourceMissing& e) {
    return as(e, kExitResourceMissing);
  } catch (const CommError& e) {
    return as(e, kExitResourceMissing);
  } catch (const DoesNotFit& e) {
    return as(e, kExitDoesNotFit);
  } catch (const IoError& e) {
    return as(e, kExitIo);
  } catch (const PeerLost& e) {
    return as(e, kExitTryAgain);
  } catch (const Interrupted& e) {
    return as(e, kExitTryAgain);
  } catch (const std::bad_alloc&) {
    return {kExitDoesNotFit, "out of memory; give a smaller --host-memory, or use more ranks"};
  } catch (const std::exception& e) {
    return {kExitInternal, "internal error: " + cut(e.what()) +
                               "; please report it with the command line and the model"};
  }
}

}  // namespace

int error_code() { return outcome().first; }

int report_error() {
  const auto [code, text] = outcome();
  spdlog::error("{}", text);
  return code;
}

}  // namespace headrace
