// A whole generation run as one rank sees it: from options to results.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/checkpoint/quantized_checkpoint.h"
#include "runtime/pipeline/pipeline.h"
#include "runtime/report/progress.h"
#include "runtime/requests/request.h"

namespace headrace {

inline constexpr int kLargestBatch = 65536;  // sequences in flight: what is kept of each must fit

// Of the attention to KV pages in host memory, what a rank with a GPU may leave to its CPU; see
// DeviceLimits.
struct HostShare {
  double least = 0, most = 0;
};

// What every run over the pipeline needs. All ranks have the same.
struct RunOptions {
  std::string model;

  int max_batch = 0;                  // sequences in flight; 0: what memory allows, at most 256
  int threads = 0;                    // 0: the node's cores over its ranks
  std::vector<int> split;             // layers per stage; empty: by cost
  int64_t prefill_chunk = 128;        // 0: whole prompts
  uint64_t host_memory = 0;           // bytes; 0: see default_host_memory()
  uint64_t kv_memory = 0;             // of them, for KV pages; 0: what is best
  std::string disk;                   // directory for what does not fit in memory; empty: none
  uint64_t disk_budget = UINT64_MAX;  // bytes that a rank may take there
  bool serial = false;                // read, compute, write in turn: the slow oracle
  bool share_prefixes = true;  // prompts that begin alike are computed once, as far as they do
  WeightFormat weights = WeightFormat::kNative;
  KvFormat kv_format = KvFormat::kF16;
  std::string target = "auto";
  std::string device = "auto";           // auto, cpu, cuda or cuda:1
  std::string cuda_module;               // file of the module that knows GPUs
  uint64_t device_memory = 0;            // bytes; 0: what is free, but a margin
  uint64_t device_weights = UINT64_MAX;  // of them, for weights that stay there
  uint64_t device_kv = UINT64_MAX;       // and for KV pages
  std::optional<HostShare> host_share;   // nothing: what is fastest where bits stay, else none
  std::string math = "auto";             // f16, f32, int8; auto: f16 on a GPU, else f32
  std::string link = "auto";             // mpi or nccl between GPUs; auto: what is best
  double peer_timeout = 60;              // seconds; within them NCCL must connect
  bool takes_requests = true;            // rank 0 has a tokenizer and reads requests ahead
  std::string trace;                     // file for a Chrome trace; empty: none
  std::string report;                    // file for the report as JSON; empty: none

  bool int8() const { return math == "int8"; }  // on all ranks, or on none
};

// A batch of requests from a file to a file.
struct GenerateOptions : RunOptions {
  std::string input;                  // batch file, "-" for standard input
  std::optional<std::string> prompt;  // one prompt instead of a batch file
  bool chat = false;                  // the prompt is a user's message
  std::string output = "-";
  bool resume = false;
  bool token_ids = false;
  RequestDefaults defaults;
  std::string chat_template;  // name; empty: the model's own
  Order order = Order::kLongestFirst;
  ProgressStyle progress = ProgressStyle::kLog;  // kNone: no summary either
};

// What decides the bits of a result besides the model: "weights=native kv=f16 math=f32 wire=f32".
// `math`: arithmetic of the ranks, see Rank; left out where it is empty, but for int8.
std::string numerics(const RunOptions& options, const std::string& math = "");

enum class RunEnd {
  kDone,
  kSomeFailed,   // some requests have error records
  kInterrupted,  // what was under way is written; --resume continues
};

// All ranks call it with the same options. The value is rank 0's; other ranks get kDone. Throws
// UsageError, ModelError, IoError, DoesNotFit, ResourceMissing, PeerLost.
RunEnd run_rank(const GenerateOptions& options, const Wires& wires,
                const std::atomic<bool>& interrupted);

}  // namespace headrace
