// Synthetic weights: the same bytes for every reader, and sensible sizes.
#include "engine/checkpoint/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

#include "engine/model/shapes.h"
#include "tests/reference/dequantize.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::expect_model_error;

std::vector<std::byte> bytes_of(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> out(tensor.bytes);
  checkpoint.read(tensor, 0, out);
  return out;
}

struct Moments {
  double mean = 0;
  double deviation = 0;
  double largest = 0;
};

Moments moments(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  const std::vector<std::byte> stored = bytes_of(checkpoint, tensor);
  const int64_t count = tensor.rows * tensor.cols;
  std::vector<float> values(static_cast<size_t>(count));
  reference::dequantize_row(tensor.dtype, stored.data(), count, values.data());
  Moments result;
  double squares = 0;
  for (float value : values) {
    result.mean += value;
    squares += static_cast<double>(value) * value;
    result.largest = std::max(result.largest, std::abs(static_cast<double>(value)));
  }
  result.mean /= static_cast<double>(count);
  result.deviation = std::sqrt(squares / static_cast<double>(count) - result.mean * result.mean);
  return result;
}

TEST(Synthetic, AnyRangeReadByAnyoneAgrees) {
  std::mt19937_64 random(3);
  for (const char* format : {"f32", "f16", "bf16", "q8", "q4"}) {
    for (const char* shape : {"tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-opt"}) {
      const std::string model = std::string("synthetic:") + shape + ":" + format;
      const auto checkpoint = Checkpoint::open(model);
      const auto other = Checkpoint::open(model);
      for (const TensorInfo& tensor : checkpoint->tensors()) {
        const std::vector<std::byte> whole = bytes_of(*checkpoint, tensor);
        for (int i = 0; i < 20; ++i) {
          const uint64_t offset = random() % tensor.bytes;
          std::vector<std::byte> part(1 + random() % (tensor.bytes - offset));
          other->read(tensor, offset, part);
          ASSERT_EQ(std::memcmp(part.data(), whole.data() + offset, part.size()), 0)
              << model << " " << tensor.name << " from " << offset;
        }
        std::vector<std::byte> beyond(2);
        expect_model_error([&] { other->read(tensor, tensor.bytes - 1, beyond); }, {tensor.name});
      }
    }
  }
}

TEST(Synthetic, BytesAreTheSameOnEveryMachineAndStay) {
  // Results of scaling studies must stay comparable: these hashes change only with the recipe.
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-llama")->fingerprint(), "4c444e5143001b72");
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-llama:q4")->fingerprint(), "ac01fe2a1253ff1d");
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-opt:q8")->fingerprint(), "f4d9a14b56b593cc");
}

TEST(Synthetic, WeightsHaveSensibleSizes) {
  for (const char* format : {"f32", "f16", "bf16", "q8", "q4"}) {
    const auto checkpoint = Checkpoint::open("synthetic:smollm2-135m:" + std::string(format));
    const ModelConfig& config = checkpoint->config();
    for (Role role : {Role::kTokenEmbedding, Role::kQ, Role::kUp, Role::kDown}) {
      const TensorInfo& tensor = checkpoint->require(role, 3);
      double expected = 1.0 / std::sqrt(static_cast<double>(tensor.cols));
      if (role == Role::kDown) expected /= std::sqrt(2.0 * config.n_layers);
      const Moments found = moments(*checkpoint, tensor);
      EXPECT_NEAR(found.deviation, expected, 0.1 * expected) << format << " " << role_name(role);
      EXPECT_NEAR(found.mean, 0.0, 0.02 * expected) << format << " " << role_name(role);
      EXPECT_LT(found.largest, 3.0 * expected) << format << " " << role_name(role);
    }
    const TensorInfo& norm = checkpoint->require(Role::kMlpNorm, 3);
    EXPECT_EQ(norm.dtype, DType::kF32);
    const Moments found = moments(*checkpoint, norm);
    EXPECT_NEAR(found.mean, 1.0, 0.01);
    EXPECT_GT(found.deviation, 0.005);
    EXPECT_LT(found.deviation, 0.05);
  }
}

TEST(Synthetic, TensorsDifferFromEachOther) {
  const auto checkpoint = Checkpoint::open("synthetic:tiny-qwen2:f32");
  std::set<std::string> starts;
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    const auto bytes = bytes_of(*checkpoint, tensor);
    starts.insert(std::string(reinterpret_cast<const char*>(bytes.data()), 64));
    // Units differ, too: no period at the length of a unit.
    if (bytes.size() < 192) continue;
    EXPECT_NE(std::memcmp(bytes.data(), bytes.data() + 128, 64), 0) << tensor.name;
  }
  EXPECT_EQ(starts.size(), checkpoint->tensors().size());
}

