#include "launch/exit_code.h"

#include <spdlog/spdlog.h>

#include <new>
#include <stdexcept>
#include <string>

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

}  // namespace

int report_error() {
  const auto say = [](const std::exception& e, ExitCode code) {
    spdlog::error("{}", cut(e.what()));
    return code;
  };
  try {
    throw;
  } catch (const UsageError& e) {
    return say(e, kExitUsage);
  } catch (const ModelError& e) {
    return say(e, kExitBadModel);
  } catch (const DeviceLost& e) {
    return say(e, kExitTryAgain);
  } catch (const ResourceMissing& e) {
    return say(e, kExitResourceMissing);
  } catch (const CommError& e) {
    return say(e, kExitResourceMissing);
  } catch (const DoesNotFit& e) {
    return say(e, kExitDoesNotFit);
  } catch (const IoError& e) {
    return say(e, kExitIo);
  } catch (const PeerLost& e) {
    return say(e, kExitTryAgain);
  } catch (const std::bad_alloc&) {
    spdlog::error("out of memory; give a smaller --host-memory, or use more ranks");
    return kExitDoesNotFit;
  } catch (const std::exception& e) {
    spdlog::error("internal error: {}; please report it with the command line and the model",
                  cut(e.what()));
    return kExitInternal;
  }
}

}  // namespace headrace
