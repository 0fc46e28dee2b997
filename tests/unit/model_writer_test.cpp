// Files that headrace writes, read back: GGUF and Hugging Face directories.
#include "engine/checkpoint/model_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "engine/checkpoint/gguf_writer.h"
#include "engine/checkpoint/hf_writer.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

namespace fs = std::filesystem;
using test::TempDir;

void ignore(uint64_t) {}

void write(const Checkpoint& source, const PlannedModel& plan, const std::string& out,
           bool replace = false) {
  ThreadPool threads(3);
  write_model(source, plan, out, replace, threads, ignore);
}

std::vector<std::byte> bytes_of(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> out(tensor.bytes);
  checkpoint.read(tensor, 0, out);
  return out;
}

// The row of a Q or K matrix, as transformers orders them, that GGUF has at `row`.
int64_t row_in_gguf(int64_t row, int64_t head) {
  return row / head * head + row % head % 2 * (head / 2) + row % head / 2;
}

void expect_same_tensor(const Checkpoint& source, const Checkpoint& written, Role role, int layer) {
  const TensorInfo& a = source.require(role, layer);
  const TensorInfo& b = written.require(role, layer);
  ASSERT_EQ(dtype_name(a.dtype), dtype_name(b.dtype));
  const auto expected = bytes_of(source, a), actual = bytes_of(written, b);
  ASSERT_EQ(expected.size(), actual.size());
  const bool interleaved = written.qk_rows_interleaved() && (role == Role::kQ || role == Role::kK);
  const size_t row = expected.size() / static_cast<size_t>(a.rows);
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t from = interleaved ? row_in_gguf(r, source.config().head_dim) : r;
    ASSERT_EQ(std::memcmp(actual.data() + static_cast<size_t>(r) * row,
                          expected.data() + static_cast<size_t>(from) * row, row),
              0)
        << role_name(role) << " of layer " << layer << ", row " << r;
  }
}

void expect_same_model(const Checkpoint& source, const Checkpoint& written) {
  const ModelConfig &a = source.config(), &b = written.config();
  EXPECT_EQ(a.family, b.family);
  EXPECT_EQ(a.max_positions, b.max_positions);
  EXPECT_EQ(a.n_kv_heads, b.n_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.post_norm, b.post_norm);
  EXPECT_EQ(a.has_final_norm, b.has_final_norm);
  EXPECT_EQ(a.tied_head, b.tied_head);
  EXPECT_EQ(a.rope.theta, b.rope.theta);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
  EXPECT_EQ(a.bos_token_id, b.bos_token_id);
  EXPECT_EQ(source.tensors().size(), written.tensors().size());
  ASSERT_EQ(a.n_layers, b.n_layers);
  for (const Role role : all_roles()) {
    if (!has_role(a, role)) continue;
    for (int layer = 0; layer < (is_layer_role(role) ? a.n_layers : 1); ++layer) {
      expect_same_tensor(source, written, role, layer);
    }
  }
}

TEST(GgufWriter, FilesHaveTheSourcesConfigurationAndBytes) {
  const TempDir folder;
  for (const char* model :
       {"tiny-llama:f32", "tiny-llama:f16", "tiny-llama:bf16", "tiny-llama:q8", "tiny-llama:q4:7",
        "tiny-qwen2:f32", "tiny-qwen2:q8:7", "tiny-qwen3:f32"}) {
    SCOPED_TRACE(model);
    const auto source = Checkpoint::open(std::string("synthetic:") + model);
    const std::string out = folder / (std::string(model) + ".gguf");
    const PlannedModel plan = plan_gguf(*source);
    write(*source, plan, out);
    EXPECT_EQ(fs::file_size(out), plan.bytes());
    const auto written = Checkpoint::open(out);
    EXPECT_EQ(written->format(), "GGUF v3");
    EXPECT_EQ(written->config().name, source->config().name);
    expect_same_model(*source, *written);
  }
}

