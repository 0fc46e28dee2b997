// The offload file: what is in it, what is found out about a damaged one, what is left of a build
// that fails, and who waits for whom.
#include "engine/memory/offload_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <random>
#include <thread>

#include "engine/io/io_queue.h"
#include "engine/memory/offload_directory.h"
#include "tests/unit/child_process.h"
#include "tests/unit/memory_checkpoint.h"
#include "tests/unit/model_files.h"

namespace {
std::atomic<bool> reserve_nothing{false};
}

// Stands before the C library's.
extern "C" int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  if (reserve_nothing) return ::ftruncate(fd, offset + bytes);
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
}

namespace headrace {
namespace {

namespace fs = std::filesystem;
using test::MemoryCheckpoint;
using test::on_small_disk;
using test::TempDir;
using namespace std::chrono_literals;

const StageRange kWhole{0, 2, true, true};

// Images of 4.2 MB per layer (f32), so of several blocks and, with a small budget, of several
// chunks whose borders cut panels.
ModelConfig wide_llama() {
  ModelConfig config = test::small_llama();
  config.d_model = config.d_embed = 256;
  config.n_heads = 8;
  config.n_kv_heads = 4;
  config.head_dim = 32;
  config.d_ffn = 1000;
  config.vocab_size = 700;
  return config;
}

std::unique_ptr<MemoryCheckpoint> checkpoint_of(const ModelConfig& config,
                                                MemoryCheckpoint::Options options = {}) {
  return std::make_unique<MemoryCheckpoint>(config, std::move(options));
}

class OffloadFileTest : public testing::Test {
 protected:
  void TearDown() override { reserve_nothing = false; }

  std::unique_ptr<OffloadFile> open(const Checkpoint& checkpoint,
                                    const StageRange& range = kWhole) {
    said_.clear();
    return OffloadFile::open_or_build({place_, disk_budget_}, checkpoint, range,
                                      weight_layout(checkpoint, range), budget_, threads_,
                                      [this](const std::string& line) { said_ += line + "\n"; });
  }
  std::string path(const Checkpoint& checkpoint, const StageRange& range = kWhole) const {
    return place_ + "/" +
           OffloadHeader(checkpoint, range, weight_layout(checkpoint, range)).file_name();
  }
  bool was_built() const { return said_.find("offload file built in") != std::string::npos; }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    if (!fs::exists(place_)) return all;
    for (const auto& entry : fs::directory_iterator(place_)) all.push_back(entry.path().filename());
    return all;
  }

  // Reads every image through the file, verifies it and compares it with pack_image().
  void expect_images(const OffloadFile& file, const Checkpoint& checkpoint,
                     const StageRange& range = kWhole) {
    const WeightLayout layout = weight_layout(checkpoint, range);
    for (size_t u = 0; u < layout.units.size(); ++u) {
      const WeightUnit& unit = layout.units[u];
      if (unit.image_bytes == 0) continue;
      Buffer read = budget_.allocate(unit.image_bytes, "read"),
             packed = budget_.allocate(unit.image_bytes, "packed");
      read_now(file.file(), file.offset(u), {read.data(), unit.image_bytes});
      file.verify(u, 0, {read.data(), unit.image_bytes});
      pack_image(checkpoint, unit, 0, {packed.data(), unit.image_bytes}, threads_);
      EXPECT_EQ(std::memcmp(read.data(), packed.data(), unit.image_bytes), 0) << unit.name();
    }
  }

