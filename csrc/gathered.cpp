// Gathered products; compiled once per instruction set. A probe's bits depend on nothing but its own inputs.
#include "gathered.h"

#include "count.h"
#include "product.h"

#define FP_GATHERED_STRING(x) #x
#define FP_GATHERED_NAME(x) FP_GATHERED_STRING(x)

namespace fastprobe::FP_ISA {

static const int64_t QUERY_BLOCK = 2 * MR;

static void ranks_of(const GatheredRanks& b, int64_t p, Arena& arena) {
  const int64_t ld = padded(b.depth), score_ld = padded(b.classes);
  // The correction for hubs needs the scores of all queries before the first is ranked.
  const int64_t kept = b.neighbours ? b.queries : QUERY_BLOCK;
  float* gallery = arena.take(b.classes * ld);
  float* panels = arena.take(b.depth * score_ld);
  float* scores = arena.take(kept * score_ld);
  float* top = arena.take(b.neighbours * score_ld);
  float* hub = arena.take(b.neighbours ? score_ld : 0);
  if (!arena.base) return;

  const int64_t *rows = b.rows + p * b.classes, *columns = b.columns + p * b.depth;
  for (int64_t c = 0; c < b.classes; ++c) {
    const float* from = b.right + rows[c] * b.width;
    float* to = gallery + c * ld;
    for (int64_t j = 0; j < b.depth; ++j) to[j] = from[columns[j]];
    for (int64_t j = b.depth; j < ld; ++j) to[j] = 0.0f;
  }
  transposed_panels(gallery, ld, b.classes, b.depth, panels);

  const float* left = b.left + b.left_of[p] * b.queries * b.depth;
  int32_t *all = b.ranks + p * b.queries, *unseen = b.unseen_ranks + p * b.queries;
  clear_top(top, b.neighbours, score_ld);
  for (int64_t q = 0; q < b.queries; q += QUERY_BLOCK) {
    const int64_t block = b.queries - q < QUERY_BLOCK ? b.queries - q : QUERY_BLOCK;
    float* out = b.neighbours ? scores + q * score_ld : scores;
    product<false>(left + q * b.depth, b.depth, panels, b.depth, 0, block, b.depth, b.classes, ToRows{out, score_ld});
    for (int64_t i = 0; i < block; ++i) {
      const float* row = out + i * score_ld;
      if (b.neighbours)
        sink(row, top, b.neighbours, score_ld);
      else
        rank_row<false>(row, nullptr, b.unseen, b.classes, b.truth[q + i], all + q + i, unseen + q + i);
    }
  }
  if (!b.neighbours) return;
  hub_means(top, b.neighbours, score_ld, hub);
  for (int64_t q = 0; q < b.queries; ++q)
    rank_row<true>(scores + q * score_ld, hub, b.unseen, b.classes, b.truth[q], all + q, unseen + q);
}

static size_t scratch(const GatheredRanks& b) {
  Arena arena{nullptr};
  ranks_of(b, 0, arena);
  return arena.used;
}

static void ranks(const GatheredRanks& b, int64_t p, float* memory) {
  Arena arena{memory};
  ranks_of(b, p, arena);
}

static void sums(const GatheredSums& b, int64_t p) {
  const int64_t n = b.size;
  const int64_t* index = b.index + p * n;
  for (int64_t a = 0; a < b.terms; ++a) {
    // Eight sums run side by side, always the same ones.
    double lanes[8] = {};
    for (int64_t i = 0; i < n; ++i) {
      const double *w = b.weight + (a * n + i) * n, *g = b.gram + index[i] * b.side;
      const int64_t end = b.lower ? i + 1 : n;
      int64_t j = 0;
      for (; j + 8 <= end; j += 8)
        for (int l = 0; l < 8; ++l) lanes[l] += w[j + l] * g[index[j + l]];
      for (int l = 0; j < end; ++j, ++l) lanes[l] += w[j] * g[index[j]];
    }
    for (int half = 4; half; half /= 2)
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    b.out[p * b.terms + a] = lanes[0];
  }
}

extern const GatheredKernels gathered;
const GatheredKernels gathered = {FP_GATHERED_NAME(FP_ISA), scratch, ranks, sums};

}  // namespace fastprobe::FP_ISA
