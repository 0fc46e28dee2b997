// Files for transfers: what is left of them, what they reserve, what they refuse.
#include "engine/io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstring>

#include "engine/io/directory.h"
#include "engine/io/io_queue.h"
#include "engine/memory/budget.h"
#include "tests/unit/child_process.h"
#include "tests/unit/model_files.h"

namespace {
std::atomic<bool> refuse_nameless{false};
std::atomic<int> reserve_error{0};
}  // namespace

// These stand before the C library's.
extern "C" int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const int mode = va_arg(rest, int);
  va_end(rest);
  if (refuse_nameless && (flags & O_TMPFILE) == O_TMPFILE) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

extern "C" int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  if (reserve_error == 0) {
    return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
  }
  errno = reserve_error;
  return -1;
}

namespace headrace {
namespace {

using test::TempDir;

class FileTest : public testing::Test {
 protected:
  void TearDown() override {
    refuse_nameless = false;
    reserve_error = 0;
  }

  size_t names() const {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(directory_.path()), {}));
  }
  template <typename F>
  static void expect_io_error(const F& action, const std::vector<std::string>& parts) {
    try {
      action();
      ADD_FAILURE() << "no error";
    } catch (const IoError& error) {
      for (const std::string& part : parts)
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  TempDir directory_;
};

TEST_F(FileTest, ATemporaryFileHasNoName) {
  for (const bool fallback : {false, true}) {
    refuse_nameless = fallback;
    File file(directory_.path(), File::Mode::kTemporary);
    EXPECT_EQ(names(), 0u);
    EXPECT_FALSE(file.is_named());
    file.allocate(64 << 10);
    EXPECT_EQ(file.size(), uint64_t{64 << 10});
    MemoryBudget budget("test", 1 << 20);
    Buffer a = budget.allocate(8192, "a"), b = budget.allocate(8192, "b");
    std::memset(a.data(), 9, 8192);
    write_now(file, 4096, {a.data(), 8192});
    read_now(file, 4096, {b.data(), 8192});
    EXPECT_EQ(std::memcmp(a.data(), b.data(), 8192), 0);
    EXPECT_EQ(::fcntl(file.descriptor(), F_GETFL) & O_NONBLOCK, 0);
  }
}

TEST_F(FileTest, CreateEmptiesAndReadDoesNot) {
  const std::string path = directory_ / "f";
  test::write_file(path, std::string(5000, 'x'));
  {
    const File file(path, File::Mode::kRead);
    EXPECT_EQ(file.size(), 5000u);
    EXPECT_TRUE(file.is_named());
    EXPECT_EQ(::fcntl(file.descriptor(), F_GETFL) & O_NONBLOCK, 0);
  }
  const File file(path, File::Mode::kCreate);
  EXPECT_EQ(file.size(), 0u);
  file.sync();
  std::filesystem::remove(path);
  EXPECT_FALSE(file.is_named());
  test::write_file(path, "another");
  EXPECT_FALSE(file.is_named());
}

TEST_F(FileTest, WhatCannotBeOpened) {
  const auto open = [](const std::string& path, File::Mode mode) {
    return [=] { File(path, mode); };
  };
  const std::string missing = directory_ / "missing";
  expect_io_error(open(missing, File::Mode::kRead), {missing, "No such file"});
  expect_io_error(open(missing + "/f", File::Mode::kCreate), {missing, "for writing"});
  expect_io_error(open(missing, File::Mode::kTemporary), {missing, "No such file", "--disk"});
  expect_io_error(open(directory_.path(), File::Mode::kCreate), {"Is a directory"});
  expect_io_error(open(directory_.path(), File::Mode::kRead), {"not a regular file"});
  const std::string pipe = directory_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_io_error(open(pipe, File::Mode::kRead), {pipe});  // and does not wait for a writer
}

TEST_F(FileTest, AllocateFindsTheFullDiskNow) {
  const std::string text = test::on_small_disk(directory_.path(), "size=64k", [&]() -> std::string {
    File file(directory_.path(), File::Mode::kTemporary);
    file.allocate(32 << 10);
    file.allocate(128 << 10);
    return "no error";
  });
  if (text == test::kMayNotMount) GTEST_SKIP() << text;
  for (const std::string& word :
       {std::string("128.0 KiB cannot be reserved"), directory_.path(),
        std::string("No space left"), std::string("32.0 KiB free"), std::string("--disk")})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST_F(FileTest, AllocateWhereTheFileSystemCannotReserve) {
  reserve_error = EOPNOTSUPP;
  File file(directory_ / "f", File::Mode::kCreate);
  file.allocate(1 << 20);
  EXPECT_EQ(file.size(), uint64_t{1 << 20});
  EXPECT_EQ(file.allocated(), uint64_t{1 << 20});
  expect_io_error([&] { file.allocate(uint64_t{1} << 60); }, {"No space left", "--disk"});
  expect_io_error([&] { file.allocate(UINT64_MAX); }, {"too large", directory_.path()});
  reserve_error = EIO;
  expect_io_error([&] { file.allocate(1 << 20); }, {"Input/output error"});
}

TEST_F(FileTest, DirectoriesAreMade) {
  make_writable_directory(directory_ / "a/b/c");
  EXPECT_TRUE(std::filesystem::is_directory(directory_ / "a/b/c"));
  make_writable_directory(directory_ / "a/b/c");
  sync_directory(directory_ / "a");
  EXPECT_GT(free_bytes(directory_ / "a"), 0u);
  test::write_file(directory_ / "file", "x");
  const std::string below = directory_ / "file/d", file = directory_ / "file";
  expect_io_error([&] { make_writable_directory(below); }, {below, "Not a directory", "--disk"});
  expect_io_error([&] { make_writable_directory(file); }, {file, "--disk"});
  expect_io_error([&] { free_bytes(directory_ / "none"); }, {"none"});
  expect_io_error([&] { sync_directory(directory_ / "none"); }, {"none"});
}

TEST_F(FileTest, ADirectoryOnAReadOnlyDiskIsRefused) {
  const std::string text = test::on_small_disk(directory_.path(), "ro", [&]() -> std::string {
    make_writable_directory(directory_.path());
    return "no error";
  });
  if (text == test::kMayNotMount) GTEST_SKIP() << text;
  for (const std::string& word : {directory_.path(), std::string("--disk")})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

}  // namespace
}  // namespace headrace
