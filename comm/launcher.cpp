#include "comm/launcher.h"

#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string>

namespace headrace {

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
  while (!stopped_.wait_for(lock, std::chrono::milliseconds(100), [this] { return stop_; })) {
    if (getppid() == pid_) continue;  // the kernel gives orphans another parent
    lock.unlock();
    note_files();
    remove_files();
    gone_ = true;
    return;
  }
}

void Launcher::note_files() {
  // Open MPI's names: <backing directory>/vader_segment.<host>.<user>.<job>.<rank> and
  // <TMPDIR>/ompi.<host>.<user>/pid.<mpirun>/...
  const std::string session = "/pid." + std::to_string(pid_) + "/";
  const std::lock_guard lock(mutex_);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t begin = line.find('/');
    if (begin == line.npos) continue;
    const std::filesystem::path path = line.substr(begin);
    if (path.filename().string().starts_with("vader_segment.")) segments_.insert(path);
    const size_t at = path.string().find(session);
    if (at == std::string::npos) continue;
    const std::filesystem::path folder = path.string().substr(0, at + session.size() - 1);
    if (folder.parent_path().filename().string().starts_with("ompi.")) sessions_.insert(folder);
  }
}

void Launcher::remove_files() {
  const std::lock_guard lock(mutex_);
  std::error_code ignored;  // another rank may be quicker
  for (const auto& segment : segments_) std::filesystem::remove(segment, ignored);
  for (const auto& folder : sessions_) {
    std::filesystem::remove_all(folder, ignored);
    std::filesystem::remove(folder.parent_path(), ignored);  // if no other job uses it
  }
}

}  // namespace headrace
