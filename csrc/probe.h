// What a batch of probes is, and the functions that train and rank one probe of it.
//
//   a_c = norm(W' t_pi(c))     b_i = norm(V' x_i)     s(c, i) = <a_c, b_i>     norm(z) = z / max(|z|, 1e-12)
//   L   = 1/n sum_i [ -s(y_i, i)/tau + log sum_{c in train} exp(s(c, i)/tau) ]
//
// Matrices are float32, row-major and contiguous; m train classes, n rows of a training step, C classes, N clips,
// Q queries, P probes. fastprobe/kernels/reference.py is the definition of everything here.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace fastprobe {

enum class Optimizer { adam_mini, sgd, adam };

// How a head is stepped. direct: the head itself. gram: its outputs Z = X W alone, through X X' (see train.cpp);
// the same run in exact arithmetic, and less work where there are few rows. automatic: the cheaper of the two.
enum class Algebra { automatic, direct, gram };

struct Batch {
  // Shapes.
  int64_t classes, text_width, clips, audio_width, dim, train, rows, steps, queries, probes, unseen;
  // Inputs.
  const float* text;             // (C, text_width)
  const float* audio;            // (N, audio_width)
  const float* centroids;        // (m, audio_width), or null under clip sampling
  const int64_t* train_classes;  // (m)
  const int64_t* step_clips;     // (steps, n) rows of `audio`, or null under centroid sampling
  const int64_t* query_rows;     // (Q) rows of `audio`
  const int64_t* order;          // (C) all classes, the `unseen` ones first: those of the queries
  const int64_t* truth;          // (Q) position in `order` of a query's class, below `unseen`
  const int64_t* permutations;   // (P, C): class c of probe p has text row permutations[p, c]
  const float* text_start;       // (text_width, d)
  const float* audio_start;      // (audio_width, d)
  const double* rates;           // (steps) learning rates
  // Arithmetic.
  Optimizer optimizer;
  double temperature, momentum, weight_decay;
  bool symmetric;
  Algebra algebra;
  int64_t neighbours;  // of the correction for hubs; 0 for none
  // Outputs.
  double* loss;           // (P)
  int32_t* ranks;         // (P, Q)
  int32_t* unseen_ranks;  // (P, Q)
  float* text_heads;      // (P, text_width, d) or null
  float* audio_heads;     // (P, audio_width, d) or null
};

// One instruction set's code. The same source is compiled once for each; on one of them the bits of a probe depend on
// nothing but its own inputs.
struct Kernels {
  const char* name;
  // Floats of scratch memory one probe needs, and of the part that all probes of a batch share.
  size_t (*scratch)(const Batch&);
  size_t (*shared)(const Batch&);
  // What all probes of a batch share, computed once: the clips of all steps, or the centroids and their Gram matrix.
  void (*prepare)(const Batch&, float* shared, float* scratch);
  // Train probe p and rank its queries. `scratch` and `shared` are aligned to 64 bytes.
  void (*probe)(const Batch&, int64_t p, const float* shared, float* scratch);
  // out_i = 2^x_i for x_i <= 0 as the softmax computes it: relative error at most 2e-7 above -124, and 2^-124
  // below.
  void (*exp2)(const float* x, float* out, int64_t n);
};

// What this build holds for this machine, best first; null-terminated.
const Kernels* const* supported_kernels();
// The same with bfloat16 factors in the products of a step (AVX512-BF16), or null where the machine has none.
const Kernels* bf16_kernels();
// Names of all instruction sets in this build, whether the machine has them or not; null-terminated.
const char* const* compiled_isas();

// Threads OpenMP would use from here.
int max_threads();

// Train and rank all probes of a batch, one per thread at a time; threads = 0 takes OpenMP's number.
// Throws std::bad_alloc when scratch memory cannot be had.
void run(const Batch& batch, const Kernels& kernels, int threads);

}  // namespace fastprobe
