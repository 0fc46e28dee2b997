// The weights of a stage on a rank's own disk, packed and ready to be read into the ring of
// buffers. Format: offload_file.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/io/file.h"
#include "engine/memory/budget.h"
#include "engine/memory/offload_header.h"
#include "engine/memory/weight_layout.h"
#include "engine/thread_pool.h"

namespace headrace {

struct OffloadPlace {
  std::string directory;              // made with its parents if it is not there
  uint64_t disk_budget = UINT64_MAX;  // bytes this rank may use there
};

class OffloadFile {
 public:
  using Say = std::function<void(const std::string&)>;

  // Opens the file of (checkpoint, range) in the directory; builds it first if it is not there, not
  // whole, of another format version or of another model or layout. Where another process is
  // building it, waits for that. `say` gets lines for the log; what it throws ends the build. Takes
  // up to 16 MiB of `budget` while it builds, nothing after. Throws DoesNotFit (disk budget, free
  // space, memory), IoError, ModelError.
  static std::unique_ptr<OffloadFile> open_or_build(
      const OffloadPlace& place, const Checkpoint& checkpoint, const StageRange& range,
      const WeightLayout& layout, MemoryBudget& budget, ThreadPool& threads, const Say& say);

  const File& file() const { return file_; }
  // Of the image of layout.units[unit], in the file.
  uint64_t offset(size_t unit) const { return header_.units.at(unit).offset; }

  // Compares bytes [from, from + data.size()) of the unit's image with the table. `from` is a
  // multiple of kChecksumBlock; data ends at a block's border or at the image's end (else
  // std::logic_error). Any thread. Throws IoError that names file, unit and offset; the damaged
  // file is removed first, so that the next start builds it anew.
  void verify(size_t unit, uint64_t from, std::span<const std::byte> data) const;

  // Bytes that a rank may take in the directory, if `sharing` ranks of this machine share what is
  // free there: no more than the budget; what its own file has already counts. The directory need
  // not be there. Never throws for a directory that cannot be used; that comes out when it is.
  static uint64_t room(const OffloadPlace& place, const Checkpoint& checkpoint,
                       const StageRange& range, const WeightLayout& layout, int sharing);

  // What the file takes on disk.
  static uint64_t file_bytes(const WeightLayout& layout) { return offload_file_bytes(layout); }

 private:
  OffloadFile(const std::string& path, OffloadHeader header);
  // Null, with the reason, if there is no such file or it is not whole.
  static std::unique_ptr<OffloadFile> open(const std::string& path, const OffloadHeader& header,
                                           MemoryBudget& budget, std::string& reason);
  std::string read_tables(MemoryBudget& budget);

  OffloadHeader header_;
  File file_;
  std::vector<uint64_t> checksums_;
};

}  // namespace headrace
