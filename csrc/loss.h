// The contrastive loss of a block of similarities, and its gradient in their place.
#pragma once
#include <math.h>

#include "product.h"

namespace fastprobe::FP_ISA {

// Takes rows of G where they are.
struct InPlace {
  void two_rows(float* block, int64_t ld, int64_t train, int64_t i, const float* weights, bool both) const {
    for (int64_t l = 0; l <= both; ++l) {
      float* s = block + (i + l) * ld;
      const vf weight = splat(weights[l]);
      for (int64_t c = 0; c < train; c += VL) store(s + c, load(s + c) * weight);
    }
  }
};

#if defined(__AVX512BF16__)
// Takes rows of G as the two left factors that they become, G and G', rounded (see `round_left`).
struct IntoFactors {
  uint32_t *rows, *columns;

  void two_rows(const float* block, int64_t ld, int64_t train, int64_t i, const float* weights, bool both) const {
    const float *s = block + i * ld, *next = both ? s + ld : s;
    uint32_t *row = rows + i * pair_stride(train), *column = columns + i / 2 * row_stride(train);
    const vf w = splat(weights[0]), w_next = both ? splat(weights[1]) : vf{};
    for (int64_t c = 0; c < train; c += 2 * VL) {
      const bool whole = c + VL < train;
      const vf a = load(s + c) * w, b = whole ? load(s + c + VL) * w : vf{};
      const vf a_next = load(next + c) * w_next, b_next = whole ? load(next + c + VL) * w_next : vf{};
      _mm512_storeu_si512(row + c / 2, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
      if (both)
        _mm512_storeu_si512(row + pair_stride(train) + c / 2,
                            (__m512i)_mm512_cvtne2ps_pbh((__m512)b_next, (__m512)a_next));
      _mm512_storeu_si512(column + c, interleave((__m512)a, (__m512)a_next));
      if (whole) _mm512_storeu_si512(column + c + VL, interleave((__m512)b, (__m512)b_next));
    }
  }
};
#endif

// The softmax over one row or over all, from similarities to G = dL/dS, in place.
struct Loss {
  int64_t rows, train, per_class, ld;
  double temperature;
  bool last;  // the loss itself is wanted
  double total = 0;

  // Similarities are at most 1: unless exp(-2/tau) leaves float32's range, 1/tau serves as the largest exponent.
  bool bounded() const { return 2 / temperature <= 60; }
  float per_row() const { return static_cast<float>(1 / (rows * temperature)); }

  // What makes an exponent of 2 of a similarity: 1 / (tau ln 2).
  double scale() const { return M_LOG2E / temperature; }

  // 2^(scale s + shift), zero in the padding.
  inline __attribute__((always_inline)) vf power(const float* s, int64_t c, vf scale, vf shift) const {
    const vf e = exp2_nonpositive(fma(load(s + c), scale, shift));
    return c + VL > train ? first_lanes(e, train - c) : e;
  }

  float shift_of(const float* s) const {
    if (bounded()) return static_cast<float>(-scale());
    float top = s[0];
    for (int64_t c = 1; c < train; ++c) top = s[c] > top ? s[c] : top;
    return static_cast<float>(-top * scale());
  }

  // Row i is that of sound first + i. `out` takes rows i and i + 1 of G = weight (2^... - total of the own text).
  template <class Out>
  void one_way(float* block, int64_t first, int64_t count, Out&& out) {
    const vf scale = splat(static_cast<float>(this->scale())), share = splat(per_row());
    for (int64_t i = 0; i < count; i += VL) {
      const int64_t some = count - i < VL ? count - i : VL;
      vf row_sums[VL] = {};
      float shifts[VL], truths[VL], totals[VL], weights[VL];
      for (int64_t l = 0; l < some; ++l) {
        float* s = block + (i + l) * ld;
        shifts[l] = shift_of(s);
        truths[l] = s[(first + i + l) / per_class];
        const vf shift = splat(shifts[l]);
        vf sums = {};
        for (int64_t c = 0; c < train; c += VL) {
          const vf e = power(s, c, scale, shift);
          store(s + c, e);
          sums += e;
        }
        row_sums[l] = sums;
      }
      const vf all = sums(row_sums);
      store(totals, all);
      store(weights, share / all);
      for (int64_t l = 0; l < some; ++l) {
        block[(i + l) * ld + (first + i + l) / per_class] -= totals[l];  // softmax - 1, once it has its weight
        if (last) total += (log((double)totals[l]) - M_LN2 * shifts[l] - truths[l] / temperature) / rows;
      }
      for (int64_t l = 0; l < some; l += 2) out.two_rows(block, ld, train, i + l, weights + l, l + 1 < some);
    }
  }

