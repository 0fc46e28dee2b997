// What stands in the results file after a kill, on a full disk, on a disk that fails.
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <random>
#include <thread>

#include "engine/error.h"
#include "tests/unit/results_file_fixture.h"

namespace {

std::atomic<int> sync_calls{0};
std::atomic<int64_t> synced_size{0};
std::atomic<bool> sync_fails{false};
std::atomic<int> failed_syncs{0};

}  // namespace

// Stands before the C library's: counts the calls, and fails like a broken disk if asked to.
extern "C" int fdatasync(int fd) {
  const int64_t size = ::lseek(fd, 0, SEEK_END);
  if (sync_fails) {
    ++failed_syncs;
    errno = EIO;
    return -1;
  }
  const auto result = static_cast<int>(::syscall(SYS_fdatasync, fd));
  synced_size = size;
  ++sync_calls;
  return result;
}

namespace headrace {
namespace {

using namespace std::chrono_literals;

class ResultsDurabilityTest : public ResultsFileTest {
 protected:
  void SetUp() override {
    sync_fails = false;
    synced_size = 0;
    ResultsFileTest::SetUp();
  }

  static bool within(std::chrono::milliseconds limit, const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
};

TEST_F(ResultsDurabilityTest, IsOnDiskWithinASecondWhileTheCallerComputes) {
  ResultsFile file = open();
  for (int round = 0; round < 3; ++round) {
    const int before = sync_calls;
    file.append(result("a" + std::to_string(round)));
    const auto size = static_cast<int64_t>(fs::file_size(path_));
    EXPECT_TRUE(within(1s, [&] { return sync_calls > before; }));
    EXPECT_EQ(synced_size, size);
  }
  file.append(result("z"));
  file.close();
  EXPECT_EQ(synced_size, static_cast<int64_t>(fs::file_size(path_)));
}

TEST_F(ResultsDurabilityTest, KilledAtRandomMomentsEveryResultStandsOnce) {
  constexpr int kRequests = 20000;
  std::mt19937 random(7);
  int kills = 0;
  const auto run = [&] {
    ResultsFile file = open(/*resume=*/true);
    for (int i = 0; i < kRequests; ++i) {
      const std::string id = "r" + std::to_string(i);
      if (!file.has(id, 0)) file.append(result(id));
    }
    file.close();
  };
  for (int round = 0; round < 12; ++round) {
    const pid_t child = ::fork();
    if (child == 0) {
      run();
      ::_exit(0);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + random() % 20000));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    kills += WIFSIGNALED(status) ? 1 : 0;
  }
  EXPECT_GT(kills, 3);
  run();
  const auto counts = ids();
  EXPECT_EQ(counts.size(), static_cast<size_t>(kRequests));
  for (const auto& [id, count] : counts) EXPECT_EQ(count, 1) << id;
}

TEST_F(ResultsDurabilityTest, FileSizeLimitLeavesWholeLines) {
  const std::string text = in_child([&]() -> std::string {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{5000, 5000};
    ResultsFile file = open();
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return "setrlimit failed";
    for (int i = 0;; ++i) {
      try {
        file.append(result("r" + std::to_string(i)));
      } catch (const IoError& error) {
        if (file.has("r" + std::to_string(i), 0)) return "has() claims what is not there";
        const auto size = fs::file_size(path_);
        // What is shorter than the room that is left still goes in.
        if (size > 4600) file.append(BadLine{"e", "c", ""});
        file.close();
        return error.what();
      }
    }
  });
  expect_words(text, {path_, "File too large", "ulimit -f", "--resume"});
  EXPECT_TRUE(content().ends_with("}\n"));
  const auto held = static_cast<int64_t>(ids().size());
  EXPECT_GT(held, 5);
  EXPECT_EQ(open(true).resumed(), held);
}

TEST_F(ResultsDurabilityTest, FullDiskLeavesWholeLines) {
  const fs::path disk = directory_ / "disk";
  fs::create_directory(disk);
  const std::string text = in_child([&]() -> std::string {
    // In a mount namespace of the child: nothing stays mounted, however this ends.
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64k") != 0) {
      return "skip";
    }
    path_ = disk / "out.jsonl";
    std::string message;
    int64_t done = 0;
    {
      ResultsFile file = open();
      while (message.empty()) {
        try {
          file.append(result("r" + std::to_string(done)));
          ++done;
        } catch (const IoError& error) {
          message = error.what();
        }
      }
      file.close();
    }
    if (!content().ends_with("}\n")) return "a torn line is left";
    if (static_cast<int64_t>(ids().size()) != done) return "not as many lines as appends";
    if (open(true).resumed() != done) return "resume does not find them";
    return message;
  });
  if (text == "skip") GTEST_SKIP() << "may not mount a tmpfs here";
  expect_words(text, {"out.jsonl", "No space left on device", "Free space", "--resume"});
}

TEST_F(ResultsDurabilityTest, FailedSyncIsThrownLaterAndCutsBackToWhatIsOnDisk) {
  for (const bool by_close : {false, true}) {
    fs::remove(path_);
    synced_size = 0;
    ResultsFile file = open();
    file.append(result("a"));
    const std::string durable = content();
    ASSERT_TRUE(within(10s, [&] { return synced_size == static_cast<int64_t>(durable.size()); }));
    std::this_thread::sleep_for(100ms);  // until the thread has taken note
    const int before = failed_syncs;
    sync_fails = true;
    file.append(result("b"));
    std::string text;
    if (by_close) {
      text = thrown<IoError>([&] { file.close(); });
    } else {
      ASSERT_TRUE(within(10s, [&] { return failed_syncs > before; }));
      std::this_thread::sleep_for(100ms);
      text = thrown<IoError>([&] { file.append(result("c")); });
      EXPECT_THROW(file.append(result("d")), IoError);
      EXPECT_THROW(file.close(), IoError);
    }
    expect_words(text, {path_, "Input/output error", "--resume"});
    EXPECT_EQ(content(), durable);
    sync_fails = false;
  }
  EXPECT_EQ(open(true).resumed(), 1);
}

}  // namespace
}  // namespace headrace
