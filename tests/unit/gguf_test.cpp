// GGUF: what is read, and that every kind of damage is refused with file and place.
#include "engine/checkpoint/gguf.h"

#include <gtest/gtest.h>

#include "tests/unit/gguf_bytes.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::array;
using test::entry;
using test::expect_model_error;
using test::le;
using test::TempDir;
using test::tensor;
using test::text;

// A file of these parts; `data` bytes of tensor data follow the padded header.
struct Parts {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> entries;
  std::vector<std::string> tensors;
  uint64_t data = 0;
  int64_t extra_tensors = 0;  // added to the counts without being there
  int64_t extra_entries = 0;

  std::string bytes() const {
    std::string out = magic + le(version) + le<uint64_t>(tensors.size() + extra_tensors) +
                      le<uint64_t>(entries.size() + extra_entries);
    for (const std::string& part : entries) out += part;
    for (const std::string& part : tensors) out += part;
    out.resize((out.size() + 31) / 32 * 32 + data);
    return out;
  }
};

class GgufDamage : public ::testing::Test {
 protected:
  void refused(const std::string& bytes, std::vector<std::string> parts) {
    test::write_file(path_, bytes);
    parts.push_back(path_);
    expect_model_error([&] { GgufHeader header(path_); }, parts);
  }
  void refused(const Parts& parts, std::vector<std::string> texts) {
    refused(parts.bytes(), std::move(texts));
  }

  TempDir dir_;
  std::string path_ = dir_ / "broken.gguf";
};

TEST(Gguf, ReadsEveryValueTypeInBothVersions) {
  TempDir dir;
  const std::string path = dir / "good.gguf";
  Parts parts;
  parts.entries = {
      entry("u8", 0, le<uint8_t>(200)),
      entry("i8", 1, le<int8_t>(-100)),
      entry("u16", 2, le<uint16_t>(60000)),
      entry("i16", 3, le<int16_t>(-30000)),
      entry("u32", 4, le<uint32_t>(4000000000u)),
      entry("i32", 5, le<int32_t>(-2000000000)),
      entry("f32", 6, le(1.5f)),
      entry("bool", 7, le<uint8_t>(1)),
      entry("string", 8, text("abc\0def")),
      entry("u64", 10, le<uint64_t>(1) + ""),
      entry("i64", 11, le<int64_t>(-5)),
      entry("f64", 12, le(2.25)),
      array("strings", 8, 3, text("a") + text("") + text("c")),
      array("ints", 5, 2, le<int32_t>(-7) + le<int32_t>(8)),
      array("bytes", 0, 2, std::string("\x01\xff", 2)),
      array("reals", 6, 2, le(0.5f) + le(-1.0f)),
      array("bools", 7, 2, std::string("\x00\x01", 2)),
      array("empty", 8, 0, ""),
  };
  parts.tensors = {tensor("vector", {8}, 0, 0), tensor("matrix", {32, 5}, 8, 32)};
  parts.data = 32 + 5 * 34;
  for (uint32_t version : {2u, 3u}) {
    parts.version = version;
    test::write_file(path, parts.bytes());
    EXPECT_TRUE(is_gguf(path));
    const GgufHeader header(path);
    EXPECT_EQ(header.version(), static_cast<int>(version));
    EXPECT_EQ(header.integer("u8"), 200);
    EXPECT_EQ(header.integer("i8"), -100);
    EXPECT_EQ(header.integer("u16"), 60000);
    EXPECT_EQ(header.integer("i16"), -30000);
    EXPECT_EQ(header.integer("u32"), 4000000000);
    EXPECT_EQ(header.integer("i32"), -2000000000);
    EXPECT_EQ(header.integer("u64"), 1);
    EXPECT_EQ(header.integer("i64"), -5);
    EXPECT_EQ(header.real("f32"), 1.5);
    EXPECT_EQ(header.real("f64"), 2.25);
    EXPECT_EQ(header.boolean("bool"), true);
    EXPECT_EQ(*header.string("string"), "abc");
    EXPECT_EQ(*header.strings("strings"), (std::vector<std::string>{"a", "", "c"}));
    EXPECT_EQ(*header.integers("ints"), (std::vector<int64_t>{-7, 8}));
    EXPECT_EQ(*header.integers("bytes"), (std::vector<int64_t>{1, 255}));
    EXPECT_EQ(*header.integers("bools"), (std::vector<int64_t>{0, 1}));
    EXPECT_EQ(std::get<std::vector<double>>(header.metadata().at("reals")),
              (std::vector<double>{0.5, -1.0}));
    EXPECT_TRUE(header.strings("empty")->empty());
    EXPECT_EQ(header.integer("absent"), std::nullopt);
    EXPECT_EQ(header.string("absent"), nullptr);
    expect_model_error([&] { (void)header.integer("f32"); }, {path, "\"f32\"", "integer"});
    expect_model_error([&] { (void)header.string("u8"); }, {path, "\"u8\"", "string"});
    expect_model_error([&] { (void)header.strings("ints"); }, {path, "\"ints\""});

    ASSERT_EQ(header.tensors().size(), 2u);
    const TensorInfo& matrix = header.tensors()[1];
    EXPECT_EQ(matrix.rows, 5);
    EXPECT_EQ(matrix.cols, 32);
    EXPECT_EQ(matrix.dtype, DType::kQ8_0);
    EXPECT_EQ(matrix.bytes, 5u * 34);
    EXPECT_EQ(matrix.offset + matrix.bytes, parts.bytes().size());
    EXPECT_EQ(header.tensors()[0].rows, 1);
  }
}

