#include "engine/memory/offload_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "engine/error.h"
#include "engine/io/directory.h"
#include "engine/io/io_queue.h"
#include "engine/memory/offload_directory.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;
using Say = std::function<void(const std::string&)>;

constexpr uint64_t kMostPerBuffer = 8 << 20;

// As large as is useful, without taking more than half of what the budget has left.
uint64_t buffer_bytes(const MemoryBudget& budget) {
  const uint64_t share = budget.available() / 4 / kChecksumBlock * kChecksumBlock;
  return std::clamp(share, kChecksumBlock, kMostPerBuffer);
}

// A name that goes unless the file behind it got its final one.
class Unfinished {
 public:
  explicit Unfinished(std::string path) : path_(std::move(path)) {}
  ~Unfinished() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;

  const std::string& path() const { return path_; }
  void rename_to(const std::string& name) {
    if (::rename(path_.c_str(), name.c_str()) != 0) {
      throw IoError(path_ + " cannot be renamed to " + name + ": " + std::strerror(errno));
    }
    path_.clear();
  }

 private:
  std::string path_;
};

class Progress {
 public:
  Progress(uint64_t bytes, const Say& say) : bytes_(bytes), say_(say) {}

  void add(uint64_t bytes) {
    done_ += bytes;
    const auto now = Clock::now();
    if (now < next_) return;
    next_ = now + std::chrono::seconds(1);
    char percent[16];
    std::snprintf(percent, sizeof percent, "%.0f %%",
                  100 * static_cast<double>(done_) / static_cast<double>(bytes_));
    say_("offload file: " + std::string(percent) + " of " + format_bytes(bytes_) + ", " + rate());
  }
  std::string rate() const {
    return format_bytes(static_cast<uint64_t>(static_cast<double>(done_) / seconds())) + "/s";
  }
  double seconds() const {
    return std::max(1e-6, std::chrono::duration<double>(Clock::now() - start_).count());
  }

 private:
  uint64_t bytes_, done_ = 0;
  const Say& say_;
  Clock::time_point start_ = Clock::now(), next_ = start_ + std::chrono::seconds(1);
};

class Builder {
 public:
  Builder(const File& file, const OffloadHeader& header, const Checkpoint& checkpoint,
          MemoryBudget& budget, ThreadPool& threads)
      : file_(file),
        header_(header),
        checkpoint_(checkpoint),
        threads_(threads),
        chunk_(buffer_bytes(budget)),
        checksums_(header.blocks) {
    for (Slot& slot : slots_) slot.buffer = budget.allocate(chunk_, "building the offload file");
    queue_ = make_io_queue(2);
  }

  void write_unit(const WeightUnit& unit, const OffloadHeader::Unit& place, Progress& progress) {
    for (uint64_t from = 0; from < place.bytes; from += chunk_) {
      const uint64_t bytes = std::min(chunk_, place.bytes - from);
      Slot& slot = slots_[next_slot_];
      next_slot_ = 1 - next_slot_;
      queue_->wait(slot.written);
      const std::span<std::byte> data(slot.buffer.data(), bytes);
      pack_image(checkpoint_, unit, from, data, threads_);
      sum_up(data, place.first_block + from / kChecksumBlock);
      slot.written = queue_->write(file_, place.offset + from, data);
      drop_sources(checkpoint_, unit, from, from + bytes);
      progress.add(bytes);
    }
    // What the kernel read ahead, beyond the end of one tensor and into another that was done.
    drop_sources(checkpoint_, unit, 0, unit.image_bytes);
  }

  // Once all units are written.
  void write_header(MemoryBudget& budget) {
    for (const Slot& slot : slots_) queue_->wait(slot.written);
    for (Slot& slot : slots_) slot.buffer = Buffer();
    write_aligned(budget, header_.header_bytes, header_.encode_table(checksums_));
    write_aligned(budget, 0, header_.encode());
  }

 private:
  struct Slot {
    Buffer buffer;
    IoTicket written = 0;
  };

  void sum_up(std::span<const std::byte> data, size_t first_block) {
    const auto blocks = static_cast<int64_t>((data.size() + kChecksumBlock - 1) / kChecksumBlock);
    threads_.parallel_for(blocks, [&](int64_t i) {
      const uint64_t at = static_cast<uint64_t>(i) * kChecksumBlock;
      checksums_[first_block + static_cast<size_t>(i)] =
          checksum(data.subspan(at, std::min(kChecksumBlock, data.size() - at)));
    });
  }

  void write_aligned(MemoryBudget& budget, uint64_t offset, const std::vector<std::byte>& bytes) {
    Buffer buffer = budget.allocate(bytes.size(), "building the offload file");
    std::memcpy(buffer.data(), bytes.data(), bytes.size());
    write_now(file_, offset, {buffer.data(), bytes.size()});
  }

  const File& file_;
  const OffloadHeader& header_;
  const Checkpoint& checkpoint_;
  ThreadPool& threads_;
  const uint64_t chunk_;
  std::vector<uint64_t> checksums_;
  Slot slots_[2];
  size_t next_slot_ = 0;
  std::unique_ptr<IoQueue> queue_;  // goes first: it may still write from the buffers
};

}  // namespace

void build_offload_file(const std::string& path, const OffloadHeader& header,
                        const Checkpoint& checkpoint, const WeightLayout& layout,
                        MemoryBudget& budget, ThreadPool& threads, const Say& say) {
  const std::string directory = std::filesystem::path(path).parent_path().string();
  Unfinished unfinished(path + kBuildingSuffix);
  File file(unfinished.path(), File::Mode::kCreate);
  file.allocate(header.file_bytes);
  say("building the offload file " + path + " (" + format_bytes(header.file_bytes) + ")");
  Progress progress(header.file_bytes, say);
  {
    Builder builder(file, header, checkpoint, budget, threads);
    for (size_t i = 0; i < layout.units.size(); ++i) {
      builder.write_unit(layout.units[i], header.units[i], progress);
    }
    builder.write_header(budget);
  }
  for (const WeightUnit& unit : layout.units) drop_sources(checkpoint, unit, 0, unit.image_bytes);
  file.sync();
  if (!file.is_direct()) {
    (void)::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
  }
  unfinished.rename_to(path);
  sync_directory(directory.empty() ? "." : directory);
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.1f s", progress.seconds());
  say("offload file built in " + std::string(seconds) + ", " + progress.rate());
}

}  // namespace headrace
