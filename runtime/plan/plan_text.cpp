#include "runtime/plan/plan_text.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace headrace {
namespace {

std::string text_of(const char* format, double value) {
  char text[128];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// "0-14, embedding"
std::string layers_of(const StageRange& range) {
  return std::to_string(range.first_layer) + "-" + std::to_string(range.end_layer - 1) +
         (range.is_first ? ", embedding" : "") + (range.is_last ? ", head" : "");
}

std::string by_the_cpu(const DevicePlan& device) {
  return text_of("the CPU attends to %.0f %%", 100 * device.sizes.host_share) +
         " of the KV pages in host memory";
}

// ", 320 of them in host memory, 64 on disk"
std::string elsewhere(const DevicePlan& device) {
  const int64_t host = device.sizes.kv_host_pages, disk = device.sizes.kv_disk_pages;
  std::string text;
  if (host > 0) text += ", " + std::to_string(host * kPageTokens) + " of them in host memory";
  if (disk > 0) {
    text += ", " + std::to_string(disk * kPageTokens) + (host > 0 ? "" : " of them") + " on disk";
  }
  return text;
}

// "", or ", hidden states of more than 2048 rows in host memory between layers"
std::string passing(const DevicePlan& device) {
  if (!device.sizes.has_passing_rows()) return "";
  return ", hidden states of more than " + std::to_string(device.sizes.hidden_rows) +
         " rows in host memory between layers";
}

std::string on_device(const DevicePlan& device) {
  std::string text =
      ", on the GPU " + format_bytes(device.all) + ": " + format_bytes(device.weights) +
      " of weights, KV cache " + format_bytes(device.kv) + " (" +
      std::to_string(device.sizes.kv_pages * kPageTokens) + " tokens" + elsewhere(device) + ")";
  if (device.streamed > 0) {
    text += ", " + format_bytes(device.streamed) + " of weights copied to it per step";
  }
  text += passing(device);
  if (device.sizes.host_share > 0) text += ", " + by_the_cpu(device);
  return text;
}

}  // namespace

std::string describe(const StagePlan& plan) {
  std::string text =
      "layers " + layers_of(plan.range) + ": weights " + format_bytes(plan.all_weights);
  if (!plan.placement.all_resident()) {
    text += " (" + format_bytes(plan.weights) + " in memory, " + format_bytes(plan.streamed) +
            " read per step through a ring of " + format_bytes(plan.ring) + ")";
  }
  if (plan.device) text += on_device(*plan.device);
  text += ", activations " + format_bytes(plan.activations);
  if (plan.other > 0) text += ", other " + format_bytes(plan.other);
  if (plan.kv_pages() > 0 && !plan.device) {
    text += ", KV cache " + format_bytes(plan.kv) + " (" +
            std::to_string(plan.kv_pages() * kPageTokens) + " tokens";
    if (plan.sizes.kv_disk_pages > 0) {
      text += ", " + std::to_string(plan.sizes.kv_disk_pages * kPageTokens) + " of them on disk";
    }
    text += ")";
  }
  if (plan.needs_disk()) text += ", disk " + format_bytes(plan.disk);
  return text;
}

std::string plan_table(const StagePlan& plan, const Rates& rates) {
  std::string text;
  const auto line = [&text](const char* name, const std::string& value) {
    text += "  ";
    text += name;
    text.append(14 - std::min<size_t>(13, std::strlen(name)), ' ');
    text += value + "\n";
  };
  line("layers", layers_of(plan.range));
  line("weights",
       format_bytes(plan.all_weights) + ": " + format_bytes(plan.weights) + " in memory, " +
           format_bytes(plan.streamed) + " read from disk per step" +
           (plan.placement.embedding_streamed() ? ", rows of the embedding as needed" : ""));
  if (plan.ring > 0) line("ring", format_bytes(plan.ring) + " for weights on their way");
  if (plan.device) {
    const DevicePlan& device = *plan.device;
    line("GPU", format_bytes(device.all) + " of " + format_bytes(device.limit) + ": " +
                    format_bytes(device.weights) + " of weights, KV cache " +
                    format_bytes(device.kv) + ", room for " +
                    std::to_string(device.sizes.kv_pages * kPageTokens) + " tokens" +
                    elsewhere(device));
    if (device.sizes.host_share > 0) {
      line("attention", by_the_cpu(device) +
                            (rates.host_memory > 0
                                 ? text_of(", which is read at %.1f GB/s", rates.host_memory / 1e9)
                                 : std::string()));
    }
    line("link", format_bytes(device.streamed) + " of weights per step" +
                     text_of(", measured at %.1f GB/s", rates.link / 1e9));
    line("steps",
         "of " + std::to_string(device.sizes.step_rows) + " rows at most" + passing(device));
  }
  if (!plan.device)
    line("KV cache", format_bytes(plan.kv) + " in memory; room for " +
                         std::to_string(plan.kv_pages() * kPageTokens) + " tokens, " +
                         std::to_string(plan.sizes.kv_disk_pages * kPageTokens) +
                         " of them on disk");
  line("activations", format_bytes(plan.activations));
  if (plan.other > 0) {
    line("other", format_bytes(plan.other) + " for tokenizer, requests read ahead and trace");
  }
  line("memory", format_bytes(plan.weights + plan.ring + plan.kv + plan.activations + plan.other));
  if (plan.needs_disk()) {
    line("disk", format_bytes(plan.disk) + text_of(", measured at %.0f MB/s", rates.disk / 1e6) +
                     (rates.kv_disk > 0 ? text_of(", KV pages at %.0f MB/s", rates.kv_disk / 1e6)
                                        : std::string()));
  }
  line("sequences", "up to " + std::to_string(plan.sizes.slots) + " in flight");
  if (plan.round_s > 0) {
    line("prediction", "for sequences of " + std::to_string(plan.tokens) + " tokens, " +
                           std::to_string(plan.prompt) + " of them the prompt's");
    line("expected", describe_prediction(plan));
  }
  return text;
}

std::string describe_prediction(const StagePlan& plan) {
  if (plan.round_s == 0) return "";
  const std::string sequences =
      std::to_string(static_cast<int>(plan.tokens_per_s * plan.round_s + 0.5));
  std::string text = "a token for each of " + sequences + " sequences: computing " +
                     text_of("%.3f s", plan.compute_s);
  if (plan.host_s > 0) text += text_of(" (attention by the CPU %.3f s)", plan.host_s);
  if (plan.link_s > 0) text += ", copying to the GPU " + text_of("%.3f s", plan.link_s);
  if (plan.needs_disk()) text += ", reading " + text_of("%.3f s", plan.disk_s);
  return text + text_of(", %.1f tokens/s", plan.tokens_per_s);
}

}  // namespace headrace