TEST(Synthetic, FormatsFollowTheRequest) {
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-opt")->require(Role::kQ).dtype, DType::kBF16);
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-opt:q8")->require(Role::kQ).dtype, DType::kQ8_0);
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-opt:q4")->require(Role::kHead).dtype, DType::kQ4_0);
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-opt:q4")->require(Role::kQBias).dtype, DType::kF32);
  EXPECT_EQ(Checkpoint::open("synthetic:tiny-opt")->format(), "synthetic");
}

TEST(Synthetic, EveryShapeOpens) {
  for (const std::string& name : shape_names()) {
    const auto checkpoint = Checkpoint::open("synthetic:" + name + ":q4");
    EXPECT_EQ(checkpoint->config().name, name);
    EXPECT_EQ(checkpoint->fingerprint().size(), 16u);
  }
}

// Parameters of the published models, in millions.
TEST(Synthetic, ShapesHaveThePublishedSizes) {
  const std::pair<const char*, double> sizes[] = {
      {"opt-125m", 125.2},        {"opt-350m", 331.2},      {"opt-1.3b", 1315.8},
      {"opt-6.7b", 6658.5},       {"opt-30b", 29974.5},     {"opt-66b", 65719.7},
      {"llama-2-7b", 6738.4},     {"llama-3-8b", 8030.3},   {"llama-3-70b", 70553.7},
      {"tinyllama-1.1b", 1100.0}, {"smollm2-135m", 134.5},  {"smollm2-360m", 361.8},
      {"smollm2-1.7b", 1711.4},   {"qwen2.5-0.5b", 494.0},  {"qwen2.5-1.5b", 1543.7},
      {"qwen2.5-3b", 3085.9},     {"qwen2.5-7b", 7615.6},   {"qwen2.5-14b", 14770.0},
      {"qwen2.5-32b", 32763.9},   {"qwen2.5-72b", 72706.2}, {"qwen3-0.6b", 596.0},
      {"qwen3-1.7b", 1720.6},     {"qwen3-4b", 4022.5},     {"qwen3-8b", 8190.7},
      {"qwen3-14b", 14768.3},     {"qwen3-32b", 32762.1},   {"mistral-7b", 7248.0},
  };
  for (const auto& [name, millions] : sizes) {
    const auto checkpoint = Checkpoint::open("synthetic:" + std::string(name));
    double count = 0;
    for (const TensorInfo& tensor : checkpoint->tensors()) {
      count += static_cast<double>(tensor.rows * tensor.cols);
    }
    EXPECT_NEAR(count / 1e6, millions, 0.06) << name;
  }
}

TEST(Synthetic, SeedsGiveOtherWeightsOfTheSameShape) {
  const auto fingerprint = [](const std::string& model) {
    return Checkpoint::open("synthetic:tiny-llama:" + model)->fingerprint();
  };
  EXPECT_EQ(fingerprint("q8"), fingerprint("q8_0:0"));
  EXPECT_EQ(fingerprint("q8:1"), fingerprint("q8_0:1"));
  EXPECT_NE(fingerprint("q8:1"), fingerprint("q8:0"));
  EXPECT_NE(fingerprint("q8:1"), fingerprint("q8:18446744073709551615"));
  for (const char* seed : {"", "-1", "x", "1:2", "18446744073709551616"}) {
    expect_model_error([&] { fingerprint(std::string("q8:") + seed); },
                       {std::string("\"") + seed + "\"", "seed"});
  }
}

TEST(Synthetic, UnknownNamesListWhatThereIs) {
  expect_model_error([] { Checkpoint::open("synthetic:opt-9b"); }, {"opt-9b", "opt-6.7b"});
  expect_model_error([] { Checkpoint::open("synthetic:"); }, {"tiny-llama"});
  expect_model_error([] { Checkpoint::open("synthetic:tiny-opt:q5"); },
                     {"\"q5\"", "f32, f16, bf16, q8, q8_0, q4, q4_0"});
  expect_model_error([] { Checkpoint::open("synthetic:tiny-opt:"); },
                     {"f32, f16, bf16, q8, q8_0, q4, q4_0"});
}

}  // namespace
}  // namespace headrace
