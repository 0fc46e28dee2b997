#include "launch/exit_code.h"

#include <spdlog/spdlog.h>

#include <new>
#include <stdexcept>

#include "comm/error.h"
#include "engine/error.h"
#include "runtime/error.h"

namespace headrace {

int report_error() {
  const auto say = [](const std::exception& e, ExitCode code) {
    spdlog::error("{}", e.what());
    return code;
  };
  try {
    throw;
  } catch (const UsageError& e) {
    return say(e, kExitUsage);
  } catch (const ModelError& e) {
    return say(e, kExitBadModel);
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
                  e.what());
    return kExitInternal;
  }
}

}  // namespace headrace
