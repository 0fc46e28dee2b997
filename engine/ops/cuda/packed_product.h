// Products of a few rows with low-bit weights, read as they are packed and expanded on the way to
// the tensor cores: a memory's worth of f16 is neither written nor read.
//
// An output is the sum over ascending k of products of 16 at a time, by mma.sync m16n8k16 with f32
// sums. Whether those are the bits of a cuBLASLt is for products.h to find out.
#pragma once

#include <cstdint>

#include "engine/device/device.h"
#include "engine/ops/packed_matrix.h"

struct CUstream_st;  // what a cudaStream_t points to

namespace headrace::cuda {

// A product with weights of a low-bit format, whose x begins at 16 bytes. Biases are rounded to f16
// where the result is.
struct PackedWork {
  PackedProduct of;
  const void* added = nullptr;  // what results are added to, as product.y is; may be the same
  // What comes to the sum first, where results are added to what was there and have a bias.
  enum class Order { kAddedFirst, kBiasFirst } order = Order::kAddedFirst;
};

// Of the same x and format.
struct PackedWorks {
  static constexpr int kMost = 3;
  PackedWork all[kMost];
  int count = 0;
};

// Queues them, of kFewRows at most. False, and nothing is done, where this GPU's blocks have too
// little memory for so many rows.
bool multiply_packed(CUstream_st* stream, const PackedWorks& works);

}  // namespace headrace::cuda
