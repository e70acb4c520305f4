// Scores and sums whose factors are the same for all permutations: only which rows meet which columns changes.
//
//   S(i, c) = sum_j H(i, j) K(columns_j, rows_c)        ranks of the true class, over all classes and the unseen ones
//   T       = sum_ij W(i, j) G(index_i, index_j)
//
// fastprobe/kernels/closed.py and similarity.py are the definition of everything here.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace fastprobe {

struct GatheredRanks {
  int64_t queries, depth, classes, unseen, width, probes, neighbours;
  const float* left;       // (L, Q, depth): H
  const int64_t* left_of;  // (P) which of them a probe takes
  const float* right;      // (R, width): the transpose of K
  const int64_t* rows;     // (P, C) rows of `right`, the `unseen` classes first
  const int64_t* columns;  // (P, depth) columns of `right`
  const int64_t* truth;    // (Q) position of the true class in `rows`, below `unseen`
  int32_t* ranks;          // (P, Q)
  int32_t* unseen_ranks;   // (P, Q)
};

struct GatheredSums {
  int64_t terms, size, side, probes;
  bool lower;            // whether only j <= i is summed
  const double* weight;  // (A, n, n): W
  const double* gram;    // (side, side): G
  const int64_t* index;  // (P, n)
  double* out;           // (P, A)
};

struct GatheredKernels {
  const char* name;
  size_t (*scratch)(const GatheredRanks&);
  void (*ranks)(const GatheredRanks&, int64_t p, float* scratch);
  void (*sums)(const GatheredSums&, int64_t p);
};

// All probes of a batch, one per thread at a time; threads = 0 takes OpenMP's number.
// Throws std::bad_alloc when scratch memory cannot be had, std::invalid_argument for an unknown instruction set.
void run_gathered(const GatheredRanks& batch, const char* isa, int threads);
void run_gathered(const GatheredSums& batch, const char* isa, int threads);

}  // namespace fastprobe
