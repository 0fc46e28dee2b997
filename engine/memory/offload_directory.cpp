#include "engine/memory/offload_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <thread>

#include "engine/error.h"
#include "engine/memory/offload_header.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;
using Kind = OffloadEntry::Kind;

[[noreturn]] void fail(const std::string& path, const char* what, int error) {
  throw IoError(path + " cannot be " + what + ": " + std::strerror(error));
}

// False if there is no such file.
bool remove_file(const std::string& path) {
  if (::unlink(path.c_str()) == 0) return true;
  if (errno != ENOENT) fail(path, "removed", errno);
  return false;
}

// Opens a file that is there and locks it; the descriptor, or -1 with errno. EWOULDBLOCK: another
// process holds a lock.
int open_locked(const std::string& path, int flags) {
  const int descriptor =
      ::open(path.c_str(), flags | O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  if (descriptor < 0 || ::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return descriptor;
  const int error = errno;
  ::close(descriptor);
  errno = error;
  return -1;
}

// Whether the path leads to the open file.
bool is_named(int descriptor, const std::string& path) {
  struct stat own = {}, named = {};
  return ::fstat(descriptor, &own) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         own.st_dev == named.st_dev && own.st_ino == named.st_ino;
}

bool is_locked(const std::string& path) {
  const int descriptor = open_locked(path, 0);
  if (descriptor < 0) return errno == EWOULDBLOCK;
  ::close(descriptor);
  return false;
}

// Cuts as many characters of `set` from the front as there are; false unless `least` to `most`.
bool take(std::string_view& text, std::string_view set, size_t least, size_t most) {
  const size_t length = std::min(text.find_first_not_of(set), text.size());
  text.remove_prefix(length);
  return length >= least && length <= most;
}

bool take(std::string_view& text, std::string_view literal) {
  if (!text.starts_with(literal)) return false;
  text.remove_prefix(literal.size());
  return true;
}

// By the names of offload_directory.h and OffloadHeader::file_name().
std::optional<Kind> kind_of(std::string_view name) {
  constexpr std::string_view kHex = "0123456789abcdef", kDigits = kHex.substr(0, 10);
  if (std::string_view rest = name; take(rest, "headrace-")) {
    return rest.size() == 6 + std::strlen(".temporary") && rest.ends_with(".temporary")
               ? std::optional(Kind::kTemporary)
               : std::nullopt;
  }
  if (!take(name, kHex, 16, 16) || !take(name, "-") || !take(name, kDigits, 1, 10) ||
      !take(name, "-") || !take(name, kDigits, 1, 10) || !take(name, "-") ||
      !take(name, kHex, 16, 16) || !take(name, ".offload")) {
    return std::nullopt;
  }
  if (name.empty()) return Kind::kFile;
  if (name == kBuildingSuffix) return Kind::kUnfinished;
  return name == kLockSuffix ? std::optional(Kind::kLock) : std::nullopt;
}

std::string describe_file(const std::string& path) {
  constexpr size_t kMost = 1 << 20;  // more than the header of any model
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) return "cannot be read";
  std::vector<std::byte> bytes(kMost);
  const ssize_t n = ::pread(descriptor, bytes.data(), kMost, 0);
  ::close(descriptor);
  const std::string text =
      describe_offload_header(std::span(bytes).first(n < 0 ? 0 : static_cast<size_t>(n)));
  return text.empty() ? "damaged, or of another version" : text;
}

// The offload file that a lock or an unfinished file belongs to.
std::string owner_of(const OffloadEntry& entry) {
  const char* suffix = entry.kind == Kind::kLock ? kLockSuffix : kBuildingSuffix;
  return entry.path.substr(0, entry.path.size() - std::strlen(suffix));
}

}  // namespace

std::unique_ptr<OffloadLock> OffloadLock::try_acquire(const std::string& offload_file) {
  const std::string path = offload_file + kLockSuffix;
  for (;;) {
    const int descriptor = open_locked(path, O_CREAT);
    if (descriptor >= 0) {
      if (is_named(descriptor, path)) {
        return std::unique_ptr<OffloadLock>(new OffloadLock(path, descriptor));
      }
      ::close(descriptor);  // its holder removed it meanwhile
    } else if (errno == EWOULDBLOCK) {
      return nullptr;
    } else if (errno != EINTR) {
      throw IoError(path + " cannot be locked: " + std::strerror(errno) +
                    "; give a directory on a disk of this machine with --disk");
    }
  }
}

