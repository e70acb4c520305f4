// Ranks of the true class: project a block of queries, score it against all texts, count; no Q x C matrix, unless ranks
// are corrected for hubs.
#include "rank.h"

#include "count.h"

namespace fastprobe::FP_ISA {

static const int64_t QUERY_BLOCK = 2 * MR;

// A row divided by its length.
static void normalise_row(const float* row, float* out, int64_t ld) {
  vf squares = {};
  for (int64_t k = 0; k < ld; k += VL) squares = fma(load(row + k), load(row + k), squares);
  float length = __builtin_sqrtf(sum(squares));
  length = length < 1e-12f ? 1e-12f : length;
  const vf divisor = splat(length), scale = splat(1.0f / length);
  for (int64_t k = 0; k < ld; k += VL) store(out + k, quotient(load(row + k), divisor, scale));
}

void rank_queries(const Batch& b, const int64_t* permutation, const float* w, const float* v, int32_t* ranks,
                  int32_t* unseen_ranks, Arena& arena) {
  const int64_t ld = padded(b.dim), score_ld = padded(b.classes);
  // The correction for hubs needs the scores of all queries before the first is ranked.
  const int64_t kept = b.neighbours ? b.queries : QUERY_BLOCK;
  float* texts = arena.take(b.classes * ld);
  float* gallery = arena.take(b.classes * ld);
  float* gallery_t = arena.take(b.dim * score_ld);
  float* rows = arena.take(QUERY_BLOCK * b.audio_width);
  float* projected = arena.take(QUERY_BLOCK * ld);
  float* scores = arena.take(kept * score_ld);
  float* top = arena.take(b.neighbours * score_ld);
  float* hub = arena.take(b.neighbours ? score_ld : 0);
  if (!arena.base) return;

  product<false>(b.text, b.text_width, w, b.text_width, 0, b.classes, b.text_width, b.dim, ToRows{texts, ld});
  for (int64_t c = 0; c < b.classes; ++c) normalise_row(texts + permutation[b.order[c]] * ld, gallery + c * ld, ld);
  transposed_panels(gallery, ld, b.classes, b.dim, gallery_t);

  clear_top(top, b.neighbours, score_ld);
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
    float* out = b.neighbours ? scores + q * score_ld : scores;
    product<false>(x, b.audio_width, v, b.audio_width, 0, count, b.audio_width, b.dim, ToRows{projected, ld});
    // The length of a query changes the mean of a text over the queries, and without that no rank.
    for (int64_t i = 0; b.neighbours && i < count; ++i) normalise_row(projected + i * ld, projected + i * ld, ld);
    product<false>(projected, ld, gallery_t, b.dim, 0, count, b.dim, b.classes, ToRows{out, score_ld});
    for (int64_t i = 0; i < count; ++i) {
      const float* row = out + i * score_ld;
      if (b.neighbours)
        sink(row, top, b.neighbours, score_ld);
      else
        rank_row<false>(row, nullptr, b.unseen, b.classes, b.truth[q + i], ranks + q + i, unseen_ranks + q + i);
    }
  }
  if (!b.neighbours) return;
  hub_means(top, b.neighbours, score_ld, hub);
  for (int64_t q = 0; q < b.queries; ++q)
    rank_row<true>(scores + q * score_ld, hub, b.unseen, b.classes, b.truth[q], ranks + q, unseen_ranks + q);
}

}  // namespace fastprobe::FP_ISA
