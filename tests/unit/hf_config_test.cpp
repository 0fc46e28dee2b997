// Hugging Face directories: configurations of every family, spellings, and what is refused.
#include "engine/checkpoint/hf_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "engine/checkpoint/checkpoint.h"
#include "tests/unit/child_process.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::expect_model_error;
using test::TempDir;

// A copy of a tiny model that a test may change.
class HfDirectory : public ::testing::Test {
 protected:
  void copy(const std::string& model) {
    fs::remove_all(path_);
    fs::copy(test::model_path(model), path_, fs::copy_options::recursive);
  }
  json load(const std::string& file = "config.json") {
    return json::parse(test::read_file(path_ + "/" + file));
  }
  void save(const json& value, const std::string& file = "config.json") {
    test::write_file(path_ + "/" + file, value.dump());
  }
  // Opens a copy of the model with config.json changed by a JSON merge patch.
  ModelConfig patched(const std::string& model, const char* patch) {
    copy(model);
    json config = load();
    config.merge_patch(json::parse(patch));
    save(config);
    return read_hf_config(path_);
  }
  void refused(const std::string& model, const char* patch, std::vector<std::string> parts) {
    parts.push_back(path_ + "/config.json");
    expect_model_error([&] { patched(model, patch); }, parts);
  }
  void refused_open(std::vector<std::string> parts) {
    expect_model_error([&] { Checkpoint::open(path_); }, parts);
  }

  TempDir dir_;
  std::string path_ = dir_ / "model";
};

TEST_F(HfDirectory, LlamaConfiguration) {
  const ModelConfig config = read_hf_config(test::model_path("llama-gqa"));
  EXPECT_EQ(config.name, "llama-gqa");
  EXPECT_EQ(config.family, Family::kLlama);
  EXPECT_EQ(config.n_layers, 3);
  EXPECT_EQ(config.d_model, 64);
  EXPECT_EQ(config.d_embed, 64);
  EXPECT_EQ(config.n_heads, 4);
  EXPECT_EQ(config.n_kv_heads, 1);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.d_ffn, 128);
  EXPECT_EQ(config.vocab_size, 300);
  EXPECT_EQ(config.max_positions, 256);
  EXPECT_EQ(config.norm, NormKind::kRms);
  EXPECT_EQ(config.norm_eps, 1e-5f);
  EXPECT_EQ(config.activation, Activation::kSilu);
  EXPECT_TRUE(config.gated_mlp);
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.mlp_bias || config.tied_head);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int>{2, 299}));
  EXPECT_EQ(config.bos_token_id, 1);
}

TEST_F(HfDirectory, OptConfigurations) {
  const ModelConfig pre = read_hf_config(test::model_path("opt-pre"));
  EXPECT_EQ(pre.family, Family::kOpt);
  EXPECT_EQ(pre.norm, NormKind::kLayer);
  EXPECT_EQ(pre.activation, Activation::kRelu);
  EXPECT_TRUE(pre.learned_positions && pre.has_final_norm && pre.tied_head);
  EXPECT_TRUE(pre.qkv_bias && pre.o_bias && pre.mlp_bias && pre.norm_bias);
  EXPECT_FALSE(pre.post_norm || pre.gated_mlp || pre.has_projections());
  EXPECT_EQ(pre.position_offset, 2);
  EXPECT_EQ(pre.eos_token_ids, (std::vector<int>{2}));
  const ModelConfig post = read_hf_config(test::model_path("opt-post"));
  EXPECT_TRUE(post.post_norm && post.has_projections());
  EXPECT_FALSE(post.has_final_norm);
  EXPECT_EQ(post.d_embed, 32);
  EXPECT_FALSE(patched("opt-pre", R"({"_remove_final_layer_norm": true})").has_final_norm);
  EXPECT_TRUE(patched("opt-pre", R"({"tie_word_embeddings": null})").tied_head);
  EXPECT_FALSE(patched("opt-pre", R"({"tie_word_embeddings": false})").tied_head);
}

TEST_F(HfDirectory, Qwen3Configurations) {
  const ModelConfig qwen = read_hf_config(test::model_path("qwen3-tied"));
  EXPECT_EQ(qwen.family, Family::kQwen3);
  EXPECT_TRUE(qwen.qk_norm && qwen.tied_head);
  EXPECT_FALSE(qwen.qkv_bias || qwen.o_bias || qwen.mlp_bias);
  EXPECT_EQ(qwen.head_dim, 24);
  EXPECT_EQ(qwen.q_rows(), 96);
  EXPECT_EQ(role_shape(qwen, Role::kQNorm).cols, 24);
  const ModelConfig biased = patched("qwen3-tied", R"({"attention_bias": true})");
  EXPECT_TRUE(biased.qkv_bias && biased.o_bias);
  EXPECT_FALSE(patched("qwen3-tied", R"({"bos_token_id": null})").bos_token_id);
}

