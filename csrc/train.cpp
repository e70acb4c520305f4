// All steps of one probe on one core, everything it touches in the second-level cache.
//
// One step, for the n rows X and the m train texts T (probe.h has the loss):
//
//   Z_a = T W,  Z_b = X V;  A, B = their rows normalised              project, normalise
//   G = (softmax(B A' / tau) - Y) / (n tau)                           by blocks of rows
//   dB = G A,  dA = G' B;  dZ = (dA - A <A, dA>) / |Z|
//   dW = T' dZ_a,  dV = X' dZ_b,  each tile going into the optimiser as it leaves the registers: no gradient is stored
//
// A head whose rows never change (texts always, sounds under centroid sampling) can be stepped without it. Under
// adam-mini and sgd, W stays in W_0 plus the span of the rows, W = omega W_0 - X' U, and with K = X X'
//
//   X dW = K dZ,   |dW|_F^2 = <dZ, K dZ>,   so   Z = X W   follows from K dZ alone:   2 n^2 d   instead of   4 n r d
//
// operations per step. The head itself is put together at the end. This is the same run in exact arithmetic.
//
// Compiled for AVX512-BF16, the products of a step round their factors to bfloat16; heads, moments and ranks stay
// float32.
#include <math.h>

#include "loss.h"
#include "optimizer.h"
#include "rank.h"

namespace fastprobe::FP_ISA {

static const double EPS = 1e-12;  // of norm

// The score matrix is processed in blocks of rows of at most this many floats; the symmetric loss needs all rows at
// once.
static const int64_t SIMILARITIES = 64 * 1024;

// Floats of the steps' clips laid out for all probes of a batch, at most: 64 MiB.
static const int64_t GATHERED = 16 << 20;

// One head and its optimiser. Matrices of `dim` columns are in panels.
struct Head {
  int64_t rows, width, dim;
  bool gram;
  const float* x;  // (rows, width), stride ldx
  int64_t ldx;
  const float* k;  // (rows, rows), stride ldk: X X', gram only
  int64_t ldk;
  const uint32_t *x_rows, *x_columns, *k_rows;  // X, X' and K rounded as left factors, where that is done once
  float *w, *m, *v;                             // (width, dim): head, first moment, second moment (adam)
  float *z, *zm, *um, *u;                       // (rows, dim): X W; gram: its moment, and those of U and U itself
  float *unit, *dz;       // (rows, dim): normalised rows, and the loss's gradient there, then at Z
  float* unit_rows;       // the same, row-major with stride padded(dim)
  float* inverse;         // (rows): 1 / |z|
  double second;          // adam-mini's v
  double keep, rate;      // W <- keep W - rate M (adam-mini), or Z <- keep Z - rate ZM, due before it is read again
  double omega, omega_m;  // gram: coefficient of W_0, and its momentum

  int64_t size() const { return width * padded(dim); }
  int64_t outputs() const { return rows * padded(dim); }
};

// Whether the cheaper way is through the Gram matrix; a function of the shapes alone.
static bool through_gram(const Batch& b, int64_t rows, int64_t width, bool fixed_rows) {
  if (b.optimizer == Optimizer::adam || !fixed_rows || b.algebra == Algebra::direct) return false;
  if (b.algebra == Algebra::gram) return true;
  const double n = rows, r = width, d = b.dim, steps = b.steps;
  const double direct = steps * 4 * n * r * d;
  return steps * (2 * n * n * d + 64 * n * d) + 2 * n * n * r + 4 * n * r * d < 0.9 * direct;
}

static bool text_gram(const Batch& b) { return through_gram(b, b.train, b.text_width, true); }
static bool audio_gram(const Batch& b) { return through_gram(b, b.rows, b.audio_width, b.centroids != nullptr); }

// Whether the clips of all steps are laid out once for all probes, which see the same ones; else each probe copies its
// own.
static bool gathers(const Batch& b) {
  return b.step_clips && b.probes >= 8 && b.steps * b.rows * row_stride(b.audio_width) <= GATHERED;
}

static int64_t block_rows(const Batch& b) {
  // The text-to-sound direction needs all rows of a column at once.
  if (b.symmetric || b.rows * row_stride(b.train) <= SIMILARITIES) return b.rows;
  const int64_t fit = SIMILARITIES / row_stride(b.train) / MR * MR;
  return fit < 4 * MR ? 4 * MR : fit;
}

static void lay_out(const Batch& b, Head& h, Arena& arena) {
  h.w = arena.take(h.size());
  if (!h.gram) {
    h.m = arena.take(h.size());
    h.v = b.optimizer == Optimizer::adam ? arena.take(h.size()) : nullptr;
  }
  h.z = arena.take(h.outputs());
  if (h.gram) {
    h.zm = arena.take(h.outputs());
    h.um = arena.take(h.outputs());
    h.u = arena.take(h.outputs());
  }
  h.unit = arena.take(h.outputs());
  h.dz = arena.take(h.outputs());
  h.unit_rows = arena.take(h.outputs());
  h.inverse = arena.take((h.rows + VL - 1) / VL * VL);
}

// Elements of X and X' as rounded left factors; none where products are not rounded.
static int64_t rows_elements(const Head& h) { return left_elements(h.rows, h.width, false); }
static int64_t columns_elements(const Head& h) { return left_elements(h.width, h.rows, true); }

// What all probes of a batch read, in the order of the memory: the sounds of every step, or their one X and its K.
struct Shared {
  Head audio;                             // of the first step
  float *x, *k;                           // X of all steps when they are laid out for all probes; X X'
  uint32_t *x_rows, *x_columns, *k_rows;  // the same, rounded

