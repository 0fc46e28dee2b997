#include "engine/memory/offload_header.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "engine/checkpoint/json.h"
#include "engine/error.h"
#include "engine/io/file.h"

namespace headrace {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers of the file are little-endian");

// The first bytes of the header.
struct Prefix {
  std::array<char, 8> magic = {'H', 'R', 'O', 'F', 'F', 'L', 'D', '\n'};
  uint32_t version = kOffloadVersion;
  uint32_t zero = 0;
  uint64_t header_bytes = 0;
  uint64_t json_bytes = 0;
  uint64_t table_bytes = 0;
  uint64_t file_bytes = 0;
  uint64_t header_checksum = 0;  // of the whole header with this field 0
  uint64_t zero_too = 0;
};
static_assert(sizeof(Prefix) == 64);

constexpr size_t kMostName = 128;
// The size of the header follows from the number of units alone: room for the JSON of each.
constexpr uint64_t kFixedRoom = 1024, kRoomPerUnit = 96;

struct Sizes {
  uint64_t header, table, file;
  size_t blocks;
};

Sizes sizes_of(const WeightLayout& layout) {
  Sizes sizes{io_aligned(kFixedRoom + kRoomPerUnit * layout.units.size()), 0, 0, 0};
  for (const WeightUnit& unit : layout.units) {
    sizes.blocks += OffloadHeader::Unit{"", 0, unit.image_bytes, 0}.blocks();
  }
  sizes.table = io_aligned((sizes.blocks + 1) * sizeof(uint64_t));
  sizes.file = sizes.header + sizes.table + layout.image_bytes();
  return sizes;
}

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string digest(const WeightLayout& layout) {
  std::vector<uint64_t> numbers;
  for (const WeightUnit& unit : layout.units) {
    numbers.insert(numbers.end(), {static_cast<uint64_t>(unit.kind),
                                   static_cast<uint64_t>(unit.layer), unit.image_bytes});
    for (const PlacedMatrix& m : unit.matrices) {
      numbers.insert(numbers.end(),
                     {static_cast<uint64_t>(m.role), static_cast<uint64_t>(m.tensor->dtype),
                      static_cast<uint64_t>(m.tensor->rows), static_cast<uint64_t>(m.tensor->cols),
                      m.offset, m.panel_bytes});
    }
  }
  return hex(checksum(std::as_bytes(std::span(numbers))));
}

// Fit for JSON and for a terminal.
std::string plain_name(std::string name) {
  name.resize(std::min(name.size(), kMostName));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c < ' ' || c > '~' || c == '"' || c == '\\'; },
      '?');
  return name;
}

std::optional<Prefix> read_prefix(std::span<const std::byte> bytes) {
  Prefix prefix;
  if (bytes.size() < sizeof prefix) return std::nullopt;
  std::memcpy(&prefix, bytes.data(), sizeof prefix);
  if (prefix.magic != Prefix().magic) return std::nullopt;
  return prefix;
}

// At least a prefix long.
uint64_t header_checksum(std::span<const std::byte> header) {
  Prefix prefix;
  std::memcpy(&prefix, header.data(), sizeof prefix);
  prefix.header_checksum = 0;
  const auto rest = header.subspan(sizeof prefix);
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, &prefix, sizeof prefix);
  XXH3_64bits_update(&state, rest.data(), rest.size());
  return XXH3_64bits_digest(&state);
}

// The JSON of a header whose checksum is right.
std::optional<nlohmann::json> read_json(std::span<const std::byte> bytes) {
  const auto prefix = read_prefix(bytes);
  if (!prefix || prefix->version != kOffloadVersion || prefix->header_bytes != bytes.size() ||
      prefix->json_bytes > bytes.size() - sizeof(Prefix) ||
      prefix->header_checksum != header_checksum(bytes)) {
    return std::nullopt;
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + sizeof(Prefix);
  try {
    return parse_json_object({text, static_cast<size_t>(prefix->json_bytes)}, "offload file");
  } catch (const ModelError&) {
    return std::nullopt;
  }
}

}  // namespace

uint64_t checksum(std::span<const std::byte> data) { return XXH3_64bits(data.data(), data.size()); }

