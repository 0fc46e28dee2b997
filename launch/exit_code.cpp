#include "launch/exit_code.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "comm/error.h"
#include "engine/error.h"
#include "runtime/error.h"

namespace headrace {
namespace {

constexpr size_t kLongestMessage = 16384;

// Messages quote names from files: nothing in them is for the terminal to obey, nor without end.
std::string shown(std::string text) {
  if (text.size() > kLongestMessage) text.replace(kLongestMessage, std::string::npos, "...");
  std::replace_if(
      text.begin(), text.end(),
      [](char c) { return (c >= 0 && c < ' ' && c != '\n' && c != '\t') || c == 0x7f; }, '?');
  // U+0080 to U+009F, which terminals take for commands, too.
  for (size_t at = 0; (at = text.find('\xc2', at)) != std::string::npos; ++at) {
    const bool is_control = at + 1 < text.size() && static_cast<unsigned char>(text[at + 1]) < 0xa0;
    if (is_control) text.replace(at, 2, "??");
  }
  return text;
}

}  // namespace

int report_error() {
  const auto say = [](const std::exception& e, ExitCode code) {
    spdlog::error("{}", shown(e.what()));
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
                  shown(e.what()));
    return kExitInternal;
  }
}

}  // namespace headrace
