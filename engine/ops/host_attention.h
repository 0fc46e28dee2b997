// Attention by the CPU to some of the sequences whose KV pages lie in host memory, beside ops on a
// device.
#pragma once

#include <span>

#include "engine/ops/attention.h"
#include "engine/ops/ops.h"

namespace headrace {

// Rows of queries, keys and values on their way to the host, and attention's output on its way
// back. One thread uses it, the one that queues ops. Throws ResourceMissing.
class HostRows {
 public:
  // The host's, one row after the other for each sequence in turn.
  struct Rows {
    const float *q, *k, *v;  // [rows][heads * head_dim], k and v [rows][kv_heads * head_dim]
    float* out;              // [rows][heads * head_dim]
  };

  virtual ~HostRows() = default;
  // The sequences' rows of q, k and v, which ops have queued before. The sequences, one row each
  // and ascending, are used before it returns.
  virtual void send(std::span<const AttentionSequence> sequences, const float* q, const float* k,
                    const float* v) = 0;
  // Waits for them, but not for what was queued since.
  virtual Rows receive() = 0;
  // `out` of the rows that came is there for ops that are queued from now on, whatever those that
  // were queued before have left in its place. The host's must stay as it is until the next rows
  // come.
  virtual void send_back(Operand* out) = 0;
};

// None without `rows`.
struct HostAttention {
  HostRows* rows = nullptr;
  // Of the KV pages in host memory that a step's single rows attend to, so many are the CPU's.
  double share = 0;
};

}  // namespace headrace
