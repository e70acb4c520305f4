// Matrix products in tiles of registers, with something done to each tile before it leaves them.
//
// The right factor and most results are kept in *panels*: a matrix of K rows and N columns (N padded with zeros to whole
// vectors) is cut into strips of NR vectors, and each strip is stored row after row, without gaps. Walking down a strip
// then reads memory in order, and a strip of a few hundred rows stays in the first-level cache. The last strip is one
// vector wide when the number of vectors is odd.
#pragma once
#include "simd.h"

namespace fastprobe::FP_ISA {

constexpr int PW = NR * VL;  // floats per row of a whole strip
static_assert(NR == 2, "strips are two vectors wide, the last one perhaps one");

FP_INLINE int64_t vectors(int64_t columns) { return (columns + VL - 1) / VL; }
FP_INLINE int64_t padded(int64_t columns) { return vectors(columns) * VL; }
FP_INLINE int64_t strips(int64_t columns) { return (columns + PW - 1) / PW; }
// Floats per row of strip s.
FP_INLINE int64_t strip_width(int64_t columns, int64_t s) {
    return (s + 1) * NR <= vectors(columns) ? PW : VL;
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

template <int R, int V, bool TRANSPOSED, class Finish>
FP_INLINE void tile_of(int rows, const float* a, int64_t lda, const float* b, int64_t depth, int64_t strip, int64_t row,
                       Finish& finish) {
    if (rows == R)
        one_tile<R, V, TRANSPOSED>(a, lda, b, depth, strip, row, finish);
    else if constexpr (R > 1)
        tile_of<R - 1, V, TRANSPOSED>(rows, a, lda, b, depth, strip, row, finish);
}

template <int V, bool TRANSPOSED, class Finish>
static __attribute__((noinline)) void strip_product(const float* a, int64_t lda, const float* b, int64_t rows,
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

// Panels of the transpose of a row-major (rows, columns): K = columns, N = rows. `x` may be read up to the padded width.
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

// Floats between rows of a row-major scratch matrix: whole vectors, and not a multiple of 1 KiB, where the rows of a
// tile would compete for the same cache sets.
FP_INLINE int64_t row_stride(int64_t columns) {
    const int64_t ld = (columns + 15) / 16 * 16;
    return ld % 256 ? ld : ld + 16;
}

}  // namespace fastprobe::FP_ISA
