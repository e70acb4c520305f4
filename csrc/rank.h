// Ranking the queries of a trained probe; compiled once per instruction set.
#pragma once
#include "probe.h"
#include "product.h"

namespace fastprobe::FP_ISA {

// rank_i = 1 + #{c != y_i : s(c, i) >= s(y_i, i)} over all C texts and over those of the unseen classes, for the Q
// queries of the batch; corrected for hubs where the batch says so.
//   w, v                 heads in panels, (text_width, d) and (audio_width, d)
//   ranks, unseen_ranks  (Q)
// With an arena that has no memory nothing is computed: it counts what is needed.
void rank_queries(const Batch& batch, const int64_t* permutation, const float* w, const float* v, int32_t* ranks,
                  int32_t* unseen_ranks, Arena& arena);

}  // namespace fastprobe::FP_ISA