TEST_F(GgufDamage, Preamble) {
  Parts parts;
  parts.magic = "GGXX";
  refused(parts, {"byte 0", "GGUF"});
  EXPECT_FALSE(is_gguf(path_));
  parts.magic = "GGUF";
  for (uint32_t version : {0u, 1u, 4u}) {
    parts.version = version;
    refused(parts, {"byte 4", "version " + std::to_string(version)});
  }
  parts.version = 3u << 24;
  refused(parts, {"byte 4", "big-endian"});
  refused(std::string(), {"byte 0", "ends"});
  refused(std::string("GGUF\x03", 5), {"byte 4", "version"});
}

TEST_F(GgufDamage, Counts) {
  Parts parts;
  parts.entries = {entry("a", 4, le<uint32_t>(1))};
  for (int64_t extra : {int64_t{1} << 20, int64_t{1} << 40, int64_t{-2}}) {
    parts.extra_entries = extra;
    parts.extra_tensors = 0;
    refused(parts, {"byte 16", "metadata entries"});
    parts.extra_entries = 0;
    parts.extra_tensors = extra;
    refused(parts, {"byte 8", "tensors"});
  }
}

TEST_F(GgufDamage, Metadata) {
  const auto with = [](const std::string& bytes) {
    Parts parts;
    parts.entries = {bytes};
    return parts;
  };
  refused(with(le<uint64_t>(70000) + std::string(70100, 'k')), {"byte 24", "metadata key"});
  refused(with(le(~uint64_t{0}) + std::string(64, 'k')), {"byte 24", "impossible length"});
  refused(with(entry("key", 8, le(uint64_t{1} << 60))), {"byte 39", "\"key\"", "impossible"});
  refused(with(entry("key", 13, le<uint64_t>(0))), {"byte 35", "\"key\"", "unknown type 13"});
  refused(with(entry("key", 7, "\x02")), {"byte 35", "\"key\"", "bool"});
  refused(with(array("key", 7, 1, "\x02")), {"byte 39", "\"key\"", "bool"});
  refused(with(array("key", 9, 1, le<uint32_t>(4) + le<uint64_t>(0))), {"byte 39", "array of"});
  refused(with(array("key", 77, 1, "")), {"byte 39", "\"key\"", "element type 77"});
  for (uint32_t type : {0u, 4u, 8u, 12u}) {
    for (uint64_t count : {uint64_t{1} << 30, uint64_t{1} << 61, ~uint64_t{0}}) {
      refused(with(array("key", type, count, "")), {"byte 39", "\"key\"", "more than the file"});
    }
  }
  refused(with(array("key", 10, 1, le(~uint64_t{0}))), {"\"key\"", "2^63"});
  Parts twice = with(entry("key", 4, le<uint32_t>(1)));
  twice.entries.push_back(twice.entries[0]);
  refused(twice, {"byte 43", "\"key\" appears twice"});
  refused(with(entry("split.count", 2, le<uint16_t>(3))), {"split.count", "join"});
  for (uint32_t alignment : {0u, 24u, 1u << 21}) {
    refused(with(entry("general.alignment", 4, le(alignment))), {"general.alignment"});
  }
  refused(with(entry("general.alignment", 8, text("x"))), {"general.alignment", "integer"});
}

