#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include "engine/ops/attention.h"
namespace headrace::cuda {
void half_attention(cudaStream_t stream, const KvPageShape& shape,
                    const AttentionSequence* sequences, int64_t count, int64_t most_rows, int heads,
                    float scale, const float* q, __half* out);
}
