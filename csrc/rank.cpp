// Ranks of the true class: project a block of queries, score it against all texts, count; no Q x C matrix.
#include "rank.h"

namespace fastprobe::FP_ISA {

static const int64_t QUERY_BLOCK = 2 * MR;

// Rows divided by their lengths, in place. The length of a query does not change its ranks; that of a text does.
static void normalise_rows(float* x, int64_t rows, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = x + i * ld;
    vf squares = {};
    for (int64_t k = 0; k < ld; k += VL) squares = fma(load(row + k), load(row + k), squares);
    float length = __builtin_sqrtf(sum(squares));
    length = length < 1e-12f ? 1e-12f : length;
    const vf divisor = splat(length), scale = splat(1.0f / length);
    for (int64_t k = 0; k < ld; k += VL) store(row + k, quotient(load(row + k), divisor, scale));
  }
}

void rank_queries(const Batch& b, const int64_t* permutation, const float* w, const float* v, int32_t* ranks,
                  Arena& arena) {
  const int64_t ld = padded(b.dim), score_ld = padded(b.classes);
  float* gallery = arena.take(b.classes * ld);
  float* gallery_t = arena.take(b.dim * score_ld);
  float* rows = arena.take(QUERY_BLOCK * b.audio_width);
  float* projected = arena.take(QUERY_BLOCK * ld);
  float* scores = arena.take(QUERY_BLOCK * score_ld);
  if (!arena.base) return;

  // The texts are projected in their own order: a relabelling moves the true row of a query, not the set of rivals.
  product<false>(b.text, b.text_width, w, b.text_width, 0, b.classes, b.text_width, b.dim, ToRows{gallery, ld});
  normalise_rows(gallery, b.classes, ld);
  transposed_panels(gallery, ld, b.classes, b.dim, gallery_t);

  const float infinity = __builtin_inff();
  for (int64_t q = 0; q < b.queries; q += QUERY_BLOCK) {
    const int64_t count = b.queries - q < QUERY_BLOCK ? b.queries - q : QUERY_BLOCK;
    const int64_t* index = b.query_rows + q;
    bool contiguous = true;
    for (int64_t i = 1; i < count; ++i) contiguous &= index[i] == index[0] + i;
    const float* x = b.audio + index[0] * b.audio_width;
    if (!contiguous) {
      for (int64_t i = 0; i < count; ++i)
        memcpy(rows + i * b.audio_width, b.audio + index[i] * b.audio_width, b.audio_width * sizeof(float));
      x = rows;
    }
    product<false>(x, b.audio_width, v, b.audio_width, 0, count, b.audio_width, b.dim, ToRows{projected, ld});
    product<false>(projected, ld, gallery_t, b.dim, 0, count, b.dim, b.classes, ToRows{scores, score_ld});
    for (int64_t i = 0; i < count; ++i) {
      // The true class's score is one of the row's, so exact ties are seen; padding never counts as smaller,
      // and neither does anything when the score is NaN: the rank is then C.
      float* row = scores + i * score_ld;
      for (int64_t c = b.classes; c < score_ld; ++c) row[c] = infinity;
      const vf truth = splat(row[permutation[b.query_classes[q + i]]]);
      vi smaller = {};
      for (int64_t c = 0; c < score_ld; c += VL) smaller -= (vi)(load(row + c) < truth);
      int32_t below = 0;
      for (int l = 0; l < VL; ++l) below += smaller[l];
      ranks[q + i] = static_cast<int32_t>(b.classes) - below;
    }
  }
}

}  // namespace fastprobe::FP_ISA
