// Runs part of a test in a process of its own.
#pragma once

#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <string>

namespace headrace::test {

// What `action` returns, or "threw: ..." or "the child died".
inline std::string in_child(const std::function<std::string()>& action) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    std::string text;
    try {
      text = action();
    } catch (const std::exception& error) {
      text = std::string("threw: ") + error.what();
    }
    (void)!::write(ends[1], text.data(), text.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? text : "the child died: " + text;
}

// The most memory that this process had at a time so far. Of a child, what it began with included.
inline int64_t peak_bytes() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  return int64_t{used.ru_maxrss} * 1024;
}

inline constexpr char kMayNotMount[] = "may not mount a tmpfs here";

// The same with a tmpfs on `directory`, in a mount namespace of the child: nothing stays mounted,
// however this ends. `options` as "size=64k" or "ro". kMayNotMount where that is forbidden.
inline std::string on_small_disk(const std::string& directory, const std::string& options,
                                 const std::function<std::string()>& action) {
  return in_child([&]() -> std::string {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", directory.c_str(), "tmpfs", 0, options.c_str()) != 0) {
      return kMayNotMount;
    }
    return action();
  });
}

}  // namespace headrace::test
