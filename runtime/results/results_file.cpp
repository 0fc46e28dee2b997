#include "runtime/results/results_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <optional>
#include <stdexcept>
#include <utility>

#include "engine/error.h"
#include "runtime/error.h"
#include "runtime/requests/id_set.h"
#include "runtime/results/background_sync.h"
#include "runtime/results/file_io.h"
#include "runtime/results/manifest.h"
#include "runtime/results/result_json.h"
#include "runtime/results/results_scan.h"

namespace headrace {
namespace {

// Whoever holds the lock may write. It belongs to the open file, so the kernel lets go of it when
// the process ends, however it ends.
void lock_file(const OpenFile& file) {
  if (::flock(file.fd(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      throw UsageError("another run is writing " + file.path() +
                       ": wait until it is done, or give another --output");
    }
    throw IoError("locking " + file.path() + " failed: " + std::strerror(errno) +
                  ". Put the output on a file system with locks (flock)");
  }
  struct stat locked {
  }, named{};
  const bool same = ::fstat(file.fd(), &locked) == 0 && ::stat(file.path().c_str(), &named) == 0 &&
                    locked.st_dev == named.st_dev && locked.st_ino == named.st_ino;
  if (!same) {
    throw UsageError(file.path() + " was moved or deleted while it was opened: run again");
  }
}

int64_t size_of(const OpenFile& file) {
  struct stat status {};
  if (::fstat(file.fd(), &status) != 0) throw_io("looking at " + file.path(), errno);
  if (!S_ISREG(status.st_mode)) {
    throw UsageError(file.path() +
                     " is not a regular file, so a run could not be resumed from it: "
                     "give a file, or --output - for standard output");
  }
  return status.st_size;
}

// Locked, and with nothing in it that a run must not add to.
std::unique_ptr<OpenFile> open_results(const std::string& path, bool resume) {
  auto file = std::make_unique<OpenFile>(path, O_RDWR | O_CREAT | O_APPEND, "write");
  lock_file(*file);
  const int64_t size = size_of(*file);
  if (size > 0 && !resume) {
    throw UsageError("the output file " + path +
                     " already holds data: continue that run with --resume, or move the file away");
  }
  if (size > 0 && !manifest_exists(path)) {
    throw UsageError("cannot resume " + path + ": " + manifest_path(path) +
                     " is not there, so nothing says which model made these results. Put it back, "
                     "or move the results away and run without --resume");
  }
  return file;
}

}  // namespace

void ResultsFile::check_path(const std::string& path, bool resume) {
  if (path == "-") return;
  struct stat status {};
  const bool is_new = ::lstat(path.c_str(), &status) != 0 && errno == ENOENT;
  const auto file = open_results(path, resume);
  if (is_new) ::unlink(path.c_str());
}

struct ResultsFile::Impl {
  explicit Impl(Options given) : options(std::move(given)) {}
  void open_stdout();
  void open_file(const Manifest& manifest);
  void append_line(const std::string& custom_id, uint64_t digest, std::string line);
  void write_line(const std::string& line);
  void check_sync();

