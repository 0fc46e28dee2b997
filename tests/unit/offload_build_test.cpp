// What is left of a build of the offload file that fails, and who waits for whom.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <random>
#include <thread>

#include "engine/memory/offload_directory.h"
#include "tests/unit/child_process.h"
#include "tests/unit/offload_file_fixture.h"

namespace {
std::atomic<bool> reserve_nothing{false};
}

// Stands before the C library's.
extern "C" int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  if (reserve_nothing) return ::ftruncate(fd, offset + bytes);
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
}

namespace headrace::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

class OffloadBuildTest : public OffloadFileFixture {
 protected:
  void TearDown() override { reserve_nothing = false; }
};

TEST_F(OffloadBuildTest, ThatItDoesNotFitIsSaidBefore) {
  const auto checkpoint = checkpoint_of(wide_llama());
  const uint64_t need = OffloadFile::file_bytes(weight_layout(*checkpoint, kWhole));
  disk_budget_ = need - 1;
  expect_error<DoesNotFit>([&] { (void)open(*checkpoint); },
                           {place_, format_bytes(need), "disk budget", "--disk-budget"});
  EXPECT_TRUE(names().empty());
  disk_budget_ = need;
  EXPECT_NE(open(*checkpoint), nullptr);

  place_ = directory_.path();
  const std::string text = on_small_disk(place_, "size=1m", [&]() -> std::string {
    try {
      (void)open(*checkpoint);
    } catch (const DoesNotFit& error) {
      return names().empty() ? error.what() : "something is left";
    }
    return "no error";
  });
  if (text == kMayNotMount) GTEST_SKIP() << text;
  for (const std::string& word :
       {place_, format_bytes(need), std::string("free there: 1.0 MiB"), std::string("--disk")})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST_F(OffloadBuildTest, ADiskThatFillsUpWhileBuildingLeavesNothing) {
  const auto checkpoint = checkpoint_of(wide_llama());
  place_ = directory_.path();
  const std::string text = on_small_disk(place_, "size=16m", [&]() -> std::string {
    reserve_nothing = true;
    try {
      (void)open_with(*checkpoint, budget_, threads_, [&](const std::string& line) {
        if (!line.starts_with("building")) return;
        std::ofstream(place_ + "/other") << std::string(15 << 20, 'x');
      });
    } catch (const IoError& error) {
      return names() == std::vector<std::string>{"other"} ? error.what() : "something is left";
    }
    return "no error";
  });
  if (text == kMayNotMount) GTEST_SKIP() << text;
  for (const char* word : {"writing", ".building at offset", "No space left", "--disk"})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST_F(OffloadBuildTest, ADirectoryThatCannotBeWrittenTo) {
  const auto checkpoint = checkpoint_of(wide_llama());
  write_file(directory_ / "file", "");
  place_ = directory_ / "file/below";
  expect_error<IoError>([&] { (void)open(*checkpoint); }, {place_, "--disk"});
  place_ = directory_.path();
  const std::string text = on_small_disk(place_, "ro", [&]() -> std::string {
    (void)open(*checkpoint);
    return "no error";
  });
  if (text == kMayNotMount) GTEST_SKIP() << text;
  for (const std::string& word : {place_, std::string("threw: "), std::string("--disk")})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST_F(OffloadBuildTest, AFileThatIsThereIsUsedFromAReadOnlyDirectory) {
  const auto checkpoint = checkpoint_of(wide_llama());
  (void)open(*checkpoint);
  const std::string text = in_child([&]() -> std::string {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount(place_.c_str(), place_.c_str(), nullptr, MS_BIND, nullptr) != 0 ||
        ::mount(nullptr, place_.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) != 0)
      return kMayNotMount;
    return open(*checkpoint) && !was_built() ? "used" : "built";
  });
  if (text == kMayNotMount) GTEST_SKIP() << text;
  EXPECT_EQ(text, "used");
}

TEST_F(OffloadBuildTest, WhatFailsInTheMiddleLeavesNothing) {
  std::atomic<int> reads = 0, stop = 0;
  const auto failing =
      checkpoint_of(wide_llama(), {.before_read = [&](const TensorInfo&, uint64_t) {
                      if (++reads == stop) throw ModelError("the model ends");
                    }});
  (void)failing->fingerprint();  // reads samples, once
  reads = 0;
  (void)open(*failing);
  const int all = reads;
  fs::remove(path(*failing));
  for (const int part : {2, 4, 6, 10}) {
    reads = 0;
    stop = all * part / 10;
    expect_error<ModelError>([&] { (void)open(*failing); }, {"the model ends"});
    EXPECT_TRUE(names().empty());
  }
  const auto checkpoint = checkpoint_of(wide_llama());
  const auto interrupted = [&] {
    (void)open_with(*checkpoint, budget_, threads_,
                    [](const std::string&) { throw std::runtime_error("interrupted"); });
  };
  expect_error<std::runtime_error>(interrupted, {"interrupted"});
  EXPECT_TRUE(names().empty());
  EXPECT_EQ(budget_.used(), 0u);
}

TEST_F(OffloadBuildTest, OneOfSeveralProcessesBuildsTheOthersWait) {
  const auto checkpoint = checkpoint_of(
      wide_llama(),
      {.before_read = [](const TensorInfo&, uint64_t) { std::this_thread::sleep_for(500us); }});
  int built = 0, waited = 0;
  std::vector<std::thread> starters;
  std::vector<std::string> texts(4);
  for (std::string& text : texts) {
    starters.emplace_back([&] {
      text = in_child([&] {
        ThreadPool threads(1);
        MemoryBudget budget("host memory", uint64_t{64} << 20);
        std::string said;
        const auto file = open_with(*checkpoint, budget, threads,
                                    [&](const std::string& line) { said += line + "\n"; });
        return said;
      });
    });
  }
  for (std::thread& starter : starters) starter.join();
  for (const std::string& text : texts) {
    built += text.find("offload file built") != std::string::npos ? 1 : 0;
    waited += text.find("waiting for another process that builds") != std::string::npos ? 1 : 0;
    EXPECT_EQ(text.find("threw"), std::string::npos) << text;
    EXPECT_EQ(text.find("died"), std::string::npos) << text;
  }
  EXPECT_EQ(built, 1);
  EXPECT_GE(waited, 1);
  EXPECT_EQ(names().size(), 1u);
  expect_images(*open(*checkpoint), *checkpoint);
  EXPECT_FALSE(was_built());
}

TEST_F(OffloadBuildTest, KilledAtRandomMomentsThenBuiltAgain) {
  const auto checkpoint = checkpoint_of(wide_llama()),
             other = checkpoint_of(wide_llama(), {.seed = 5});
  std::mt19937 random(11);
  int kills = 0, unfinished = 0;
  for (int round = 0; round < 30; ++round) {
    const pid_t child = ::fork();
    if (child == 0) {
      ThreadPool threads(1);
      MemoryBudget budget("host memory", 1 << 20);
      (void)open_with(*checkpoint, budget, threads);
      ::_exit(0);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    kills += WIFSIGNALED(status) ? 1 : 0;
    unfinished += fs::exists(path(*checkpoint) + kBuildingSuffix) ? 1 : 0;
    if (fs::exists(path(*checkpoint))) {
      (void)open(*checkpoint);
      EXPECT_FALSE(was_built()) << "a file with its final name was not whole";
      fs::remove(path(*checkpoint));
    }
  }
  EXPECT_GT(kills, 5);
  EXPECT_GT(unfinished, 0);
  // A build of another model tidies up, too.
  const auto file = open(*other);
  EXPECT_EQ(names().size(), 1u);
  expect_images(*file, *other);
  expect_images(*open(*checkpoint), *checkpoint);
  EXPECT_EQ(names().size(), 2u);
}

TEST_F(OffloadBuildTest, ABuilderThatStandsStillIsGivenUp) {
  fs::create_directories(place_);
  const std::string name = place_ + "/x.offload";
  const auto held = OffloadLock::try_acquire(name);
  ASSERT_NE(held, nullptr);
  EXPECT_EQ(OffloadLock::try_acquire(name), nullptr);
  std::string said;
  const auto acquire = [&] {
    (void)OffloadLock::acquire(
        name, [&](const std::string& line) { said = line; }, 0.2);
  };
  expect_error<IoError>(acquire, {name, "another process", "--disk"});
  EXPECT_NE(said.find("waiting"), std::string::npos);
  // One that goes on writing is waited for.
  std::atomic<bool> stop = false;
  std::thread builder([&, lock = OffloadLock::try_acquire(name + "2")]() mutable {
    for (int i = 0; i < 30; ++i) {
      write_file(name + "2" + kBuildingSuffix, "x");
      std::this_thread::sleep_for(20ms);
    }
    stop = true;
    lock.reset();
  });
  EXPECT_NE(OffloadLock::acquire(
                name + "2", [](const std::string&) {}, 0.3),
            nullptr);
  EXPECT_TRUE(stop);
  builder.join();
}

TEST_F(OffloadBuildTest, TheDirectoryListsWhatIsOursAndSparesWhatIsInUse) {
  const auto one = checkpoint_of(wide_llama()), two = checkpoint_of(wide_llama(), {.seed = 2});
  auto used = open(*one);
  (void)open(*two);
  write_file(place_ + "/notes.txt", "mine");
  write_file(place_ + "/my.offload", "mine");
  const std::string dead = place_ + "/0123456789abcdef-0-2-0123456789abcdef.offload";
  write_file(dead, "damaged");
  write_file(dead + kBuildingSuffix, "x");
  write_file(dead + kLockSuffix, "");
  write_file(place_ + "/headrace-AbCd12.temporary", "x");
  const std::string busy = place_ + "/1123456789abcdef-0-2-0123456789abcdef.offload";
  auto lock = OffloadLock::try_acquire(busy);
  write_file(busy + kBuildingSuffix, "x");

  const auto in_use = [&] {
    std::vector<std::string> paths;
    for (const OffloadEntry& entry : list_offload_directory(place_))
      if (entry.in_use) paths.push_back(entry.path);
    std::sort(paths.begin(), paths.end());
    return paths;
  };
  std::vector<std::string> expected = {path(*one), busy + kBuildingSuffix, busy + kLockSuffix};
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(in_use(), expected);
  std::string descriptions;
  for (const OffloadEntry& entry : list_offload_directory(place_)) {
    descriptions += entry.description + "; ";
    EXPECT_EQ(remove_offload_entry(entry), !entry.in_use && entry.path != dead + kLockSuffix)
        << entry.path;
  }
  EXPECT_NE(descriptions.find("small, layers 0 to 1"), std::string::npos) << descriptions;
  EXPECT_NE(descriptions.find("damaged"), std::string::npos) << descriptions;
  EXPECT_EQ(names().size(), 5u);  // the three in use, and two that are not ours
  used.reset();
  lock.reset();
  for (const OffloadEntry& entry : list_offload_directory(place_))
    EXPECT_TRUE(remove_offload_entry(entry)) << entry.path;
  EXPECT_EQ(names().size(), 2u);
}

}  // namespace
}  // namespace headrace::test