  Shared(const Batch& b, Arena& arena) {
    audio = Head{};
    audio.rows = b.rows, audio.width = b.audio_width, audio.ldx = row_stride(b.audio_width);
    audio.gram = audio_gram(b), audio.ldk = row_stride(b.rows);
    const int64_t steps = b.centroids ? 1 : gathers(b) ? b.steps : 0;
    const bool rounded = ROUNDS && !audio.gram;
    audio.x = x = steps && !(rounded && !b.centroids) ? arena.take(steps * b.rows * audio.ldx) : nullptr;
    audio.k = k = audio.gram ? arena.take(b.rows * audio.ldk) : nullptr;
    const auto elements = [&](bool wanted, int64_t count) {
      return wanted && steps ? reinterpret_cast<uint32_t*>(arena.take(count)) : nullptr;
    };
    audio.x_rows = x_rows = elements(rounded, steps * rows_elements(audio));
    audio.x_columns = x_columns = elements(rounded, steps * columns_elements(audio));
    audio.k_rows = k_rows = elements(ROUNDS && audio.gram, left_elements(b.rows, b.rows, false));
  }
};

// Everything a probe touches, in the order of the memory.
struct Workspace {
  Head text, audio;
  float *texts, *text_k, *sounds;                    // T; T T'; X under clip sampling
  uint32_t *text_rows, *text_columns, *text_k_rows;  // T, T' and T T' rounded
  uint32_t *g_rows, *g_columns;                      // G and G' rounded, where the softmax rounds them
  float* unit_t;                                     // panels of A', (d, m)
  float *scores, *sums;  // S and then G, (block, m); what the symmetric loss sums over rows and columns
  float* transposed;     // panels of T', for T T'
  Rounded room;          // the factors of a bfloat16 product
  int64_t ld_text, ld_audio, ld_scores, block;