// Attention within the window is full attention.
TEST_F(HfDirectory, MistralIsALlamaAsLongAsItsWindow) {
  const ModelConfig config = read_hf_config(test::model_path("mistral"));
  EXPECT_EQ(config.family, Family::kLlama);
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.mlp_bias || config.qk_norm);
  EXPECT_EQ(config.max_positions, 128);
  EXPECT_EQ(patched("mistral", R"({"sliding_window": null})").max_positions, 256);
  EXPECT_EQ(patched("mistral", R"({"sliding_window": 4096})").max_positions, 256);
  refused("mistral", R"({"sliding_window": 0})", {"sliding_window"});
  // Not mentioned at all it is 4,096.
  nlohmann::json file =
      nlohmann::json::parse(test::read_file(test::model_path("mistral") + "/config.json"));
  file["max_position_embeddings"] = 32768;
  file.erase("sliding_window");
  test::write_file(path_ + "/config.json", file.dump());
  EXPECT_EQ(read_hf_config(path_).max_positions, 4096);
}

TEST_F(HfDirectory, RopeInBothSpellings) {
  const char* old_llama3 = R"({"rope_parameters": null, "rope_theta": 500000,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})";
  const char* new_llama3 = R"({"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0,
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192}})";
  for (const char* patch : {old_llama3, new_llama3}) {
    const Rope rope = patched("llama-gqa", patch).rope;
    EXPECT_EQ(rope.theta, 500000.0);
    EXPECT_EQ(rope.scaling, Rope::Scaling::kLlama3);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.low_freq_factor, 1.0);
    EXPECT_EQ(rope.high_freq_factor, 4.0);
    EXPECT_EQ(rope.original_max_positions, 8192);
  }
  const ModelConfig linear = read_hf_config(test::model_path("llama-linear-bias"));
  EXPECT_EQ(linear.rope.scaling, Rope::Scaling::kLinear);
  EXPECT_EQ(linear.rope.factor, 2.0);
  EXPECT_EQ(linear.rope.theta, 5000.0);
  EXPECT_EQ(linear.head_dim, 24);
  EXPECT_EQ(linear.q_rows(), 96);
  EXPECT_TRUE(linear.qkv_bias && linear.o_bias && linear.mlp_bias);
  const ModelConfig qwen = read_hf_config(test::model_path("qwen2-tied"));
  EXPECT_EQ(qwen.rope.scaling, Rope::Scaling::kNone);
  EXPECT_EQ(qwen.rope.theta, 1000000.0);
  EXPECT_TRUE(qwen.qkv_bias && qwen.tied_head);
  EXPECT_FALSE(qwen.o_bias);
  const Rope plain =
      patched("llama-gqa", R"({"rope_parameters": null, "rope_scaling": null})").rope;
  EXPECT_EQ(plain.theta, 10000.0);
  EXPECT_EQ(plain.scaling, Rope::Scaling::kNone);
  refused("llama-gqa", R"({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}})",
          {"rope_parameters.rope_type", "yarn", "default, linear, llama3"});
  refused("qwen2-tied", R"({"rope_scaling": {"type": "dynamic", "factor": 4.0}})",
          {"rope_scaling.type", "dynamic"});
  refused("llama-gqa", R"({"rope_parameters": {"rope_type": "linear"}})",
          {"rope_parameters.factor", "missing"});
  refused("llama-gqa", R"({"rope_parameters": {"rope_type": "linear", "factor": 0}})",
          {"factor", "positive"});
  refused("llama-gqa", R"({"rope_parameters": {"rope_theta": "big"}})",
          {"rope_parameters.rope_theta", "number"});
  refused("llama-gqa", R"({"rope_parameters": {"rope_theta": 0}})", {"rope_theta"});
  refused("llama-gqa", R"({"partial_rotary_factor": 0.5})", {"partial_rotary_factor"});
  refused("llama-rope3", R"({"rope_parameters": {"high_freq_factor": 1.0}})",
          {"low_freq_factor < high_freq_factor"});
}

