// Models in GGUF files: configuration, names, and equality with the same model as safetensors.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numbers>
#include <thread>

#include "engine/checkpoint/checkpoint.h"
#include "tests/reference/dequantize.h"
#include "tests/unit/gguf_bytes.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::expect_model_error;
using test::TempDir;

std::vector<float> values(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> stored(tensor.bytes);
  checkpoint.read(tensor, 0, stored);
  std::vector<float> out(static_cast<size_t>(tensor.rows * tensor.cols));
  const size_t row = row_bytes(tensor.dtype, tensor.cols);
  for (int64_t r = 0; r < tensor.rows; ++r) {
    reference::dequantize_row(tensor.dtype, stored.data() + static_cast<size_t>(r) * row,
                              tensor.cols, out.data() + r * tensor.cols);
  }
  return out;
}

// Undoes the row order of llama GGUF files: file row 2j is row j of the head's first half, 2j + 1
// of its second.
std::vector<float> half_split(const std::vector<float>& in, int head_dim, int64_t cols) {
  std::vector<float> out(in.size());
  const int64_t rows = static_cast<int64_t>(in.size()) / cols;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = r % head_dim;
    const int64_t target = r - i + i / 2 + (i % 2) * (head_dim / 2);
    std::copy_n(in.begin() + r * cols, cols, out.begin() + target * cols);
  }
  return out;
}

std::vector<float> model_values(const Checkpoint& checkpoint, Role role, int layer) {
  const TensorInfo& tensor = checkpoint.require(role, layer);
  std::vector<float> out = values(checkpoint, tensor);
  if (checkpoint.qk_rows_interleaved() && (role == Role::kQ || role == Role::kK)) {
    out = half_split(out, checkpoint.config().head_dim, tensor.cols);
  }
  return out;
}

TEST(GgufCheckpoint, EqualsTheSameModelAsSafetensors) {
  const auto plain = Checkpoint::open(test::model_path("llama-rope3"));
  // Largest error of a format relative to the largest weight of a block, which is at most that of
  // the tensor: half a quantisation step, and the rounding of the scale to float16.
  const std::pair<const char*, double> formats[] = {
      {"F32", 0.0},       {"F16", 1.0 / 2048}, {"Q8_0", 0.6 / 127}, {"Q5_1", 1.1 / 31},
      {"Q5_0", 1.1 / 16}, {"Q4_1", 1.1 / 15},  {"Q4_0", 1.1 / 8},
  };
  for (const auto& [format, tolerance] : formats) {
    const auto gguf =
        Checkpoint::open(test::model_path("llama-rope3." + std::string(format) + ".gguf"));
    EXPECT_EQ(gguf->format(), "GGUF v3");
    EXPECT_TRUE(gguf->qk_rows_interleaved());
    EXPECT_STREQ(dtype_name(gguf->require(Role::kUp, 1).dtype), format);
    for (int layer = 0; layer < plain->config().n_layers; ++layer) {
      for (Role role : all_roles()) {
        ASSERT_EQ(plain->find(role, layer) == nullptr, gguf->find(role, layer) == nullptr);
        if (plain->find(role, layer) == nullptr) continue;
        const std::vector<float> expected = model_values(*plain, role, layer);
        const std::vector<float> actual = model_values(*gguf, role, layer);
        ASSERT_EQ(expected.size(), actual.size());
        float largest = 0;
        for (float value : expected) largest = std::max(largest, std::abs(value));
        for (size_t i = 0; i < expected.size(); ++i) {
          ASSERT_NEAR(expected[i], actual[i], tolerance * static_cast<double>(largest))
              << format << " " << role_name(role) << " of layer " << layer << " element " << i;
        }
      }
    }
  }
}

