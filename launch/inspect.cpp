// headrace inspect: what is in a model, without loading it.

#include <cstdio>
#include <map>
#include <memory>

#include "engine/memory/kv_store.h"
#include "engine/memory/weight_store.h"
#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/options.h"
#include "launch/shown.h"
#include "launch/subcommands.h"
#include "runtime/open_model.h"
#include "runtime/pipeline/stage.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace headrace {
namespace {

void print_config(const Checkpoint& checkpoint) {
  const ModelConfig& c = checkpoint.config();
  std::printf("model        %s (%s, %s)\n", shown(c.name).c_str(), checkpoint.format().c_str(),
              family_name(c.family));
  for (const std::string& file : checkpoint.files()) {
    std::printf("file         %s\n", shown(file).c_str());
  }
  std::printf("fingerprint  %s\n", checkpoint.fingerprint().c_str());
  std::printf("layers       %d\n", c.n_layers);
  std::printf("width        %d", c.d_model);
  if (c.has_projections()) std::printf(" (embedding %d)", c.d_embed);
  std::printf(", MLP %d%s\n", c.d_ffn, c.gated_mlp ? " (gated)" : "");
  std::printf("heads        %d query, %d key/value, of %d\n", c.n_heads, c.n_kv_heads, c.head_dim);
  std::printf("norm         %s, eps %g%s\n", c.norm == NormKind::kRms ? "RMS" : "layer", c.norm_eps,
              c.post_norm ? ", after the residual addition" : "");
  if (c.learned_positions) {
    std::printf("positions    %d, learned\n", c.max_positions);
  } else {
    const bool divisors = !c.rope.frequency_divisors.empty();
    const char* scaling = c.rope.scaling == Rope::Scaling::kLinear ? ", linear scaling"
                          : c.rope.scaling == Rope::Scaling::kLlama3 || divisors
                              ? ", Llama-3 scaling"
                              : "";
    std::printf("positions    %d, rotary, theta %g%s\n", c.max_positions, c.rope.theta, scaling);
  }
  std::printf("vocabulary   %d, %s head\n", c.vocab_size, c.tied_head ? "tied" : "separate");
  std::printf("end tokens  ");
  for (const int id : c.eos_token_ids) std::printf(" %d", id);
  std::printf("\n");
}

void print_memory(const Checkpoint& checkpoint, KvFormat kv) {
  const ModelConfig& c = checkpoint.config();
  const auto bytes = [&](const StageRange& range) {
    return WeightStore::bytes_needed(checkpoint, range);
  };
  const uint64_t layer = bytes({0, 1, false, false}), all = bytes({0, c.n_layers, true, true});
  std::printf("weights      %s packed: %s per layer (first), embedding %s, head %s%s\n",
              format_bytes(all).c_str(), format_bytes(layer).c_str(),
              format_bytes(bytes({0, 0, true, false})).c_str(),
              format_bytes(bytes({0, 0, false, true})).c_str(),
              c.tied_head ? " (shared on a single stage)" : "");
  const uint64_t page = KvStore::bytes_per_page(Stage::page_shape(c, kv), c.n_layers);
  std::printf("KV cache     %s per token (%s, all layers)\n",
              format_bytes(page / kPageTokens).c_str(), kv_format_name(kv));
}

void print_text(const std::string& model) {
  const auto tokenizer = Tokenizer::open(model);
  if (!tokenizer) {
    std::printf("tokenizer    none: prompts must be token ids\n");
    return;
  }
  std::printf("tokenizer    %s\n", shown(tokenizer->description()).c_str());
  const auto chat = ChatTemplate::recognise(tokenizer->chat_template(), tokenizer->bos_token());
  if (chat) {
    std::printf("chat         %s", chat->name().c_str());
    if (!chat->default_system().empty())
      std::printf(", default system message \"%s\"", shown(chat->default_system()).c_str());
    std::printf("\n");
  } else {
    std::printf("chat         %s; --chat-template takes %s\n",
                tokenizer->chat_template().empty() ? "no template"
                                                   : "a template that headrace does not know",
                ChatTemplate::known_names().c_str());
  }
}

void print_tensors(const Checkpoint& checkpoint, bool all) {
  std::map<std::string, std::pair<int, uint64_t>> by_type;
  for (const TensorInfo& t : checkpoint.tensors()) {
    auto& [count, bytes] = by_type[dtype_name(t.dtype)];
    ++count;
    bytes += t.bytes;
  }
  std::printf("tensors      %zu\n", checkpoint.tensors().size());
  for (const auto& [type, sum] : by_type) {
    std::printf("  %-8s   %d tensors, %s\n", type.c_str(), sum.first,
                format_bytes(sum.second).c_str());
  }
  if (!all) return;
  for (const TensorInfo& t : checkpoint.tensors()) {
    std::printf("  %-48s %-5s %8lld x %-8lld %s\n", shown(t.name).c_str(), dtype_name(t.dtype),
                static_cast<long long>(t.rows), static_cast<long long>(t.cols),
                format_bytes(t.bytes).c_str());
  }
}

}  // namespace

void add_inspect(CLI::App& app, int& exit_code) {
  struct Arguments {
    std::string model;
    bool tensors = false;
    WeightFormat weights = WeightFormat::kNative;
    KvFormat kv = KvFormat::kF16;
  };
  auto a = std::make_shared<Arguments>();
  CLI::App* sub = app.add_subcommand(
      "inspect", "Show a model's configuration, tensors, memory, tokenizer and template");
  add_path_option(*sub, "model,--model", a->model,
                  "Hugging Face directory, GGUF file, or synthetic:<shape>")
      ->required();
  sub->add_flag("--tensors", a->tensors, "List every tensor");
  add_weights_option(*sub, a->weights);
  add_kv_option(*sub, a->kv);
  sub->footer("Example:\n  headrace inspect model.gguf --tensors");
  sub->callback([a, &exit_code] {
    const auto checkpoint = open_model(a->model, a->weights);
    print_config(*checkpoint);
    print_memory(*checkpoint, a->kv);
    print_text(a->model);
    print_tensors(*checkpoint, a->tensors);
    exit_code = kExitDone;
  });
}

}  // namespace headrace