TEST(GgufWriter, OptIsRefused) {
  const auto source = Checkpoint::open("synthetic:tiny-opt");
  test::expect_model_error([&] { plan_gguf(*source); }, {"tiny-opt", "OPT", "directory"});
}

TEST(HfWriter, DirectoriesHaveTheSourcesConfigurationAndBytes) {
  const TempDir folder;
  for (const char* model : {"tiny-llama:f32", "tiny-qwen2:bf16", "tiny-qwen3:bf16",
                            "tiny-opt:f16:3", "tiny-opt:f32", "opt-350m:bf16"}) {
    SCOPED_TRACE(model);
    const auto source = Checkpoint::open(std::string("synthetic:") + model);
    write(*source, plan_hf_directory(*source), folder / model);
    expect_same_model(*source, *Checkpoint::open(folder / model));
  }
}

TEST(HfWriter, ShardsKeepTheLimitAndHaveAnIndex) {
  const TempDir folder;
  const auto source = Checkpoint::open("synthetic:tiny-llama:f32");
  constexpr uint64_t kLimit = 200'000;
  const PlannedModel plan = plan_hf_directory(*source, kLimit);
  write(*source, plan, folder / "m");
  size_t shards = 0;
  for (const PlannedFile& file : plan.files) {
    EXPECT_EQ(fs::file_size(folder / "m/" + file.name), file.bytes) << file.name;
    if (!file.name.ends_with(".safetensors")) continue;
    ++shards;
    EXPECT_LE(file.bytes - file.head.size(), kLimit) << file.name;
  }
  EXPECT_EQ(shards, 4u);
  EXPECT_TRUE(fs::exists(folder / "m/model-00004-of-00004.safetensors"));
  EXPECT_TRUE(fs::exists(folder / "m/model.safetensors.index.json"));
  expect_same_model(*source, *Checkpoint::open(folder / "m"));
}

TEST(HfWriter, LowBitWeightsAreRefused) {
  const auto source = Checkpoint::open("synthetic:tiny-llama:q8");
  test::expect_model_error([&] { plan_hf_directory(*source); }, {"Q8_0", "bf16", ".gguf"});
}

TEST(InTheWay, WhatIsThereStaysUnlessItMayBeReplaced) {
  const TempDir folder;
  const std::string file = folder / "f.gguf", directory = folder / "d", empty = folder / "e";
  test::write_file(file, "x");
  fs::create_directory(directory);
  fs::create_directory(empty);
  test::write_file(directory + "/model.safetensors", "x");
  EXPECT_EQ(in_the_way(folder / "new", true, false), "");
  EXPECT_EQ(in_the_way(folder / "new.gguf", false, false), "");
  EXPECT_EQ(in_the_way(empty, true, false), "");
  EXPECT_NE(in_the_way(file, false, false).find("--force"), std::string::npos);
  EXPECT_NE(in_the_way(directory, true, false).find("--force"), std::string::npos);
  EXPECT_EQ(in_the_way(file, false, true), "");
  EXPECT_EQ(in_the_way(directory, true, true), "");
  EXPECT_NE(in_the_way(file, true, true).find("as a file"), std::string::npos);
  EXPECT_NE(in_the_way(directory, false, true).find("as a directory"), std::string::npos);
  test::write_file(directory + "/thesis.tex", "x");
  EXPECT_NE(in_the_way(directory, true, true).find("thesis.tex"), std::string::npos);
}

class WriteModel : public testing::TestWithParam<bool> {
 protected:
  bool is_directory() const { return GetParam(); }
  PlannedModel plan() const {
    return is_directory() ? plan_hf_directory(*source_) : plan_gguf(*source_);
  }

  TempDir folder_;
  std::string out_ = folder_ / "m.gguf", partial_ = out_ + ".partial";
  std::unique_ptr<Checkpoint> source_ = Checkpoint::open("synthetic:tiny-llama:f32");
  std::unique_ptr<Checkpoint> other_ = Checkpoint::open("synthetic:tiny-llama:f32:1");
};

