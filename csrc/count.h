// From the scores of one query to the ranks of its true class; compiled once per instruction set.
//
// Classes come in an order with the unseen ones first, so that both ranks are counted in one pass. Corrected for hubs,
//
//   s'(c) = 2 s(c) - hub(c),   hub(c) = mean of the k largest scores of text c over all queries
//
// which leaves out the mean of the query's own: it moves no rank. fastprobe/kernels/ranking.py is the definition.
#pragma once
#include "simd.h"

namespace fastprobe::FP_ISA {

template <bool HUBS>
FP_INLINE vf score_at(const float* row, const float* hub, int64_t c) {
  const vf s = load(row + c);
  if constexpr (HUBS) return s + s - load(hub + c);
  return s;
}

// 1 + #{c != truth : s(c) >= s(truth)}, among the first `unseen` of the row's classes and among all of them. The true
// class is one of the unseen. Its score is one of the row's, so exact ties are seen; with a score that is NaN nothing
// is smaller, and the rank is the last.
template <bool HUBS>
static inline void rank_row(const float* row, const float* hub, int64_t unseen, int64_t classes, int64_t truth,
                            int32_t* rank, int32_t* unseen_rank) {
  const vf target = splat(score_at<HUBS>(row, hub, truth / VL * VL)[truth % VL]);
  const auto smaller_at = [&](int64_t c) { return (vi)(score_at<HUBS>(row, hub, c) < target); };
  vi smaller = {};
  int64_t c = 0;
  for (; c + VL <= unseen; c += VL) smaller -= smaller_at(c);
  int32_t below = 0, first = 0;
  for (int l = 0; l < VL; ++l) below += smaller[l];
  if (c < unseen) {  // a vector of both kinds
    const vi both = smaller_at(c);
    const int64_t end = classes - c < VL ? classes - c : VL;
    for (int64_t l = 0; l < end; ++l) (l < unseen - c ? below : first) -= both[l];
    c += VL;
  }
  *unseen_rank = static_cast<int32_t>(unseen) - below;
  smaller = vi{};
  for (; c + VL <= classes; c += VL) smaller -= smaller_at(c);
  if (c < classes) {
    const vi last = smaller_at(c);
    for (int64_t l = 0; l < classes - c; ++l) first -= last[l];
  }
  for (int l = 0; l < VL; ++l) first += smaller[l];
  *rank = static_cast<int32_t>(classes) - below - first;
}

// Nothing yet: `top` holds the `neighbours` largest scores of each text, sorted, in rows of `ld` floats.
static inline void clear_top(float* top, int64_t neighbours, int64_t ld) {
  for (int64_t i = 0; i < neighbours * ld; i += VL) store(top + i, splat(-__builtin_inff()));
}

// A query's scores: each sinks to its place.
static inline void sink(const float* row, float* top, int64_t neighbours, int64_t ld) {
  for (int64_t c = 0; c < ld; c += VL) {
    vf x = load(row + c);
    for (int64_t k = 0; k < neighbours; ++k) {
      const vf held = load(top + k * ld + c);
      store(top + k * ld + c, x > held ? x : held);
      x = x > held ? held : x;
    }
  }
}

static inline void hub_means(const float* top, int64_t neighbours, int64_t ld, float* hub) {
  for (int64_t c = 0; c < ld; c += VL) {
    vf total = {};
    for (int64_t k = 0; k < neighbours; ++k) total += load(top + k * ld + c);
    store(hub + c, total / splat(static_cast<float>(neighbours)));
  }
}

}  // namespace fastprobe::FP_ISA
