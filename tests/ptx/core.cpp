// Executes compiled PTX on a CPU: one warp at a time between barriers, in random order, 32 lanes an instruction.
//
// Every word of shared and device memory has a shadow: which warp wrote it and which warps read it since the last
// barrier, whether it was ever written, and whether the async proxy may already read it. What breaks a rule is
// reported with the PTX line. Traffic, barriers and instructions are counted on the way. README.md says what this
// cannot show.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;
#define OPS(X)                                                                                                         \
  X(MOV32)                                                                                                             \
  X(MOV64)                                                                                                             \
  X(ADD32)                                                                                                             \
  X(SUB32) X(MUL32) X(MAD32) X(AND32) X(OR32) X(XOR32) X(NOT32) X(NOTP) X(SHL32) X(SHRU32) X(SHRS32) X(SHL16)          \
      X(SHRU16) X(ADD16) X(MINS32) X(MAXS32) X(MINU32) X(MAXU32) X(NEG32) X(POPC) X(BFEU) X(BFES) X(DIVS32) X(REMS32)  \
          X(DIVU32) X(REMU32) X(ADD64) X(SUB64) X(MUL64) X(MAD64) X(AND64) X(OR64) X(XOR64) X(SHL64) X(SHRU64)         \
              X(SHRS64) X(NEG64) X(DIVS64) X(REMS64) X(DIVU64) X(REMU64) X(MINS64) X(MAXS64) X(MULWS) X(MULWU)         \
                  X(MADWS) X(MADWU) X(S64S32) X(U64U32) X(U32U64) X(LOW16) X(F32S32) X(F32U32) X(S32F32) X(RNATF32)    \
                      X(BF16X2) X(BF16) X(F16X2) X(F16) X(F32BF16) X(F32F16) X(PACK16) X(UNPACK16) X(PACK64)           \
                          X(UNPACK64) X(PRMT) X(FADD) X(FSUB) X(FMUL) X(FDIV) X(FFMA) X(FMAX) X(FMIN) X(FNEG) X(FABS)  \
                              X(FSQRT) X(FRCP) X(FEX2) X(FLG2) X(FRSQRT) X(SEQ32) X(SNE32) X(SLTS32) X(SLES32)         \
                                  X(SGTS32) X(SGES32) X(SLTU32) X(SLEU32) X(SGTU32) X(SGEU32) X(SEQ64) X(SNE64)        \
                                      X(SLTS64) X(SLES64) X(SGTS64) X(SGES64) X(SLTU64) X(SLEU64) X(SGTU64) X(SGEU64)  \
                                          X(FEQ) X(FNE) X(FLT) X(FLE) X(FGT) X(FGE) X(FNUM) X(FNAN) X(FEQU) X(FNEU)    \
                                              X(FLTU) X(FLEU) X(FGTU) X(FGEU) X(SEL32) X(SEL64) X(LDG) X(STG) X(LDS)   \
                                                  X(STS) X(SHFLB) X(SHFLI) X(SHFLD) X(SHFLU) X(CPASYNC) X(CPCOMMIT)    \
                                                      X(CPWAIT) X(BAR) X(WARPSYNC) X(BRA) X(RET) X(MMATF32) X(MMABF16) \
                                                          X(MMAF16) X(LDMATRIX) X(LDMATRIXT) X(STMATRIX) X(STMATRIXT)  \
                                                              X(WGMMA) X(WGCOMMIT) X(WGWAIT) X(FENCEPROXY) X(NOP)      \
                                                                  X(MULHIU) X(MULHIS)
