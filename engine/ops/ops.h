// The ops of a stage's layers on the memory that they are computed in: the host's, or a device's.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "engine/ops/attention.h"
#include "engine/ops/packed_matrix.h"
#include "engine/ops/rope.h"

namespace headrace {

// Rows as linear layers read them, [rows][n] in the ops' own format of at most four bytes an
// element. Only ever pointed to.
class Operand;

// Of rows of n; an RMS norm has no bias.
struct RowNorm {
  int64_t n = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float eps = 0;
};

// The token with the largest logit of a row, the lowest id among equals.
struct BestToken {
  int32_t token = 0;
  float logit = -std::numeric_limits<float>::infinity();
  bool has_nan = false;  // some logit of the row is not a number
};

// y [rows][weight.rows] of a linear layer; `bias` may be null.
struct Projection {
  PackedMatrix weight;
  const float* bias = nullptr;
  float* y = nullptr;
};

// A row of each table, added up: positions are rows of theirs; none if there is no such table.
struct EmbeddingRows {
  std::span<const int32_t> tokens, positions;
};

// Memory of the ops for the hidden states of a step, in place of what they have themselves.
struct HiddenPlace {
  float* memory = nullptr;  // none: their own
  bool arrived = false;     // hidden states that enter are there already
  bool stays = false;       // those that leave are wanted there, not on the host
};

// Ops are queued, in order: their results are there for later ops, and for the host where it says
// so.
// Pointers are to the memory of the ops but where "host" says otherwise. One thread uses it. Throws
// ResourceMissing.
class Ops {
 public:
  virtual ~Ops() = default;

  // What is queued from now on is of another step: what ops keep from layer to layer is void.
  virtual void begin_step() {}
  // Where the hidden states of the next step are, from its enter() to its leave() or leave_rows(),
  // which brings rows to the host all the same. Only on a device.
  virtual void work_in(const HiddenPlace& place) = 0;
  // Hidden states of a step where ops can use them, until the next call. The host's must stay as
  // they are until something waits.
  virtual float* enter(float* host, int64_t floats) = 0;
  // The same, from the embedding's tables in the ops' memory. Only where the weights' source has
  // them there.
  virtual float* enter(const EmbeddingTables& tables, const EmbeddingRows& rows) = 0;
  // The same of some rows of a step that passes through the ops' memory (HiddenPassage).
  virtual void embed(const EmbeddingTables& tables, const EmbeddingRows& rows, float* x) = 0;
  // Rows for linear layers, until the next call of this or enter(); on a device at most one for
  // each sequence.
  virtual const Operand* enter_operand(float* host, int64_t rows, int64_t n) = 0;
  // Bytes of an element.
  virtual int64_t operand_bytes() const = 0;
  // What enter()'s have become is the host's again, or in its place for who asks there. Waits for
  // all that was queued.
  virtual void leave(float* host, int64_t floats) = 0;
  // The same, but only these rows of so many floats, ascending, one after the other.
  virtual void leave_rows(float* host, int64_t width, std::span<const int64_t> rows) = 0;
  // The rotations of a step's rows; must stay for the step.
  virtual void set_rope(const RopeTable& host) = 0;

  // As in ops/vector_ops.h; y may be x.
  virtual void normalise(const RowNorm& norm, const float* x, int64_t rows, float* y) = 0;
  virtual void normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) = 0;
  // x [rows][n] for linear layers, which is x itself or in `room`.
  virtual const Operand* operand(const float* x, int64_t rows, int64_t n, float* room) = 0;
  // As in ops/rope.h, by the table set before.
  virtual void apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) = 0;

  // As in ops/linear.h: columns of y [rows][w.rows]. Those of one matrix come in order, the last
  // one at last.
  virtual void linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w,
                             const float* bias, int64_t first, int64_t end, float* y) = 0;
  // The same of two or more matrices whose panels are all there, at once. False where that cannot
  // be done; nothing is queued then.
  virtual bool linear_together(const Operand*, int64_t, std::span<const Projection>) {
    return false;
  }
  // y += the same, at the latest when the last panel is done; `room` is as large as y.
  virtual void add_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                          int64_t first, int64_t end, float* room, float* y) = 0;
  // The inside of an MLP: relu of the product, or silu(inner) times it.
  virtual void relu_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                           int64_t first, int64_t end, float* inner) = 0;
  virtual void gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                           int64_t first, int64_t end, float* inner) = 0;
  // What they have made of `inner` [rows][n].
  virtual const Operand* activated(float* inner, int64_t rows, int64_t n) = 0;

  // Sequences that will be attended to, in every layer of a sweep: their tables may go ahead.
  virtual void expect(std::span<const AttentionSequence>) {}
  // What is queued until end_repeat() will be the same for every sweep with this key: true if it
  // was replayed and must not be queued again.
  virtual bool repeat(int64_t) { return false; }
  virtual void end_repeat() {}
  // store_kv() and then attention() of ops/attention.h. Sequences and their page tables are the
  // host's, and used before it returns; the pages are not.
  virtual void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences,
                      int heads, float scale, const float* q, const float* k, const float* v,
                      Operand* out) = 0;

  // Floats of logits that it is best to look through at once.
  virtual int64_t block_floats() const = 0;
  // The best tokens of so many rows are looked for from now on.
  virtual void begin_best(int64_t rows) = 0;
  // Of rows [first_row, first_row + rows), by logits [rows][width] of the tokens from `id` on.
  virtual void find_best(const float* logits, int64_t first_row, int64_t rows, int64_t width,
                         int64_t id) = 0;
  // Waits for them.
  virtual void take_best(std::span<BestToken> host) = 0;
  // Waits for what ops have put there, and returns it as the host's, until the next call.
  virtual float* fetch(float* from, int64_t floats) = 0;
};

}  // namespace headrace
