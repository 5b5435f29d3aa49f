// Products of warpgroups in half precision and copies of boxes, on GPUs of compute capability 9.0, for *.cu.
#pragma once

#include <ptx.h>

namespace ofa {

// A matrix in global memory and the boxes that are copied of it, as the driver encodes them (tensor_map.h).
struct alignas(64) Boxes {
  uint64_t words[16];
};

#ifdef OFA_WARPGROUPS

// Shared memory whose size the launch tells, aligned as rows of 128 bytes want it that are swizzled by addresses.
__device__ inline uint8_t* swizzled_shared() {
  extern __shared__ __align__(1024) uint8_t swizzled[];
  return swizzled;
}

// The box whose first element is in this column and row; beyond the matrix are zeros, which count as bytes copied.
__device__ inline void copy_box(void* shared, const Boxes& boxes, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(shared)),
      "l"(&boxes), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// After the wait for a sum: that nothing which reads it is moved to before.
template <int count>
__device__ void settle(float (&s)[count]) {
#  pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(s[i])::"memory");
}

// sum[64, columns] (+)= left[64, 16] right[16, columns], of four warps, whose first is a multiple of 4. Lane i of warp
// w holds columns 8 j + 2 (i % 4) and the next one of rows 16 w + i / 4 (sum[4 j], sum[4 j + 1]) and 8 rows further
// (sum[4 j + 2], sum[4 j + 3]). `left` and `right` lie in shared memory as rows of 16 of the depth; or `left` in
// registers, rows 16 w + i / 4 and 8 further, columns 2 (i % 4) and the next one, and then 8 further, and `right` as
// rows of columns.
template <class T, int columns>
struct Warpgroup;

#  define OFA_4(i) "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3])
#  define OFA_8(i) OFA_4(i), OFA_4(i + 4)
#  define OFA_16(i) OFA_8(i), OFA_8(i + 8)
#  define OFA_32(i) OFA_16(i), OFA_16(i + 16)
#  define OFA_64(i) OFA_32(i), OFA_32(i + 32)
#  define OFA_TEN(t) "%" t "0, %" t "1, %" t "2, %" t "3, %" t "4, %" t "5, %" t "6, %" t "7, %" t "8, %" t "9"
#  define OFA_30 OFA_TEN("") ", " OFA_TEN("1") ", " OFA_TEN("2") ", "
#  define OFA_60 OFA_30 OFA_TEN("3") ", " OFA_TEN("4") ", " OFA_TEN("5") ", "
#  define OFA_100 OFA_60 OFA_TEN("6") ", " OFA_TEN("7") ", " OFA_TEN("8") ", " OFA_TEN("9")
#  define OFA_SUMS(...) __VA_ARGS__

#  define OFA_PRODUCT(T, types, columns, names, a, b, c, d, e, sums)                                               \
    template <>                                                                                                    \
    struct Warpgroup<T, columns> {                                                                                 \
      template <bool add>                                                                                          \
      __device__ static void multiply(float (&s)[columns / 2], uint64_t left, uint64_t right) {                    \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " c                                                         \
                     ", 0;\n"                                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." types " {" names "}, " a ", " b       \
                     ", p, 1, 1, 0, 0;\n}"                                                                         \
                     : sums                                                                                        \
                     : "l"(left), "l"(right), "n"(static_cast<int32_t>(add)));                                     \
      }                                                                                                            \
      __device__ static void multiply_turned(float (&s)[columns / 2], const uint32_t (&left)[4], uint64_t right) { \
        asm volatile(                                                                                              \
            "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                                             \
            "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." types " {" names "}, {" a ", " b ", " c ", " d \
            "}, " e ", p, 1, 1, 1;\n}"                                                                             \
            : sums                                                                                                 \
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));                                 \
      }                                                                                                            \
    };
#  define OFA_PRODUCTS(T, types)                                                                                      \
    OFA_PRODUCT(T, types, 64, OFA_30 "%30, %31", "%32", "%33", "%34", "%35", "%36", OFA_SUMS(OFA_32(0)))              \
    OFA_PRODUCT(T, types, 80, OFA_30 OFA_TEN("3"), "%40", "%41", "%42", "%43", "%44", OFA_SUMS(OFA_32(0), OFA_8(32))) \
    OFA_PRODUCT(T, types, 112, OFA_30 OFA_TEN("3") ", " OFA_TEN("4") ", %50, %51, %52, %53, %54, %55", "%56", "%57",  \
                "%58", "%59", "%60", OFA_SUMS(OFA_32(0), OFA_16(32), OFA_8(48)))                                      \
    OFA_PRODUCT(T, types, 128, OFA_60 "%60, %61, %62, %63", "%64", "%65", "%66", "%67", "%68", OFA_SUMS(OFA_64(0)))   \
    OFA_PRODUCT(T, types, 200, OFA_100, "%100", "%101", "%102", "%103", "%104",                                       \
                OFA_SUMS(OFA_64(0), OFA_32(64), OFA_4(96)))                                                           \
    OFA_PRODUCT(T, types, 256,                                                                                        \
                OFA_100 ", " OFA_TEN("10") ", " OFA_TEN("11") ", %120, %121, %122, %123, %124, %125, %126, %127",     \
                "%128", "%129", "%130", "%131", "%132", OFA_SUMS(OFA_64(0), OFA_64(64)))
OFA_PRODUCTS(Half, "f16.f16")
OFA_PRODUCTS(Bfloat, "bf16.bf16")
#  undef OFA_PRODUCTS
#  undef OFA_PRODUCT
#  undef OFA_SUMS
#  undef OFA_100
#  undef OFA_60
#  undef OFA_30
#  undef OFA_TEN
#  undef OFA_64
#  undef OFA_32
#  undef OFA_16
#  undef OFA_8
#  undef OFA_4

#endif

// 2^x, to 22 bits; less than 2^-126 is 0.
__device__ inline float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace ofa
