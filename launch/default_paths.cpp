#include "launch/default_paths.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "runtime/error.h"

namespace headrace {
namespace {

// The value if it is an absolute path; the XDG base directory specification ignores others.
std::string absolute_path(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value == '/' ? value : "";
}

}  // namespace

std::string default_offload_directory() {
  std::string cache = absolute_path("XDG_CACHE_HOME");
  if (cache.empty()) {
    std::string home = absolute_path("HOME");
    const passwd* user = home.empty() ? ::getpwuid(::getuid()) : nullptr;
    if (user && user->pw_dir && *user->pw_dir == '/') home = user->pw_dir;
    if (home.empty()) {
      throw UsageError("there is no home directory for the offload file: give --disk DIR");
    }
    cache = home + "/.cache";
  }
  return cache + "/headrace/offload";
}

std::string beside_program(const std::string& name) {
  return std::filesystem::read_symlink("/proc/self/exe").replace_filename(name);
}

}  // namespace headrace
