// The vector type of the instruction set this file is compiled for, and what the kernels do with it.
//
// Only C headers and names in this namespace are used in code compiled for one instruction set: an inline function of
// the C++ library would be emitted once for all of them, and the linker might keep the copy that this machine cannot
// run.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef FP_ISA
#error "FP_ISA names the instruction set; CMakeLists.txt defines it"
#endif

namespace fastprobe::FP_ISA {

#define FP_INLINE static inline __attribute__((always_inline))

// VL floats per vector. A product holds a tile of MR rows and NR vectors in registers: MR NR sums, NR vectors of the
// right factor and one element of the left one must fit (32 registers with AVX-512 and NEON, else 16).
#if defined(__AVX512F__)
constexpr int VL = 16, FULL_MR = 12, NR = 2;
#elif defined(__AVX2__)
constexpr int VL = 8, FULL_MR = 6, NR = 2;
#elif defined(__aarch64__)
constexpr int VL = 4, FULL_MR = 12, NR = 2;
#else
constexpr int VL = 4, FULL_MR = 6, NR = 2;
#endif

// Sanitizer builds use lower tiles: the same code, and minutes less of compilation.
#ifdef FASTPROBE_POISON
constexpr int MR = 4;
#else
constexpr int MR = FULL_MR;
#endif

typedef float vf __attribute__((vector_size(4 * VL), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VL), may_alias));
typedef float vf_unaligned __attribute__((vector_size(4 * VL), may_alias, aligned(4)));

FP_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
FP_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }

FP_INLINE vf splat(float x) {
#if defined(__AVX512F__)
  return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (vf)_mm256_set1_ps(x);
#elif defined(__SSE2__)
  return (vf)_mm_set1_ps(x);
#elif defined(__aarch64__)
  return (vf)vdupq_n_f32(x);
#else
  return vf{x, x, x, x};
#endif
}

// a b + c, rounded once where the machine can (all but baseline x86-64).
FP_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

FP_INLINE vf root(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (vf)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  return (vf)vsqrtq_f32((float32x4_t)x);
#else
  for (int l = 0; l < VL; ++l) x[l] = __builtin_sqrtf(x[l]);
  return x;
#endif
}

// x / y, given y and its rounded reciprocal: one correction makes it exact where x / y is (baseline: nearly).
FP_INLINE vf quotient(vf x, vf y, vf reciprocal) {
  const vf q = x * reciprocal;
  return fma(fma(-q, y, x), reciprocal, q);
}

// The larger of both; NaN when `x` is NaN.
FP_INLINE vf at_least(vf x, vf low) { return x < low ? low : x; }

// The first `count` lanes of x, 0 in the others.
FP_INLINE vf first_lanes(vf x, int64_t count) {
  vi keep;
  for (int l = 0; l < VL; ++l) keep[l] = l < count ? -1 : 0;
  return (vf)((vi)x & keep);
}

// Sum and largest of the lanes, always in the same order.
FP_INLINE float sum(vf x) {
  float t[VL];
  store(t, x);
  for (int half = VL / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) t[l] += t[l + half];
  return t[0];
}

FP_INLINE float largest(vf x) {
  float t[VL];
  store(t, x);
  for (int l = 1; l < VL; ++l)
    if (!(t[l] <= t[0])) t[0] = t[l];
  return t[0];
}

// 2^x for x <= 0: x = k + f with 0 <= f < 1, 2^f by the polynomial of degree 5 with the least relative error that is 1
// at 0, 2^k by the exponent. Relative error at most 2e-7 above -124; 2^-124 = 4.7e-38 below; NaN for NaN.
FP_INLINE vf exp2_nonpositive(vf x) {
  x = at_least(x, splat(-124.0f));
#if defined(__AVX512F__)
  const vf f = (vf)_mm512_reduce_ps((__m512)x, 1);  // x - floor(x)
#else
  const vf magic = splat(12582912.0f);  // 1.5 2^23: adding it rounds to an integer and leaves it in the low bits
  const vf t = (x - splat(0.5f)) + magic;
  const vf f = x - (t - magic);
#endif
  vf p = splat(1.867145299911499e-3f);
  p = fma(p, f, splat(9.016993455588818e-3f));
  p = fma(p, f, splat(5.57999461889267e-2f));
  p = fma(p, f, splat(2.4016444385051727e-1f));
  p = fma(p, f, splat(6.931512951850891e-1f));
  p = fma(p, f, splat(1.0f));
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);  // p 2^floor(x)
#else
  return (vf)((vi)p + ((vi)t << 23));
#endif
}

// One stage of a transposition by halves: lanes with bit H of x's row and of y's row change places.
template <int H, int... L>
FP_INLINE void exchange(vf& x, vf& y) {
  const vf u = __builtin_shufflevector(x, y, ((L & H) ? VL + L - H : L)...);
  const vf v = __builtin_shufflevector(x, y, ((L & H) ? VL + L : L + H)...);
  x = u;
  y = v;
}

template <int H>
FP_INLINE void exchange_lanes(vf& x, vf& y) {
  if constexpr (VL == 16)
    exchange<H, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(x, y);
  else if constexpr (VL == 8)
    exchange<H, 0, 1, 2, 3, 4, 5, 6, 7>(x, y);
  else
    exchange<H, 0, 1, 2, 3>(x, y);
}

template <int H>
FP_INLINE void exchange_rows(vf (&row)[VL]) {
  if constexpr (H > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i)
      if (!(i & H)) exchange_lanes<H>(row[i], row[i + H]);
    exchange_rows<H / 2>(row);
  }
}

// Lane l: the sum of the lanes of row l, in the order of `sum`.
template <int H = VL / 2>
FP_INLINE vf sums(vf (&row)[VL]) {
  if constexpr (H > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i) {
      exchange_lanes<H>(row[i], row[i + H]);
      row[i] += row[i + H];
    }
    return sums<H / 2>(row);
  } else {
    return row[0];
  }
}

// A square of VL x VL floats, transposed in registers.
FP_INLINE void transpose(vf (&row)[VL]) { exchange_rows<VL / 2>(row); }

}  // namespace fastprobe::FP_ISA
