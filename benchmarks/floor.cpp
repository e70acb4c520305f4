// What this machine's cores can multiply and add: independent chains of AVX-512 FMA, and of bfloat16 dot products, in
// every thread.
//   floor THREADS ITERATIONS  ->  GFLOP/s of float32, GFLOP/s of bfloat16 (0 where there is none)
#include <immintrin.h>
#include <omp.h>

#include <cstdio>
#include <cstdlib>

constexpr int kChains = 24;  // enough to hide the latency of two units, few enough for the registers

template <class Step>
static double rate(int threads, long iterations, double flops_per_step, Step step) {
  volatile float sink = 0;
  const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
  {
    __m512 sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(1e-9f * static_cast<float>(i));
    for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sums[i] = step(sums[i]);
    }
    float total = 0;
    for (int i = 0; i < kChains; ++i) total += _mm512_reduce_add_ps(sums[i]);
    sink = total;
  }
  return threads * flops_per_step * kChains * static_cast<double>(iterations) / (omp_get_wtime() - start) * 1e-9;
}

int main(int, char** argv) {
  const int threads = std::atoi(argv[1]);
  const long iterations = std::atol(argv[2]);
  const __m512 a = _mm512_set1_ps(0.999999f), b = _mm512_set1_ps(1e-7f);
  const double single = rate(threads, iterations, 32, [=](__m512 s) { return _mm512_fmadd_ps(s, a, b); });
  double half = 0;
#ifdef __AVX512BF16__
  const __m512bh x = _mm512_cvtne2ps_pbh(b, b), y = _mm512_cvtne2ps_pbh(a, a);
  half = rate(threads, iterations, 64, [=](__m512 s) { return _mm512_dpbf16_ps(s, x, y); });
#endif
  std::printf("%.1f %.1f\n", single, half);
}