TEST_F(HfDirectory, TokenIds) {
  copy("llama-gqa");
  save(json{{"eos_token_id", 7}}, "generation_config.json");
  EXPECT_EQ(read_hf_config(path_).eos_token_ids, (std::vector<int>{7}));
  save(json{{"eos_token_id", nullptr}}, "generation_config.json");
  EXPECT_EQ(read_hf_config(path_).eos_token_ids, (std::vector<int>{2}));
  fs::remove(path_ + "/generation_config.json");
  EXPECT_EQ(read_hf_config(path_).eos_token_ids, (std::vector<int>{2}));
  json config = load();
  config["eos_token_id"] = {5, 6};
  save(config);
  EXPECT_EQ(read_hf_config(path_).eos_token_ids, (std::vector<int>{5, 6}));
  config.erase("eos_token_id");
  config.erase("bos_token_id");
  save(config);
  EXPECT_EQ(read_hf_config(path_).eos_token_ids, (std::vector<int>{2}));
  EXPECT_EQ(read_hf_config(path_).bos_token_id, 1);
  const std::string generation = path_ + "/generation_config.json";
  for (const json& bad : {json("2"), json(-1), json({1, nullptr}), json({1, "2"}), json(1.5)}) {
    save(json{{"eos_token_id", bad}}, "generation_config.json");
    expect_model_error([&] { read_hf_config(path_); }, {generation, "eos_token_id"});
  }
  save(json{{"eos_token_id", 300}}, "generation_config.json");
  expect_model_error([&] { read_hf_config(path_); }, {"eos_token_id", "300", "vocabulary"});
}

TEST_F(HfDirectory, FieldsThatAreRefused) {
  refused("llama-gqa", R"({"model_type": "mixtral"})",
          {"model_type", "mixtral", "llama, mistral, qwen2, qwen3, opt"});
  refused("llama-gqa", R"({"model_type": null})",
          {"model_type", "llama, mistral, qwen2, qwen3, opt"});
  for (const char* field : {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size",
                            "max_position_embeddings", "intermediate_size"}) {
    refused("llama-gqa", ("{\"" + std::string(field) + "\": null}").c_str(), {field, "missing"});
    for (const char* bad : {"0", "-3", "2147483648", "18446744073709551615", "1.5", "\"8\""}) {
      refused("llama-gqa", ("{\"" + std::string(field) + "\": " + bad + "}").c_str(), {field, bad});
    }
  }
  refused("llama-gqa", R"({"num_key_value_heads": 3})", {"n_heads 4", "n_kv_heads 3"});
  refused("llama-gqa", R"({"head_dim": 15})", {"head_dim 15", "odd"});
  refused("opt-post", R"({"word_embed_proj_dim": 4096})", {"d_embed 4096", "d_model"});
  refused("llama-gqa", R"({"head_dim": 1073741824})", {"n_heads * head_dim"});
  refused("llama-gqa", R"({"head_dim": null, "num_attention_heads": 5, "num_key_value_heads": 5})",
          {"hidden_size", "multiple", "5"});
  refused("llama-gqa", R"({"hidden_act": "gelu"})", {"hidden_act", "gelu", "silu"});
  refused("llama-gqa", R"({"rms_norm_eps": -1})", {"norm_eps"});
  refused("llama-gqa", R"({"quantization_config": {"bits": 4}})", {"quantization_config"});
  refused("qwen2-tied", R"({"use_sliding_window": true})", {"use_sliding_window"});
  refused("qwen3-tied", R"({"use_sliding_window": true})", {"use_sliding_window"});
  refused("qwen2-tied", R"({"layer_types": ["full_attention", "sliding_attention"]})",
          {"use_sliding_window"});
  refused("opt-pre", R"({"activation_function": "gelu"})", {"activation_function", "relu"});
  refused("opt-pre", R"({"enable_bias": false})", {"enable_bias"});
  refused("opt-pre", R"({"layer_norm_elementwise_affine": false})",
          {"layer_norm_elementwise_affine"});
  refused("opt-pre", R"({"do_layer_norm_before": 1})", {"do_layer_norm_before", "true or false"});
  copy("llama-gqa");
  test::write_file(path_ + "/config.json", "{\"model_type\": ");
  expect_model_error([&] { read_hf_config(path_); }, {path_ + "/config.json", "byte", "JSON"});
  fs::remove(path_ + "/config.json");
  expect_model_error([&] { read_hf_config(path_); }, {path_ + "/config.json", "missing"});
}

