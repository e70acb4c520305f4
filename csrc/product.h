// Matrix products in tiles of registers, with something done to each tile before it leaves them.
//
// The right factor and most results are kept in *panels*: a matrix of K rows and N columns (N padded with zeros to
// whole vectors) is cut into strips of NR vectors, and each strip is stored row after row, without gaps. Walking down a
// strip then reads memory in order, and a strip of a few hundred rows stays in the first-level cache. The last strip is
// one vector wide when the number of vectors is odd.
#pragma once
#include "simd.h"

namespace fastprobe::FP_ISA {

constexpr int PW = NR * VL;  // floats per row of a whole strip
static_assert(NR == 2, "strips are two vectors wide, the last one perhaps one");

FP_INLINE int64_t vectors(int64_t columns) { return (columns + VL - 1) / VL; }
FP_INLINE int64_t padded(int64_t columns) { return vectors(columns) * VL; }
FP_INLINE int64_t strips(int64_t columns) { return (columns + PW - 1) / PW; }
// Floats per row of strip s.
FP_INLINE int64_t strip_width(int64_t columns, int64_t s) { return (s + 1) * NR <= vectors(columns) ? PW : VL; }

// Floats between rows of a row-major scratch matrix: whole vectors, and not a multiple of 1 KiB, where the rows of a
// tile would compete for the same cache sets.
FP_INLINE int64_t row_stride(int64_t columns) {
  const int64_t ld = (columns + 15) / 16 * 16;
  return ld % 256 ? ld : ld + 16;
}

// Sums of one tile:  acc_ij = sum_k A(i, k) B(k, j),  i < R rows, j < V vectors.
// A(i, k) is a[i lda + k], or a[k lda + i] when transposed. The order of the sum over k is the same for every R and V,
// so an element's bits do not depend on the tile it fell into.
template <int R, int V, bool TRANSPOSED>
FP_INLINE void tile(const float* a, int64_t lda, const float* b, int64_t depth, vf (&acc)[R][V]) {
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) acc[i][j] = vf{};
  if constexpr (TRANSPOSED) {
    for (int64_t k = 0; k < depth; ++k, a += lda, b += V * VL) {
      vf right[V];
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) right[j] = load(b + j * VL);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const vf left = splat(a[i]);
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j) acc[i][j] = fma(left, right[j], acc[i][j]);
      }
    }
  } else {
    // Three rows share a pointer (its address modes reach one and two strides on): twelve pointers would not fit.
    const float* group[(R + 2) / 3];
    for (int g = 0; g < (R + 2) / 3; ++g) group[g] = a + 3 * g * lda;
    for (int64_t k = 0; k < depth; ++k, b += V * VL) {
      vf right[V];
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) right[j] = load(b + j * VL);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const vf left = splat(group[i / 3][(i % 3) * lda]);
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j) acc[i][j] = fma(left, right[j], acc[i][j]);
      }
#pragma GCC unroll 16
      for (int g = 0; g < (R + 2) / 3; ++g) ++group[g];
    }
  }
}

template <int R, int V, bool TRANSPOSED, class Finish>
FP_INLINE void one_tile(const float* a, int64_t lda, const float* b, int64_t depth, int64_t strip, int64_t row,
                        Finish& finish) {
  vf acc[R][V];
  tile<R, V, TRANSPOSED>(a, lda, b, depth, acc);
  finish.template tile<R, V>(strip, row, acc);
}

#if defined(__AVX512BF16__)
// The same of rounded factors, two neighbours of a factor side by side as one element (see below); depth counts
// elements.
template <int R, int V, bool TRANSPOSED, class Finish>
FP_INLINE void one_tile(const uint32_t* a, int64_t lda, const uint32_t* b, int64_t depth, int64_t strip, int64_t row,
                        Finish& finish) {
  vf acc[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) acc[i][j] = vf{};
  const uint32_t* group[(R + 2) / 3];
  for (int g = 0; g < (R + 2) / 3; ++g) group[g] = TRANSPOSED ? a + 3 * g : a + 3 * g * lda;
  for (int64_t k = 0; k < depth; ++k, b += V * VL) {
    __m512bh right[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) right[j] = (__m512bh)_mm512_loadu_si512(b + j * VL);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32((int)group[i / 3][TRANSPOSED ? i % 3 : (i % 3) * lda]);
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) acc[i][j] = (vf)_mm512_dpbf16_ps((__m512)acc[i][j], left, right[j]);
    }
#pragma GCC unroll 16
    for (int g = 0; g < (R + 2) / 3; ++g) group[g] += TRANSPOSED ? lda : 1;
  }
  finish.template tile<R, V>(strip, row, acc);
}
#endif