TEST_F(GgufDamage, Tensors) {
  const auto with = [](const std::string& bytes, uint64_t data = 4096) {
    Parts parts;
    parts.tensors = {bytes};
    parts.data = data;
    return parts;
  };
  refused(with(tensor("t", {}, 0, 0)), {"byte 33", "\"t\"", "0 dimensions"});
  refused(with(tensor("t", {1, 1, 1, 1, 1}, 0, 0)), {"byte 33", "\"t\"", "5 dimensions"});
  refused(with(tensor("t", {4, 0}, 0, 0)), {"byte 45", "\"t\"", "dimension of 0"});
  refused(with(tensor("t", {1u << 30, 1u << 29, 16}, 0, 0)), {"byte 53", "\"t\"", "dimension"});
  refused(with(tensor("t", {~uint64_t{0}}, 0, 0)), {"byte 37", "\"t\"", "dimension"});
  refused(with(tensor("t", {32}, 20, 0)), {"byte 45", "\"t\"", "type number 20", "Q4_K (12)"});
  refused(with(tensor("t", {33}, 8, 0)), {"byte 45", "\"t\"", "33", "Q8_0"});
  refused(with(tensor("t", {255}, 12, 0)), {"\"t\"", "255", "Q4_K"});
  refused(with(tensor("t", {8}, 0, 8)), {"byte 24", "\"t\"", "alignment 32"});
  refused(with(tensor("t", {8}, 0, 1u << 20)), {"byte 24", "\"t\"", "beyond the end"});
  refused(with(tensor("t", {8}, 0, ~uint64_t{31})), {"byte 24", "\"t\"", "beyond the end"});
  refused(with(tensor("t", {1025}, 0, 0)), {"byte 24", "\"t\"", "beyond the end"});
  refused(with(tensor("t", {1u << 30, 1u << 29}, 0, 0)), {"\"t\"", "beyond the end"});
  refused(with(le<uint64_t>(70000) + std::string(80000, 't')), {"byte 24", "tensor name"});
  Parts twice = with(tensor("t", {8}, 0, 0));
  twice.tensors.push_back(tensor("t", {8}, 0, 32));
  refused(twice, {"byte 57", "\"t\" appears twice"});
}

TEST_F(GgufDamage, EveryTruncationOfTheHeader) {
  const std::string good = test::read_file(test::model_path("llama-rope3.Q4_0.gguf"));
  test::write_file(path_, good);
  const uint64_t data = GgufHeader(path_).tensors().front().offset;
  for (size_t size = 0; size < data; size += size < 1200 ? 1 : 7) {
    refused(good.substr(0, size), {"byte "});
  }
  refused(good.substr(0, good.size() - 1), {"beyond the end", "truncated"});
}

TEST(Gguf, OtherKindsOfFilesAreRefused) {
  TempDir dir;
  EXPECT_FALSE(is_gguf(dir.path()));
  EXPECT_FALSE(is_gguf(dir / "absent"));
  EXPECT_THROW(GgufHeader(dir / "absent"), IoError);
  expect_model_error([&] { GgufHeader header(dir.path()); }, {dir.path(), "regular file"});
}

}  // namespace
}  // namespace headrace
