// A checkpoint quantised as it is read: which tensors, which bytes, and what is refused.
#include "engine/checkpoint/quantized_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>

#include "engine/error.h"
#include "engine/half.h"
#include "tests/reference/dequantize.h"
#include "tests/reference/quantize.h"
#include "tests/unit/memory_checkpoint.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::MemoryCheckpoint;
using test::model_path;

ModelConfig wide_llama() {
  ModelConfig config = test::small_llama();
  config.d_model = config.d_embed = 128;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 32;
  config.d_ffn = 192;
  config.qkv_bias = true;
  return config;
}

ModelConfig opt_with_projections() {
  ModelConfig config = wide_llama();
  config.family = Family::kOpt;
  config.d_embed = 64;
  config.norm = NormKind::kLayer;
  config.activation = Activation::kRelu;
  config.gated_mlp = false;
  config.o_bias = config.mlp_bias = config.norm_bias = true;
  config.n_kv_heads = config.n_heads;
  config.tied_head = config.learned_positions = true;
  config.position_offset = 2;
  return config;
}

MemoryCheckpoint::Options matrices_of(DType dtype) {
  MemoryCheckpoint::Options options;
  options.matrix_format = [dtype](Role, int) { return dtype; };
  return options;
}

std::unique_ptr<Checkpoint> memory(const ModelConfig& config, DType dtype, WeightFormat format) {
  return quantized(std::make_unique<MemoryCheckpoint>(config, matrices_of(dtype)), format);
}

std::vector<std::byte> read_all(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(tensor.bytes);
  checkpoint.read(tensor, 0, bytes);
  return bytes;
}

// The plain definition of what a tensor of `source` becomes.
std::vector<std::byte> expected_bytes(const Checkpoint& source, const TensorInfo& tensor,
                                      DType dtype) {
  const std::vector<std::byte> raw = read_all(source, tensor);
  if (dtype == tensor.dtype) return raw;
  std::vector<std::byte> bytes;
  for (int64_t row = 0; row < tensor.rows; ++row) {
    std::vector<float> values(static_cast<size_t>(tensor.cols));
    reference::dequantize_row(tensor.dtype, raw.data() + row * row_bytes(tensor.dtype, tensor.cols),
                              tensor.cols, values.data());
    const auto stored = reference::quantize_row(dtype, values);
    bytes.insert(bytes.end(), stored.begin(), stored.end());
  }
  return bytes;
}

TEST(QuantizedCheckpoint, MatricesHaveTheBytesOfTheReferenceAndTheRestIsAsItWas) {
  for (const ModelConfig& config : {wide_llama(), opt_with_projections()}) {
    for (const DType from : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const WeightFormat format : {WeightFormat::kQ8, WeightFormat::kQ4}) {
        const MemoryCheckpoint plain(config, matrices_of(from));
        const auto checkpoint = memory(config, from, format);
        const DType to = format == WeightFormat::kQ8 ? DType::kG8 : DType::kG4;
        int converted = 0;
        for (const Role role : all_roles()) {
          const TensorInfo* before = plain.find(role, 0);
          const TensorInfo* after = checkpoint->find(role, 0);
          ASSERT_EQ(before == nullptr, after == nullptr) << role_name(role);
          if (!before) continue;
          const bool kept = before->rows == 1 || role == Role::kPositionEmbedding;
          ASSERT_EQ(after->dtype, kept ? before->dtype : to) << role_name(role);
          ASSERT_EQ(after->name, before->name);
          ASSERT_EQ(after->bytes, row_bytes(after->dtype, after->cols) * after->rows);
          ASSERT_EQ(read_all(*checkpoint, *after), expected_bytes(plain, *before, after->dtype))
              << role_name(role);
          converted += !kept;
        }
        EXPECT_EQ(converted, config.family == Family::kOpt ? 10 : 9);
      }
    }
  }
}

TEST(QuantizedCheckpoint, AnyRangeOfBytesCanBeRead) {
  std::mt19937_64 random(5);
  for (const WeightFormat format : {WeightFormat::kQ8, WeightFormat::kQ4}) {
    const auto checkpoint = memory(wide_llama(), DType::kBF16, format);
    const TensorInfo& tensor = checkpoint->require(Role::kDown, 1);
    const std::vector<std::byte> whole = read_all(*checkpoint, tensor);
    for (int i = 0; i < 300; ++i) {
      const uint64_t from = random() % (whole.size() + 1);
      std::vector<std::byte> part(random() % (whole.size() - from + 1));
      checkpoint->read(tensor, from, part);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<long>(from)));
    }
    std::vector<std::byte> byte(1);
    EXPECT_THROW(checkpoint->read(tensor, whole.size(), byte), ModelError);
  }
}

