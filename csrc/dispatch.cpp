// Which instruction sets this build and this machine have, and the loop over probes.
#include <stdlib.h>
#include <string.h>

#include <new>
#include <stdexcept>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "gathered.h"
#include "probe.h"

namespace fastprobe {

#define FP_DECLARE(isa)                  \
  namespace isa {                        \
  extern const Kernels kernels;          \
  extern const GatheredKernels gathered; \
  }
#if defined(__x86_64__)
FP_DECLARE(avx512bf16)
FP_DECLARE(avx512)
FP_DECLARE(avx2)
FP_DECLARE(baseline)
#elif defined(__aarch64__)
FP_DECLARE(neon)
#else
FP_DECLARE(baseline)
#endif

#if defined(__x86_64__)
static bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const char* const* compiled_isas() {
#if defined(__x86_64__)
  static const char* const names[] = {"avx512", "avx2", "baseline", nullptr};
#elif defined(__aarch64__)
  static const char* const names[] = {"neon", nullptr};
#else
  static const char* const names[] = {"baseline", nullptr};
#endif
  return names;
}

const Kernels* bf16_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_avx512() && __builtin_cpu_supports("avx512bf16")) return &avx512bf16::kernels;
#endif
  return nullptr;
}

const Kernels* const* supported_kernels() {
  struct List {
    const Kernels* found[4] = {};
    List() {
      int n = 0;
#if defined(__x86_64__)
      __builtin_cpu_init();
      if (has_avx512()) found[n++] = &avx512::kernels;
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[n++] = &avx2::kernels;
      found[n++] = &baseline::kernels;
#elif defined(__aarch64__)
      found[n++] = &neon::kernels;
#else
      found[n++] = &baseline::kernels;
#endif
    }
  };
  static const List list;
  return list.found;
}

namespace {

struct Aligned {
  float* p;
  explicit Aligned(size_t floats) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, (floats + 16) * sizeof(float))) memory = nullptr;
    p = static_cast<float*>(memory);
#ifdef FASTPROBE_POISON
    for (size_t i = 0; p && i < floats + 16; ++i) p[i] = __builtin_nanf("");
#endif
  }
  ~Aligned() { free(p); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
};

}  // namespace

int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void run(const Batch& batch, const Kernels& kernels, int threads) {
  const size_t scratch_size = kernels.scratch(batch);
  Aligned shared(kernels.shared(batch));
  if (!shared.p) throw std::bad_alloc();
  {
    Aligned scratch(scratch_size);
    if (!scratch.p) throw std::bad_alloc();
    kernels.prepare(batch, shared.p, scratch.p);
  }
  bool starved = false;
  const auto work = [&] {
    Aligned scratch(scratch_size);
    if (!scratch.p) {
#pragma omp atomic write
      starved = true;
    }
    // A thread without memory still takes its turns, so that the others are not waited for in vain.
#pragma omp for schedule(dynamic, 1)
    for (int64_t p = 0; p < batch.probes; ++p)
      if (scratch.p) kernels.probe(batch, p, shared.p, scratch.p);
  };
  if (threads > 0) {
#pragma omp parallel num_threads(threads)
    work();
  } else {
#pragma omp parallel
    work();
  }
  if (starved) throw std::bad_alloc();
}

static const GatheredKernels& gathered_kernels(const char* isa) {
#if defined(__x86_64__)
  static const GatheredKernels* const all[] = {&avx512::gathered, &avx2::gathered, &baseline::gathered};
#elif defined(__aarch64__)
  static const GatheredKernels* const all[] = {&neon::gathered};
#else
  static const GatheredKernels* const all[] = {&baseline::gathered};
#endif
  for (auto k = supported_kernels(); *k; ++k)
    for (auto g : all)
      if (!strcmp((*k)->name, isa) && !strcmp(g->name, isa)) return *g;
  throw std::invalid_argument("this machine or this build has no such instruction set");
}

void run_gathered(const GatheredRanks& batch, const char* isa, int threads) {
  const GatheredKernels& kernels = gathered_kernels(isa);
  const size_t scratch_size = kernels.scratch(batch);
  bool starved = false;
#pragma omp parallel num_threads(threads > 0 ? threads : max_threads())
  {
    Aligned scratch(scratch_size);
    if (!scratch.p) {
#pragma omp atomic write
      starved = true;
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t p = 0; p < batch.probes; ++p)
      if (scratch.p) kernels.ranks(batch, p, scratch.p);
  }
  if (starved) throw std::bad_alloc();
}

void run_gathered(const GatheredSums& batch, const char* isa, int threads) {
  const GatheredKernels& kernels = gathered_kernels(isa);
#pragma omp parallel for schedule(dynamic, 64) num_threads(threads > 0 ? threads : max_threads())
  for (int64_t p = 0; p < batch.probes; ++p) kernels.sums(batch, p);
}

}  // namespace fastprobe