  // Half of it from each direction; `sums` is scratch memory of `symmetric_floats`.
  void symmetric(float* all_rows, float* sums) {
    bounded() ? symmetric_one_shift(all_rows, sums) : symmetric_own_shifts(all_rows, sums);
  }

  static int64_t symmetric_floats(int64_t rows, int64_t train) { return 2 * padded(train) + padded(rows); }

  // One shift serves all rows and columns, so one exponential serves both directions.
  void symmetric_one_shift(float* all_rows, float* columns) {
    const vf scale = splat(static_cast<float>(this->scale())), shift = splat(static_cast<float>(-this->scale()));
    float* const row_totals = columns + padded(train);
    for (int64_t c = 0; c < padded(train); ++c) columns[c] = 0;
    for (int64_t i = 0; i < rows; i += VL) {
      vf row_sums[VL] = {};
      for (int64_t l = 0; l < VL && i + l < rows; ++l) {
        float* s = all_rows + (i + l) * ld;
        if (last) total -= (s[(i + l) / per_class] - 1) / (temperature * rows);
        for (int64_t c = 0; c < train; c += VL) {
          const vf e = power(s, c, scale, shift);
          store(s + c, e);
          store(columns + c, load(columns + c) + e);
          row_sums[l] += e;
        }
      }
      store(row_totals + i, sums(row_sums));
    }
    if (last)
      for (int64_t i = 0; i < rows; ++i)
        total += 0.5 * (log((double)row_totals[i]) + log((double)columns[i / per_class])) / rows;
    for (int64_t c = 0; c < train; ++c) columns[c] = 0.5f * per_class * per_row() / columns[c];
    for (int64_t i = 0; i < rows; ++i) {
      float* s = all_rows + i * ld;
      const vf weight = splat(0.5f * per_row() / row_totals[i]);
      for (int64_t c = 0; c < train; c += VL) store(s + c, load(s + c) * (weight + load(columns + c)));
      s[i / per_class] -= per_row();
    }
  }

  // `columns` holds, for every text, its sum over the sounds and its shift.
  void symmetric_own_shifts(float* all_rows, float* columns) {
    const vf scale = splat(static_cast<float>(this->scale()));
    const int64_t width = padded(train);
    float *column_sums = columns, *shifts = columns + width;
    for (int64_t c = 0; c < width; ++c) column_sums[c] = shifts[c] = 0;
    for (int64_t c = 0; c < train; ++c) {
      float top = all_rows[c];
      for (int64_t i = 1; i < rows; ++i) top = all_rows[i * ld + c] > top ? all_rows[i * ld + c] : top;
      shifts[c] = static_cast<float>(-top * this->scale());
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < train; c += VL)
        store(column_sums + c, load(column_sums + c) + power(all_rows + i * ld, c, scale, load(shifts + c)));
    if (last)
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t y = i / per_class;
        total += 0.5 * (log((double)column_sums[y]) - M_LN2 * shifts[y] - all_rows[i * ld + y] / temperature) / rows;
      }
    for (int64_t c = 0; c < train; ++c) column_sums[c] = 0.5f * per_class * per_row() / column_sums[c];
    for (int64_t i = 0; i < rows; ++i) {
      float* s = all_rows + i * ld;
      const int64_t y = i / per_class;
      const float shift = shift_of(s), truth = s[y];
      vf row = {};
      for (int64_t c = 0; c < train; c += VL) row += power(s, c, scale, splat(shift));
      const float all = sum(row);
      const vf weight = splat(0.5f * per_row() / all);
      for (int64_t c = 0; c < train; c += VL)
        store(s + c, fma(power(s, c, scale, splat(shift)), weight,
                         power(s, c, scale, load(shifts + c)) * load(column_sums + c)));
      s[y] -= per_row();
      if (last) total += 0.5 * (log((double)all) - M_LN2 * shift - truth / temperature) / rows;
    }
  }
};

}  // namespace fastprobe::FP_ISA
