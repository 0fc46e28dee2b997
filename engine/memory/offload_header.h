// The header and the table of an offload file; offload_file.md says byte by byte what is in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/memory/weight_layout.h"

namespace headrace {

// Goes up when the header, the panels or anything else in the file changes its meaning.
inline constexpr uint32_t kOffloadVersion = 1;
inline constexpr uint64_t kChecksumBlock = 256 << 10;

uint64_t checksum(std::span<const std::byte> data);  // XXH3-64

struct OffloadHeader {
  std::string fingerprint;  // of the checkpoint
  std::string model;        // its name, for people: does not identify anything
  std::string format;       // of the checkpoint
  StageRange range;
  std::string layout;  // 16 hex digits that identify what lies where in the images
  struct Unit {
    std::string name;
    uint64_t offset = 0;  // in the file
    uint64_t bytes = 0;
    size_t first_block = 0;  // in the table

    size_t blocks() const {
      return static_cast<size_t>((bytes + kChecksumBlock - 1) / kChecksumBlock);
    }
  };
  std::vector<Unit> units;
  uint64_t header_bytes = 0, table_bytes = 0, file_bytes = 0;
  size_t blocks = 0;

  OffloadHeader(const Checkpoint& checkpoint, const StageRange& stage, const WeightLayout& layout);

  // header_bytes long, ready to be written.
  std::vector<std::byte> encode() const;
  // The table of `blocks` checksums, table_bytes long, ready to be written.
  std::vector<std::byte> encode_table(std::span<const uint64_t> checksums) const;
  // Empty if `bytes`, the first header_bytes of a file, are what encode() gives, but for the
  // model's name. Else why not: "is damaged", "is of format version 2, not 1".
  std::string mismatch(std::span<const std::byte> bytes) const;
  // The checksums in the section of the table; none if it is damaged.
  std::optional<std::vector<uint64_t>> decode_table(std::span<const std::byte> section) const;

  // "FINGERPRINT-FIRST-END-LAYOUT.offload"
  std::string file_name() const;
};

// What it takes on disk.
uint64_t offload_file_bytes(const WeightLayout& layout);

// What the first bytes of a file say of it, for people: "SmolLM2 135M, layers 0 to 29"; "" if they
// are not a whole header of this version.
std::string describe_offload_header(std::span<const std::byte> bytes);

}  // namespace headrace
