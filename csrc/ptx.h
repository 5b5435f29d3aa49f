// The instructions of NVIDIA GPUs that C++ has no word for, for *.cu. A test replaces this header by one for CPUs.
#pragma once

#include <cstdint>

namespace ofa {

// A copy of 16 bytes into shared memory, both ends aligned to them, in the group that the thread's next commit closes.
__device__ inline void copy_async(void* shared, const void* global) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ inline void wait_for_copies() {  // all groups of this thread but the last `pending` ones have arrived
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8 x 16-byte matrices: lane i names row i % 8 of matrix i / 8, and gets bytes 4 (i % 4) of row i / 4 of each.
__device__ inline void load_matrices(uint32_t (&word)[4], const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(from)
               : "memory");
}

// The same of matrices that lie on their side: the lane gets rows 2 (i % 4) and the next one, of column i / 4 of each.
__device__ inline void load_matrices_transposed(uint32_t (&word)[4], const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(from)
               : "memory");
}

// 16 bytes of zeros, aligned to them, that push nothing out of the second-level cache that is used again.
__device__ inline void write_zeros(void* to) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(to), "r"(0) : "memory");
}

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Bfloat x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float to_float(Half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline Half from_float<Half>(float x) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}
template <>
__device__ inline Bfloat from_float<Bfloat>(float x) {
  Bfloat result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

// The nearest number of 11 binary digits, as products of floats take it.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return result;
}

// sum[16, 8] += left[16, 32 bytes] right[8, 32 bytes]T. Lane i holds columns 2 (i % 4) and the next one, of rows i / 4
// (sum[0], sum[1]) and i / 4 + 8; `left` and `right` as load_matrices leaves them: of left rows 0 and 8 of the first 16
// bytes, then of the others; of right the first 16 bytes, then the others.
template <class T>
__device__ void multiply(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1);
#define OFA_PRODUCT(T, shape, types)                                                                    \
  template <>                                                                                           \
  __device__ inline void multiply<T>(float (&s)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." types                                        \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "                                            \
                 "{%8, %9}, {%0, %1, %2, %3};"                                                          \
                 : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                       \
  }
OFA_PRODUCT(Half, "m16n8k16", "f16.f16")
OFA_PRODUCT(Bfloat, "m16n8k16", "bf16.bf16")
OFA_PRODUCT(float, "m16n8k8", "tf32.tf32")
#undef OFA_PRODUCT

__device__ inline void multiply_bytes(int32_t (&s)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Shared memory whose size the launch tells, aligned to 128 bytes.
__device__ inline uint8_t* dynamic_shared() {
  extern __shared__ __align__(128) uint8_t memory[];
  return memory;
}

}  // namespace ofa
