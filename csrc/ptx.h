// The instructions of NVIDIA GPUs that C++ has no word for, for *.cu. A test replaces this header by one for CPUs.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ofa {

// A copy of 16 bytes into shared memory, both ends aligned to them, in the group that the thread's next commit closes.
__device__ inline void copy_async(void* shared, const void* global) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
// The same if `present`, and else 16 bytes of zeros, without a look at `global`.
__device__ inline void copy_async_if(bool present, void* shared, const void* global) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(present ? 16 : 0)
               : "memory");
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

// Two numbers in a word, the first one in its lower half.
template <class T>
__device__ uint32_t from_floats(float first, float second);
template <>
__device__ inline uint32_t from_floats<Half>(float first, float second) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
}
template <>
__device__ inline uint32_t from_floats<Bfloat>(float first, float second) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
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

// Shared memory whose size the launch tells, aligned to 256 bytes, as swizzling by addresses wants it.
__device__ inline uint8_t* dynamic_shared() {
  extern __shared__ __align__(256) uint8_t memory[];
  return memory;
}

// The same, aligned as rows of 128 bytes are wanted that warpgroups read.
__device__ inline uint8_t* dynamic_shared_1024() {
  extern __shared__ __align__(1024) uint8_t memory_1024[];
  return memory_1024;
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// What only GPUs of compute capability 9.0 have, in code that was compiled for them alone (sm_90a).
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#  define OFA_WARPGROUPS

// A phase of a barrier in shared memory ends when `arrivals` threads have arrived and the bytes told have come.
__device__ inline void start_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void publish_barriers() {  // to the copies, by the thread that started them
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void arrive_for_bytes(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Until phase `number` has ended: of the numbers only the last bit is told apart. Before phase 0 was one that has
// ended.
__device__ inline void wait_for_phase(uint64_t* barrier, uint32_t number) {
  uint32_t ended;
  do
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(number & 1)
        : "memory");
  while (!ended);
}
// A copy of a multiple of 16 bytes, both ends aligned to 16, whose bytes count for the barrier.
__device__ inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// Registers of each thread of a warpgroup, all of which must come here: at most, or at least, waiting for others to
// give theirs.
template <int count>
__device__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

// What this thread wrote to shared memory, to products of warpgroups behind the next barrier.
__device__ inline void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ inline void wait_for_products() {  // all groups but the last `pending` ones have been computed
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Without a branch, which would keep the work of different values apart.
__device__ inline void store_if(bool condition, uint64_t* global, uint64_t value) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.b64 [%1], %2;\n}" ::"r"(static_cast<int32_t>(condition)),
      "l"(global), "l"(value)
      : "memory");
}

// After the wait for a sum: that nothing which reads it is moved to before.
__device__ inline void settle(int32_t (&s)[64]) {
#  pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+r"(s[i])::"memory");
}
__device__ inline void settle(float (&s)[64]) {
#  pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(s[i])::"memory");
}

// sum[64, 128] = left[64, 32 bytes] right[128, 32 bytes]T, added to the sum if `add`; by four warps, whose first is a
// multiple of 4. Lane i of warp w holds columns 8 j + 2 (i % 4) and the next one of rows 16 w + i / 4 (sum[4 j],
// sum[4 j + 1]) and 8 rows further (sum[4 j + 2], sum[4 j + 3]).
__device__ inline void multiply_tiles(int32_t (&s)[64], uint64_t left, uint64_t right, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
      "}, %64, %65, p;\n}"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3]), "+r"(s[4]), "+r"(s[5]), "+r"(s[6]), "+r"(s[7]), "+r"(s[8]),
        "+r"(s[9]), "+r"(s[10]), "+r"(s[11]), "+r"(s[12]), "+r"(s[13]), "+r"(s[14]), "+r"(s[15]), "+r"(s[16]),
        "+r"(s[17]), "+r"(s[18]), "+r"(s[19]), "+r"(s[20]), "+r"(s[21]), "+r"(s[22]), "+r"(s[23]), "+r"(s[24]),
        "+r"(s[25]), "+r"(s[26]), "+r"(s[27]), "+r"(s[28]), "+r"(s[29]), "+r"(s[30]), "+r"(s[31]), "+r"(s[32]),
        "+r"(s[33]), "+r"(s[34]), "+r"(s[35]), "+r"(s[36]), "+r"(s[37]), "+r"(s[38]), "+r"(s[39]), "+r"(s[40]),
        "+r"(s[41]), "+r"(s[42]), "+r"(s[43]), "+r"(s[44]), "+r"(s[45]), "+r"(s[46]), "+r"(s[47]), "+r"(s[48]),
        "+r"(s[49]), "+r"(s[50]), "+r"(s[51]), "+r"(s[52]), "+r"(s[53]), "+r"(s[54]), "+r"(s[55]), "+r"(s[56]),
        "+r"(s[57]), "+r"(s[58]), "+r"(s[59]), "+r"(s[60]), "+r"(s[61]), "+r"(s[62]), "+r"(s[63])
      : "l"(left), "l"(right), "r"(static_cast<int32_t>(add)));
}

// sum[64, 128] += left[64, 16] right[128, 16]T in half precision; an operand that is turned lies in shared memory as 16
// lines, of the depth, of 64 elements each.
template <class T, bool left_turned, bool right_turned>
__device__ void multiply_tiles(float (&s)[64], uint64_t left, uint64_t right) {
  static_assert(sizeof(T) == 2);
#  define OFA_PRODUCT(types)                                                                                          \
    asm volatile(                                                                                                     \
        "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                                                    \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." types                                                          \
        " {"                                                                                                          \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "                            \
        "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "                            \
        "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "                            \
        "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "                                       \
        "}, %64, %65, p, 1, 1, %66, %67;\n}"                                                                          \
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]), "+f"(s[8]), \
          "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]), "+f"(s[16]),      \
          "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]),     \
          "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), "+f"(s[32]),     \
          "+f"(s[33]), "+f"(s[34]), "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), "+f"(s[40]),     \
          "+f"(s[41]), "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), "+f"(s[48]),     \
          "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]), "+f"(s[56]),     \
          "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]), "+f"(s[63])                   \
        : "l"(left), "l"(right), "n"(static_cast<int32_t>(left_turned)), "n"(static_cast<int32_t>(right_turned)))
  if constexpr (std::is_same_v<T, Half>)
    OFA_PRODUCT("f16.f16");
  else
    OFA_PRODUCT("bf16.bf16");
#  undef OFA_PRODUCT
}
#endif

}  // namespace ofa