TEST_F(HfDirectory, EveryTinyModelOpens) {
  int models = 0;
  for (const auto& entry : fs::directory_iterator(test::model_path(""))) {
    const auto checkpoint = Checkpoint::open(entry.path().string());
    const ModelConfig& config = checkpoint->config();
    for (Role role : all_roles()) {
      const TensorInfo* tensor = checkpoint->find(role, config.n_layers - 1);
      ASSERT_EQ(tensor != nullptr, has_role(config, role)) << role_name(role);
      if (tensor == nullptr) continue;
      EXPECT_EQ(tensor->rows, role_shape(config, role).rows) << role_name(role);
      EXPECT_EQ(tensor->cols, role_shape(config, role).cols) << role_name(role);
    }
    EXPECT_EQ(checkpoint->find(Role::kQ, config.n_layers), nullptr);
    EXPECT_EQ(checkpoint->find(Role::kQ, -1), nullptr);
    ++models;
  }
  EXPECT_GE(models, 14);
  const auto opt = Checkpoint::open(test::model_path("opt-pre"));
  expect_model_error([&] { opt->require(Role::kGate, 0); }, {"opt-pre", "gate", "layer 0"});
}

// Renames tensors in the header of a safetensors file; both names have the same length.
void rename(const std::string& file, const std::string& from, const std::string& to) {
  std::string bytes = test::read_file(file);
  const size_t at = bytes.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  bytes.replace(at, from.size(), to);
  test::write_file(file, bytes);
}

// Drops a prefix from all tensor names of a safetensors file.
void drop_prefix(const std::string& file, const std::string& prefix) {
  std::string bytes = test::read_file(file);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  std::string header = bytes.substr(8, length);
  const std::string quoted = "\"" + prefix;
  for (size_t at = 0; (at = header.find(quoted, at)) != std::string::npos;) {
    header.erase(at + 1, prefix.size());
  }
  header.resize(length, ' ');
  test::write_file(file, test::le(length) + header + bytes.substr(8 + length));
}

TEST_F(HfDirectory, NamesWithAndWithoutPrefixes) {
  for (const auto& [model, prefix] :
       {std::pair("llama-gqa", "model."), std::pair("qwen2-tied", "model."),
        std::pair("opt-pre", "model."), std::pair("opt-pre", "model.decoder."),
        std::pair("opt-post", "model.decoder.")}) {
    copy(model);
    const auto before = Checkpoint::open(path_);
    const uint64_t offset = before->require(Role::kDown, 1).offset;
    drop_prefix(path_ + "/model.safetensors", prefix);
    const auto after = Checkpoint::open(path_);
    EXPECT_NE(after->require(Role::kDown, 1).name, before->require(Role::kDown, 1).name);
    EXPECT_EQ(after->require(Role::kDown, 1).offset, offset) << model << " without " << prefix;
  }
}

TEST_F(HfDirectory, MissingAndWrongTensors) {
  const std::string weights = path_ + "/model.safetensors";
  copy("qwen2-tied");
  rename(weights, "layers.1.self_attn.k_proj.bias", "layers.1.self_attn.k_proj.bXas");
  refused_open({path_, "k_bias of layer 1", "model.layers.1.self_attn.k_proj.bias"});
  copy("opt-post");
  rename(weights, "project_out.weight", "project_oXt.weight");
  refused_open({path_, "project_out", "model.decoder.project_out.weight"});
  copy("llama-linear-bias");
  rename(weights, "layers.0.mlp.gate_proj.bias", "layers.0.mlp.gate_proj.bXas");
  refused_open({path_, "gate_bias of layer 0"});
  copy("llama-gqa");
  rename(weights, "lm_head.weight", "lm_hXad.weight");
  refused_open({path_, "head", "lm_head.weight"});
  copy("llama-gqa");
  rename(weights, "[300,64]", "[64,300]");
  refused_open({weights, "[64 x 300]", "[300 x 64]"});
  // A type that is not supported matters only where a role needs the tensor.
  copy("llama-gqa");
  rename(weights, R"("model.norm.weight":{"dtype":"BF16")",
         R"("model.norm.weight":{"dtype":"I16" )");
  refused_open({weights, "model.norm.weight", "I16", "F32, F16, BF16"});
  rename(weights, "model.norm.weight", "model.norm.weighX");
  refused_open({path_, "final_norm", "missing"});

  copy("llama-gqa");
  json config = load();
  config["vocab_size"] = 301;
  save(config);
  refused_open({weights, "token_embedding", "[300 x 64]", "[301 x 64]"});
  config["vocab_size"] = 300;
  config["num_hidden_layers"] = 4;
  save(config);
  refused_open({path_, "layer 3"});
  config["num_hidden_layers"] = 2147483647;
  save(config);
  refused_open({path_, "layer 3"});
}

