#include "engine/memory/offload_file.h"

#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "engine/error.h"
#include "engine/io/directory.h"
#include "engine/io/io_queue.h"
#include "engine/memory/offload_directory.h"
#include "engine/memory/offload_writer.h"

namespace headrace {
namespace {

void check_room(const OffloadPlace& place, uint64_t need, uint64_t room, const char* what,
                const char* cure) {
  if (need <= room) return;
  throw DoesNotFit("the offload file does not fit:\n  needed in " + place.directory + ": " +
                   format_bytes(need) + "\n  " + what + ": " + format_bytes(room) + "\n" + cure);
}

// Lets the processes that use a file keep it from `headrace clean`. Best effort: not every file
// system has locks.
void mark_used(const File& file) { (void)::flock(file.descriptor(), LOCK_SH); }

}  // namespace

OffloadFile::OffloadFile(const std::string& path, OffloadHeader header)
    : header_(std::move(header)), file_(path, File::Mode::kRead) {
  mark_used(file_);
}

std::string OffloadFile::read_tables(MemoryBudget& budget) {
  const uint64_t size = file_.size();
  if (size < header_.header_bytes + header_.table_bytes) return "is truncated";
  Buffer bytes =
      budget.allocate(std::max(header_.header_bytes, header_.table_bytes), "offload file's tables");
  const std::span header(bytes.data(), header_.header_bytes);
  read_now(file_, 0, header);
  if (const std::string reason = header_.mismatch(header); !reason.empty()) return reason;
  if (size != header_.file_bytes) return "has the wrong length";
  const std::span section(bytes.data(), header_.table_bytes);
  read_now(file_, header_.header_bytes, section);
  auto checksums = header_.decode_table(section);
  if (!checksums) return "has a damaged table";
  checksums_ = std::move(*checksums);
  return "";
}

std::unique_ptr<OffloadFile> OffloadFile::open(const std::string& path, const OffloadHeader& header,
                                               MemoryBudget& budget, std::string& reason) {
  reason = "";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return nullptr;
  std::unique_ptr<OffloadFile> file;
  try {
    file.reset(new OffloadFile(path, header));
  } catch (const IoError&) {
    if (!std::filesystem::exists(path, error)) return nullptr;  // removed meanwhile
    throw;
  }
  try {
    reason = file->read_tables(budget);
  } catch (const IoError& unreadable) {
    reason = std::string("cannot be read (") + unreadable.what() + ")";
  }
  // Removed or replaced while it was opened.
  if (reason.empty() && file->file_.is_named()) return file;
  return nullptr;
}

std::unique_ptr<OffloadFile> OffloadFile::open_or_build(
    const OffloadPlace& place, const Checkpoint& checkpoint, const StageRange& range,
    const WeightLayout& layout, MemoryBudget& budget, ThreadPool& threads, const Say& say) {
  const OffloadHeader header(checkpoint, range, layout);
  const std::string path = (std::filesystem::path(place.directory) / header.file_name()).string();
  check_room(place, header.file_bytes, place.disk_budget, "disk budget",
             "give a larger --disk-budget, a larger --host-memory, or use more ranks");
  std::string reason;
  if (auto file = open(path, header, budget, reason)) return file;

  make_writable_directory(place.directory);
  const auto lock = OffloadLock::acquire(path, say);
  // The process that was waited for has built it, if all went well.
  if (auto file = open(path, header, budget, reason)) return file;
  if (!reason.empty()) say(path + " " + reason + ": it is built anew");
  std::error_code error;
  if (std::filesystem::remove(path, error); error) {
    throw IoError(path + " cannot be removed: " + error.message() + "; give another --disk");
  }
  remove_unfinished(place.directory);
  check_room(place, header.file_bytes, free_bytes(place.directory), "free there",
             "free some space (headrace clean), give another --disk, or use more ranks");
  build_offload_file(path, header, checkpoint, layout, budget, threads, say);
  if (auto file = open(path, header, budget, reason)) return file;
  throw IoError(path + " was just built, but " + (reason.empty() ? "is gone" : reason) +
                "; give a --disk on another disk");
}

uint64_t OffloadFile::room(const OffloadPlace& place, const Checkpoint& checkpoint,
                           const StageRange& range, const WeightLayout& layout, int sharing) {
  std::error_code error;
  const std::filesystem::path directory = std::filesystem::absolute(place.directory, error);
  const OffloadHeader header(checkpoint, range, layout);
  const uintmax_t own = std::filesystem::file_size(directory / header.file_name(), error);
  const uint64_t there = error ? 0 : std::min<uint64_t>(own, header.file_bytes);
  std::filesystem::path parent = directory;
  while (!std::filesystem::exists(parent, error) && parent.has_relative_path()) {
    parent = parent.parent_path();
  }
  try {
    const uint64_t free = free_bytes(parent.string()) / static_cast<uint64_t>(sharing);
    return std::min(place.disk_budget, free + there);
  } catch (const IoError&) {
    return place.disk_budget;
  }
}

void OffloadFile::verify(size_t unit, uint64_t from, std::span<const std::byte> data) const {
  const OffloadHeader::Unit& place = header_.units.at(unit);
  const bool in_image = from <= place.bytes && data.size() <= place.bytes - from;
  const uint64_t to = from + data.size();
  if (!in_image || from % kChecksumBlock != 0 || (to % kChecksumBlock != 0 && to != place.bytes)) {
    throw std::logic_error("verify: not whole blocks of the image of the " + place.name);
  }
  for (uint64_t at = from; at < to; at += kChecksumBlock) {
    const auto block = data.subspan(at - from, std::min(kChecksumBlock, to - at));
    if (checksum(block) == checksums_[place.first_block + at / kChecksumBlock]) continue;
    if (file_.is_named()) ::unlink(file_.path().c_str());
    throw IoError(file_.path() + ": the " + place.name + " is damaged between offset " +
                  std::to_string(place.offset + at) + " and " +
                  std::to_string(place.offset + at + block.size()) +
                  " of the file (checksum); the file was removed and is built anew at the next "
                  "start: run again, with --resume");
  }
}

}  // namespace headrace