  template <typename Error, typename F>
  static void expect_error(const F& action, const std::vector<std::string>& words) {
    try {
      action();
      ADD_FAILURE() << "no error; expected one with " << words.front();
    } catch (const Error& error) {
      for (const std::string& word : words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
            << word << " is not in: " << error.what();
    }
  }

  TempDir directory_;
  std::string place_ = directory_ / "cache/offload";
  uint64_t disk_budget_ = UINT64_MAX;
  MemoryBudget budget_{"host memory", uint64_t{64} << 20};
  ThreadPool threads_{2, 0};
  std::string said_;
};

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
  const std::string whole = test::read_file(path(*checkpoint));
  for (const uint64_t limit : {uint64_t{512} << 10, uint64_t{1} << 20, uint64_t{3} << 20}) {
    fs::remove(path(*checkpoint));
    MemoryBudget small("host memory", limit);
    (void)OffloadFile::open_or_build({place_}, *checkpoint, kWhole,
                                     weight_layout(*checkpoint, kWhole), small, threads_,
                                     [](const std::string&) {});
    EXPECT_TRUE(test::read_file(path(*checkpoint)) == whole) << limit;
  }
  fs::remove(path(*checkpoint));
  MemoryBudget smaller("host memory", 400 << 10);
  const auto build = [&] {
    (void)OffloadFile::open_or_build({place_}, *checkpoint, kWhole,
                                     weight_layout(*checkpoint, kWhole), smaller, threads_,
                                     [](const std::string&) {});
  };
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
  const std::string file = test::read_file(path(*checkpoint));
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
  const std::string name = path(*checkpoint), good = test::read_file(name);
  const auto rebuilt = [&](const std::string& bytes, const std::string& reason) {
    test::write_file(name, bytes);
    const auto file = open(*checkpoint);
    EXPECT_NE(said_.find(name + " " + reason), std::string::npos) << reason << ": " << said_;
    EXPECT_TRUE(was_built());
    EXPECT_TRUE(test::read_file(name) == good);
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
    std::string content = test::read_file(name);
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

TEST_F(OffloadFileTest, ThatItDoesNotFitIsSaidBefore) {
  const auto checkpoint = checkpoint_of(wide_llama());
  const uint64_t need = OffloadFile::file_bytes(weight_layout(*checkpoint, kWhole));
  disk_budget_ = need - 1;
  expect_error<DoesNotFit>([&] { (void)open(*checkpoint); },
                           {place_, format_bytes(need), "disk budget", "--disk-budget"});
  EXPECT_TRUE(names().empty());
  disk_budget_ = need;
  EXPECT_NE(open(*checkpoint), nullptr);

  place_ = directory_.path();
  const std::string text = on_small_disk(place_, "size=1m", [&]() -> std::string {
    try {
      (void)open(*checkpoint);
    } catch (const DoesNotFit& error) {
      return names().empty() ? error.what() : "something is left";
    }
    return "no error";
  });
  if (text == test::kMayNotMount) GTEST_SKIP() << text;
  for (const std::string& word :
       {place_, format_bytes(need), std::string("free there: 1.0 MiB"), std::string("--disk")})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST_F(OffloadFileTest, ADiskThatFillsUpWhileBuildingLeavesNothing) {
  const auto checkpoint = checkpoint_of(wide_llama());
  place_ = directory_.path();
  const std::string text = on_small_disk(place_, "size=16m", [&]() -> std::string {
    reserve_nothing = true;
    try {
      (void)OffloadFile::open_or_build(
          {place_}, *checkpoint, kWhole, weight_layout(*checkpoint, kWhole), budget_, threads_,
          [&](const std::string& line) {
            if (!line.starts_with("building")) return;
            std::ofstream(place_ + "/other") << std::string(15 << 20, 'x');
          });
    } catch (const IoError& error) {
      return names() == std::vector<std::string>{"other"} ? error.what() : "something is left";
    }
    return "no error";
  });
  if (text == test::kMayNotMount) GTEST_SKIP() << text;
  for (const char* word : {"writing", ".building at offset", "No space left", "--disk"})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST_F(OffloadFileTest, ADirectoryThatCannotBeWrittenTo) {
  const auto checkpoint = checkpoint_of(wide_llama());
  test::write_file(directory_ / "file", "");
  place_ = directory_ / "file/below";
  expect_error<IoError>([&] { (void)open(*checkpoint); }, {place_, "--disk"});
  place_ = directory_.path();
  const std::string text = on_small_disk(place_, "ro", [&]() -> std::string {
    (void)open(*checkpoint);
    return "no error";
  });
  if (text == test::kMayNotMount) GTEST_SKIP() << text;
  for (const std::string& word : {place_, std::string("threw: "), std::string("--disk")})
    EXPECT_NE(text.find(word), std::string::npos) << text;
}

TEST_F(OffloadFileTest, AFileThatIsThereIsUsedFromAReadOnlyDirectory) {
  const auto checkpoint = checkpoint_of(wide_llama());
  (void)open(*checkpoint);
  const std::string text = test::in_child([&]() -> std::string {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount(place_.c_str(), place_.c_str(), nullptr, MS_BIND, nullptr) != 0 ||
        ::mount(nullptr, place_.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) != 0)
      return test::kMayNotMount;
    return open(*checkpoint) && !was_built() ? "used" : "built";
  });
  if (text == test::kMayNotMount) GTEST_SKIP() << text;
  EXPECT_EQ(text, "used");
}

TEST_F(OffloadFileTest, WhatFailsInTheMiddleLeavesNothing) {
  std::atomic<int> reads = 0, stop = 0;
  const auto failing =
      checkpoint_of(wide_llama(), {.before_read = [&](const TensorInfo&, uint64_t) {
                      if (++reads == stop) throw ModelError("the model ends");
                    }});
  (void)failing->fingerprint();  // reads samples, once
  reads = 0;
  (void)open(*failing);
  const int all = reads;
  fs::remove(path(*failing));
  for (const int part : {2, 4, 6, 10}) {
    reads = 0;
    stop = all * part / 10;
    expect_error<ModelError>([&] { (void)open(*failing); }, {"the model ends"});
    EXPECT_TRUE(names().empty());
  }
  const auto checkpoint = checkpoint_of(wide_llama());
  const auto interrupted = [&] {
    (void)OffloadFile::open_or_build(
        {place_}, *checkpoint, kWhole, weight_layout(*checkpoint, kWhole), budget_, threads_,
        [](const std::string&) { throw std::runtime_error("interrupted"); });
  };
  expect_error<std::runtime_error>(interrupted, {"interrupted"});
  EXPECT_TRUE(names().empty());
  EXPECT_EQ(budget_.used(), 0u);
}

TEST_F(OffloadFileTest, OneOfSeveralProcessesBuildsTheOthersWait) {
  const auto checkpoint = checkpoint_of(
      wide_llama(),
      {.before_read = [](const TensorInfo&, uint64_t) { std::this_thread::sleep_for(500us); }});
  int built = 0, waited = 0;
  std::vector<std::thread> starters;
  std::vector<std::string> texts(4);
  for (std::string& text : texts) {
    starters.emplace_back([&] {
      text = test::in_child([&] {
        ThreadPool threads(1);
        MemoryBudget budget("host memory", uint64_t{64} << 20);
        std::string said;
        const auto file = OffloadFile::open_or_build(
            {place_}, *checkpoint, kWhole, weight_layout(*checkpoint, kWhole), budget, threads,
            [&](const std::string& line) { said += line + "\n"; });
        return said;
      });
    });
  }
  for (std::thread& starter : starters) starter.join();
  for (const std::string& text : texts) {
    built += text.find("offload file built") != std::string::npos ? 1 : 0;
    waited += text.find("waiting for another process that builds") != std::string::npos ? 1 : 0;
    EXPECT_EQ(text.find("threw"), std::string::npos) << text;
    EXPECT_EQ(text.find("died"), std::string::npos) << text;
  }
  EXPECT_EQ(built, 1);
  EXPECT_GE(waited, 1);
  EXPECT_EQ(names().size(), 1u);
  expect_images(*open(*checkpoint), *checkpoint);
  EXPECT_FALSE(was_built());
}

TEST_F(OffloadFileTest, KilledAtRandomMomentsThenBuiltAgain) {
  const auto checkpoint = checkpoint_of(wide_llama()),
             other = checkpoint_of(wide_llama(), {.seed = 5});
  std::mt19937 random(11);
  int kills = 0, unfinished = 0;
  for (int round = 0; round < 30; ++round) {
    const pid_t child = ::fork();
    if (child == 0) {
      ThreadPool threads(1);
      MemoryBudget budget("host memory", 1 << 20);
      (void)OffloadFile::open_or_build({place_}, *checkpoint, kWhole,
                                       weight_layout(*checkpoint, kWhole), budget, threads,
                                       [](const std::string&) {});
      ::_exit(0);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    kills += WIFSIGNALED(status) ? 1 : 0;
    unfinished += fs::exists(path(*checkpoint) + kBuildingSuffix) ? 1 : 0;
    if (fs::exists(path(*checkpoint))) {
      (void)open(*checkpoint);
      EXPECT_FALSE(was_built()) << "a file with its final name was not whole";
      fs::remove(path(*checkpoint));
    }
  }
  EXPECT_GT(kills, 5);
  EXPECT_GT(unfinished, 0);
  // A build of another model tidies up, too.
  const auto file = open(*other);
  EXPECT_EQ(names().size(), 1u);
  expect_images(*file, *other);
  expect_images(*open(*checkpoint), *checkpoint);
  EXPECT_EQ(names().size(), 2u);
}

TEST_F(OffloadFileTest, ABuilderThatStandsStillIsGivenUp) {
  fs::create_directories(place_);
  const std::string name = place_ + "/x.offload";
  const auto held = OffloadLock::try_acquire(name);
  ASSERT_NE(held, nullptr);
  EXPECT_EQ(OffloadLock::try_acquire(name), nullptr);
  std::string said;
  const auto acquire = [&] {
    (void)OffloadLock::acquire(
        name, [&](const std::string& line) { said = line; }, 0.2);
  };
  expect_error<IoError>(acquire, {name, "another process", "--disk"});
  EXPECT_NE(said.find("waiting"), std::string::npos);
  // One that goes on writing is waited for.
  std::atomic<bool> stop = false;
  std::thread builder([&, lock = OffloadLock::try_acquire(name + "2")]() mutable {
    for (int i = 0; i < 30; ++i) {
      test::write_file(name + "2" + kBuildingSuffix, "x");
      std::this_thread::sleep_for(20ms);
    }
    stop = true;
    lock.reset();
  });
  EXPECT_NE(OffloadLock::acquire(
                name + "2", [](const std::string&) {}, 0.3),
            nullptr);
  EXPECT_TRUE(stop);
  builder.join();
}

TEST_F(OffloadFileTest, TheDirectoryListsWhatIsOursAndSparesWhatIsInUse) {
  const auto one = checkpoint_of(wide_llama()), two = checkpoint_of(wide_llama(), {.seed = 2});
  auto used = open(*one);
  (void)open(*two);
  test::write_file(place_ + "/notes.txt", "mine");
  test::write_file(place_ + "/my.offload", "mine");
  const std::string dead = place_ + "/0123456789abcdef-0-2-0123456789abcdef.offload";
  test::write_file(dead, "damaged");
  test::write_file(dead + kBuildingSuffix, "x");
  test::write_file(dead + kLockSuffix, "");
  test::write_file(place_ + "/headrace-AbCd12.temporary", "x");
  const std::string busy = place_ + "/1123456789abcdef-0-2-0123456789abcdef.offload";
  auto lock = OffloadLock::try_acquire(busy);
  test::write_file(busy + kBuildingSuffix, "x");

  const auto in_use = [&] {
    std::vector<std::string> paths;
    for (const OffloadEntry& entry : list_offload_directory(place_))
      if (entry.in_use) paths.push_back(entry.path);
    std::sort(paths.begin(), paths.end());
    return paths;
  };
  std::vector<std::string> expected = {path(*one), busy + kBuildingSuffix, busy + kLockSuffix};
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(in_use(), expected);
  std::string descriptions;
  for (const OffloadEntry& entry : list_offload_directory(place_)) {
    descriptions += entry.description + "; ";
    EXPECT_EQ(remove_offload_entry(entry), !entry.in_use && entry.path != dead + kLockSuffix)
        << entry.path;
  }
  EXPECT_NE(descriptions.find("small, layers 0 to 1"), std::string::npos) << descriptions;
  EXPECT_NE(descriptions.find("damaged"), std::string::npos) << descriptions;
  EXPECT_EQ(names().size(), 5u);  // the three in use, and two that are not ours
  used.reset();
  lock.reset();
  for (const OffloadEntry& entry : list_offload_directory(place_))
    EXPECT_TRUE(remove_offload_entry(entry)) << entry.path;
  EXPECT_EQ(names().size(), 2u);
}

TEST_F(OffloadFileTest, AHeaderFromOutsideIsNotBelieved) {
  const auto checkpoint = checkpoint_of(wide_llama());
  (void)open(*checkpoint);
  const std::string file = test::read_file(path(*checkpoint));
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
}  // namespace headrace
