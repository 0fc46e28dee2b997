// What the tensor cores and copies to shared memory are told, by a warp or a thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/half.h"

namespace headrace::cuda {

inline __device__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes, or zeros if not `is_there`.
inline __device__ void copy_16(char* to, const std::byte* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(is_there ? 16 : 0));
}

// Four 8 x 8 matrices whose rows the lanes point to, turned.
inline __device__ void load_turned(uint32_t (&to)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

// The same, not turned.
inline __device__ uint4 load_straight(const char* row) {
  uint4 to;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "r"(shared_address(row)));
  return to;
}

// c += a * b, 16 x 8 from 16 x 16 and 16 x 8.
inline __device__ void multiply_add(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Nothing of a weight is left in f16 where this has become 0.
inline __device__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

inline __device__ uint32_t pack(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Each as to_half() has it.
inline __device__ uint32_t pack_saturated(float low, float high) {
  uint32_t both;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

inline __device__ float2 unpack(uint32_t both) {
  return __half22float2(*reinterpret_cast<const __half2*>(&both));
}

// As __syncthreads(), but not all need come to the same one.
inline __device__ void wait_for_block() { asm volatile("bar.sync 0;" ::: "memory"); }

// The copies since the last end are a group.
inline __device__ void end_copies() { asm volatile("cp.async.commit_group;"); }

// This thread's groups but the last ones are there.
template <int kBut>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kBut) : "memory");
}

}  // namespace headrace::cuda