  const Options options;
  ResultFormat format{options.token_ids, options.token_text, options.token_raw_bytes,
                      options.is_special};
  std::unique_ptr<OpenFile> file;
  IdSet ids;
  IdSet lines;  // ids with the digests of their lines
  int64_t resumed = 0;
  int64_t resumed_errors = 0;
  int64_t end = 0;  // of the last whole line
  // Why the file can no longer be appended to; empty: it can.
  std::string broken;
  bool closed = false;
  std::optional<BackgroundSync> sync;  // none for standard output; ends before `file` is closed
};

void ResultsFile::Impl::open_stdout() {
  if (options.resume) {
    throw UsageError("--resume needs a results file to go on with: give --output a file name");
  }
  file.reset(new OpenFile(OpenFile::standard_output()));
}

void ResultsFile::Impl::open_file(const Manifest& manifest) {
  const std::string& path = options.path;
  file = open_results(path, options.resume);
  const int64_t size = size_of(*file);
  if (options.resume && manifest_exists(path)) {
    check_manifest(path, manifest);
  } else {
    write_manifest(path, manifest);
  }
  ResultsScan scan = scan_results(*file);
  if (scan.whole_bytes < size && ::ftruncate(file->fd(), scan.whole_bytes) != 0) {
    throw_io("cutting a torn line off " + path, errno);
  }
  file->sync();
  ids = std::move(scan.ids);
  lines = std::move(scan.lines);
  resumed = scan.records;
  resumed_errors = scan.errors;
  end = scan.whole_bytes;
  sync.emplace(file->fd(), end);
}

// A sync that failed may have lost anything since the last good one, although the file still reads
// well from the page cache. That part is cut off, so that --resume makes it again.
void ResultsFile::Impl::check_sync() {
  if (broken.empty() && sync && sync->error() != 0) {
    const bool cut = ::ftruncate(file->fd(), sync->durable()) == 0;
    broken = "syncing " + file->path() + " failed: " + std::strerror(sync->error()) +
             (cut ? ". What was not on disk for certain was cut off again"
                  : ". The end of the file may be lost") +
             ": check the disk and run again with --resume";
  }
  if (!broken.empty()) throw IoError(broken);
}

void ResultsFile::Impl::write_line(const std::string& line) {
  try {
    file->write_all(line);
  } catch (const IoError& error) {
    if (!sync) throw;
    if (::ftruncate(file->fd(), end) != 0) {
      broken = std::string(error.what()) +
               ". Cutting off the torn line failed, too: " + std::strerror(errno) +
               " (--resume will drop it)";
      throw IoError(broken);
    }
    throw;
  }
}

void ResultsFile::Impl::append_line(const std::string& custom_id, uint64_t digest,
                                    std::string line) {
  if (closed) throw std::logic_error("append to a results file that is closed");
  check_sync();
  if (ids.contains(custom_id)) {
    throw std::logic_error("a second result for custom_id " + custom_id);
  }
  line += '\n';
  write_line(line);
  ids.insert(custom_id);
  lines.insert_hash(custom_id_hash(custom_id, digest));
  end += static_cast<int64_t>(line.size());
  if (sync) sync->written(end);
}

ResultsFile::ResultsFile(Options options, const Manifest& manifest)
    : impl_(std::make_unique<Impl>(std::move(options))) {
  if (impl_->options.path == "-") {
    impl_->open_stdout();
  } else {
    impl_->open_file(manifest);
  }
}

ResultsFile::~ResultsFile() {
  try {
    close();
  } catch (const IoError&) {
    // Who wants to know calls close() first.
  }
}

bool ResultsFile::has(std::string_view custom_id, uint64_t digest) const {
  if (!impl_->ids.contains(custom_id)) return false;
  if (impl_->lines.contains_hash(custom_id_hash(custom_id, digest))) return true;
  throw UsageError("cannot resume " + impl_->options.path + ": it has a result for custom_id \"" +
                   std::string(custom_id) +
                   "\" that answers another request than the input has now. Was the input changed? "
                   "Give a changed request a custom_id of its own (one without has the number of "
                   "its line), or give another --output");
}

int64_t ResultsFile::resumed() const { return impl_->resumed; }
int64_t ResultsFile::resumed_errors() const { return impl_->resumed_errors; }

void ResultsFile::append(const RequestResult& result) {
  impl_->append_line(result.custom_id, result.digest,
                     result_line(result, impl_->format, std::time(nullptr)));
}

void ResultsFile::append(const BadLine& error) {
  impl_->append_line(error.custom_id, error.digest, error_line(error));
}

void ResultsFile::close() {
  impl_->closed = true;
  if (impl_->sync) impl_->sync->finish();
  impl_->check_sync();
}

}  // namespace headrace
