#include "launch/run_options.h"

#include <spdlog/spdlog.h>

#include "engine/device/device_module.h"
#include "launch/default_paths.h"
#include "launch/options.h"
#include "runtime/error.h"

namespace headrace {

void add_model_option(CLI::App& sub, RunOptions& run) {
  add_path_option(sub, "--model", run.model,
                  "Hugging Face directory, GGUF file, or synthetic:<shape>[:bf16|q8|...]")
      ->required();
}

void add_run_options(CLI::App& sub, RunOptions& run, RunArguments& arguments) {
  const CLI::Validator positive = positive_number();
  sub.add_option("--threads", run.threads,
                 "Compute threads per rank (default: its share of the node's cores)")
      ->check(positive);
  sub.add_option("--split", arguments.split, "Layers per stage, as 10,14 (default: by cost)");
  sub.add_option("--prefill-chunk", arguments.prefill_chunk,
                 "Prompt tokens per sequence and step, or all")
      ->capture_default_str();
  sub.add_option("--host-memory", arguments.host_memory,
                 "Memory budget per rank, as 8GiB (default: what is free, but a margin)");
  sub.add_option("--kv-memory", arguments.kv_memory,
                 "Part of it for the KV cache, as 2GiB (default: what is fastest)");
  add_path_option(sub, "--disk", run.disk,
                  "Directory on a local disk for what does not fit in memory (default: the user's "
                  "cache directory)");
  sub.add_option("--disk-budget", arguments.disk_budget,
                 "Disk that a rank may take, as 100GiB; 0 for none (default: what is free)");
  sub.add_option("--schedule", arguments.schedule,
                 "overlapped, or serial: read, compute and write in turn, to check against")
      ->check(CLI::IsMember({"overlapped", "serial"}))
      ->capture_default_str();
  add_weights_option(sub, run.weights);
  add_kv_option(sub, run.kv_format);
  add_target_option(sub, run.target);
  sub.add_option("--device", run.device,
                 "Where layers are computed: cpu, cuda, cuda:1 (the second GPU), or auto: a GPU "
                 "where there is one")
      ->check(is_device())
      ->capture_default_str();
  sub.add_option(
      "--device-memory", arguments.device_memory,
      "Memory budget per rank on its GPU, as 16GiB (default: what is free, but a margin)");
  sub.add_option(
      "--device-weights", arguments.device_weights,
      "Part of it for weights that stay there, as 4GiB, or 0 (default: what is fastest)");
  sub.add_option(
      "--device-kv", arguments.device_kv,
      "Part of it for KV pages, as 4GiB, or 0: the others stay in host memory, or on disk "
      "where that has no room (default: what is fastest)");
  sub.add_option(
         "--host-attention", arguments.host_attention,
         "Attention by the CPU to sequences whose KV pages are in host memory, beside a GPU: "
         "off, on (as many as is fastest), or a share of those pages, as 0.5. The CPU computes "
         "in f32: with --math f16 a result then depends on where its pages were. auto: on with "
         "--math f32, which has the same bits, else off")
      ->check(is_host_attention())
      ->capture_default_str();
  sub.add_option("--math", run.math,
                 "Arithmetic of a GPU's linear layers and attention: f16 with f32 sums, or f32, "
                 "which gives the tokens of a CPU bit for bit; auto: f16. int8, of CPUs: linear "
                 "layers whose weights are quantised (also by --weights q8 or q4) multiply 8-bit "
                 "integers, which is faster and less exact; F32, F16 and BF16 weights and all else "
                 "stay in f32. Ranks then leave GPUs alone, and --device cuda is refused")
      ->check(CLI::IsMember({"auto", "f16", "f32", "int8"}))
      ->capture_default_str();
  sub.add_option("--link", run.link,
                 "How hidden states pass between GPUs: nccl, mpi (through host memory), or auto: "
                 "nccl where it is to be had")
      ->check(CLI::IsMember({"auto", "mpi", "nccl"}))
      ->capture_default_str();
  sub.add_option("--peer-timeout", arguments.peer_timeout,
                 "Seconds without a sign of life after which a rank is lost")
      ->check(seconds_to_wait())
      ->capture_default_str();
}

void finish_run_options(RunOptions& run, const RunArguments& arguments) {
  run.cuda_module = beside_program(kCudaModule);
  run.peer_timeout = arguments.peer_timeout;
  if (!arguments.device_memory.empty()) {
    run.device_memory = parse_size("--device-memory", arguments.device_memory);
  }
  const auto part = [](const char* option, const std::string& text, uint64_t& bytes) {
    if (!text.empty()) bytes = text == "0" ? 0 : parse_size(option, text);
  };
  part("--device-weights", arguments.device_weights, run.device_weights);
  part("--device-kv", arguments.device_kv, run.device_kv);
  run.host_share = parse_host_attention(arguments.host_attention);
  if (!arguments.split.empty()) run.split = parse_list("--split", arguments.split);
  if (!arguments.host_memory.empty()) {
    run.host_memory = parse_size("--host-memory", arguments.host_memory);
  }
  if (!arguments.kv_memory.empty()) run.kv_memory = parse_size("--kv-memory", arguments.kv_memory);
  part("--disk-budget", arguments.disk_budget, run.disk_budget);
  if (run.disk.empty() && run.disk_budget > 0) {
    run.disk = default_offload_directory();
    if (run.disk.empty()) {
      spdlog::info("there is no home directory, so nothing goes to disk; --disk DIR names a place");
    }
  }
  run.serial = arguments.schedule == "serial";
  if (arguments.prefill_chunk == "all") {
    run.prefill_chunk = 0;
  } else {
    const auto values = parse_list("--prefill-chunk", arguments.prefill_chunk);
    if (values.size() != 1) throw UsageError("--prefill-chunk takes one number, or all");
    run.prefill_chunk = values.front();
  }
}

}  // namespace headrace
