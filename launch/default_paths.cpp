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

// Empty if there is none.
std::string home_directory() {
  const std::string home = absolute_path("HOME");
  if (!home.empty()) return home;
  const passwd* const user = ::getpwuid(::getuid());
  return user && user->pw_dir && *user->pw_dir == '/' ? user->pw_dir : "";
}

}  // namespace

CLI::Validator home_path() {
  return CLI::Validator(
      [](std::string& path) -> std::string {
        if (path != "~" && !path.starts_with("~/")) return "";
        const std::string home = home_directory();
        if (home.empty()) return path + ": there is no home directory; write the path in full";
        path.replace(0, 1, home);
        return "";
      },
      "");
}

CLI::Option* add_path_option(CLI::App& sub, const std::string& name, std::string& path,
                             const std::string& description) {
  return sub.add_option(name, path, description)->transform(home_path());
}

std::string default_offload_directory() {
  std::string cache = absolute_path("XDG_CACHE_HOME");
  if (cache.empty()) {
    const std::string home = home_directory();
    if (home.empty()) return "";
    cache = home + "/.cache";
  }
  return cache + "/headrace/offload";
}

std::string beside_program(const std::string& name) {
  return std::filesystem::read_symlink("/proc/self/exe").replace_filename(name);
}

}  // namespace headrace
