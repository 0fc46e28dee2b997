#include "engine/memory/weight_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>

#include "engine/error.h"
#include "tests/ops/op_test.h"
#include "tests/reference/dequantize.h"
#include "tests/unit/memory_checkpoint.h"

namespace headrace {
namespace {

using test::MemoryCheckpoint;
using test::small_llama;

constexpr uint64_t kPlenty = uint64_t{1} << 28;

ModelConfig opt_with_projections() {
  ModelConfig config = small_llama();
  config.family = Family::kOpt;
  config.d_embed = 16;
  config.norm = NormKind::kLayer;
  config.activation = Activation::kRelu;
  config.gated_mlp = false;
  config.qkv_bias = config.o_bias = config.mlp_bias = config.norm_bias = true;
  config.n_kv_heads = config.n_heads;
  config.tied_head = config.learned_positions = true;
  config.position_offset = 2;
  return config;
}

ModelConfig with_layers(ModelConfig config, int layers, bool tied) {
  config.n_layers = layers;
  config.tied_head = tied;
  return config;
}

// What a stage of the range must read.
std::set<std::string> own_tensors(const ModelConfig& config, const StageRange& range) {
  std::set<std::string> names;
  const auto add = [&](Role role, int layer = 0) {
    if (!has_role(config, role)) return;
    if (role == Role::kHead && config.tied_head) role = Role::kTokenEmbedding;
    names.insert(MemoryCheckpoint::tensor_name(role, layer));
  };
  if (range.is_first) {
    for (Role role : {Role::kTokenEmbedding, Role::kPositionEmbedding, Role::kProjectIn}) add(role);
  }
  if (range.is_last) {
    for (Role role : {Role::kHead, Role::kProjectOut, Role::kFinalNorm, Role::kFinalNormBias})
      add(role);
  }
  for (int layer = range.first_layer; layer < range.end_layer; ++layer) {
    for (Role role : all_roles()) {
      if (is_layer_role(role)) add(role, layer);
    }
  }
  return names;
}

// Every own tensor is read whole, no other one is touched.
void expect_own_reads(const MemoryCheckpoint& checkpoint, const StageRange& range) {
  std::set<std::string> read;
  for (const auto& [name, parts] : checkpoint.reads()) {
    read.insert(name);
    std::vector<MemoryCheckpoint::Read> sorted = parts;
    std::sort(sorted.begin(), sorted.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    uint64_t end = 0;
    for (const auto& part : sorted) {
      EXPECT_LE(part.offset, end) << "bytes of " << name << " were left out";
      end = std::max(end, part.offset + part.bytes);
    }
    const auto tensor = std::find_if(checkpoint.tensors().begin(), checkpoint.tensors().end(),
                                     [&](const TensorInfo& t) { return t.name == name; });
    ASSERT_NE(tensor, checkpoint.tensors().end());
    EXPECT_EQ(end, tensor->bytes) << name;
  }
  EXPECT_EQ(read, own_tensors(checkpoint.config(), range));
}

class WeightStoreTest : public testing::TestWithParam<std::tuple<bool, bool, bool>> {
 protected:
  ModelConfig config() const {
    const auto [opt, tied, interleaved] = GetParam();
    return with_layers(opt ? opt_with_projections() : small_llama(), 5, tied || opt);
  }
  MemoryCheckpoint checkpoint() const {
    MemoryCheckpoint::Options options;
    options.interleaved = std::get<2>(GetParam());
    return {config(), options};
  }
  const std::vector<StageRange> ranges_ = {
      {0, 5, true, true}, {0, 2, true, false}, {2, 4, false, false}, {4, 5, false, true}};
};

TEST_P(WeightStoreTest, AStageReadsItsOwnTensorsOnly) {
  for (const int threads : {1, 3}) {
    for (const StageRange& range : ranges_) {
      const MemoryCheckpoint model = checkpoint();
      MemoryBudget budget("host memory", kPlenty);
      ThreadPool pool(threads, 0);
      const WeightStore store(model, range, budget, pool);
      expect_own_reads(model, range);
    }
  }
}

TEST_P(WeightStoreTest, BytesNeededAreTaken) {
  const MemoryCheckpoint model = checkpoint();
  for (const StageRange& range : ranges_) {
    MemoryBudget budget("host memory", kPlenty);
    ThreadPool pool(2, 0);
    {
      const WeightStore store(model, range, budget, pool);
      EXPECT_EQ(budget.used(), WeightStore::bytes_needed(model, range));
    }
    EXPECT_EQ(budget.used(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, WeightStoreTest,
                         testing::Values(std::tuple(false, false, false),
                                         std::tuple(false, true, false),
                                         std::tuple(false, true, true),
                                         std::tuple(true, true, false)));

PackedMatrix embedding(WeightStore& store) {
  PackedMatrix found;
  store.look_up(std::vector<int32_t>{0}, [&](const PackedMatrix& matrix, auto) { found = matrix; });
  return found;
}

TEST(WeightStore, ATiedHeadIsSharedOnOneStageAndLoadedOnTheLastOfSeveral) {
  const MemoryCheckpoint model(with_layers(small_llama(), 2, true), {});
  MemoryBudget budget("host memory", kPlenty);
  ThreadPool pool(1, 0);
  WeightStore whole(model, {0, 2, true, true}, budget, pool);
  const PackedMatrix a = whole.acquire_head().weight;
  EXPECT_EQ(a.panels, embedding(whole).panels);
  WeightStore last(model, {1, 2, false, true}, budget, pool);
  const PackedMatrix b = last.acquire_head().weight;
  ASSERT_NE(b.panels, nullptr);
  ASSERT_EQ(a.panel_bytes() * static_cast<size_t>(a.panel_count()),
            b.panel_bytes() * static_cast<size_t>(b.panel_count()));
  EXPECT_TRUE(std::equal(a.panels, a.panels + a.panel_bytes() * a.panel_count(), b.panels));
  EXPECT_GT(WeightStore::bytes_needed(model, {1, 2, false, true}),
            WeightStore::bytes_needed(model, {1, 2, false, false}));
}

TEST(WeightStore, AnUntiedHeadHasItsOwnMemory) {
  const MemoryCheckpoint model(with_layers(small_llama(), 2, false), {});
  MemoryBudget budget("host memory", kPlenty);
  ThreadPool pool(1, 0);
  WeightStore store(model, {0, 2, true, true}, budget, pool);
  const PackedMatrix head = store.acquire_head().weight;
  EXPECT_NE(head.panels, embedding(store).panels);
  EXPECT_EQ(head.rows, 80);
}

TEST(WeightStore, AReadErrorComesOutOfTheThreads) {
  for (const int threads : {1, 4}) {
    std::atomic<int> reads = 0;
    MemoryCheckpoint::Options options;
    options.before_read = [&](const TensorInfo& tensor, uint64_t) {
      ++reads;
      if (tensor.name == "1.up") throw IoError("1.up cannot be read");
    };
    const MemoryCheckpoint model(small_llama(), options);
    MemoryBudget budget("host memory", kPlenty);
    ThreadPool pool(threads, 0);
    try {
      const WeightStore store(model, {0, 2, true, true}, budget, pool);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const IoError& e) {
      EXPECT_STREQ(e.what(), "1.up cannot be read");
    }
    EXPECT_GT(reads, 1);
    EXPECT_EQ(budget.used(), 0u) << "a failed load kept memory";
    // The pool is whole.
    std::atomic<int> done = 0;
    pool.parallel_for(100, [&](int64_t) { ++done; });
    EXPECT_EQ(done, 100);
  }
}

TEST(WeightStore, ABudgetThatIsTooSmallIsRefused) {
  const MemoryCheckpoint model(small_llama(), {});
  const StageRange range{0, 2, true, true};
  MemoryBudget budget("host memory", WeightStore::bytes_needed(model, range) / 2);
  ThreadPool pool(1, 0);
  EXPECT_THROW(WeightStore(model, range, budget, pool), DoesNotFit);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(WeightStore, VectorsOfEveryPlainFormatBecomeFloat32) {
  for (const DType format : {DType::kF32, DType::kF16, DType::kBF16}) {
    MemoryCheckpoint::Options options;
    options.vector_format = format;
    const MemoryCheckpoint model(small_llama(), options);
    MemoryBudget budget("host memory", kPlenty);
    ThreadPool pool(1, 0);
    WeightStore store(model, {0, 2, true, true}, budget, pool);
    const TensorInfo& tensor = model.require(Role::kMlpNorm, 1);
    std::vector<std::byte> raw(tensor.bytes);
    model.read(tensor, 0, raw);
    std::vector<float> expected(static_cast<size_t>(tensor.cols));
    reference::dequantize_row(format, raw.data(), tensor.cols, expected.data());
    EXPECT_TRUE(
        same_bits(expected, std::span(store.acquire_layer(1).mlp_norm.weight, expected.size())));
  }
}

}  // namespace
}  // namespace headrace