TEST(GgufCheckpoint, ConfigurationEqualsThatOfTheDirectory) {
  const auto plain = Checkpoint::open(test::model_path("llama-rope3"));
  const auto gguf = Checkpoint::open(test::model_path("llama-rope3.F32.gguf"));
  const ModelConfig& a = plain->config();
  const ModelConfig& b = gguf->config();
  EXPECT_EQ(b.name, "tiny llama");
  EXPECT_EQ(b.family, Family::kLlama);
  EXPECT_EQ(a.n_layers, b.n_layers);
  EXPECT_EQ(a.d_model, b.d_model);
  EXPECT_EQ(a.d_embed, b.d_embed);
  EXPECT_EQ(a.n_heads, b.n_heads);
  EXPECT_EQ(a.n_kv_heads, b.n_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.d_ffn, b.d_ffn);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.max_positions, b.max_positions);
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.eos_token_ids, (std::vector<int>{2, 299}));
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
  EXPECT_EQ(a.bos_token_id, b.bos_token_id);
  EXPECT_TRUE(a.tied_head && b.tied_head);
  EXPECT_EQ(&gguf->require(Role::kHead), &gguf->require(Role::kTokenEmbedding));
  EXPECT_EQ(a.rope.theta, b.rope.theta);

  // The divisors in the GGUF file are what Llama-3 scaling, as the directory gives it, amounts to.
  ASSERT_EQ(a.rope.scaling, Rope::Scaling::kLlama3);
  ASSERT_EQ(b.rope.frequency_divisors.size(), static_cast<size_t>(b.head_dim / 2));
  for (int i = 0; i < a.head_dim / 2; ++i) {
    const double frequency = std::pow(a.rope.theta, -2.0 * i / a.head_dim);
    const double turns = a.rope.original_max_positions * frequency / (2 * std::numbers::pi);
    const double smooth =
        (turns - a.rope.low_freq_factor) / (a.rope.high_freq_factor - a.rope.low_freq_factor);
    const double keep = std::clamp(smooth, 0.0, 1.0);
    const double divisor = 1.0 / ((1.0 - keep) / a.rope.factor + keep);
    EXPECT_NEAR(b.rope.frequency_divisors[static_cast<size_t>(i)], divisor, 1e-5 * divisor) << i;
  }
}

// A copy of a good file with one string (of the same length) or some bytes after it replaced.
class GgufEdit : public ::testing::Test {
 protected:
  std::string edited(const std::string& find, size_t skip, const std::string& replacement) {
    std::string bytes = test::read_file(test::model_path("llama-rope3.F32.gguf"));
    const size_t at = bytes.find(find);
    EXPECT_NE(at, std::string::npos) << find;
    bytes.replace(at + skip, replacement.size(), replacement);
    test::write_file(path_, bytes);
    return path_;
  }
  // A copy with further metadata, filled up so that the tensor data stays aligned.
  std::string extended(const std::vector<std::string>& entries) {
    std::string bytes = test::read_file(test::model_path("llama-rope3.F32.gguf"));
    std::string added;
    for (const std::string& entry : entries) added += entry;
    const std::string empty = test::array("filler", 0, 0, "");
    const size_t fill = 31 - (added.size() + empty.size() + 31) % 32;
    added += test::array("filler", 0, fill, std::string(fill, 'x'));
    EXPECT_EQ(added.size() % 32, 0u);
    bytes.insert(24, added);
    uint64_t count = 0;
    std::memcpy(&count, bytes.data() + 16, sizeof(count));
    bytes.replace(16, 8, test::le<uint64_t>(count + entries.size() + 1));
    test::write_file(path_, bytes);
    return path_;
  }
  void refused(const std::string& find, const std::string& replacement,
               std::vector<std::string> parts) {
    const std::string path = edited(find, 0, replacement);
    parts.push_back(path);
    expect_model_error([&] { Checkpoint::open(path); }, parts);
  }
  // Replaces the u32 value of a key (after its name and type).
  void refused_value(const std::string& key, uint32_t value, std::vector<std::string> parts) {
    const std::string path = edited(key, key.size() + 4, test::le(value));
    parts.push_back(path);
    expect_model_error([&] { Checkpoint::open(path); }, parts);
  }

  TempDir dir_;
  std::string path_ = dir_ / "edited.gguf";
};

