// The optimisers, applied to a tile of the weight gradient while it is in registers; no gradient is stored.
#pragma once
#include "product.h"

namespace fastprobe::FP_ISA {

static const double BETA1 = 0.9, BETA2_MINI = 0.99, BETA2_ADAM = 0.999, EPS_ADAM = 1e-8;

// y <- keep y - rate x over whole panels.
static void apply(float* y, const float* x, int64_t n, double keep, double rate) {
  const vf k = splat(static_cast<float>(keep)), r = splat(static_cast<float>(-rate));
  if (keep == 1.0)
    for (int64_t i = 0; i < n; i += VL) store(y + i, fma(r, load(x + i), load(y + i)));
  else
    for (int64_t i = 0; i < n; i += VL) store(y + i, fma(r, load(x + i), k * load(y + i)));
}

// adam-mini: M <- b1 M + (1 - b1) dW, and |dW|_F^2 on the way.
struct StepMini {
  float* m;
  int64_t pitch;
  double* squares;
  template <int R, int V>
  inline __attribute__((always_inline)) void tile(int64_t strip, int64_t row, vf (&g)[R][V]) {
    float* p = m + strip * pitch * PW + row * V * VL;
    const vf b1 = splat(static_cast<float>(BETA1)), c1 = splat(static_cast<float>(1 - BETA1));
    vf total = {};
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j, p += VL) {
        store(p, fma(b1, load(p), c1 * g[i][j]));
        total = fma(g[i][j], g[i][j], total);
      }
    *squares += sum(total);
  }
};

// sgd: M <- mu M + dW + wd W,  W <- W - lr M.
struct StepSgd {
  float *w, *m;
  int64_t pitch;
  float momentum, decay, rate;
  template <int R, int V>
  inline __attribute__((always_inline)) void tile(int64_t strip, int64_t row, vf (&g)[R][V]) {
    const int64_t at = strip * pitch * PW + row * V * VL;
    float *pw = w + at, *pm = m + at;
    const vf mu = splat(momentum), wd = splat(decay), lr = splat(-rate);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j, pw += VL, pm += VL) {
        const vf moment = fma(mu, load(pm), fma(wd, load(pw), g[i][j]));
        store(pm, moment);
        store(pw, fma(lr, moment, load(pw)));
      }
  }
};

// adam: g = dW + wd W,  M, V their moments,  W <- W - rate M / (sqrt(scale V) + eps).
struct StepAdam {
  float *w, *m, *v;
  int64_t pitch;
  float decay, rate, scale;
  template <int R, int V>
  inline __attribute__((always_inline)) void tile(int64_t strip, int64_t row, vf (&g)[R][V]) {
    const int64_t at = strip * pitch * PW + row * V * VL;
    float *pw = w + at, *pm = m + at, *pv = v + at;
    const vf b1 = splat(static_cast<float>(BETA1)), c1 = splat(static_cast<float>(1 - BETA1));
    const vf b2 = splat(static_cast<float>(BETA2_ADAM)), c2 = splat(static_cast<float>(1 - BETA2_ADAM));
    const vf wd = splat(decay), lr = splat(rate), bias = splat(scale), eps = splat(static_cast<float>(EPS_ADAM));
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j, pw += VL, pm += VL, pv += VL) {
        const vf gradient = fma(wd, load(pw), g[i][j]);
        const vf first = fma(b1, load(pm), c1 * gradient);
        const vf second = fma(b2, load(pv), c2 * gradient * gradient);
        store(pm, first);
        store(pv, second);
        store(pw, load(pw) - lr * first / (root(second * bias) + eps));
      }
  }
};

// gram: ZM <- c1 ZM + c2 K dZ + wd Z, and <dZ, K dZ> on the way.
struct StepOutputs {
  float* zm;
  const float *z, *dz;
  int64_t pitch;
  float c1, c2, decay;
  double* squares;
  template <int R, int V>
  inline __attribute__((always_inline)) void tile(int64_t strip, int64_t row, vf (&kdz)[R][V]) {
    const int64_t at = strip * pitch * PW + row * V * VL;
    const vf a = splat(c1), b = splat(c2), wd = splat(decay);
    vf total = {};
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) {
        const int64_t e = at + (i * V + j) * VL;
        store(zm + e, fma(a, load(zm + e), fma(wd, load(z + e), b * kdz[i][j])));
        total = fma(kdz[i][j], load(dz + e), total);
      }
    *squares += sum(total);
  }
};

// W <- omega W - X' U.
struct FinishGram {
  float* w;
  int64_t pitch;
  float omega;
  template <int R, int V>
  inline __attribute__((always_inline)) void tile(int64_t strip, int64_t row, vf (&xu)[R][V]) {
    float* p = w + strip * pitch * PW + row * V * VL;
    const vf o = splat(omega);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j, p += VL) store(p, o * load(p) - xu[i][j]);
  }
};

}  // namespace fastprobe::FP_ISA
