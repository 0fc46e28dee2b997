// Both kinds of IoQueue against a plain copy of the file, on disk and on tmpfs, with O_DIRECT and
// without, and with a system that moves less than it was asked to.
#include "engine/io/io_queue.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstring>
#include <filesystem>
#include <random>

#include "engine/error.h"
#include "engine/io/transfer.h"
#include "engine/memory/budget.h"
#include "tests/unit/child_process.h"
#include "tests/unit/fault_queue.h"
#include "tests/unit/model_files.h"

namespace {

std::atomic<bool> refuse_direct{false};
std::atomic<bool> move_little{false};
std::atomic<uint32_t> calls{0};

// How much of `bytes` the system moves when it is in a bad mood; 0 stands for EINTR.
size_t little_of(size_t bytes) {
  const uint32_t call = calls++;
  return call % 3 == 0 ? 0 : std::min<size_t>(bytes, call % 3 == 1 ? 4096 + 512 : 8192);
}

}  // namespace

// These stand before the C library's.
extern "C" int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const int mode = va_arg(rest, int);
  va_end(rest);
  if (refuse_direct && (flags & O_DIRECT) != 0) {
    errno = EINVAL;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

extern "C" ssize_t pread(int fd, void* to, size_t bytes, off_t offset) {
  if (move_little && (bytes = little_of(bytes)) == 0) {
    errno = EINTR;
    return -1;
  }
  return ::syscall(SYS_pread64, fd, to, bytes, offset);
}

extern "C" ssize_t pwrite(int fd, const void* from, size_t bytes, off_t offset) {
  if (move_little && (bytes = little_of(bytes)) == 0) {
    errno = EINTR;
    return -1;
  }
  return ::syscall(SYS_pwrite64, fd, from, bytes, offset);
}

namespace headrace {
namespace {

using test::TempDir;

constexpr size_t kPage = kIoAlignment;

std::string random_bytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

struct Setting {
  IoMethod method;
  bool in_memory;  // on tmpfs
  bool direct;     // O_DIRECT is not refused
  bool little;     // the system moves little at a time (threads only)
};

class IoQueueTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    if (GetParam().in_memory && ::access("/dev/shm", W_OK) != 0) {
      GTEST_SKIP() << "there is no /dev/shm to write to";
    }
    const std::string base =
        GetParam().in_memory ? "/dev/shm" : std::filesystem::temp_directory_path().string();
    std::string pattern = base + "/headrace-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = directory_ + "/file";
    refuse_direct = !GetParam().direct;
    try {
      make_io_queue(1, GetParam().method);
    } catch (const ResourceMissing& missing) {
      GTEST_SKIP() << missing.what();
    }
  }
  void TearDown() override {
    refuse_direct = move_little = false;
    std::error_code ignored;
    if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
  }

  std::unique_ptr<IoQueue> queue(int depth) {
    move_little = GetParam().little;
    return make_io_queue(depth, GetParam().method);
  }
  std::string content() {
    move_little = false;
    return test::read_file(path_);
  }
  static std::span<std::byte> pages(Buffer& buffer, size_t first, size_t count) {
    return {buffer.data() + first * kPage, count * kPage};
  }
  static std::string text(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  // The IoError of a wait.
  static std::string failure(IoQueue& queue, IoTicket ticket) {
    try {
      queue.wait(ticket);
    } catch (const IoError& error) {
      return error.what();
    }
    return "";
  }

  std::string directory_, path_;
  MemoryBudget budget_{"host memory", uint64_t{1} << 30};
};

TEST_P(IoQueueTest, RandomReadsWaitedForInAnyOrder) {
  constexpr size_t kFilePages = 512, kSlots = 24, kMostPages = 16;
  const std::string bytes = random_bytes(kFilePages * kPage, 1);
  test::write_file(path_, bytes);
  const File file(path_, File::Mode::kRead);
  EXPECT_EQ(file.size(), bytes.size());
  EXPECT_TRUE(GetParam().direct || !file.is_direct());
  Buffer memory = budget_.allocate(kSlots * kMostPages * kPage, "test");
  const auto q = queue(8);
  // Half of the memory is registered, so both ways are used.
  q->register_memory(pages(memory, 0, kSlots / 2 * kMostPages));

  struct Slot {
    IoTicket ticket;
    size_t page, count;
  };
  std::vector<std::optional<Slot>> slots(kSlots);
  std::mt19937 random(2);
  int checked = 0;
  for (int i = 0; i < 3000; ++i) {
    if (i == 1500) q->register_file(file);
    const size_t s = random() % kSlots;
    if (slots[s]) {
      if (random() % 4 == 0) (void)q->finished(slots[s]->ticket);
      q->wait(slots[s]->ticket);
      EXPECT_TRUE(q->finished(slots[s]->ticket));
      ASSERT_EQ(text(pages(memory, s * kMostPages, slots[s]->count)),
                bytes.substr(slots[s]->page * kPage, slots[s]->count * kPage));
      ++checked;
    }
    const size_t count = 1 + random() % kMostPages, page = random() % (kFilePages - count + 1);
    slots[s] = {q->read(file, page * kPage, pages(memory, s * kMostPages, count)), page, count};
  }
  EXPECT_GT(checked, 2500);
  EXPECT_EQ(calls.exchange(0) > 6000, GetParam().little);
}

TEST_P(IoQueueTest, RandomWritesThenTheWholeFile) {
  constexpr size_t kFilePages = 256, kMostPages = 8;
  std::string expected(kFilePages * kPage, '\0');
  Buffer memory = budget_.allocate(kFilePages * kPage, "test");
  std::mt19937 random(3);
  File file(path_, File::Mode::kCreate);
  file.allocate(kFilePages * kPage);
  const auto q = queue(6);
  q->register_memory(pages(memory, 0, kFilePages / 2));
  for (int round = 0; round < 4; ++round) {
    const std::string bytes = random_bytes(kFilePages * kPage, 10 + round);
    std::memcpy(memory.data(), bytes.data(), bytes.size());
    std::vector<IoTicket> tickets;
    for (size_t page = 0; page < kFilePages;) {
      const size_t count = std::min(1 + random() % kMostPages, kFilePages - page);
      if (random() % 4 != 0) {
        tickets.push_back(q->write(file, page * kPage, pages(memory, page, count)));
        expected.replace(page * kPage, count * kPage, bytes, page * kPage, count * kPage);
      }
      page += count;
    }
    std::shuffle(tickets.begin(), tickets.end(), random);
    for (const IoTicket ticket : tickets) q->wait(ticket);
  }
  file.sync();
  EXPECT_TRUE(content() == expected);
}

TEST_P(IoQueueTest, MoreTransfersThanDepth) {
  const std::string bytes = random_bytes(200 * kPage, 4);
  test::write_file(path_, bytes);
  const File file(path_, File::Mode::kRead);
  Buffer memory = budget_.allocate(200 * kPage, "test");
  for (const int depth : {1, 2, 5}) {
    std::memset(memory.data(), 0, memory.size());
    const auto q = queue(depth);
    EXPECT_EQ(q->depth(), depth);
    IoTicket last = 0;
    for (size_t page = 0; page < 200; ++page) {
      const IoTicket ticket = q->read(file, page * kPage, pages(memory, page, 1));
      EXPECT_GT(ticket, last);
      last = ticket;
    }
    for (IoTicket ticket = last; ticket > 0; --ticket) q->wait(ticket);
    EXPECT_TRUE(text(pages(memory, 0, 200)) == bytes);
  }
}

TEST_P(IoQueueTest, TheEndOfTheFileIsAFailureOfItsTicketOnly) {
  for (const size_t tail : {size_t{0}, size_t{100}, size_t{512}, size_t{4095}}) {
    SCOPED_TRACE(tail);
    const std::string bytes = random_bytes(9 * kPage + tail, 5);
    test::write_file(path_, bytes);
    const File file(path_, File::Mode::kRead);
    Buffer memory = budget_.allocate(16 * kPage, "test");
    const auto q = queue(4);
    const IoTicket good = q->read(file, 0, pages(memory, 0, 4));
    const IoTicket over = q->read(file, 7 * kPage, pages(memory, 4, 4));
    const IoTicket beyond = q->read(file, 20 * kPage, pages(memory, 8, 1));
    for (int i = 0; i < 2; ++i) {
      const std::string message = failure(*q, over);
      EXPECT_NE(message.find(path_), std::string::npos) << message;
      EXPECT_NE(message.find("offset " + std::to_string(bytes.size())), std::string::npos)
          << message;
      EXPECT_NE(message.find("truncated"), std::string::npos) << message;
      EXPECT_NE(failure(*q, beyond), "");
    }
    // What comes before and after a failure is not touched by it.
    for (int i = 0; i < 40; ++i) q->wait(q->read(file, 2 * kPage, pages(memory, 12, 1)));
    EXPECT_EQ(failure(*q, good), "");
    EXPECT_EQ(text(pages(memory, 0, 4)), bytes.substr(0, 4 * kPage));
    EXPECT_EQ(text(pages(memory, 12, 1)), bytes.substr(2 * kPage, kPage));
    EXPECT_NE(failure(*q, over), "");
    EXPECT_TRUE(q->finished(over));
  }
}

TEST_P(IoQueueTest, ErrorsOfTheSystem) {
  test::write_file(path_, random_bytes(kPage, 6));
  const File file(path_, File::Mode::kRead);
  Buffer memory = budget_.allocate(kPage, "test");
  const auto q = queue(2);
  const IoTicket ticket = q->write(file, 0, pages(memory, 0, 1));
  const std::string message = failure(*q, ticket);
  EXPECT_NE(message.find("writing " + path_ + " at offset 0 failed: Bad file"), std::string::npos)
      << message;
  EXPECT_EQ(failure(*q, ticket), message);
}

TEST_P(IoQueueTest, BugsOfTheCaller) {
  File file(path_, File::Mode::kCreate);
  file.allocate(2 * kPage);
  Buffer memory = budget_.allocate(4 * kPage, "test");
  const auto q = queue(2);
  EXPECT_THROW(q->read(file, 17, pages(memory, 0, 1)), std::logic_error);
  EXPECT_THROW(q->read(file, 0, {memory.data(), 100}), std::logic_error);
  EXPECT_THROW(q->read(file, 0, {memory.data() + 64, kPage}), std::logic_error);
  EXPECT_THROW(q->write(file, kPage, pages(memory, 0, 2)), std::logic_error);
  EXPECT_THROW(q->wait(77), std::out_of_range);
  q->wait(q->write(file, kPage, pages(memory, 0, 1)));
  EXPECT_EQ(file.size(), 2 * kPage);
}

TEST_P(IoQueueTest, TheDestructorWaits) {
  const std::string bytes = random_bytes(256 * kPage, 7);
  Buffer memory = budget_.allocate(bytes.size(), "test");
  std::memcpy(memory.data(), bytes.data(), bytes.size());
  for (int round = 0; round < 5; ++round) {
    const File file(path_, File::Mode::kCreate);
    {
      const auto q = queue(16);
      for (size_t page = 0; page < 256; page += 4)
        (void)q->write(file, page * kPage, pages(memory, page, 4));
    }
    ASSERT_TRUE(content() == bytes) << "round " << round;
  }
}

TEST_P(IoQueueTest, TransfersOfNothing) {
  const File file(path_, File::Mode::kCreate);
  const auto q = queue(2);
  q->wait(q->read(file, 0, {}));
  q->wait(q->write(file, 0, {}));
  EXPECT_EQ(file.size(), 0u);
}

TEST_P(IoQueueTest, DescriptionNamesTheKind) {
  const std::string text = queue(3)->description();
  EXPECT_EQ(text, GetParam().method == IoMethod::kUring ? "io_uring" : "3 threads");
}

TEST_P(IoQueueTest, AQueueWithFaults) {
  test::write_file(path_, random_bytes(8 * kPage, 8));
  const File file(path_, File::Mode::kRead);
  Buffer memory = budget_.allocate(8 * kPage, "test");
  test::FaultQueue faulty(queue(2), {.failing = 2, .delay = std::chrono::milliseconds(20)});
  const IoTicket first = faulty.read(file, 0, pages(memory, 0, 1));
  const IoTicket second = faulty.read(file, kPage, pages(memory, 1, 1));
  const IoTicket third = faulty.read(file, 2 * kPage, pages(memory, 2, 1));
  EXPECT_FALSE(faulty.finished(third));
  EXPECT_EQ(failure(faulty, third), "");
  EXPECT_TRUE(faulty.finished(third));
  EXPECT_NE(failure(faulty, second).find("offset 4096: Input/output error"), std::string::npos);
  EXPECT_EQ(failure(faulty, first), "");
  EXPECT_EQ(faulty.asked().size(), 3u);
}

std::string setting_name(const testing::TestParamInfo<Setting>& info) {
  const Setting& s = info.param;
  return std::string(s.method == IoMethod::kUring ? "Uring" : "Threads") +
         (s.in_memory ? "Tmpfs" : "Disk") + (s.direct ? "" : "NotDirect") +
         (s.little ? "LittleAtATime" : "");
}

INSTANTIATE_TEST_SUITE_P(Kinds, IoQueueTest,
                         testing::Values(Setting{IoMethod::kUring, false, true, false},
                                         Setting{IoMethod::kUring, false, false, false},
                                         Setting{IoMethod::kUring, true, true, false},
                                         Setting{IoMethod::kUring, true, false, false},
                                         Setting{IoMethod::kThreads, false, true, false},
                                         Setting{IoMethod::kThreads, true, false, false},
                                         Setting{IoMethod::kThreads, false, false, true},
                                         Setting{IoMethod::kThreads, false, true, true}),
                         setting_name);

// Both kinds move what advance() says.
TEST(Transfer, GoesOnAfterAShortPieceFromTheLastAlignedPlace) {
  TempDir directory;
  const File file(directory / "f", File::Mode::kCreate);
  io_detail::Transfer t{&file, 0, nullptr, 8 * kPage, false};
  EXPECT_TRUE(advance(t, -EINTR));
  EXPECT_EQ(t.moved, 0u);
  EXPECT_TRUE(advance(t, 2 * kPage));
  EXPECT_EQ(t.next_offset(), 2 * kPage);
  EXPECT_TRUE(advance(t, kPage + 512));
  EXPECT_EQ(t.moved, 3 * kPage);
  EXPECT_TRUE(advance(t, -EAGAIN));
  EXPECT_FALSE(advance(t, 5 * kPage));
  EXPECT_EQ(t.failure, "");
  EXPECT_EQ(t.moved, 8 * kPage);

  // A disk error behind a short piece is not taken for the end of the file.
  io_detail::Transfer broken{&file, 0, nullptr, 8 * kPage, false};
  EXPECT_TRUE(advance(broken, kPage + 512));
  EXPECT_FALSE(advance(broken, -EIO));
  EXPECT_NE(broken.failure.find("Input/output error"), std::string::npos) << broken.failure;
  EXPECT_NE(broken.failure.find("offset 4096"), std::string::npos) << broken.failure;

  io_detail::Transfer full{&file, 0, nullptr, 8 * kPage, true};
  EXPECT_TRUE(advance(full, kPage + 512));
  EXPECT_FALSE(advance(full, -ENOSPC));
  EXPECT_NE(full.failure.find("--disk"), std::string::npos) << full.failure;
  io_detail::Transfer stuck{&file, 0, nullptr, 8 * kPage, true};
  EXPECT_FALSE(advance(stuck, 0));
  EXPECT_NE(stuck.failure.find("writing"), std::string::npos) << stuck.failure;
}

TEST(Transfer, PiecesStayBelowWhatOneCallMoves) {
  io_detail::Transfer t{nullptr, 0, nullptr, size_t{5} << 30, false};
  EXPECT_EQ(t.next_bytes(), size_t{1} << 30);
  t.moved = (size_t{5} << 30) - kPage;
  EXPECT_EQ(t.next_bytes(), kPage);
}

TEST(IoQueue, AutoTakesUringOrSaysWhyNot) {
  const std::string text = make_io_queue(4)->description();
  EXPECT_TRUE(text == "io_uring" || text.starts_with("4 threads (io_uring: ")) << text;
}

TEST(IoQueue, ReadAndWriteNow) {
  TempDir directory;
  const File file(directory / "f", File::Mode::kCreate);
  MemoryBudget budget("test", 1 << 20);
  Buffer a = budget.allocate(kPage, "a"), b = budget.allocate(kPage, "b");
  std::memset(a.data(), 7, kPage);
  write_now(file, kPage, {a.data(), kPage});
  read_now(file, kPage, {b.data(), kPage});
  EXPECT_EQ(std::memcmp(a.data(), b.data(), kPage), 0);
  EXPECT_THROW(read_now(file, 2 * kPage, {b.data(), kPage}), IoError);
}

TEST(IoQueue, AFullDiskIsNamed) {
  TempDir directory;
  for (const IoMethod method : {IoMethod::kAuto, IoMethod::kThreads}) {
    const std::string text =
        test::on_small_disk(directory.path(), "size=64k", [&]() -> std::string {
          const File file(directory / "f", File::Mode::kCreate);
          MemoryBudget budget("test", 1 << 20);
          Buffer memory = budget.allocate(128 << 10, "test");
          std::memset(memory.data(), 1, memory.size());
          const auto q = make_io_queue(2, method);
          q->wait(q->write(file, 0, {memory.data(), memory.size()}));
          return "no error";
        });
    if (text == test::kMayNotMount) GTEST_SKIP() << text;
    for (const char* word : {"threw: writing ", "/f at offset", "No space left", "--disk"})
      EXPECT_NE(text.find(word), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace headrace