TEST_F(GgufEdit, ContradictoryConfigurations) {
  std::string architecture = "general.architecture";
  const std::string path = edited(architecture, architecture.size() + 12, "mamba");
  expect_model_error([&] { Checkpoint::open(path); }, {path, "mamba", "llama, qwen2, qwen3"});
  refused(architecture, "general.archiXecture", {"general.architecture", "missing"});
  refused("llama.block_count", "llama.blockXcount", {"llama.block_count", "missing"});
  refused("llama.context_length", "llama.contextXlength", {"llama.context_length", "missing"});
  refused("llama.attention.layer_norm_rms_epsilon", "llama.attention.layer_norm_rms_epsiloX",
          {"epsilon", "missing"});
  refused_value("llama.block_count", 0, {"llama.block_count", "0"});
  refused_value("llama.block_count", 0x80000000u, {"llama.block_count", "2147483648"});
  refused_value("llama.block_count", 3, {"attn_norm of layer 2", "blk.2.attn_norm.weight"});
  refused_value("llama.block_count", 0x7FFFFFFFu, {"layer 2", "missing"});
  refused_value("llama.embedding_length", 65, {"llama.embedding_length", "multiple"});
  refused_value("llama.embedding_length", 66, {"llama.rope.dimension_count", "32", "33"});
  refused_value("llama.attention.head_count", 0, {"llama.attention.head_count", "0"});
  refused_value("llama.attention.head_count_kv", 3, {"n_heads 2", "n_kv_heads 3"});
  refused_value("llama.feed_forward_length", 95, {"ffn_gate.weight", "[96 x 64]", "[95 x 64]"});
  refused_value("llama.rope.dimension_count", 16, {"llama.rope.dimension_count", "16"});
  refused_value("tokenizer.ggml.eos_token_id", 300, {"tokenizer.ggml.eos_token_id", "300"});
  refused_value("tokenizer.ggml.bos_token_id", ~0u, {"tokenizer.ggml.bos_token_id"});
  refused("token_embd.weight", "token_embX.weight", {"token_embd.weight", "missing"});
  refused("blk.1.attn_v.weight", "blk.1.attn_X.weight", {"v of layer 1", "blk.1.attn_v.weight"});
  refused("output_norm.weight", "output_norX.weight", {"final_norm", "output_norm.weight"});
}

TEST_F(GgufEdit, NormsAreNotOfALowBitFormat) {
  const std::string norm = "output_norm.weight";  // then a dimension, its length, the type
  const std::string path = edited(norm, norm.size() + 12, test::le<uint32_t>(8));
  expect_model_error([&] { Checkpoint::open(path); },
                     {path, "\"output_norm.weight\", the final_norm", "Q8_0", "F32, F16 or BF16"});
}

TEST_F(GgufEdit, FurtherKeys) {
  using test::entry;
  using test::le;
  using test::text;
  const auto refused_entries = [&](const std::vector<std::string>& entries,
                                   std::vector<std::string> parts) {
    const std::string path = extended(entries);
    parts.push_back(path);
    expect_model_error([&] { Checkpoint::open(path); }, parts);
  };
  const std::string factor = entry("llama.rope.scaling.factor", 6, le(4.0f));
  refused_entries({entry("llama.rope.scaling.type", 8, text("yarn")), factor},
                  {"llama.rope.scaling.type", "yarn", "none, linear, and llama3"});
  refused_entries({entry("llama.rope.scaling.type", 8, text("linear"))},
                  {"llama.rope.scaling.factor", "missing"});
  refused_entries({entry("llama.rope.scaling.factor", 6, le(-1.0f))}, {"factor", "positive"});
  refused_entries({entry("llama.rope.scaling.factor", 6, le(NAN))}, {"factor", "positive"});
  refused_entries({entry("llama.expert_count", 4, le<uint32_t>(8))}, {"llama.expert_count"});
  // Attention within a window is full attention.
  const auto window = extended({entry("llama.attention.sliding_window", 4, le<uint32_t>(16))});
  EXPECT_EQ(Checkpoint::open(window)->config().max_positions, 16);
  refused_entries({entry("llama.attention.key_length", 4, le<uint32_t>(31))},
                  {"llama.rope.dimension_count", "31"});
  refused_entries({entry("llama.attention.value_length", 4, le<uint32_t>(16))},
                  {"llama.attention.value_length", "16", "32"});
  refused_entries({entry("split.count", 2, le<uint16_t>(2))}, {"split.count"});

  for (const auto& entries :
       {std::vector{factor, entry("llama.rope.scaling.type", 8, text("linear"))},
        std::vector{factor}}) {
    const ModelConfig config = Checkpoint::open(extended(entries))->config();
    EXPECT_EQ(config.rope.scaling, Rope::Scaling::kLinear);
    EXPECT_EQ(config.rope.factor, 4.0);
  }
  const auto none = extended({entry("llama.rope.scaling.type", 8, text("none")), factor});
  EXPECT_EQ(Checkpoint::open(none)->config().rope.scaling, Rope::Scaling::kNone);
}

TEST_F(GgufEdit, FrequencyDivisors) {
  const TensorInfo tensor = [] {
    const auto good = Checkpoint::open(test::model_path("llama-rope3.F32.gguf"));
    for (const TensorInfo& info : good->tensors()) {
      if (info.name == "rope_freqs.weight") return info;
    }
    return TensorInfo{};
  }();
  ASSERT_EQ(tensor.cols, 16);
  std::string bytes = test::read_file(test::model_path("llama-rope3.F32.gguf"));
  for (float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    bytes.replace(tensor.offset + 8, 4, test::le(bad));
    test::write_file(path_, bytes);
    expect_model_error([&] { Checkpoint::open(path_); }, {path_, "divisor"});
  }
  // Its only dimension follows the name and the number of dimensions.
  const std::string name = "rope_freqs.weight";
  const std::string path = edited(name, name.size() + 4, test::le<uint64_t>(15));
  expect_model_error([&] { Checkpoint::open(path); }, {path, "rope_freqs.weight", "16"});
}