TEST(QuantizedCheckpoint, AFingerprintIsCheapAndNamesTheFormat) {
  std::set<std::string> fingerprints;
  for (const auto format : {WeightFormat::kNative, WeightFormat::kQ8, WeightFormat::kQ4}) {
    const auto one = Checkpoint::open(model_path("llama-gqa"))->fingerprint();
    const auto open = [&] { return quantized(Checkpoint::open(model_path("llama-gqa")), format); };
    EXPECT_EQ(open()->fingerprint(), open()->fingerprint());
    EXPECT_EQ(open()->fingerprint() == one, format == WeightFormat::kNative);
    fingerprints.insert(open()->fingerprint());
  }
  EXPECT_EQ(fingerprints.size(), 3u);

  ModelConfig big = wide_llama();
  big.vocab_size = 20000;  // an embedding of 10 MB
  auto inner = std::make_unique<MemoryCheckpoint>(big, matrices_of(DType::kF32));
  const MemoryCheckpoint& reads = *inner;
  const auto checkpoint = quantized(std::move(inner), WeightFormat::kQ4);
  checkpoint->fingerprint();
  for (const auto& [name, parts] : reads.reads()) {
    uint64_t bytes = 0;
    for (const auto& part : parts) bytes += part.bytes;
    EXPECT_LE(bytes, 40000u) << name;
  }
}

TEST(QuantizedCheckpoint, MixedFilesWorkAndRowsStayInterleaved) {
  MemoryCheckpoint::Options options;
  options.interleaved = true;
  options.matrix_format = [](Role role, int) {
    return role == Role::kQ ? DType::kF32 : role == Role::kHead ? DType::kBF16 : DType::kF16;
  };
  const auto checkpoint =
      quantized(std::make_unique<MemoryCheckpoint>(wide_llama(), options), WeightFormat::kQ4);
  EXPECT_TRUE(checkpoint->qk_rows_interleaved());
  for (const Role role : {Role::kQ, Role::kHead, Role::kV, Role::kTokenEmbedding}) {
    EXPECT_EQ(checkpoint->require(role).dtype, DType::kG4);
  }
  EXPECT_EQ(checkpoint->require(Role::kAttnNorm).dtype, DType::kF32);
  EXPECT_EQ(checkpoint->format(), "memory, weights q4");
}

template <typename Error, typename F>
void expect_error(F f, const std::vector<std::string>& parts) {
  try {
    f();
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << "no \"" << part << "\" in: " << e.what();
    }
  }
}

TEST(QuantizedCheckpoint, LowBitModelsAndShortRowsAreRefused) {
  const auto open = [](const std::string& name) {
    return [path = model_path(name)] { quantized(Checkpoint::open(path), WeightFormat::kQ4); };
  };
  expect_error<std::invalid_argument>(
      open("llama-rope3.Q8_0.gguf"),
      {"llama-rope3.Q8_0.gguf", "--weights q4", "token_embd.weight", "Q8_0", "--weights native"});
  expect_error<std::invalid_argument>(
      open("qwen2-tied"),
      {"qwen2-tied", "layers.0.mlp.down_proj.weight", "96", "multiple of 64", "--weights native"});
}

TEST(QuantizedCheckpoint, AWeightThatIsNotFiniteIsNamed) {
  // The last value of row 2 of a matrix of 128 columns becomes infinite or NaN.
  class Damaged : public MemoryCheckpoint {
   public:
    Damaged(const ModelConfig& config, float v)
        : MemoryCheckpoint(config, matrices_of(DType::kF32)), v_(v) {}
    void read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const override {
      MemoryCheckpoint::read(tensor, offset, out);
      const uint64_t at = (3 * 128 - 1) * 4;
      if (tensor.name == tensor_name(Role::kK, 1) && at >= offset &&
          at + 4 <= offset + out.size()) {
        std::memcpy(out.data() + (at - offset), &v_, 4);
      }
    }
    float v_;
  };
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    const auto checkpoint =
        quantized(std::make_unique<Damaged>(wide_llama(), bad), WeightFormat::kQ8);
    expect_error<ModelError>([&] { read_all(*checkpoint, checkpoint->require(Role::kK, 1)); },
                             {"memory", "1.k", "not finite", "row 2, column 127"});
    EXPECT_NO_THROW(read_all(*checkpoint, checkpoint->require(Role::kK, 0)));
  }
}

TEST(WeightFormat, NamesGoBothWays) {
  for (const auto format : {WeightFormat::kNative, WeightFormat::kQ8, WeightFormat::kQ4}) {
    EXPECT_EQ(weight_format_of(weight_format_name(format)), format);
  }
  expect_error<std::invalid_argument>([] { weight_format_of("q5"); }, {"q5", "native, q8 or q4"});
}

}  // namespace
}  // namespace headrace
