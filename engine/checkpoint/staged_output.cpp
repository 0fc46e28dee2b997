#include "engine/checkpoint/staged_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "engine/error.h"
#include "engine/memory/budget.h"

namespace headrace {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& what, const std::string& path, int error) {
  std::string cure = "check the disk and run again";
  if (error == ENOSPC || error == EDQUOT) {
    cure = "free space on that disk, or write to another one";
  } else if (error == EFBIG) {
    cure = "raise the file size limit (ulimit -f unlimited)";
  } else if (error == EACCES || error == EPERM || error == EROFS) {
    cure = "choose a path that this user may write";
  } else if (error == ENOENT || error == ENOTDIR) {
    cure = "make its directory first (mkdir -p)";
  }
  throw IoError(what + " " + path + " failed: " + std::strerror(error) + "; " + cure);
}

[[noreturn]] void fail_full(const std::string& path, uint64_t bytes, int error) {
  struct statvfs disk {};
  if (error != ENOSPC || statvfs(path.c_str(), &disk) != 0) fail("allocating", path, error);
  throw IoError(path + " needs " + format_bytes(bytes) + " and its disk has " +
                format_bytes(disk.f_bavail * disk.f_frsize) +
                " free; free space there, or write to another disk");
}

bool same_inode(int fd, const std::string& path) {
  struct stat open {
  }, named{};
  return fstat(fd, &open) == 0 && lstat(path.c_str(), &named) == 0 && open.st_ino == named.st_ino &&
         open.st_dev == named.st_dev;
}

void remove_model_files(const std::string& directory) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, ignored)) {
    if (StagedOutput::is_model_file(entry.path().filename().string())) {
      fs::remove(entry.path(), ignored);
    }
  }
}

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

// A directory's entries are on disk only after this. Some file systems cannot; that is no failure.
void sync_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

bool StagedOutput::is_model_file(const std::string& name) {
  return name == "config.json" || name == "generation_config.json" ||
         name == "model.safetensors.index.json" || name.ends_with(".safetensors");
}

StagedOutput::StagedOutput(std::string out, bool is_directory)
    : out_(std::move(out)), is_directory_(is_directory) {
  while (out_.size() > 1 && out_.back() == '/') out_.pop_back();
  partial_ = out_ + ".partial";
  open_locked();
  if (!is_directory_) return;
  remove_model_files(partial_);
  if (!fs::is_empty(partial_)) {
    ::close(lock_);
    throw IoError(partial_ + " is in the way: it holds what headrace did not write; remove it");
  }
}

void StagedOutput::open_locked() {
  for (;;) {
    if (is_directory_ && ::mkdir(partial_.c_str(), 0777) != 0 && errno != EEXIST) {
      fail("making", partial_, errno);
    }
    const int flags = is_directory_ ? O_RDONLY | O_DIRECTORY : O_RDWR | O_CREAT;
    lock_ = ::open(partial_.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (lock_ < 0) fail("opening", partial_, errno);
    struct stat opened {};
    if (!is_directory_ && (fstat(lock_, &opened) != 0 || !S_ISREG(opened.st_mode))) {
      ::close(lock_);
      throw IoError(partial_ + " is in the way and not a regular file; choose another name");
    }
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
      ::close(lock_);
      throw IoError(partial_ +
                    " is being written by another process; wait for it, or choose another name");
    }
    // Whoever had the lock may have renamed or removed it before it let go.
    if (same_inode(lock_, partial_)) return;
    ::close(lock_);
  }
}

StagedOutput::~StagedOutput() {
  if (!committed_) remove_partial();
  for (const File& file : files_) {
    if (file.fd != lock_) ::close(file.fd);
  }
  ::close(lock_);
}

void StagedOutput::remove_partial() {
  if (is_directory_) {
    remove_model_files(partial_);
    ::rmdir(partial_.c_str());
  } else {
    ::unlink(partial_.c_str());
  }
}

size_t StagedOutput::add_file(const std::string& name, uint64_t bytes) {
  const std::string path = is_directory_ ? partial_ + "/" + name : partial_;
  int fd = lock_;
  if (is_directory_) {
    fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) fail("opening", path, errno);
  }
  files_.push_back({path, fd});
  if (::ftruncate(fd, 0) != 0) fail("emptying", path, errno);
  // So that a full disk is found at once. Where the file system cannot say, writing will find it.
  if (bytes > 0 && ::fallocate(fd, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno != EOPNOTSUPP && errno != ENOSYS) fail_full(path, bytes, errno);
    if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) fail("enlarging", path, errno);
  }
  return files_.size() - 1;
}

void StagedOutput::write(size_t file, uint64_t offset, std::span<const std::byte> data) const {
  while (!data.empty()) {
    const ssize_t count =
        ::pwrite(files_[file].fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("writing", files_[file].path, count == 0 ? EIO : errno);
    data = data.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
}

void StagedOutput::commit(bool replace) {
  for (const File& file : files_) {
    if (::fsync(file.fd) != 0) fail("syncing", file.path, errno);
  }
  if (is_directory_) sync_directory(partial_);
  rename_into_place(replace);
  committed_ = true;
  sync_directory(parent_of(out_));
}

void StagedOutput::rename_into_place(bool replace) {
  struct stat there {};
  const bool exists = ::lstat(out_.c_str(), &there) == 0;
  if (exists && is_directory_ && replace) {
    // Both names are valid at every moment; the old one then holds what was there before.
    if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, out_.c_str(), RENAME_EXCHANGE) != 0) {
      fail("replacing", out_, errno);
    }
    remove_partial();
    return;
  }
  // rename() takes the place of an empty directory, and fails where there is anything in it.
  if (is_directory_ || replace) {
    if (::rename(partial_.c_str(), out_.c_str()) != 0) fail("renaming to", out_, errno);
    return;
  }
  if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, out_.c_str(), RENAME_NOREPLACE) == 0)
    return;
  if (errno != EINVAL || exists) fail("renaming to", out_, errno);
  if (::rename(partial_.c_str(), out_.c_str()) != 0) fail("renaming to", out_, errno);
}

}  // namespace headrace