TEST_F(HfDirectory, Shards) {
  copy("qwen2-untied");
  const std::string index_file = "model.safetensors.index.json";
  const json good = load(index_file);
  const auto checkpoint = Checkpoint::open(path_);
  ASSERT_EQ(checkpoint->files().size(), 3u);
  const TensorInfo& tensor = checkpoint->require(Role::kUp, 1);
  EXPECT_TRUE(checkpoint->files()[static_cast<size_t>(tensor.file)].ends_with(
      good["weight_map"][tensor.name].get<std::string>()));

  for (const char* bad : {"../model-00001-of-00003.safetensors", "/etc/passwd", "..", ".", "",
                          "a/b.safetensors", "a\\b.safetensors"}) {
    json index = good;
    index["weight_map"]["lm_head.weight"] = bad;
    save(index, index_file);
    refused_open({path_ + "/" + index_file, "weight_map.lm_head.weight", "plain name"});
  }
  json index = good;
  index["weight_map"]["lm_head.weight"] = 5;
  save(index, index_file);
  refused_open({index_file, "weight_map.lm_head.weight"});
  for (const json& bad : {json(), json(3), json::object()}) {
    index["weight_map"] = bad;
    save(index, index_file);
    refused_open({index_file, "weight_map"});
  }
  index = good;
  index["weight_map"]["extra.weight"] = "model-00002-of-00003.safetensors";
  save(index, index_file);
  refused_open({path_ + "/model-00002-of-00003.safetensors", "extra.weight", "missing"});
  index["weight_map"].erase("extra.weight");
  index["weight_map"]["lm_head.weight"] = "model-00009-of-00003.safetensors";
  save(index, index_file);
  refused_open({"model-00009-of-00003.safetensors", "missing"});
  index["weight_map"]["lm_head.weight"] = std::string(300, 'x');  // longer than any file's name
  save(index, index_file);
  refused_open({path_, "xxx", "missing"});
  save(good, index_file);
  fs::resize_file(path_ + "/model-00003-of-00003.safetensors", 4000);
  refused_open({path_ + "/model-00003-of-00003.safetensors"});
}

// What may not be looked for is not called missing.
TEST_F(HfDirectory, DirectoriesThatMayNotBeSearched) {
  copy("llama-gqa");
  const std::string text = test::in_child([&]() -> std::string {
    fs::permissions(dir_.path(), fs::perms::all);
    fs::permissions(path_, fs::perms::owner_read);
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) return "setresuid failed";
    try {
      Checkpoint::open(path_);
    } catch (const IoError& error) {
      return error.what();
    }
    return "no IoError";
  });
  fs::permissions(path_, fs::perms::owner_all);
  EXPECT_NE(text.find(path_ + "/config.json: "), std::string::npos) << text;
  EXPECT_NE(text.find("Permission denied; check its permissions"), std::string::npos) << text;
}

TEST_F(HfDirectory, LinksInACircleAreNoMatterOfPermissions) {
  copy("llama-gqa");
  fs::create_symlink(path_ + "/b", path_ + "/a");
  fs::create_symlink(path_ + "/a", path_ + "/b");
  try {
    Checkpoint::open(path_ + "/a/model");
    FAIL();
  } catch (const IoError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find(path_ + "/a/model"), std::string::npos) << text;
    EXPECT_EQ(text.find("permissions"), std::string::npos) << text;
  }
}

TEST_F(HfDirectory, DirectoriesWithoutUsableWeights) {
  copy("llama-gqa");
  fs::remove(path_ + "/model.safetensors");
  refused_open({path_, "model.safetensors", "fetch"});
  test::write_file(path_ + "/model.Q4_0.gguf", "GGUF");
  refused_open({path_, "GGUF file itself", "model.Q4_0.gguf"});
  test::write_file(path_ + "/pytorch_model.bin", "x");
  refused_open({path_, "pytorch_model.bin", "safe_serialization"});
  expect_model_error([&] { Checkpoint::open(path_ + "/pytorch_model.bin"); }, {"not a GGUF file"});
  expect_model_error([&] { Checkpoint::open(path_ + "/absent"); }, {"no such file"});
  expect_model_error([&] { Checkpoint::open(test::model_path("llama-gqa/model.safetensors")); },
                     {"directory that holds it"});
}

}  // namespace
}  // namespace headrace