template <int R, int V, bool TRANSPOSED, class Element, class Finish>
FP_INLINE void tile_of(int rows, const Element* a, int64_t lda, const Element* b, int64_t depth, int64_t strip,
                       int64_t row, Finish& finish) {
  if (rows == R)
    one_tile<R, V, TRANSPOSED>(a, lda, b, depth, strip, row, finish);
  else if constexpr (R > 1)
    tile_of<R - 1, V, TRANSPOSED>(rows, a, lda, b, depth, strip, row, finish);
}

template <int V, bool TRANSPOSED, class Element, class Finish>
static __attribute__((noinline)) void strip_product(const Element* a, int64_t lda, const Element* b, int64_t rows,
                                                    int64_t depth, int64_t strip, Finish& finish) {
  // Tiles of equal height but for one row: a last tile of one or two rows would wait on its own sums.
  const int64_t tiles = (rows + MR - 1) / MR;
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int height = static_cast<int>(rows / tiles + (t < rows % tiles));
    tile_of<MR, V, TRANSPOSED>(height, TRANSPOSED ? a + row : a + row * lda, lda, b, depth, strip, row, finish);
    row += height;
  }
}

// C = A B, tile by tile into `finish`.
//   a   A(i, k) = a[i lda + k], or a[k lda + i] when TRANSPOSED; i < rows, k < depth
//   b   rows first ... first + depth - 1 of a matrix in panels of `pitch` rows
template <bool TRANSPOSED, class Finish>
static inline void product(const float* a, int64_t lda, const float* b, int64_t pitch, int64_t first, int64_t rows,
                           int64_t depth, int64_t columns, Finish&& finish) {
  for (int64_t s = 0; s < strips(columns); ++s) {
    const int64_t width = strip_width(columns, s);
    const float* strip = b + s * pitch * PW + first * width;
    if (width == PW)
      strip_product<NR, TRANSPOSED>(a, lda, strip, rows, depth, s, finish);
    else
      strip_product<1, TRANSPOSED>(a, lda, strip, rows, depth, s, finish);
  }
}

// ---- bfloat16 factors
// -------------------------------------------------------------------------------------------------
//
// The same product with both factors rounded to bfloat16 (relative error 2^-9 each) and float32 sums: the instruction
// takes two products at a time, so that neighbours k, k + 1 of a factor lie side by side, as one 32-bit element.

// Room for the rounded factors of one product; without AVX512-BF16 products stay float32 and nothing is needed.
struct Rounded {
  uint32_t *left, *right;
};

#if defined(__AVX512BF16__)
constexpr bool ROUNDS = true;

FP_INLINE int64_t pairs(int64_t depth) { return (depth + 1) / 2; }
// Elements between rows of a rounded row-major factor: whole vectors.
FP_INLINE int64_t pair_stride(int64_t depth) { return row_stride(pairs(depth)); }

// Elements (x_l, y_l), rounded, for the lanes l of two vectors.
FP_INLINE __m512i interleave(__m512 x, __m512 y) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

FP_INLINE __m512 first_of(const float* p, int64_t count) {
  return count >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(count <= 0 ? 0 : (__mmask16)((1u << count) - 1), p);
}

// Row-major (rows, depth), neighbours of a row paired.
static void round_rows(const float* a, int64_t lda, int64_t rows, int64_t depth, uint32_t* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < depth; k += 32)
      _mm512_storeu_si512(out + i * pair_stride(depth) + k / 2,
                          (__m512i)_mm512_cvtne2ps_pbh(first_of(a + i * lda + k + 16, depth - k - 16),
                                                       first_of(a + i * lda + k, depth - k)));
}

// (depth, columns) of stride ld, neighbours of a column paired; out has `pitch` elements per pair of rows.
static void round_columns(const float* b, int64_t ld, int64_t depth, int64_t columns, uint32_t* out, int64_t pitch) {
  for (int64_t k = 0; k < depth; k += 2)
    for (int64_t j = 0; j < columns; j += 16)
      _mm512_storeu_si512(
          out + k / 2 * pitch + j,
          interleave(first_of(b + k * ld + j, columns - j),
                     k + 1 < depth ? first_of(b + (k + 1) * ld + j, columns - j) : _mm512_setzero_ps()));
}

// Elements a rounded factor takes: the left one of (rows, depth), the right one of (depth, columns).
FP_INLINE int64_t left_elements(int64_t rows, int64_t depth, bool transposed) {
  return transposed ? pairs(depth) * row_stride(rows) : rows * pair_stride(depth);
}
FP_INLINE int64_t right_elements(int64_t depth, int64_t columns) { return pairs(depth) * padded(columns); }

// The left factor of a product, rounded: (rows, depth), or (depth, rows) when TRANSPOSED.
template <bool TRANSPOSED>
static void round_left(const float* a, int64_t lda, int64_t rows, int64_t depth, uint32_t* out) {
  if (TRANSPOSED)
    round_columns(a, lda, depth, rows, out, row_stride(rows));
  else
    round_rows(a, lda, rows, depth, out);
}