OffloadHeader::OffloadHeader(const Checkpoint& checkpoint, const StageRange& stage,
                             const WeightLayout& weights)
    : fingerprint(checkpoint.fingerprint()),
      model(plain_name(checkpoint.config().name)),
      format(plain_name(checkpoint.format())),
      range(stage),
      layout(digest(weights)) {
  const Sizes sizes = sizes_of(weights);
  header_bytes = sizes.header;
  table_bytes = sizes.table;
  file_bytes = sizes.file;
  uint64_t offset = header_bytes + table_bytes;
  for (const WeightUnit& unit : weights.units) {
    units.push_back({unit.name(), offset, unit.image_bytes, blocks});
    offset += unit.image_bytes;
    blocks += units.back().blocks();
  }
}

std::vector<std::byte> OffloadHeader::encode() const {
  nlohmann::json json = {{"fingerprint", fingerprint},
                         {"model", model},
                         {"format", format},
                         {"layout", layout},
                         {"first_layer", range.first_layer},
                         {"end_layer", range.end_layer},
                         {"is_first", range.is_first},
                         {"is_last", range.is_last},
                         {"checksum_block", kChecksumBlock},
                         {"units", nlohmann::json::array()}};
  for (const Unit& unit : units) {
    json["units"].push_back({{"name", unit.name}, {"offset", unit.offset}, {"bytes", unit.bytes}});
  }
  const std::string text = json.dump();
  Prefix prefix;
  if (sizeof prefix + text.size() > header_bytes) {
    throw std::logic_error("the header of an offload file does not fit in its room");
  }
  prefix.header_bytes = header_bytes;
  prefix.json_bytes = text.size();
  prefix.table_bytes = table_bytes;
  prefix.file_bytes = file_bytes;
  std::vector<std::byte> bytes(header_bytes);
  std::memcpy(bytes.data() + sizeof prefix, text.data(), text.size());
  std::memcpy(bytes.data(), &prefix, sizeof prefix);
  prefix.header_checksum = header_checksum(bytes);
  std::memcpy(bytes.data(), &prefix, sizeof prefix);
  return bytes;
}

std::string OffloadHeader::mismatch(std::span<const std::byte> bytes) const {
  const auto prefix = read_prefix(bytes);
  if (!prefix) return "is not an offload file";
  if (prefix->version != kOffloadVersion) {
    return "is of format version " + std::to_string(prefix->version) + ", not " +
           std::to_string(kOffloadVersion);
  }
  const auto json = read_json(bytes);
  if (!json) return "has a damaged header";
  OffloadHeader expected = *this;
  expected.model = plain_name(json->value("model", nlohmann::json()).is_string()
                                  ? (*json)["model"].get<std::string>()
                                  : "");
  const std::vector<std::byte> wanted = expected.encode();
  return std::equal(bytes.begin(), bytes.end(), wanted.begin(), wanted.end())
             ? ""
             : "belongs to another model or layout";
}

std::vector<std::byte> OffloadHeader::encode_table(std::span<const uint64_t> checksums) const {
  std::vector<std::byte> section(table_bytes);
  std::memcpy(section.data() + sizeof(uint64_t), checksums.data(), checksums.size_bytes());
  const uint64_t own = checksum(std::span(section).subspan(sizeof own));
  std::memcpy(section.data(), &own, sizeof own);
  return section;
}

std::optional<std::vector<uint64_t>> OffloadHeader::decode_table(
    std::span<const std::byte> section) const {
  uint64_t own;
  std::memcpy(&own, section.data(), sizeof own);
  if (checksum(section.subspan(sizeof own)) != own) return std::nullopt;
  std::vector<uint64_t> checksums(blocks);
  std::memcpy(checksums.data(), section.data() + sizeof own, blocks * sizeof own);
  return checksums;
}

std::string OffloadHeader::file_name() const {
  return fingerprint + "-" + std::to_string(range.first_layer) + "-" +
         std::to_string(range.end_layer) + "-" + layout + ".offload";
}

uint64_t offload_file_bytes(const WeightLayout& layout) { return sizes_of(layout).file; }

std::string describe_offload_header(std::span<const std::byte> bytes) {
  const auto prefix = read_prefix(bytes);
  if (!prefix || prefix->header_bytes > bytes.size()) return "";
  const auto json = read_json(bytes.first(static_cast<size_t>(prefix->header_bytes)));
  if (!json) return "";
  try {
    const JsonFields fields(*json, "offload file");
    return plain_name(fields.string("model").value_or("")) + ", layers " +
           std::to_string(fields.integer("first_layer", 0).value_or(0)) + " to " +
           std::to_string(fields.integer("end_layer", 0).value_or(0) - 1);
  } catch (const ModelError&) {
    return "";
  }
}

}  // namespace headrace