  Workspace(const Batch& b, Arena& arena) {
    text = Head{};
    audio = Head{};
    ld_text = row_stride(b.text_width);
    ld_audio = row_stride(b.audio_width);
    ld_scores = row_stride(b.train);
    block = block_rows(b);
    text.rows = b.train, text.width = b.text_width;
    audio.rows = b.rows, audio.width = b.audio_width;
    text.dim = audio.dim = b.dim;
    text.gram = text_gram(b);
    audio.gram = audio_gram(b);
    lay_out(b, text, arena);
    lay_out(b, audio, arena);
    texts = arena.take(b.train * ld_text);
    sounds = b.centroids || gathers(b) ? nullptr : arena.take(b.rows * ld_audio);
    text_k = text.gram ? arena.take(b.train * ld_scores) : nullptr;
    const auto elements = [&](bool wanted, int64_t count) {
      return ROUNDS && wanted ? reinterpret_cast<uint32_t*>(arena.take(count)) : nullptr;
    };
    text.x_rows = text_rows = elements(!text.gram, rows_elements(text));
    text.x_columns = text_columns = elements(!text.gram, columns_elements(text));
    text.k_rows = text_k_rows = elements(text.gram, left_elements(b.train, b.train, false));
    g_rows = elements(!b.symmetric, left_elements(block, b.train, false));
    g_columns = elements(!b.symmetric, left_elements(b.train, block, true));
    transposed = text.gram ? arena.take(b.text_width * padded(b.train)) : nullptr;
    unit_t = arena.take(b.dim * padded(b.train));
    scores = arena.take(block * ld_scores);
    sums = b.symmetric ? arena.take(Loss::symmetric_floats(b.rows, b.train)) : nullptr;
    int64_t left = left_elements(block, b.train, false), right = right_elements(b.dim, b.train);
    const auto fits = [&](int64_t rows, int64_t depth, bool swapped, int64_t columns) {
      const int64_t l = left_elements(rows, depth, swapped), r = right_elements(depth, columns);
      left = left < l ? l : left;
      right = right < r ? r : right;
    };
    fits(block, b.dim, false, b.train);
    fits(block, b.train, false, b.dim);
    fits(b.train, block, true, b.dim);
    const Head* const heads[] = {&text, &audio};
    for (const Head* h : heads) {
      fits(h->rows, h->gram ? h->rows : h->width, false, b.dim);
      fits(h->width, h->rows, true, b.dim);
    }
    room.left = reinterpret_cast<uint32_t*>(arena.take(left));
    room.right = reinterpret_cast<uint32_t*>(arena.take(right));
    text.x = texts, text.ldx = ld_text, text.k = text_k, text.ldk = ld_scores;
    audio.ldx = ld_audio;
  }
};

// K = X X' (rows, rows); `transposed` holds panels of X'.
static void gram_matrix(const float* x, int64_t ldx, int64_t rows, int64_t width, float* transposed, float* k,
                        int64_t ldk) {
  transposed_panels(x, ldx, rows, width, transposed);
  product<false>(x, ldx, transposed, width, 0, rows, width, rows, ToRows{k, ldk});
}

static size_t shared_floats(const Batch& b) {
  Arena arena{nullptr};
  Shared shared(b, arena);
  return arena.used;
}

// Row i of the source into row i of `out`, padded with zeros to row_stride(width).
static void copy_row(const float* source, int64_t width, int64_t i, float* out) {
  const int64_t ld = row_stride(width);
  memcpy(out + i * ld, source, sizeof(float) * width);
  memset(out + i * ld + width, 0, sizeof(float) * (ld - width));
}

static void copy_step(const Batch& b, int64_t step, float* out) {
  for (int64_t i = 0; i < b.rows; ++i)
    copy_row(b.audio + b.step_clips[step * b.rows + i] * b.audio_width, b.audio_width, i, out);
}

static void prepare(const Batch& b, float* memory, float* scratch) {
  Arena arena{memory};
  Shared shared(b, arena);
  Head& h = shared.audio;
  if (b.centroids) {
    for (int64_t i = 0; i < b.rows; ++i) copy_row(b.centroids + i * b.audio_width, b.audio_width, i, shared.x);
    if (h.gram) gram_matrix(shared.x, h.ldx, b.rows, b.audio_width, scratch, shared.k, h.ldk);
    if (shared.k_rows) round_left<false>(shared.k, h.ldk, b.rows, b.rows, shared.k_rows);
  }
  const int64_t steps = b.centroids ? 1 : gathers(b) ? b.steps : 0;
  for (int64_t t = 0; t < steps; ++t) {
    float* const x = shared.x ? shared.x + t * b.rows * h.ldx : scratch;
    if (!b.centroids) copy_step(b, t, x);
    if (!shared.x_rows) continue;
    round_left<false>(x, h.ldx, h.rows, h.width, shared.x_rows + t * rows_elements(h));
    round_left<true>(x, h.ldx, h.width, h.rows, shared.x_columns + t * columns_elements(h));
  }
}

static size_t scratch_floats(const Batch& b) {
  Arena arena{nullptr};
  Workspace workspace(b, arena);
  rank_queries(b, nullptr, nullptr, nullptr, nullptr, nullptr, arena);
  const size_t for_gram = b.centroids && audio_gram(b) ? b.audio_width * padded(b.rows) : 0;
  const size_t for_step = gathers(b) ? b.rows * row_stride(b.audio_width) : 0;
  const size_t for_prepare = for_gram < for_step ? for_step : for_gram;
  return arena.used < for_prepare ? for_prepare : arena.used;
}

// ---- optimiser ------------------------------------------------------------------------------------------------------

// Rate of adam-mini's step t (from 1), after the squared length of the gradient has entered its second moment.
static double mini_rate(const Batch& b, Head& h, double squares, int64_t t, double lr) {
  h.second = BETA2_MINI * h.second + (1 - BETA2_MINI) * (squares > 0 || squares != squares ? squares : 0.0) / b.dim;
  const double denominator = sqrt(h.second / (1 - pow(BETA2_MINI, (double)t)));
  return lr / (1 - pow(BETA1, (double)t)) / (denominator < 1e-30 ? 1e-30 : denominator);
}

static void step_direct(const Batch& b, const Rounded& room, Head& h, int64_t t, double lr) {
  double squares = 0;
  if (b.optimizer == Optimizer::sgd) {
    rounded_product<true>(room, h.x_columns, h.x, h.ldx, h.dz, h.rows, 0, h.width, h.rows, h.dim,
                          StepSgd{h.w, h.m, h.width, (float)b.momentum, (float)b.weight_decay, (float)lr});
  } else if (b.optimizer == Optimizer::adam) {
    rounded_product<true>(
        room, h.x_columns, h.x, h.ldx, h.dz, h.rows, 0, h.width, h.rows, h.dim,
        StepAdam{h.w, h.m, h.v, h.width, (float)b.weight_decay, (float)(lr / (1 - pow(BETA1, (double)t))),
                 (float)(1 / (1 - pow(BETA2_ADAM, (double)t)))});
  } else {
    rounded_product<true>(room, h.x_columns, h.x, h.ldx, h.dz, h.rows, 0, h.width, h.rows, h.dim,
                          StepMini{h.m, h.width, &squares});
    h.rate = mini_rate(b, h, squares, t, lr);
    h.keep = 1 - lr * b.weight_decay;
  }
}

// ZM <- c1 ZM + c2 K dZ + wd Z,  UM <- c1 UM + c2 dZ - wd U,  U <- keep U + rate UM.  Z <- keep Z - rate ZM is left to
// whoever reads Z next.
static void step_gram(const Batch& b, const Rounded& room, Head& h, int64_t t, double lr) {
  const bool sgd = b.optimizer == Optimizer::sgd;
  const double c1 = sgd ? b.momentum : BETA1, c2 = sgd ? 1.0 : 1 - BETA1, decay = sgd ? b.weight_decay : 0.0;
  double squares = 0;
  rounded_product<false>(room, h.k_rows, h.k, h.ldk, h.dz, h.rows, 0, h.rows, h.rows, h.dim,
                         StepOutputs{h.zm, h.z, h.dz, h.rows, (float)c1, (float)c2, (float)decay, &squares});
  h.rate = sgd ? lr : mini_rate(b, h, squares, t, lr), h.keep = sgd ? 1.0 : 1 - lr * b.weight_decay;
  const vf a = splat((float)c1), c = splat((float)c2), wd = splat((float)-decay), k = splat((float)h.keep),
           r = splat((float)h.rate);
  // Copies: for all the compiler knows, a store might change the pointers in `h`.
  float *const all_u = h.u, *const all_um = h.um;
  const float* const dz = h.dz;
  for (int64_t i = 0, size = h.outputs(); i < size; i += VL) {
    const vf u = load(all_u + i), um = fma(a, load(all_um + i), fma(wd, u, c * load(dz + i)));
    store(all_um + i, um);
    store(all_u + i, fma(r, um, k * u));
  }
  h.omega_m = c1 * h.omega_m + decay * h.omega;
  h.omega = h.keep * h.omega - h.rate * h.omega_m;
}

// ---- one step -------------------------------------------------------------------------------------------------------

static void start(const Batch& b, Head& h, const float* head) {
  to_panels(head, h.width, h.dim, h.w);
  h.second = 0, h.keep = 1, h.rate = 0, h.omega = 1, h.omega_m = 0;
  if (h.gram) {
    memset(h.zm, 0, sizeof(float) * h.outputs());
    memset(h.um, 0, sizeof(float) * h.outputs());
    memset(h.u, 0, sizeof(float) * h.outputs());
    product<false>(h.x, h.ldx, h.w, h.width, 0, h.rows, h.width, h.dim, ToPanels{h.z, h.rows, 0, false});
  } else {
    memset(h.m, 0, sizeof(float) * h.size());
    if (b.optimizer == Optimizer::adam) memset(h.v, 0, sizeof(float) * h.size());
  }
}

// The step that is still due.
static void settle(Head& h) {
  if (h.gram) return;
  if (h.rate != 0 || h.keep != 1) apply(h.w, h.m, h.size(), h.keep, h.rate);
  h.rate = 0, h.keep = 1;
}

static void finish(Head& h) {
  settle(h);
  if (h.gram)
    product<true>(h.x, h.ldx, h.u, h.rows, 0, h.width, h.rows, h.dim, FinishGram{h.w, h.width, (float)h.omega});
}

// Lane l of the result: sum over the columns of x times y in row first + l of two matrices in panels; 0 past the last
// row.
static inline vf row_products(const float* x, const float* y, int64_t rows, int64_t dim, int64_t first, int64_t count) {
  vf total[VL] = {};
  for (int64_t l = 0; l < count; ++l)
    for (int64_t s = 0; s < strips(dim); ++s) {
      const int64_t width = strip_width(dim, s), at = s * rows * PW + (first + l) * width;
      for (int64_t j = at; j < at + width; j += VL) total[l] = fma(load(x + j), load(y + j), total[l]);
    }
  return sums(total);
}

// Rows of Z divided by their lengths: in panels and row-major, with 1 / |z|. A step of Z that is due comes first.
static void normalise(Head& h) {
  const int64_t rows = h.rows, dim = h.dim, ld = padded(dim);
  // Copies: for all the compiler knows, a store might change the pointers in `h`.
  float* const z = h.z;
  const float* const zm = h.zm;
  const bool due = h.gram && (h.rate != 0 || h.keep != 1);
  const vf keep = splat((float)h.keep), rate = splat((float)h.rate);
  float *const unit = h.unit, *const unit_rows = h.unit_rows, *const inverse = h.inverse;
  for (int64_t i = 0; i < rows; i += VL) {
    const int64_t count = rows - i < VL ? rows - i : VL;
    for (int64_t s = 0; due && s < strips(dim); ++s) {
      const int64_t width = strip_width(dim, s), at = s * rows * PW + i * width;
      for (int64_t j = at; j < at + count * width; j += VL) store(z + j, keep * load(z + j) - rate * load(zm + j));
    }
    const vf length = at_least(root(row_products(z, z, rows, dim, i, count)), splat((float)EPS));
    float lengths[VL];
    store(lengths, length);
    store(inverse + i, splat(1.0f) / length);
    for (int64_t s = 0; s < strips(dim); ++s) {
      const int64_t width = strip_width(dim, s), at = s * rows * PW + i * width;
      for (int64_t l = 0; l < count; ++l) {
        const vf divisor = splat(lengths[l]), scale = splat(inverse[i + l]);
        for (int64_t j = 0; j < width; j += VL) {
          const vf row = quotient(load(z + at + l * width + j), divisor, scale);
          store(unit + at + l * width + j, row);
          store(unit_rows + (i + l) * ld + s * PW + j, row);
        }
      }
    }
  }
}

static void project(const Rounded& room, Head& h) {
  if (!h.gram) {
    settle(h);
    rounded_product<false>(room, h.x_rows, h.x, h.ldx, h.w, h.width, 0, h.rows, h.width, h.dim,
                           ToPanels{h.z, h.rows, 0, false});
  }
  normalise(h);
}

// dz = (da - a <a, da>) / |z| for rows first ... first + count - 1, in place.
static void through_norm(Head& h, int64_t first, int64_t count) {
  const int64_t rows = h.rows, dim = h.dim;
  const float *const unit = h.unit, *const inverse = h.inverse;
  float* const dz = h.dz;
  for (int64_t i = first; i < first + count; i += VL) {
    const int64_t some = first + count - i < VL ? first + count - i : VL;
    float dots[VL];
    store(dots, -row_products(unit, dz, rows, dim, i, some));
    for (int64_t s = 0; s < strips(dim); ++s) {
      const int64_t width = strip_width(dim, s), at = s * rows * PW + i * width;
      for (int64_t l = 0; l < some; ++l) {
        const vf dot = splat(dots[l]), scale = splat(inverse[i + l]);
        for (int64_t j = at + l * width; j < at + (l + 1) * width; j += VL)
          store(dz + j, fma(dot, load(unit + j), load(dz + j)) * scale);
      }
    }
  }
}

static double one_step(const Batch& b, Workspace& ws, int64_t step) {
  Head &text = ws.text, &audio = ws.audio;
  const Rounded& room = ws.room;
  const int64_t ld = padded(b.dim);
  if (ws.sounds)
    copy_step(b, step, ws.sounds);
  else if (b.step_clips && step > 0) {
    if (audio.x) audio.x += b.rows * ws.ld_audio;
    if (audio.x_rows) audio.x_rows += rows_elements(audio), audio.x_columns += columns_elements(audio);
  }
  project(room, text);
  project(room, audio);
  transposed_panels(text.unit_rows, ld, b.train, b.dim, ws.unit_t);
  Loss loss{b.rows, b.train, b.rows / b.train, ws.ld_scores, b.temperature, step + 1 == b.steps};
  for (int64_t i = 0; i < b.rows; i += ws.block) {
    const int64_t count = b.rows - i < ws.block ? b.rows - i : ws.block;
    rounded_product<false>(room, nullptr, audio.unit_rows + i * ld, ld, ws.unit_t, b.dim, 0, count, b.dim, b.train,
                           ToRows{ws.scores, ws.ld_scores});
    if (b.symmetric) loss.symmetric(ws.scores, ws.sums);
#if defined(__AVX512BF16__)
    else
      loss.one_way(ws.scores, i, count, IntoFactors{ws.g_rows, ws.g_columns});
#else
    else
      loss.one_way(ws.scores, i, count, InPlace{});
#endif
    rounded_product<false>(room, ws.g_rows, ws.scores, ws.ld_scores, text.unit, b.train, 0, count, b.train, b.dim,
                           ToPanels{audio.dz, b.rows, i, false});
    rounded_product<true>(room, ws.g_columns, ws.scores, ws.ld_scores, audio.unit, b.rows, i, b.train, count, b.dim,
                          ToPanels{text.dz, b.train, 0, i > 0});
    through_norm(audio, i, count);
  }
  through_norm(text, 0, b.train);
  Head* const heads[] = {&text, &audio};
  for (Head* h : heads) (h->gram ? step_gram : step_direct)(b, room, *h, step + 1, b.rates[step]);
  return loss.total;
}

static void probe(const Batch& b, int64_t p, const float* memory, float* scratch) {
  Arena arena{scratch}, common{const_cast<float*>(memory)};
  Workspace ws(b, arena);
  const Shared shared(b, common);
  Head& text = ws.text;
  const int64_t* permutation = b.permutations + p * b.classes;
  for (int64_t i = 0; i < b.train; ++i)
    copy_row(b.text + permutation[b.train_classes[i]] * b.text_width, b.text_width, i, ws.texts);
  if (text.gram) gram_matrix(ws.texts, ws.ld_text, b.train, b.text_width, ws.transposed, ws.text_k, ws.ld_scores);
  if (text.k_rows) round_left<false>(ws.text_k, ws.ld_scores, b.train, b.train, ws.text_k_rows);
  if (text.x_rows) {
    round_left<false>(ws.texts, ws.ld_text, b.train, b.text_width, ws.text_rows);
    round_left<true>(ws.texts, ws.ld_text, b.text_width, b.train, ws.text_columns);
  }
  ws.audio.x = ws.sounds ? ws.sounds : shared.audio.x;
  ws.audio.k = shared.audio.k, ws.audio.ldk = shared.audio.ldk;
  ws.audio.x_rows = shared.x_rows, ws.audio.x_columns = shared.x_columns, ws.audio.k_rows = shared.k_rows;
  start(b, ws.text, b.text_start);
  start(b, ws.audio, b.audio_start);
  double loss = NAN;
  for (int64_t step = 0; step < b.steps; ++step) loss = one_step(b, ws, step);
  finish(ws.text);
  finish(ws.audio);
  b.loss[p] = loss;
  if (b.text_heads) {
    from_panels(ws.text.w, b.text_width, b.dim, b.text_heads + p * b.text_width * b.dim);
    from_panels(ws.audio.w, b.audio_width, b.dim, b.audio_heads + p * b.audio_width * b.dim);
  }
  rank_queries(b, permutation, ws.text.w, ws.audio.w, b.ranks + p * b.queries, b.unseen_ranks + p * b.queries, arena);
}

static void exp2_of(const float* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(out + i, exp2_nonpositive(load(x + i)));
  for (; i < n; ++i) {
    float one[VL];
    store(one, exp2_nonpositive(splat(x[i])));
    out[i] = one[0];
  }
}

#define FP_TEXT(x) #x
#define FP_NAME(x) FP_TEXT(x)
extern const Kernels kernels;
const Kernels kernels = {FP_NAME(FP_ISA), scratch_floats, shared_floats, prepare, probe, exp2_of};

}  // namespace fastprobe::FP_ISA
