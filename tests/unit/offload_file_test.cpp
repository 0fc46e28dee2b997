// The offload file: what is in it, and what is found out about a damaged one.
#include "engine/memory/offload_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/unit/offload_file_fixture.h"

namespace headrace::test {
namespace {

namespace fs = std::filesystem;
using OffloadFileTest = OffloadFileFixture;

TEST_F(OffloadFileTest, ImagesAreThoseOfTheLayout) {
  const auto mixed = [](Role role, int) {
    return role == Role::kQ ? DType::kF32 : role == Role::kDown ? DType::kBF16 : DType::kF16;
  };
  for (const StageRange& range : {kWhole, StageRange{0, 1, true, false},
                                  StageRange{1, 2, false, true}, StageRange{1, 2, false, false}}) {
    for (const bool tied : {false, true}) {
      ModelConfig config = wide_llama();
      config.tied_head = tied;
      const auto checkpoint = checkpoint_of(config, {.matrix_format = mixed});
      const auto file = open(*checkpoint, range);
      EXPECT_TRUE(was_built()) << said_;
      expect_images(*file, *checkpoint, range);
      EXPECT_EQ(file->file().size(), OffloadFile::file_bytes(weight_layout(*checkpoint, range)));
    }
  }
  EXPECT_EQ(names().size(), 8u);  // each has a name of its own
  EXPECT_EQ(budget_.used(), 0u);
}

TEST_F(OffloadFileTest, SmallBudgetsGiveTheSameFile) {
  const auto checkpoint = checkpoint_of(
      wide_llama(), {.matrix_format = [](Role, int) { return DType::kF32; }, .interleaved = true});
  (void)open(*checkpoint);
  const std::string whole = read_file(path(*checkpoint));
  for (const uint64_t limit : {uint64_t{512} << 10, uint64_t{1} << 20, uint64_t{3} << 20}) {
    fs::remove(path(*checkpoint));
    MemoryBudget small("host memory", limit);
    (void)open_with(*checkpoint, small, threads_);
    EXPECT_TRUE(read_file(path(*checkpoint)) == whole) << limit;
  }
  fs::remove(path(*checkpoint));
  MemoryBudget smaller("host memory", 400 << 10);
  const auto build = [&] { (void)open_with(*checkpoint, smaller, threads_); };
  expect_error<DoesNotFit>(build, {"host memory", "building the offload file"});
  EXPECT_TRUE(names().empty());
}

TEST_F(OffloadFileTest, IsReusedWithoutReadingTheWeights) {
  const auto checkpoint = checkpoint_of(wide_llama());
  (void)open(*checkpoint);
  EXPECT_NE(said_.find("building the offload file " + path(*checkpoint)), std::string::npos);
  checkpoint->forget_reads();
  const auto file = open(*checkpoint);
  EXPECT_EQ(said_, "");
  for (const auto& [name, reads] : checkpoint->reads()) {
    uint64_t bytes = 0;
    for (const auto& read : reads) bytes += read.bytes;
    EXPECT_LE(bytes, 4096u) << name;  // the fingerprint's sample
  }
  expect_images(*file, *checkpoint);
}

TEST_F(OffloadFileTest, TheNameOfTheModelDoesNotCount) {
  ModelConfig config = wide_llama();
  (void)open(*checkpoint_of(config));
  config.name = "moved \"elsewhere\" \x1b[31m\xff" + std::string(1000, 'x');
  const auto renamed = checkpoint_of(config);
  (void)open(*renamed);
  EXPECT_EQ(said_, "");
  fs::remove(path(*renamed));
  (void)open(*renamed);
  (void)open(*renamed);
  EXPECT_EQ(said_, "");
}

TEST_F(OffloadFileTest, AnyChangedByteOfHeaderOrTableIsSeen) {
  const auto checkpoint = checkpoint_of(wide_llama());
  (void)open(*checkpoint);
  const std::string file = read_file(path(*checkpoint));
  const OffloadHeader header(*checkpoint, kWhole, weight_layout(*checkpoint, kWhole));
  std::vector<std::byte> bytes(header.header_bytes + header.table_bytes);
  std::memcpy(bytes.data(), file.data(), bytes.size());
  const auto head = std::span(bytes).first(header.header_bytes);
  const auto table = std::span(bytes).subspan(header.header_bytes);
  EXPECT_EQ(header.mismatch(head), "");
  EXPECT_TRUE(header.decode_table(table).has_value());
  for (std::byte& byte : head) {
    byte ^= std::byte{4};
    ASSERT_NE(header.mismatch(head), "") << &byte - head.data();
    byte ^= std::byte{4};
  }
  for (std::byte& byte : table) {
    byte ^= std::byte{128};
    ASSERT_FALSE(header.decode_table(table).has_value()) << &byte - table.data();
    byte ^= std::byte{128};
  }
  for (size_t length = 0; length < head.size(); length += 7)
    EXPECT_NE(header.mismatch(head.first(length)), "");
}

TEST_F(OffloadFileTest, ADamagedFileIsBuiltAnew) {
  const auto checkpoint = checkpoint_of(wide_llama());
  (void)open(*checkpoint);
  const std::string name = path(*checkpoint), good = read_file(name);
  const auto rebuilt = [&](const std::string& bytes, const std::string& reason) {
    write_file(name, bytes);
    const auto file = open(*checkpoint);
    EXPECT_NE(said_.find(name + " " + reason), std::string::npos) << reason << ": " << said_;
    EXPECT_TRUE(was_built());
    EXPECT_TRUE(read_file(name) == good);
    EXPECT_EQ(names().size(), 1u);
  };
  const auto flipped = [&](size_t at) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    return bytes;
  };
  rebuilt(flipped(3), "is not an offload file");
  rebuilt(flipped(8), "is of format version 0, not 1");
  for (const size_t at : {size_t{12}, size_t{17}, size_t{25}, size_t{33}, size_t{41}, size_t{50},
                          size_t{60}, size_t{64}, size_t{200}, size_t{4095}})
    rebuilt(flipped(at), "has a damaged header");
  for (const size_t at : {size_t{4096}, size_t{4105}, size_t{8191}})
    rebuilt(flipped(at), "has a damaged table");
  for (const size_t length : {size_t{0}, size_t{1}, size_t{64}, size_t{4096}, size_t{8191}})
    rebuilt(good.substr(0, length), "is truncated");
  for (const size_t length : {size_t{8192}, size_t{100000}, good.size() - 4096, good.size() - 1})
    rebuilt(good.substr(0, length), "has the wrong length");
  rebuilt(good + "x", "has the wrong length");
}

TEST_F(OffloadFileTest, AFileOfAnotherModelIsBuiltAnew) {
  const auto one = checkpoint_of(wide_llama()), two = checkpoint_of(wide_llama(), {.seed = 2});
  (void)open(*one);
  (void)open(*two);
  EXPECT_EQ(names().size(), 2u);
  EXPECT_NE(path(*one), path(*two));
  fs::copy_file(path(*two), path(*one), fs::copy_options::overwrite_existing);
  const auto file = open(*one);
  EXPECT_NE(said_.find("belongs to another model"), std::string::npos) << said_;
  expect_images(*file, *one);
}

TEST_F(OffloadFileTest, AFlippedBitInAnImageIsFoundByVerify) {
  const auto checkpoint = checkpoint_of(wide_llama());
  const WeightLayout layout = weight_layout(*checkpoint, kWhole);
  std::mt19937 random(9);
  for (const size_t u : {size_t{0}, size_t{1}, size_t{2}, size_t{3}}) {
    const auto file = open(*checkpoint);
    const std::string name = path(*checkpoint);
    const uint64_t bytes = layout.units[u].image_bytes, at = random() % bytes;
    const uint64_t block = at / kChecksumBlock * kChecksumBlock;
    std::string content = read_file(name);
    content[file->offset(u) + at] = static_cast<char>(content[file->offset(u) + at] ^ 16);
    const auto* begin = reinterpret_cast<const std::byte*>(content.data()) + file->offset(u);
    for (uint64_t from = 0; from < bytes; from += kChecksumBlock) {
      const std::span data(begin + from, std::min(kChecksumBlock, bytes - from));
      if (from != block) file->verify(u, from, data);
    }
    EXPECT_TRUE(fs::exists(name));
    expect_error<IoError>(
        [&] {
          file->verify(u, 0, {begin, bytes});
        },
        {name, layout.units[u].name(), "offset " + std::to_string(file->offset(u) + block),
         "--resume"});
    EXPECT_FALSE(fs::exists(name));
    // The next start has a new file, which a late verify of this one leaves alone.
    const auto next = open(*checkpoint);
    EXPECT_TRUE(was_built());
    EXPECT_THROW(file->verify(u, 0, {begin, bytes}), IoError);
    EXPECT_TRUE(fs::exists(name));
    expect_images(*next, *checkpoint);
  }
}

TEST_F(OffloadFileTest, VerifyTakesWholeBlocksOnManyThreads) {
  const auto checkpoint = checkpoint_of(wide_llama());
  const auto file = open(*checkpoint);
  const uint64_t bytes = weight_layout(*checkpoint, kWhole).units[1].image_bytes;
  ASSERT_GT(bytes, 4 * kChecksumBlock);
  ASSERT_NE(bytes % kChecksumBlock, 0u);
  Buffer image = budget_.allocate(bytes, "test");
  read_now(file->file(), file->offset(1), {image.data(), bytes});
  const auto part = [&](uint64_t from, uint64_t length) {
    return std::span<const std::byte>(image.data() + from, length);
  };
  threads_.parallel_for(static_cast<int64_t>(bytes / kChecksumBlock), [&](int64_t i) {
    const uint64_t from = static_cast<uint64_t>(i) * kChecksumBlock;
    file->verify(1, from, part(from, kChecksumBlock));
    file->verify(1, from, part(from, bytes - from));
  });
  file->verify(1, 0, {});
  EXPECT_THROW(file->verify(1, 4096, part(4096, 4096)), std::logic_error);
  EXPECT_THROW(file->verify(1, 0, part(0, 4096)), std::logic_error);
  EXPECT_THROW(file->verify(1, bytes / kChecksumBlock * kChecksumBlock + kChecksumBlock, {}),
               std::logic_error);
  EXPECT_THROW(file->verify(99, 0, {}), std::out_of_range);
}

TEST_F(OffloadFileTest, AHeaderFromOutsideIsNotBelieved) {
  const auto checkpoint = checkpoint_of(wide_llama());
  (void)open(*checkpoint);
  const std::string file = read_file(path(*checkpoint));
  std::mt19937 random(13);
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::byte> bytes(random() % 9000);
    std::memcpy(bytes.data(), file.data(), bytes.size());
    for (int n = 0; n < 3 && bytes.size() > 64; ++n) {
      bytes[n == 0 ? random() % 64 : random() % bytes.size()] = static_cast<std::byte>(random());
    }
    (void)describe_offload_header(bytes);
  }
  const std::span whole(reinterpret_cast<const std::byte*>(file.data()), 9000);
  EXPECT_EQ(describe_offload_header(whole), "small, layers 0 to 1");
  EXPECT_EQ(describe_offload_header(whole.first(4095)), "");
}

}  // namespace
}  // namespace headrace::test
