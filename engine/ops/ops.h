// The ops of a stage's layers on the memory that they are computed in: the host's, or a device's.
#pragma once

#include <cstdint>
#include <span>

#include "engine/ops/attention.h"
#include "engine/ops/packed_matrix.h"
#include "engine/ops/rope.h"

namespace headrace {

// Ops are queued, in order: their results are there for later ops, and for the host where it says
// so.
// Pointers are to the memory of the ops but where "host" says otherwise. One thread uses it. Throws
// ResourceMissing.
class Ops {
 public:
  virtual ~Ops() = default;

  // Hidden states of a step where ops can use them, until the next call.
  virtual float* enter(float* host, int64_t floats) = 0;
  // What they have become is the host's again. Waits for all that was queued.
  virtual void leave(float* host, int64_t floats) = 0;
  // The rotations of a step's rows; must stay for the step.
  virtual void set_rope(const RopeTable& host) = 0;

  // As in ops/vector_ops.h.
  virtual void rms_norm(const float* x, int64_t rows, int64_t n, const float* weight, float eps,
                        float* y) = 0;
  virtual void layer_norm(const float* x, int64_t rows, int64_t n, const float* weight,
                          const float* bias, float eps, float* y) = 0;
  virtual void add(float* x, const float* y, int64_t rows, int64_t n) = 0;
  virtual void relu(float* x, int64_t rows, int64_t n) = 0;
  // As in ops/rope.h, by the table set before.
  virtual void apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) = 0;
  // As in ops/linear.h.
  virtual void linear_panels(const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
                             int64_t first, int64_t end, float* y) = 0;
  virtual void gate_panels(const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
                           int64_t first, int64_t end, float* gate) = 0;
  // store_kv() and then attention() of ops/attention.h. Sequences and their page tables are the
  // host's, and used before it returns; the pages are not.
  virtual void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences,
                      int heads, float scale, const float* q, const float* k, const float* v,
                      float* out) = 0;

  // Waits for what ops have put there, and returns it as the host's, until the next call.
  virtual float* fetch(float* from, int64_t floats) = 0;
};

}  // namespace headrace