std::unique_ptr<OffloadLock> OffloadLock::acquire(
    const std::string& offload_file, const std::function<void(const std::string&)>& say,
    double patience_s) {
  const std::string unfinished = offload_file + kBuildingSuffix;
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  const auto start = Clock::now();
  auto last_change = start, next_word = start;
  struct stat before = {};
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
    if (auto lock = try_acquire(offload_file)) return lock;
    const auto now = Clock::now();
    struct stat status = {};
    (void)::stat(unfinished.c_str(), &status);
    if (std::memcmp(&status.st_mtim, &before.st_mtim, sizeof status.st_mtim) != 0) {
      before = status;
      last_change = now;
    }
    if (seconds(now - last_change) > patience_s) {
      throw IoError("another process has locked " + offload_file + kLockSuffix +
                    " to build the offload file, but wrote nothing for " +
                    std::to_string(static_cast<int>(patience_s)) +
                    " seconds; end that process, or give another --disk");
    }
    if (now >= next_word) {
      say("waiting for another process that builds " + offload_file + " (" +
          std::to_string(static_cast<int>(seconds(now - start))) + " s)");
      next_word = now + std::chrono::seconds(10);
    }
  }
}

OffloadLock::~OffloadLock() {
  ::unlink(path_.c_str());  // while it is held: nobody else's can be meant
  ::close(descriptor_);
}

std::vector<OffloadEntry> list_offload_directory(const std::string& directory) {
  std::vector<OffloadEntry> entries;
  std::error_code error;
  auto file = std::filesystem::directory_iterator(directory, error);
  for (; !error && file != std::filesystem::directory_iterator(); file.increment(error)) {
    const auto kind = kind_of(file->path().filename().string());
    struct stat status = {};
    if (!kind || ::lstat(file->path().c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    OffloadEntry entry{*kind, file->path().string(), static_cast<uint64_t>(status.st_blocks) * 512,
                       false, ""};
    switch (entry.kind) {
      case Kind::kFile:
        entry.in_use = is_locked(entry.path);
        entry.description = describe_file(entry.path);
        break;
      case Kind::kUnfinished:
      case Kind::kLock:
        entry.in_use = is_locked(owner_of(entry) + kLockSuffix);
        entry.description = entry.kind == Kind::kLock ? "lock"
                            : entry.in_use            ? "being built"
                                                      : "unfinished";
        break;
      case Kind::kTemporary:
        entry.description = "temporary";
        break;
    }
    entries.push_back(std::move(entry));
  }
  if (error) throw IoError(directory + " cannot be read: " + error.message());
  std::sort(entries.begin(), entries.end(),
            [](const OffloadEntry& a, const OffloadEntry& b) { return a.path < b.path; });
  return entries;
}

bool remove_offload_entry(const OffloadEntry& entry) {
  if (entry.kind == Kind::kTemporary) return remove_file(entry.path);
  if (entry.kind == Kind::kLock || entry.kind == Kind::kUnfinished) {
    struct stat status = {};
    if (::lstat(entry.path.c_str(), &status) != 0) return false;
    const auto lock = OffloadLock::try_acquire(owner_of(entry));
    if (!lock) return false;
    return entry.kind == Kind::kLock || remove_file(entry.path);  // the lock file goes with `lock`
  }
  const int descriptor = open_locked(entry.path, 0);
  if (descriptor < 0) {
    if (errno == EWOULDBLOCK || errno == ENOENT) return false;
    fail(entry.path, "opened", errno);
  }
  // Locked while it goes: a process that is about to use it then sees that it has no name.
  const bool same = is_named(descriptor, entry.path);
  const int error = same && ::unlink(entry.path.c_str()) != 0 ? errno : 0;
  ::close(descriptor);
  if (error != 0) fail(entry.path, "removed", error);
  return same;
}

void remove_unfinished(const std::string& directory) {
  for (const OffloadEntry& entry : list_offload_directory(directory)) {
    const bool leftover = entry.kind != Kind::kFile && entry.kind != Kind::kTemporary;
    if (!leftover || entry.in_use) continue;
    try {
      (void)remove_offload_entry(entry);
    } catch (const IoError&) {  // another user's; it does not stand in the way
    }
  }
}

}  // namespace headrace
