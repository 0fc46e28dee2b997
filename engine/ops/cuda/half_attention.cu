#include "engine/ops/cuda/half_attention.h"
namespace headrace::cuda {
void half_attention(cudaStream_t, const KvPageShape&, const AttentionSequence*, int64_t, int64_t, int,
                    float, const float*, __half*) {}
}
