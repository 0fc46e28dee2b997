#include "comm/launcher.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace headrace {
namespace {

namespace fs = std::filesystem;

// Open MPI's names: <backing directory>/vader_segment.<host>.<user>.<job>.<rank> and
// <TMPDIR>/ompi.<host>.<user>/pid.<mpirun>/...
constexpr const char* kSegment = "vader_segment.";
constexpr const char* kSessions = "ompi.";
constexpr const char* kSession = "pid.";
// Open MPI, too, ends ranks whose mpirun is gone, and leaves its files.
constexpr std::chrono::milliseconds kInterval{20};
constexpr int kAttempts = 50;

// The segments that the process with this /proc directory has mapped.
std::set<fs::path> mapped_segments(const fs::path& process) {
  std::set<fs::path> segments;
  std::ifstream maps(process / "maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t begin = line.find('/');
    if (begin == line.npos || line.find(kSegment) == line.npos) continue;
    segments.insert(line.substr(begin));
  }
  return segments;
}

// What Open MPI puts into the names of a host's files: with its domain or without.
std::set<std::string> names_of(const std::string& host) {
  const std::string user = "." + std::to_string(geteuid());
  return {host + user, host.substr(0, host.find('.')) + user};
}

// The entries of a directory that begin with `prefix`, are this user's, and are older than `age`.
std::vector<fs::path> old_entries(const fs::path& directory, const std::string& prefix,
                                  std::chrono::seconds age) {
  std::vector<fs::path> entries;
  std::error_code ignored;
  for (fs::directory_iterator it(directory, ignored), end; it != end; it.increment(ignored)) {
    struct stat status = {};
    if (!it->path().filename().string().starts_with(prefix)) continue;
    if (lstat(it->path().c_str(), &status) != 0 || status.st_uid != geteuid()) continue;
    if (std::time(nullptr) - status.st_mtime >= age.count()) entries.push_back(it->path());
  }
  return entries;
}

}  // namespace

Launcher::Launcher() : pid_(getppid()), thread_([this] { watch(); }) {}

Launcher::~Launcher() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    stopped_.notify_one();
  }
  thread_.join();
}

void Launcher::watch() {
  std::unique_lock lock(mutex_);
  while (!stopped_.wait_for(lock, kInterval, [this] { return stop_; })) {
    if (getppid() == pid_) continue;  // the kernel gives orphans another parent
    lock.unlock();
    note_files();
    remove_files();
    gone_ = true;
    return;
  }
}

void Launcher::note_files() {
  const std::string session = std::string("/") + kSession + std::to_string(pid_) + "/";
  const std::lock_guard lock(mutex_);
  segments_.merge(mapped_segments("/proc/self"));
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t begin = line.find('/');
    if (begin == line.npos) continue;
    const std::filesystem::path path = line.substr(begin);
    const size_t at = path.string().find(session);
    if (at == std::string::npos) continue;
    const std::filesystem::path folder = path.string().substr(0, at + session.size() - 1);
    if (folder.parent_path().filename().string().starts_with(kSessions)) sessions_.insert(folder);
  }
}

void Launcher::remove_files() {
  const std::lock_guard lock(mutex_);
  std::error_code ignored;  // another rank may be quicker
  for (const auto& segment : segments_) fs::remove(segment, ignored);
  for (const auto& folder : sessions_) {
    // Ranks that do so at once disturb each other: one that misses a file that it has just seen
    // gives up.
    for (int attempt = 0; attempt < kAttempts && fs::exists(folder, ignored); ++attempt) {
      if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      fs::remove_all(folder, ignored);
    }
    fs::remove(folder.parent_path(), ignored);  // if no other job uses it
  }
}

std::string own_host() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

void remove_leftovers_of_dead_jobs(const fs::path& shared_memory, const fs::path& temporary,
                                   const std::string& host, std::chrono::seconds age) {
  std::error_code ignored;
  std::vector<fs::path> segments;
  for (const std::string& name : names_of(host)) {
    std::ranges::copy(old_entries(shared_memory, kSegment + name + ".", age),
                      std::back_inserter(segments));
  }
  if (!segments.empty()) {
    std::set<fs::path> in_use;
    for (fs::directory_iterator it("/proc", ignored), end; it != end; it.increment(ignored)) {
      const std::string name = it->path().filename();
      if (std::isdigit(static_cast<unsigned char>(name[0]))) in_use.merge(mapped_segments(*it));
    }
    for (const fs::path& segment : segments) {
      if (!in_use.contains(segment)) fs::remove(segment, ignored);
    }
  }
  for (const std::string& name : names_of(host)) {
    const fs::path sessions = temporary / (kSessions + name);
    for (const fs::path& session : old_entries(sessions, kSession, age)) {
      const pid_t mpirun = std::atoi(session.filename().c_str() + std::string(kSession).size());
      if (mpirun > 0 && kill(mpirun, 0) != 0 && errno == ESRCH) fs::remove_all(session, ignored);
    }
    fs::remove(sessions, ignored);  // if it is empty
  }
}

}  // namespace headrace