TEST(GgufCheckpointReads, RangesThreadsAndTruncation) {
  TempDir dir;
  const std::string path = dir / "model.gguf";
  const std::string bytes = test::read_file(test::model_path("llama-rope3.Q8_0.gguf"));
  test::write_file(path, bytes);
  const auto checkpoint = Checkpoint::open(path);
  const TensorInfo& tensor = checkpoint->require(Role::kDown, 1);
  const std::string expected = bytes.substr(tensor.offset, tensor.bytes);

  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t offset = t; offset + 40 < tensor.bytes; offset += 37) {
        std::string part(40, '\0');
        checkpoint->read(tensor, offset, std::as_writable_bytes(std::span(part)));
        wrong += part != expected.substr(offset, 40);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);

  std::vector<std::byte> out(16);
  expect_model_error([&] { checkpoint->read(tensor, tensor.bytes - 15, out); }, {tensor.name});
  expect_model_error([&] { checkpoint->read(tensor, ~uint64_t{0}, out); }, {tensor.name});
  std::filesystem::resize_file(path, tensor.offset + 8);
  expect_model_error([&] { checkpoint->read(tensor, 0, out); }, {path, "truncated"});
}

TEST(Fingerprint, FollowsContentsNotPlace) {
  TempDir dir;
  const std::string good = test::model_path("llama-rope3.Q8_0.gguf");
  const std::string copy = dir / "other-name.gguf";
  std::string bytes = test::read_file(good);
  test::write_file(copy, bytes);
  const std::string fingerprint = Checkpoint::open(good)->fingerprint();
  EXPECT_EQ(fingerprint.size(), 16u);
  EXPECT_EQ(fingerprint, Checkpoint::open(copy)->fingerprint());

  std::string changed = bytes;  // one bit of a weight that the sample holds: tensors are small here
  changed[changed.size() - 100] = static_cast<char>(changed[changed.size() - 100] ^ 1);
  test::write_file(copy, changed);
  EXPECT_NE(fingerprint, Checkpoint::open(copy)->fingerprint());
  test::write_file(copy, bytes + std::string(32, '\0'));
  EXPECT_NE(fingerprint, Checkpoint::open(copy)->fingerprint());
  const std::string key = "llama.rope.freq_base";
  changed = bytes;
  changed.replace(changed.find(key) + key.size() + 4, 4, test::le(20000.0f));
  test::write_file(copy, changed);
  EXPECT_NE(fingerprint, Checkpoint::open(copy)->fingerprint());
}

// The real models, where they are at hand.
TEST(RealGguf, ConfigurationsAreThePublishers) {
  const char* folder = std::getenv("HEADRACE_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "HEADRACE_MODELS (a folder of real models) is not set";
  const auto smol =
      Checkpoint::open(std::string(folder) + "/SmolLM2-135M-Instruct.Q4_1.gguf")->config();
  EXPECT_EQ(smol.family, Family::kLlama);
  EXPECT_EQ(smol.n_layers, 30);
  EXPECT_EQ(smol.n_heads, 9);
  EXPECT_EQ(smol.n_kv_heads, 3);
  EXPECT_EQ(smol.vocab_size, 49152);
  EXPECT_EQ(smol.rope.theta, 100000.0);
  EXPECT_EQ(smol.eos_token_ids, (std::vector<int>{2}));
  EXPECT_TRUE(smol.tied_head);
  const auto qwen =
      Checkpoint::open(std::string(folder) + "/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")->config();
  EXPECT_EQ(qwen.family, Family::kQwen2);
  EXPECT_EQ(qwen.d_ffn, 4864);
  EXPECT_EQ(qwen.vocab_size, 151936);
  EXPECT_EQ(qwen.norm_eps, 1e-6f);
  EXPECT_TRUE(qwen.qkv_bias);
  EXPECT_FALSE(qwen.o_bias);
  EXPECT_FALSE(qwen.tied_head);
  EXPECT_EQ(qwen.eos_token_ids, (std::vector<int>{151645}));
}

}  // namespace
}  // namespace headrace