enum Op {
#define X(a) a,
  OPS(X)
#undef X
      NOPS
};
static const char* names[] = {
#define X(a) #a,
    OPS(X)
#undef X
};
extern "C" int op_id(const char* s) {
  for (int i = 0; i < NOPS; i++)
    if (!strcmp(names[i], s)) return i;
  return -1;
}
struct Ins {
  int op, guard, neg, line, n, at;
};
struct Sh {
  u32 we, re;
  u32 rmask;
  u32 wtime;
  u32 wcta, rcta;
  uint16_t ww, wf;
  uint8_t init, rmulti, pad[2];
};
struct Buf {
  u64 base, size;
  Sh* sh;
  int id;
};
static std::vector<Buf> bufs;
static Buf* lastb = nullptr;
static u32 epoch = 1, now = 1, ctaid = 1;
struct Report {
  int kind, line, line2, warp, warp2;
  long buf, off;
};
static std::vector<Report> reports;
static u64 counts[16];
static u64 icount[NOPS];
enum {
  RACE_WW = 0,
  RACE_RW = 1,
  RACE_WR = 2,
  CROSS_CTA = 3,
  OOB = 4,
  ASYNC_OVERWRITE = 5,
  NOFENCE = 6,
  UNINIT_SH = 7,
  MISALIGNED = 8,
  SAME_WW = 9,
  DIVERGE = 10,
  BARMISMATCH = 11,
  INTRAWARP = 12,
  UNINIT_G = 13,
  BADOP = 14,
  CPNOFENCE = 15
};
static void rep(int kind, int line, int line2, int w, int w2, long b, long off) {
  counts[kind]++;
  if (kind == SAME_WW) return;
  if (counts[kind] <= 20) reports.push_back({kind, line, line2, w, w2, b, off});
}
extern "C" void add_buffer(u64 base, u64 size, int id, int init) {
  Buf b{base, size, (Sh*)calloc((size + 3) / 4, sizeof(Sh)), id};
  if (init)
    for (u64 i = 0; i < (size + 3) / 4; i++) b.sh[i].init = 1;
  bufs.push_back(b);
  std::sort(bufs.begin(), bufs.end(), [](const Buf& a, const Buf& b) { return a.base < b.base; });
  lastb = nullptr;
}
extern "C" void clear_buffers() {
  for (auto& b : bufs) free(b.sh);
  bufs.clear();
  lastb = nullptr;
}
extern "C" void get_counts(u64* o) { memcpy(o, counts, sizeof counts); }
extern "C" int get_reports(long* o, int cap) {
  int n = 0;
  for (auto& r : reports) {
    if (n >= cap) break;
    long* q = o + 7 * n;
    q[0] = r.kind;
    q[1] = r.line;
    q[2] = r.line2;
    q[3] = r.warp;
    q[4] = r.warp2;
    q[5] = r.buf;
    q[6] = r.off;
    n++;
  }
  return n;
}
extern "C" void clear_reports() {
  reports.clear();
  memset(counts, 0, sizeof counts);
}
extern "C" int get_icount(u64* o) {
  memcpy(o, icount, sizeof icount);
  return NOPS;
}
extern "C" void clear_icount() { memset(icount, 0, sizeof icount); }
extern "C" const char* op_name(int i) { return names[i]; }
static Buf* find(u64 a, u64 n) {
  if (lastb && a >= lastb->base && a + n <= lastb->base + lastb->size) return lastb;
  for (auto& b : bufs)
    if (a >= b.base && a + n <= b.base + b.size) {
      lastb = &b;
      return lastb;
    }
  return nullptr;
}
static inline float f(u32 x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
static inline u32 b(float x) {
  u32 y;
  memcpy(&y, &x, 4);
  return y;
}
static inline float ftz(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
static inline float bf(u32 h) { return f(h << 16); }
static inline u32 tobf(float x) {
  u32 u = b(x);
  if (std::isnan(x)) return 0x7fff;
  return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
static inline float hf(u32 h) {
  _Float16 x;
  uint16_t s = h;
  memcpy(&x, &s, 2);
  return (float)x;
}
static inline u32 toh(float v) {
  _Float16 x = (_Float16)v;
  uint16_t s;
  memcpy(&s, &x, 2);
  return s;
}
static const u32 SMEM = 227 * 1024 + 1024, BASE = 1024;
struct Pending {
  u32 word;
  u32 time;
};
struct Cp {
  u32 dst, size, ssize;
  unsigned char data[16];
  int line;
};
struct Warp {
  int id, pc;
  bool done, atbar;
  std::vector<u32> r;
  std::vector<u64> d;
  u32 fences = 0, ftime = 0;
  std::vector<std::vector<Pending>> groups;
  std::vector<Pending> open;
  std::vector<std::vector<Cp>> cgroups;
  std::vector<Cp> copen;
};
static unsigned char* smem;
static Sh* ssh;
static u32 launch_epoch;
static inline void chk_read(Sh& s, int w, int line, long buf, long off, bool shared, int lane) {
  if (!s.init) {
    rep(shared ? UNINIT_SH : UNINIT_G, line, 0, w, 0, buf, off);
    s.init = 1;
  }
  if (s.we == epoch && s.ww != w) rep(RACE_WR, line, s.wf, w, s.ww, buf, off);
  if (!shared && s.wcta && s.we >= launch_epoch && s.wcta != ctaid) rep(CROSS_CTA, line, 0, w, s.ww, buf, off);
  if (s.re != epoch) {
    s.re = epoch;
    s.rmask = 0;
  }
  s.rmask |= 1u << w;
  if (!shared) {
    if (s.rcta != ctaid) {
      s.rcta = ctaid;
    }
  }
}
static inline void chk_write(Sh& s, int w, int line, long buf, long off, bool shared, bool same, u32 fences) {
  if (s.we == epoch && s.ww != w) rep(same ? SAME_WW : RACE_WW, line, 0, w, s.ww, buf, off);
  if (s.re == epoch && (s.rmask & ~(1u << w)) && !same)
    rep(RACE_RW, line, 0, w, __builtin_ctz(s.rmask & ~(1u << w)), buf, off);
  if (!shared && !same) {
    if (s.we >= launch_epoch && s.wcta != ctaid && s.wcta) rep(CROSS_CTA, line, 1, w, s.ww, buf, off);
    if (s.re >= launch_epoch && s.rcta != ctaid && s.rcta) rep(CROSS_CTA, line, 2, w, 0, buf, off);
  }
  if (same && s.init && s.we) {
    s.wtime = s.wtime;
    return;
  }
  s.we = epoch;
  s.ww = w;
  s.wtime = ++now;
  s.init = 1;
  s.wcta = ctaid;
  s.wf = (uint16_t)fences;
  s.pad[0] = 0;
}
static int races = 1;
static u64 perf[24];
extern "C" void get_perf(u64* o) { memcpy(o, perf, sizeof perf); }
extern "C" void clear_perf() { memset(perf, 0, sizeof perf); }
static int waves(const u32* a, i32 off, u32 act,
                 int tot) {  // shared memory wavefronts of one warp access of tot bytes a lane
  int groups = tot <= 4 ? 1 : tot == 8 ? 2 : 4, per = 32 / groups, w = 0;
  for (int g = 0; g < groups; g++) {
    std::vector<u32> words[32];
    for (int l = g * per; l < (g + 1) * per; l++)
      if (act >> l & 1)
        for (int k = 0; k < std::max(tot, 4); k += 4) {
          u32 wd = (a[l] + off + k) / 4;
          auto& v = words[wd % 32];
          if (std::find(v.begin(), v.end(), wd) == v.end()) v.push_back(wd);
        }
    int m = 0;
    for (auto& v : words) m = std::max(m, (int)v.size());
    w += m;
  }
  return w;
}
// Counted from the buffer's start, since a GPU's allocator aligns buffers to sectors and a CPU's may not.
static int sectors(const u64* a, i64 off, u32 act, int tot) {
  std::vector<u64> v;
  for (int l = 0; l < 32; l++)
    if (act >> l & 1) {
      Buf* B = find(a[l] + off, 1);
      u64 base = B ? B->base : 0;
      for (int k = 0; k < tot; k += 4) v.push_back((a[l] + off - base + k) / 32);
    }
  std::sort(v.begin(), v.end());
  return std::unique(v.begin(), v.end()) - v.begin();
}

extern "C" void set_races(int x) { races = x; }
// returns 0 ok
extern "C" int run(const Ins* prog, int nins, const int* ops, int n32, int n64, const int* c32i, const u32* c32v,
                   int nc32, const int* c64i, const u64* c64v, int nc64,
                   const int* special,  // tid.x, ctaid.x, nctaid.x, laneid register or -1, ctaid.y ctaid.z
                   int warps, int grid, int smem_bytes, int seed, long* first, long ctafrom, long ctato) {
  std::mt19937 rng(seed);
  if (!smem) {
    smem = (unsigned char*)aligned_alloc(4096, SMEM + 4096);
    ssh = (Sh*)calloc(SMEM / 4, sizeof(Sh));
  }
  launch_epoch = ++epoch;
  for (long cta = ctafrom; cta < ctato; cta++) {
    ++epoch;
    ++ctaid;
    memset(ssh, 0, SMEM / 4 * sizeof(Sh));
    for (u32 i = 0; i < SMEM / 4; i++) ((u32*)smem)[i] = 0x7fc0dead;
    std::vector<Warp> ws(warps);
    for (int w = 0; w < warps; w++) {
      Warp& W = ws[w];
      W.id = w;
      W.pc = 0;
      W.done = false;
      W.atbar = false;
      W.r.assign((size_t)n32 * 32, 0);
      W.d.assign((size_t)n64 * 32, 0);
      for (int i = 0; i < nc32; i++)
        for (int l = 0; l < 32; l++) W.r[(size_t)c32i[i] * 32 + l] = c32v[i];
      for (int i = 0; i < nc64; i++)
        for (int l = 0; l < 32; l++) W.d[(size_t)c64i[i] * 32 + l] = c64v[i];
      for (int l = 0; l < 32; l++) {
        if (special[0] >= 0) W.r[(size_t)special[0] * 32 + l] = w * 32 + l;
        if (special[1] >= 0) W.r[(size_t)special[1] * 32 + l] = cta;
        if (special[2] >= 0) W.r[(size_t)special[2] * 32 + l] = grid;
        if (special[3] >= 0) W.r[(size_t)special[3] * 32 + l] = l;
      }
    }
    std::vector<int> order(warps);
    for (int i = 0; i < warps; i++) order[i] = i;
    int bars = 0;
    for (;;) {
      std::shuffle(order.begin(), order.end(), rng);
      int alive = 0;
      int barpc = -1;
      for (int oi = 0; oi < warps; oi++) {
        Warp& W = ws[order[oi]];
        if (W.done) continue;
        alive++;
        const int w = W.id;
        u32* R = W.r.data();
        u64* D = W.d.data();
        bool go = true;
        while (go) {
          const Ins& I = prog[W.pc];
          const int* o = ops + I.at;
          int next = W.pc + 1;
          icount[I.op]++;
          perf[16]++;
          u32 act = 0xffffffffu;
          if (I.guard >= 0) {
            act = 0;
            u32* p = R + (size_t)I.guard * 32;
            for (int l = 0; l < 32; l++)
              if ((p[l] != 0) != (bool)I.neg) act |= 1u << l;
            if (!act && I.op != BRA) {
              W.pc = next;
              continue;
            }
          }
#define r(i) (R + (size_t)o[i] * 32)
#define d(i) (D + (size_t)o[i] * 32)
#define LOOP(...)                    \
  {                                  \
    if (act == 0xffffffffu) {        \
      for (int l = 0; l < 32; l++) { \
        __VA_ARGS__;                 \
      }                              \
    } else                           \
      for (int l = 0; l < 32; l++)   \
        if (act >> l & 1) {          \
          __VA_ARGS__;               \
        }                            \
  }                                  \
  break;
#define B32(NAME, expr)             \
  case NAME: {                      \
    u32* q = r(0);                  \
    const u32 *x = r(1), *y = r(2); \
    (void)y;                        \
    LOOP(q[l] = (expr))             \
  }
#define U32(NAME, expr)  \
  case NAME: {           \
    u32* q = r(0);       \
    const u32* x = r(1); \
    LOOP(q[l] = (expr))  \
  }
#define T32(NAME, expr)                        \
  case NAME: {                                 \
    u32* q = r(0);                             \
    const u32 *x = r(1), *y = r(2), *z = r(3); \
    LOOP(q[l] = (expr))                        \
  }
#define B64(NAME, expr)             \
  case NAME: {                      \
    u64* q = d(0);                  \
    const u64 *x = d(1), *y = d(2); \
    (void)y;                        \
    LOOP(q[l] = (expr))             \
  }
#define P64(NAME, expr)             \
  case NAME: {                      \
    u32* q = r(0);                  \
    const u64 *x = d(1), *y = d(2); \
    LOOP(q[l] = (expr))             \
  }
          switch (I.op) {
            U32(MOV32, x[l])
            case MOV64: {
              u64* q = d(0);
              const u64* x = d(1);
              LOOP(q[l] = x[l])
            }
              B32(MULHIU, (u32)(((u64)x[l] * y[l]) >> 32))
              B32(MULHIS, (u32)(((int64_t)(int32_t)x[l] * (int32_t)y[l]) >> 32))
              B32(ADD32, x[l] + y[l])
            B32(SUB32, x[l] - y[l])
            B32(MUL32, x[l] * y[l]) T32(MAD32, x[l] * y[l] + z[l]) B32(AND32, x[l] & y[l]) B32(OR32, x[l] | y[l])
                B32(XOR32, x[l] ^ y[l]) U32(NOT32, ~x[l]) U32(NOTP, !x[l]) B32(SHL32, y[l] > 31 ? 0 : x[l] << y[l])
                    B32(SHRU32, y[l] > 31 ? 0 : x[l] >> y[l]) B32(SHRS32, (u32)((i32)x[l] >> (y[l] > 31 ? 31 : y[l])))
                        B32(SHL16, (y[l] > 15 ? 0 : x[l] << y[l]) & 0xffff)
                            B32(SHRU16, (y[l] > 15 ? 0 : (x[l] & 0xffff) >> y[l])) B32(ADD16, (x[l] + y[l]) & 0xffff)
                                B32(MINS32, (u32)std::min((i32)x[l], (i32)y[l]))
                                    B32(MAXS32, (u32)std::max((i32)x[l], (i32)y[l])) B32(MINU32, std::min(x[l], y[l]))
                                        B32(MAXU32, std::max(x[l], y[l])) U32(NEG32, 0 - x[l])
                                            U32(POPC, __builtin_popcount(x[l])) case BFEU: {
              u32* q = r(0);
              const u32 *x = r(1), *y = r(2), *z = r(3);
              LOOP(u32 pos = y[l] & 255, len = z[l] & 255; u64 v = pos > 31 ? 0 : (u64)x[l] >> pos;
                   q[l] = len >= 32 ? (u32)v : (u32)(v & ((1ull << len) - 1)))
            }
            case BFES: {
              u32* q = r(0);
              const u32 *x = r(1), *y = r(2), *z = r(3);
              LOOP(
                  u32 pos = y[l] & 255, len = z[l] & 255; i64 v = (i64)(i32)x[l] >> std::min(pos, 31u);
                  if (len == 0) q[l] = 0; else {
                    u32 top = std::min(pos + len - 1, 31u);
                    u32 sb = x[l] >> top & 1;
                    u64 m = len >= 32 ? 0xffffffffull : ((1ull << len) - 1);
                    u32 t = (u32)(v & m);
                    if (sb) t |= (u32)~m;
                    q[l] = t;
                  })
            }
              B32(DIVS32, y[l] ? (u32)((i32)x[l] / (i32)y[l]) : 0xffffffff)
              B32(REMS32, y[l] ? (u32)((i32)x[l] % (i32)y[l]) : x[l])
            B32(DIVU32, y[l] ? x[l] / y[l] : ~0u)
            B32(REMU32, y[l] ? x[l] % y[l] : x[l]) B64(ADD64, x[l] + y[l]) B64(SUB64, x[l] - y[l])
                B64(MUL64, x[l] * y[l]) B64(AND64, x[l] & y[l]) B64(OR64, x[l] | y[l]) B64(XOR64, x[l] ^ y[l])
                    B64(DIVS64, (u64)((i64)x[l] / (i64)y[l])) B64(REMS64, (u64)((i64)x[l] % (i64)y[l]))
                        B64(DIVU64, x[l] / y[l]) B64(REMU64, x[l] % y[l])
                            B64(MINS64, (u64)std::min((i64)x[l], (i64)y[l]))
                                B64(MAXS64, (u64)std::max((i64)x[l], (i64)y[l])) case MAD64: {
              u64* q = d(0);
              const u64 *x = d(1), *y = d(2), *z = d(3);
              LOOP(q[l] = x[l] * y[l] + z[l])
            }
            case NEG64: {
              u64* q = d(0);
              const u64* x = d(1);
              LOOP(q[l] = 0 - x[l])
            }
            case SHL64: {
              u64* q = d(0);
              const u64* x = d(1);
              const u32* y = r(2);
              LOOP(q[l] = y[l] > 63 ? 0 : x[l] << y[l])
            }
            case SHRU64: {
              u64* q = d(0);
              const u64* x = d(1);
              const u32* y = r(2);
              LOOP(q[l] = y[l] > 63 ? 0 : x[l] >> y[l])
            }
            case SHRS64: {
              u64* q = d(0);
              const u64* x = d(1);
              const u32* y = r(2);
              LOOP(q[l] = (u64)((i64)x[l] >> (y[l] > 63 ? 63 : y[l])))
            }
            case MULWS: {
              u64* q = d(0);
              const u32 *x = r(1), *y = r(2);
              LOOP(q[l] = (u64)((i64)(i32)x[l] * (i64)(i32)y[l]))
            }
            case MULWU: {
              u64* q = d(0);
              const u32 *x = r(1), *y = r(2);
              LOOP(q[l] = (u64)x[l] * y[l])
            }
            case MADWS: {
              u64* q = d(0);
              const u32 *x = r(1), *y = r(2);
              const u64* z = d(3);
              LOOP(q[l] = (u64)((i64)(i32)x[l] * (i64)(i32)y[l]) + z[l])
            }
            case MADWU: {
              u64* q = d(0);
              const u32 *x = r(1), *y = r(2);
              const u64* z = d(3);
              LOOP(q[l] = (u64)x[l] * y[l] + z[l])
            }
            case S64S32: {
              u64* q = d(0);
              const u32* x = r(1);
              LOOP(q[l] = (u64)(i64)(i32)x[l])
            }
            case U64U32: {
              u64* q = d(0);
              const u32* x = r(1);
              LOOP(q[l] = x[l])
            }
            case U32U64: {
              u32* q = r(0);
              const u64* x = d(1);
              LOOP(q[l] = (u32)x[l])
            }
              U32(LOW16, x[l] & 0xffff)
              U32(F32S32, b((float)(i32)x[l]))
            U32(F32U32, b((float)x[l]))
            U32(S32F32, (u32)(i32)f(x[l]))
                U32(RNATF32, ((x[l] & 0x7f800000) == 0x7f800000) ? x[l] : ((x[l] + 0x1000) & 0xffffe000u))
                    B32(BF16X2, tobf(f(x[l])) << 16 | tobf(f(y[l]))) U32(BF16, tobf(f(x[l])))
                        B32(F16X2, toh(f(x[l])) << 16 | toh(f(y[l]))) U32(F16, toh(f(x[l])))
                            U32(F32BF16, b(bf(x[l] & 0xffff))) U32(F32F16, b(hf(x[l])))
                                B32(PACK16, (x[l] & 0xffff) | y[l] << 16) case UNPACK16: {
              u32 *q = r(0), *q2 = r(1);
              const u32* x = r(2);
              LOOP(u32 v = x[l]; q[l] = v & 0xffff; q2[l] = v >> 16)
            }
            case PACK64: {
              u64* q = d(0);
              const u32 *x = r(1), *y = r(2);
              LOOP(q[l] = (u64)x[l] | (u64)y[l] << 32)
            }
            case UNPACK64: {
              u32 *q = r(0), *q2 = r(1);
              const u64* x = d(2);
              LOOP(u64 v = x[l]; q[l] = (u32)v; q2[l] = (u32)(v >> 32))
            }
            case PRMT: {
              u32* q = r(0);
              const u32 *x = r(1), *y = r(2), *z = r(3);
              LOOP(
                  u64 v = (u64)y[l] << 32 | x[l]; u32 s = z[l], t = 0; for (int i = 0; i < 4; i++) {
                    u32 k = s >> (4 * i) & 15;
                    u32 by = (u32)(v >> (8 * (k & 7))) & 255;
                    if (k & 8) by = (by & 128) ? 255 : 0;
                    t |= by << (8 * i);
                  } q[l] = t)
            }
              B32(FADD, b(f(x[l]) + f(y[l])))
              B32(FSUB, b(f(x[l]) - f(y[l])))
            B32(FMUL, b(f(x[l]) * f(y[l])))
            B32(FDIV, b(f(x[l]) / f(y[l]))) T32(FFMA, b(__builtin_fmaf(f(x[l]), f(y[l]), f(z[l])))) B32(
                FMAX, b(fmaxf(f(x[l]), f(y[l])))) B32(FMIN, b(fminf(f(x[l]), f(y[l])))) U32(FNEG, x[l] ^ 0x80000000u)
                U32(FABS, x[l] & 0x7fffffffu) U32(FSQRT, b(sqrtf(f(x[l])))) U32(FRCP, b(1.0f / f(x[l])))
                    U32(FEX2, b(ftz(exp2f(ftz(f(x[l])))))) U32(FLG2, b(log2f(ftz(f(x[l]))))) U32(
                        FRSQRT, b(1.0f / sqrtf(f(x[l])))) B32(SEQ32, x[l] == y[l]) B32(SNE32, x[l] != y[l])
                        B32(SLTS32, (i32)x[l] < (i32)y[l]) B32(SLES32, (i32)x[l] <= (i32)y[l]) B32(
                            SGTS32, (i32)x[l] > (i32)y[l]) B32(SGES32, (i32)x[l] >= (i32)y[l]) B32(SLTU32, x[l] < y[l])
                            B32(SLEU32, x[l] <= y[l]) B32(SGTU32, x[l] > y[l]) B32(SGEU32, x[l] >= y[l])
                                P64(SEQ64, x[l] == y[l]) P64(SNE64, x[l] != y[l]) P64(SLTS64, (i64)x[l] < (i64)y[l])
                                    P64(SLES64, (i64)x[l] <= (i64)y[l]) P64(SGTS64, (i64)x[l] > (i64)y[l])
                                        P64(SGES64, (i64)x[l] >= (i64)y[l]) P64(SLTU64, x[l] < y[l]) P64(
                                            SLEU64, x[l] <= y[l]) P64(SGTU64, x[l] > y[l]) P64(SGEU64, x[l] >= y[l])
                                            B32(FEQ, f(x[l]) == f(y[l])) B32(
                                                FNE, f(x[l]) < f(y[l]) || f(x[l]) > f(y[l])) B32(FLT, f(x[l]) < f(y[l]))
                                                B32(FLE, f(x[l]) <= f(y[l])) B32(FGT, f(x[l]) > f(y[l])) B32(
                                                    FGE, f(x[l]) >= f(y[l]))
                                                    B32(FNUM, !std::isnan(f(x[l])) && !std::isnan(f(y[l]))) B32(
                                                        FNAN, std::isnan(f(x[l])) || std::isnan(f(y[l])))
                                                        B32(FEQU, !(f(x[l]) < f(y[l]) || f(x[l]) > f(y[l]))) B32(
                                                            FNEU, f(x[l]) != f(y[l])) B32(FLTU, !(f(x[l]) >= f(y[l])))
                                                            B32(FLEU, !(f(x[l]) > f(y[l])))
                                                                B32(FGTU, !(f(x[l]) <= f(y[l])))
                                                                    B32(FGEU, !(f(x[l]) < f(y[l]))) case SEL32: {
              u32* q = r(0);
              const u32 *x = r(1), *y = r(2), *p = r(3);
              LOOP(q[l] = p[l] ? x[l] : y[l])
            }
            case SEL64: {
              u64* q = d(0);
              const u64 *x = d(1), *y = d(2);
              const u32* p = r(3);
              LOOP(q[l] = p[l] ? x[l] : y[l])
            }
            case LDG: {
              int nv = o[0], by = o[1];
              const u64* a = D + (size_t)o[2] * 32;
              i64 off = o[3];
              perf[0]++;
              perf[1] += (u64)__builtin_popcount(act) * nv * by;
              perf[2] += sectors(a, off, act, nv * by);
              for (int l = 0; l < 32; l++)
                if (act >> l & 1) {
                  u64 ad = a[l] + off;
                  u64 tot = (u64)nv * by;
                  Buf* B = find(ad, tot);
                  if (!B) {
                    rep(OOB, I.line, l, w, 0, -1, (long)ad);
                    return -1;
                  }
                  if (ad % tot) {
                    rep(MISALIGNED, I.line, l, w, 0, B->id, ad - B->base);
                  }
                  if (races)
                    for (u64 k = 0; k < tot; k += 4)
                      chk_read(B->sh[(ad + k - B->base) / 4], w, I.line, B->id, ad + k - B->base, false, l);
                  for (int v = 0; v < nv; v++) {
                    if (by == 4) {
                      u32 t;
                      memcpy(&t, (void*)(ad + 4 * v), 4);
                      R[(size_t)o[4 + v] * 32 + l] = t;
                    } else if (by == 2) {
                      uint16_t t;
                      memcpy(&t, (void*)(ad + 2 * v), 2);
                      R[(size_t)o[4 + v] * 32 + l] = t;
                    } else if (by == 1)
                      R[(size_t)o[4 + v] * 32 + l] = *(unsigned char*)(ad + v);
                    else {
                      u64 t;
                      memcpy(&t, (void*)(ad + 8 * v), 8);
                      D[(size_t)o[4 + v] * 32 + l] = t;
                    }
                  }
                }
              break;
            }
            case STG: {
              int nv = o[0], by = o[1];
              const u64* a = D + (size_t)o[2] * 32;
              i64 off = o[3];
              perf[3]++;
              perf[4] += sectors(a, off, act, nv * by);
              for (int l = 0; l < 32; l++)
                if (act >> l & 1) {
                  u64 ad = a[l] + off;
                  u64 tot = (u64)nv * by;
                  Buf* B = find(ad, tot);
                  if (!B) {
                    rep(OOB, I.line, l, w, 1, -1, (long)ad);
                    return -1;
                  }
                  if (ad % tot) {
                    rep(MISALIGNED, I.line, l, w, 1, B->id, ad - B->base);
                  }
                  for (int v = 0; v < nv; v++) {
                    if (by == 4) {
                      u32 t = R[(size_t)o[4 + v] * 32 + l], old;
                      memcpy(&old, (void*)(ad + 4 * v), 4);
                      if (races)
                        chk_write(B->sh[(ad + 4 * v - B->base) / 4], w, I.line, B->id, ad + 4 * v - B->base, false,
                                  old == t, 0);
                      memcpy((void*)(ad + 4 * v), &t, 4);
                    } else if (by == 2) {
                      uint16_t t = R[(size_t)o[4 + v] * 32 + l];
                      memcpy((void*)(ad + 2 * v), &t, 2);
                      if (races) {
                        Sh& s = B->sh[(ad + 2 * v - B->base) / 4];
                        s.init = 1;
                        s.we = epoch;
                        s.ww = w;
                        s.wcta = ctaid;
                      }
                    } else if (by == 8) {
                      u64 t = D[(size_t)o[4 + v] * 32 + l];
                      memcpy((void*)(ad + 8 * v), &t, 8);
                    } else
                      *(unsigned char*)(ad + v) = R[(size_t)o[4 + v] * 32 + l];
                  }
                }
              break;
            }
            case LDS: {
              int nv = o[0], by = o[1];
              const u32* a = R + (size_t)o[2] * 32;
              i32 off = o[3];
              perf[7]++;
              perf[5] += waves(a, off, act, nv * by);
              perf[14] += (__builtin_popcount(act) * nv * by + 127) / 128;
              for (int l = 0; l < 32; l++)
                if (act >> l & 1) {
                  u32 ad = a[l] + off;
                  u32 tot = nv * by;
                  if (ad < BASE || ad + tot > BASE + (u32)smem_bytes) {
                    rep(OOB, I.line, l, w, 2, -2, ad);
                    return -1;
                  }
                  if (ad % tot) rep(MISALIGNED, I.line, l, w, 2, -2, ad);
                  if (races)
                    for (u32 k = 0; k < tot; k += 4) chk_read(ssh[(ad + k) / 4], w, I.line, -2, ad + k, true, l);
                  for (int v = 0; v < nv; v++) {
                    if (by == 4) {
                      u32 t;
                      memcpy(&t, smem + ad + 4 * v, 4);
                      R[(size_t)o[4 + v] * 32 + l] = t;
                    } else if (by == 2) {
                      uint16_t t;
                      memcpy(&t, smem + ad + 2 * v, 2);
                      R[(size_t)o[4 + v] * 32 + l] = t;
                    } else if (by == 1)
                      R[(size_t)o[4 + v] * 32 + l] = smem[ad + v];
                    else {
                      u64 t;
                      memcpy(&t, smem + ad + 8 * v, 8);
                      D[(size_t)o[4 + v] * 32 + l] = t;
                    }
                  }
                }
              break;
            }
            case STS: {
              int nv = o[0], by = o[1];
              const u32* a = R + (size_t)o[2] * 32;
              i32 off = o[3];
              perf[8]++;
              perf[6] += waves(a, off, act, nv * by);
              perf[15] += (__builtin_popcount(act) * nv * by + 127) / 128;
              for (int l = 0; l < 32; l++)
                if (act >> l & 1) {
                  u32 ad = a[l] + off;
                  u32 tot = nv * by;
                  if (ad < BASE || ad + tot > BASE + (u32)smem_bytes) {
                    rep(OOB, I.line, l, w, 3, -2, ad);
                    return -1;
                  }
                  if (ad % tot) rep(MISALIGNED, I.line, l, w, 3, -2, ad);
                  for (int v = 0; v < nv; v++) {
                    if (by == 4) {
                      u32 t = R[(size_t)o[4 + v] * 32 + l], old;
                      memcpy(&old, smem + ad + 4 * v, 4);
                      if (races) chk_write(ssh[(ad + 4 * v) / 4], w, I.line, -2, ad + 4 * v, true, old == t, W.fences);
                      memcpy(smem + ad + 4 * v, &t, 4);
                    } else {
                      unsigned char tb[8];
                      if (by == 8) {
                        u64 t = D[(size_t)o[4 + v] * 32 + l];
                        memcpy(tb, &t, 8);
                      } else {
                        u32 t = R[(size_t)o[4 + v] * 32 + l];
                        memcpy(tb, &t, 4);
                      }
                      bool same = !memcmp(smem + ad + by * v, tb, by);
                      if (races) {
                        Sh& s = ssh[(ad + by * v) / 4];
                        if (by < 4) {  // sub-word: only races with other warps on the same word in this epoch are
                                       // recorded when both write
                          if (s.re == epoch && (s.rmask & ~(1u << w)) && !same) rep(RACE_RW, I.line, 0, w, 0, -2, ad);
                          s.we = epoch;
                          s.ww = w;
                          s.wtime = ++now;
                          s.init = 1;
                          s.wf = W.fences;
                        } else
                          for (int k = 0; k < by; k += 4)
                            chk_write(ssh[(ad + by * v + k) / 4], w, I.line, -2, ad + by * v + k, true, same, W.fences);
                      }
                      memcpy(smem + ad + by * v, tb, by);
                    }
                  }
                }
              break;
            }
            case SHFLB:
            case SHFLI:
            case SHFLD:
            case SHFLU: {
              u32* q = r(0);
              const u32 *x = r(1), *y = r(2), *z = r(3);
              u32 t[32];
              for (int l = 0; l < 32; l++) {
                u32 c = z[l];
                u32 clamp = c & 31, seg = (c >> 8) & 31;
                int maxl = (l & seg) | (clamp & ~seg);
                int minl = l & seg;
                int j;
                bool in;
                if (I.op == SHFLB) {
                  j = l ^ (int)(y[l] & 31);
                  in = j <= maxl;
                } else if (I.op == SHFLI) {
                  j = minl | ((int)(y[l] & 31) & ~seg);
                  in = j <= maxl;
                } else if (I.op == SHFLD) {
                  j = l + (int)(y[l] & 31);
                  in = j <= maxl;
                } else {
                  j = l - (int)(y[l] & 31);
                  in = j >= maxl;
                }
                t[l] = in ? x[j] : x[l];
              }
              for (int l = 0; l < 32; l++)
                if (act >> l & 1) q[l] = t[l];
              break;
            }
            case CPASYNC: {  // bytes, dst, doff, src, soff, srcsize reg
              int by = o[0];
              const u32* a = R + (size_t)o[1] * 32;
              const u64* g = D + (size_t)o[3] * 32;
              const u32* ss = R + (size_t)o[5] * 32;
              u32 reading = 0;
              for (int l = 0; l < 32; l++)
                if ((act >> l & 1) && ss[l]) reading |= 1u << l;
              perf[0]++;
              perf[2] += sectors(g, o[4], reading, by);
              for (int l = 0; l < 32; l++)
                if (act >> l & 1) {
                  Cp c;
                  c.dst = a[l] + o[2];
                  c.size = by;
                  c.ssize = std::min(ss[l], (u32)by);
                  c.line = I.line;
                  memset(c.data, 0, 16);
                  u64 ad = g[l] + o[4];
                  if (c.dst < BASE || c.dst + by > BASE + (u32)smem_bytes) {
                    rep(OOB, I.line, l, w, 5, -2, c.dst);
                    return -1;
                  }
                  if (c.dst % by || (c.ssize && ad % by)) rep(MISALIGNED, I.line, l, w, 5, -2, c.dst);
                  if (c.ssize) {
                    Buf* B = find(ad, c.ssize);
                    if (!B) {
                      rep(OOB, I.line, l, w, 4, -1, (long)ad);
                      return -1;
                    }
                    if (races)
                      for (u32 k = 0; k < c.ssize; k += 4)
                        chk_read(B->sh[(ad + k - B->base) / 4], w, I.line, B->id, ad + k - B->base, false, l);
                    memcpy(c.data, (void*)ad, c.ssize);
                  }
                  W.copen.push_back(c);
                }
              break;
            }
            case CPCOMMIT:
              W.cgroups.push_back(W.copen);
              W.copen.clear();
              break;
            case CPWAIT: {
              size_t keep = o[0];
              while (W.cgroups.size() > keep) {
                for (auto& c : W.cgroups.front()) {
                  if (races)
                    for (u32 k = 0; k < c.size; k += 4)
                      chk_write(ssh[(c.dst + k) / 4], w, c.line, -2, c.dst + k, true,
                                !memcmp(smem + c.dst + k, c.data + k, 4), W.fences);
                  memcpy(smem + c.dst, c.data, c.size);
                  for (u32 k = 0; k < c.size; k += 4) ssh[(c.dst + k) / 4].pad[0] = 1;
                }
                W.cgroups.erase(W.cgroups.begin());
              }
              break;
            }
            case BAR:
              perf[12]++;
              W.atbar = true;
              go = false;
              if (barpc == -1)
                barpc = W.pc;
              else if (barpc != W.pc) {
                rep(BARMISMATCH, I.line, prog[barpc].line, w, 0, 0, 0);
              }
              break;
            case BRA:
              if (act == 0xffffffffu || I.guard < 0)
                next = o[0];
              else if (act) {
                rep(DIVERGE, I.line, 0, w, 0, act, 0);
                return -2;
              }
              break;
            case RET:
              W.done = true;
              go = false;
              break;
            case MMATF32:
            case MMABF16:
            case MMAF16: {  // d0..3 a0..3 b0..1 c0..3
              bool tf = I.op == MMATF32;
              int K = tf ? 8 : 16;
              perf[13]++;
              perf[11] += 16ull * 8 * K;
              float A[16][16], Bm[16][8];
              for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                if (tf) {
                  for (int i = 0; i < 4; i++) A[g + (i & 1) * 8][t + (i >> 1) * 4] = f(r(4 + i)[l] & 0xffffe000u);
                  for (int i = 0; i < 2; i++) Bm[t + 4 * i][g] = f(r(8 + i)[l] & 0xffffe000u);
                } else {
                  for (int i = 0; i < 4; i++)
                    for (int h = 0; h < 2; h++) {
                      u32 v = (r(4 + i)[l] >> (16 * h)) & 0xffff;
                      A[g + (i & 1) * 8][2 * t + h + (i >> 1) * 8] = I.op == MMABF16 ? bf(v) : hf(v);
                    }
                  for (int i = 0; i < 2; i++)
                    for (int h = 0; h < 2; h++) {
                      u32 v = (r(8 + i)[l] >> (16 * h)) & 0xffff;
                      Bm[2 * t + h + 8 * i][g] = I.op == MMABF16 ? bf(v) : hf(v);
                    }
                }
              }
              float C[16][8];
              for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                for (int i = 0; i < 4; i++) C[g + (i >> 1) * 8][2 * t + (i & 1)] = f(r(10 + i)[l]);
              }
              for (int i = 0; i < 16; i++) {
                float acc[8] = {0};
                for (int k = 0; k < K; k++) {
                  float a = A[i][k];
                  for (int j = 0; j < 8; j++) acc[j] += a * Bm[k][j];
                }
                for (int j = 0; j < 8; j++) C[i][j] += acc[j];
              }
              for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                for (int i = 0; i < 4; i++) r(i)[l] = b(C[g + (i >> 1) * 8][2 * t + (i & 1)]);
              }
              break;
            }
            case LDMATRIX:
            case LDMATRIXT: {
              int n = o[0];
              const u32* a = R + (size_t)o[1] * 32;
              i32 off = o[2];
              for (int m = 0; m < n; m++) perf[9] += waves(a + m * 8, off, 0xff, 16) / 1;
              u32 out[4][32];
              for (int m = 0; m < n; m++) {
                uint16_t M[8][8];
                for (int i = 0; i < 8; i++) {
                  u32 ad = a[m * 8 + i] + off;
                  if (ad < BASE || ad + 16 > BASE + (u32)smem_bytes || ad % 16) {
                    rep(OOB, I.line, i, w, 6, -2, ad);
                    return -1;
                  }
                  if (races)
                    for (int k = 0; k < 16; k += 4) chk_read(ssh[(ad + k) / 4], w, I.line, -2, ad + k, true, i);
                  memcpy(M[i], smem + ad, 16);
                }
                for (int l = 0; l < 32; l++) {
                  int g = l >> 2, t = l & 3;
                  out[m][l] = I.op == LDMATRIX ? (u32)M[g][2 * t] | (u32)M[g][2 * t + 1] << 16
                                               : (u32)M[2 * t][g] | (u32)M[2 * t + 1][g] << 16;
                }
              }
              for (int m = 0; m < n; m++)
                for (int l = 0; l < 32; l++) R[(size_t)o[3 + m] * 32 + l] = out[m][l];
              break;
            }
            case STMATRIX:
            case STMATRIXT: {
              int n = o[0];
              const u32* a = R + (size_t)o[1] * 32;
              i32 off = o[2];
              for (int m = 0; m < n; m++) {
                uint16_t M[8][8];
                for (int l = 0; l < 32; l++) {
                  int g = l >> 2, t = l & 3;
                  u32 v = R[(size_t)o[3 + m] * 32 + l];
                  if (I.op == STMATRIX) {
                    M[g][2 * t] = v;
                    M[g][2 * t + 1] = v >> 16;
                  } else {
                    M[2 * t][g] = v;
                    M[2 * t + 1][g] = v >> 16;
                  }
                }
                for (int i = 0; i < 8; i++) {
                  u32 ad = a[m * 8 + i] + off;
                  if (ad < BASE || ad + 16 > BASE + (u32)smem_bytes || ad % 16) {
                    rep(OOB, I.line, i, w, 7, -2, ad);
                    return -1;
                  }
                  if (races)
                    for (int k = 0; k < 16; k += 4)
                      chk_write(ssh[(ad + k) / 4], w, I.line, -2, ad + k, true,
                                !memcmp(smem + ad + k, (char*)M[i] + k, 4), W.fences);
                  memcpy(smem + ad, M[i], 16);
                }
              }
              break;
            }
            case WGMMA: {  // kind(0 tf32,1 bf16,2 f16), N, areg?, transA, transB, scaleD pred reg, bdesc(d), then a:
                           // desc or 4 regs, then N/2 d regs
              int kind = o[0], N = o[1], areg = o[2], ta = o[3], tb = o[4];
              const u32* sd = R + (size_t)o[5] * 32;
              u64 bd = D[(size_t)o[6] * 32];
              const int* ao = o + 7;
              const int* dr = o + 7 + (areg ? 4 : 1);
              int es = kind == 0 ? 4 : 2, K = 32 / es;
              static float A[16][16];
              static float Bm[256][16];
              auto addr = [&](u64 desc, int mn, int k, bool tr) -> u32 {
                u32 st = (desc & 0x3fff) << 4, lbo = ((desc >> 16) & 0x3fff) << 4, sbo = ((desc >> 32) & 0x3fff) << 4;
                int sw = (desc >> 62) & 3;
                if ((desc >> 49) & 7) rep(BADOP, I.line, 49, w, 0, 0, 0);
                u32 ad;
                if (!tr) {
                  u32 kb = k * es;
                  if (sw == 0)
                    ad = st + (mn / 8) * sbo + (mn % 8) * 16 + (kb / 16) * lbo + kb % 16;
                  else {
                    u32 pitch = sw == 1 ? 128 : sw == 2 ? 64 : 32;
                    ad = st + (mn / 8) * sbo + (mn % 8) * pitch + kb;
                  }
                } else {
                  if (sw == 0) {
                    rep(BADOP, I.line, 2, w, 0, 0, 0);
                    ad = st;
                  } else {
                    u32 pitch = sw == 1 ? 128 : sw == 2 ? 64 : 32;
                    u32 per = pitch / es;
                    ad = st + (mn / per) * lbo + (mn % per) * es + (k % 8) * pitch + (k / 8) * sbo;
                  }
                }
                if (sw == 1)
                  ad ^= (ad >> 3) & 0x70;
                else if (sw == 2)
                  ad ^= (ad >> 3) & 0x30;
                else if (sw == 3)
                  ad ^= (ad >> 3) & 0x10;
                return ad;
              };
              auto get = [&](u64 desc, int mn, int k, bool tr) -> float {
                u32 ad = addr(desc, mn, k, tr);
                if (ad < BASE || ad + es > BASE + (u32)smem_bytes) {
                  rep(OOB, I.line, mn, w, 8, -2, ad);
                  return NAN;
                }
                if (races) {
                  Sh& s = ssh[ad / 4];
                  chk_read(s, w, I.line, -2, ad, true, 0);
                  W.open.push_back({ad / 4, s.wtime});
                  if (s.init && s.we && ws[s.ww].fences == s.wf && W.ftime <= s.wtime)
                    rep(s.pad[0] ? CPNOFENCE : NOFENCE, I.line, s.ww, w, s.ww, -2, ad);
                }
                if (kind == 0) {
                  u32 t;
                  memcpy(&t, smem + ad, 4);
                  return f(t & 0xffffe000u);
                }
                uint16_t t;
                memcpy(&t, smem + ad, 2);
                return kind == 1 ? bf(t) : hf(t);
              };
              int row0 = (w % 4) * 16;
              perf[10]++;
              perf[11] += 16ull * N * K;
              if (areg) {
                for (int l = 0; l < 32; l++) {
                  int g = l >> 2, t = l & 3;
                  for (int i = 0; i < 4; i++) {
                    u32 v = R[(size_t)ao[i] * 32 + l];
                    if (kind == 0)
                      A[g + (i & 1) * 8][t + (i >> 1) * 4] = f(v & 0xffffe000u);
                    else
                      for (int h = 0; h < 2; h++) {
                        u32 x = (v >> (16 * h)) & 0xffff;
                        A[g + (i & 1) * 8][2 * t + h + (i >> 1) * 8] = kind == 1 ? bf(x) : hf(x);
                      }
                  }
                }
              } else {
                u64 ad = D[(size_t)ao[0] * 32];
                for (int i = 0; i < 16; i++)
                  for (int k = 0; k < K; k++) A[i][k] = get(ad, row0 + i, k, ta);
              }
              for (int n = 0; n < N; n++)
                for (int k = 0; k < K; k++) Bm[n][k] = get(bd, n, k, tb);
              bool sc = sd[0] != 0;
              for (int l = 0; l < 32; l++) {
                int g = l >> 2, t = l & 3;
                for (int j = 0; j < N / 8; j++)
                  for (int i = 0; i < 4; i++) {
                    int rr = g + (i >> 1) * 8, cc = 8 * j + 2 * t + (i & 1);
                    float acc = 0;
                    for (int k = 0; k < K; k++) acc += A[rr][k] * Bm[cc][k];
                    u32* q = R + (size_t)dr[4 * j + i] * 32 + l;
                    *q = b((sc ? f(*q) : 0.0f) + acc);
                  }
              }
              break;
            }
            case WGCOMMIT:
              W.groups.push_back(W.open);
              W.open.clear();
              break;
            case WGWAIT: {
              size_t keep = o[0];
              while (W.groups.size() > keep) {
                for (auto& p : W.groups.front()) {
                  if (ssh[p.word].wtime != p.time) {
                    rep(ASYNC_OVERWRITE, I.line, 0, w, ssh[p.word].ww, -2, p.word * 4);
                    break;
                  }
                  Sh& s = ssh[p.word];
                  if (s.re != epoch) {
                    s.re = epoch;
                    s.rmask = 0;
                  }
                  s.rmask |= 1u << w;
                }
                W.groups.erase(W.groups.begin());
              }
              break;
            }
            case FENCEPROXY:
              W.fences++;
              W.ftime = ++now;
              break;
            case WARPSYNC:
            case NOP:
              break;
            default:
              rep(BADOP, I.line, I.op, w, 0, 0, 0);
              return -3;
          }
          W.pc = next;
        }
      }
      if (!alive) break;
      bool any = false;
      for (auto& W : ws)
        if (W.atbar) {
          any = true;
        }
      if (any) {
        for (auto& W : ws) {
          if (!W.done && !W.atbar) return -4;
          if (W.done) {
            rep(BARMISMATCH, 0, 0, W.id, 0, 1, 0);
          }
          W.atbar = false;
        }
        ++epoch;
        bars++;
      }
    }
    if (first) first[0] = bars;
  }
  return 0;
}