// `ready` is the left factor, rounded by `round_left`, where it serves several products; else `a` is rounded here.
template <bool TRANSPOSED, class Finish>
static inline void rounded_product(const Rounded& room, const uint32_t* ready, const float* a, int64_t lda,
                                   const float* b, int64_t pitch, int64_t first, int64_t rows, int64_t depth,
                                   int64_t columns, Finish&& finish) {
  const int64_t ld = TRANSPOSED ? row_stride(rows) : pair_stride(depth);
  if (!ready) round_left<TRANSPOSED>(a, lda, rows, depth, room.left);
  const uint32_t* const left = ready ? ready : room.left;
  for (int64_t s = 0; s < strips(columns); ++s) {
    const int64_t width = strip_width(columns, s);
    round_columns(b + s * pitch * PW + first * width, width, depth, width, room.right, width);
    if (width == PW)
      strip_product<NR, TRANSPOSED>(left, ld, room.right, rows, pairs(depth), s, finish);
    else
      strip_product<1, TRANSPOSED>(left, ld, room.right, rows, pairs(depth), s, finish);
  }
}
#else
constexpr bool ROUNDS = false;
FP_INLINE int64_t left_elements(int64_t, int64_t, bool) { return 0; }
FP_INLINE int64_t right_elements(int64_t, int64_t) { return 0; }

template <bool TRANSPOSED>
static void round_left(const float*, int64_t, int64_t, int64_t, uint32_t*) {}

template <bool TRANSPOSED, class Finish>
static inline void rounded_product(const Rounded&, const uint32_t*, const float* a, int64_t lda, const float* b,
                                   int64_t pitch, int64_t first, int64_t rows, int64_t depth, int64_t columns,
                                   Finish&& finish) {
  product<TRANSPOSED>(a, lda, b, pitch, first, rows, depth, columns, finish);
}
#endif

// Write a tile into panels of `pitch` rows, from row `first` on; or add it to what is there.
struct ToPanels {
  float* out;
  int64_t pitch, first;
  bool add;
  template <int R, int V>
  inline __attribute__((always_inline)) void tile(int64_t strip, int64_t row, vf (&acc)[R][V]) {
    float* p = out + strip * pitch * PW + (first + row) * V * VL;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j, p += VL) store(p, add ? load(p) + acc[i][j] : acc[i][j]);
  }
};

// Write a tile into a row-major matrix.
struct ToRows {
  float* out;
  int64_t ld;
  template <int R, int V>
  inline __attribute__((always_inline)) void tile(int64_t strip, int64_t row, vf (&acc)[R][V]) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) store(out + (row + i) * ld + strip * PW + j * VL, acc[i][j]);
  }
};

// Row-major (rows, columns) into panels, padding with zeros.
static inline void to_panels(const float* x, int64_t rows, int64_t columns, float* panels) {
  for (int64_t s = 0; s < strips(columns); ++s) {
    const int64_t width = strip_width(columns, s), filled = columns - s * PW < width ? columns - s * PW : width;
    for (int64_t i = 0; i < rows; ++i) {
      float* p = panels + s * rows * PW + i * width;
      memcpy(p, x + i * columns + s * PW, filled * sizeof(float));
      for (int64_t j = filled; j < width; ++j) p[j] = 0.0f;
    }
  }
}

// Panels into row-major (rows, columns), without the padding.
static inline void from_panels(const float* panels, int64_t rows, int64_t columns, float* x) {
  for (int64_t s = 0; s < strips(columns); ++s) {
    const int64_t width = strip_width(columns, s), filled = columns - s * PW < width ? columns - s * PW : width;
    for (int64_t i = 0; i < rows; ++i)
      memcpy(x + i * columns + s * PW, panels + s * rows * PW + i * width, filled * sizeof(float));
  }
}

// Panels of the transpose of a row-major (rows, columns): K = columns, N = rows. `x` may be read up to the padded
// width.
static inline void transposed_panels(const float* x, int64_t ld, int64_t rows, int64_t columns, float* panels) {
  for (int64_t i = 0; i < rows; i += VL) {
    const int64_t s = i / PW, width = strip_width(rows, s);
    float* out = panels + s * columns * PW + i % PW;
    for (int64_t k = 0; k < columns; k += VL) {
      vf row[VL];
      for (int l = 0; l < VL; ++l) row[l] = i + l < rows ? load(x + (i + l) * ld + k) : vf{};
      transpose(row);
      for (int l = 0; l < VL && k + l < columns; ++l) store(out + (k + l) * width, row[l]);
    }
  }
}

// Scratch memory handed out piece by piece, each aligned to 64 bytes; with no memory behind it, it only counts.
struct Arena {
  float* base;
  size_t used = 0;
  float* take(int64_t floats) {
    float* p = base ? base + used : nullptr;
    used += (static_cast<size_t>(floats) + 15) / 16 * 16;
    return p;
  }
};

}  // namespace fastprobe::FP_ISA