TEST_P(WriteModel, ReplacesOnlyWhenAllowed) {
  write(*other_, is_directory() ? plan_hf_directory(*other_) : plan_gguf(*other_), out_);
  EXPECT_THROW(write(*source_, plan(), out_, false), IoError);
  expect_same_model(*other_, *Checkpoint::open(out_));
  write(*source_, plan(), out_, true);
  expect_same_model(*source_, *Checkpoint::open(out_));
  EXPECT_FALSE(fs::exists(partial_));
}

TEST_P(WriteModel, AnErrorLeavesNothing) {
  ThreadPool threads(2);
  struct Stop {};
  uint64_t last = 0;
  EXPECT_THROW(write_model(*source_, plan(), out_, false, threads,
                           [&](uint64_t written) {
                             EXPECT_GT(written, last);
                             last = written;
                             EXPECT_TRUE(fs::exists(partial_));
                             if (written > 300'000) throw Stop();
                           }),
               Stop);
  EXPECT_FALSE(fs::exists(out_));
  EXPECT_FALSE(fs::exists(partial_));
}

TEST_P(WriteModel, TakesOverWhatADeadRunLeft) {
  if (is_directory()) {
    fs::create_directory(partial_);
    test::write_file(partial_ + "/model-00001-of-00002.safetensors", "torn");
  } else {
    test::write_file(partial_, std::string(2'000'000, 'x'));
  }
  write(*source_, plan(), out_);
  expect_same_model(*source_, *Checkpoint::open(out_));
  EXPECT_FALSE(fs::exists(out_ + "/model-00001-of-00002.safetensors"));
  EXPECT_FALSE(fs::exists(partial_));
}

TEST_P(WriteModel, TwoWritersOfOneOutput) {
  if (is_directory()) {
    fs::create_directory(partial_);
  } else {
    test::write_file(partial_, "");
  }
  const int other = ::open(partial_.c_str(), O_RDONLY);
  ASSERT_EQ(::flock(other, LOCK_EX), 0);
  try {
    write(*source_, plan(), out_);
    ADD_FAILURE() << "both write";
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("another process"), std::string::npos) << e.what();
  }
  EXPECT_TRUE(fs::exists(partial_));
  ::close(other);
  write(*source_, plan(), out_);
  expect_same_model(*source_, *Checkpoint::open(out_));
}

TEST_P(WriteModel, NoSuchDirectory) {
  try {
    write(*source_, plan(), folder_ / "no/m.gguf");
    ADD_FAILURE() << "it was written";
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("mkdir -p"), std::string::npos) << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, WriteModel, testing::Values(false, true),
                         [](const auto& kind) { return kind.param ? "Directory" : "Gguf"; });

TEST(StagedOutput, OtherFilesInThePartialDirectoryAreKept) {
  const TempDir folder;
  fs::create_directory(folder / "m.partial");
  test::write_file(folder / "m.partial/thesis.tex", "x");
  const auto source = Checkpoint::open("synthetic:tiny-llama:f32");
  EXPECT_THROW(write(*source, plan_hf_directory(*source), folder / "m"), IoError);
  EXPECT_TRUE(fs::exists(folder / "m.partial/thesis.tex"));
}

TEST(StagedOutput, ADeviceInTheWayIsKept) {
  const TempDir folder;
  // A device of its own, like /dev/full.
  const std::string device = folder / "m.gguf.partial";
  if (::mknod(device.c_str(), S_IFCHR | 0666, makedev(1, 7)) != 0) {
    GTEST_SKIP() << "no device may be made here";
  }
  const auto source = Checkpoint::open("synthetic:tiny-llama:f32");
  EXPECT_THROW(write(*source, plan_gguf(*source), folder / "m.gguf"), IoError);
  EXPECT_TRUE(fs::is_character_file(device));
}

}  // namespace
}  // namespace headrace
