"""PTX of a compiled Triton kernel as a table of instructions, and its execution by core.cpp."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("core.cpp")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fno-strict-aliasing", "-ffp-contract=off", "-shared", "-fPIC")


def built() -> Path:
    """The compiled core.cpp, made once per source and compiler in the user's cache folder."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, FLAGS, platform.node())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastprobe" / "ptx"
    library = folder / f"core-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            made = Path(fresh) / library.name
            subprocess.run([*compiler, *FLAGS, "-w", "-o", str(made), str(SOURCE)], check=True)
            made.replace(library)  # in one step, so that two processes can build at once
    return library


_warps = 0


def start_counting() -> None:
    """Set every count to zero."""
    global _warps
    _warps = 0
    lib.clear_perf()


def most_warps() -> int:
    """Warps of a block of the largest kernel launched since counting began: a trainer's, not those of what follows it."""
    return _warps


def _pointer(x):
    return x.ctypes.data_as(ctypes.c_void_p)


lib = ctypes.CDLL(str(built()))
lib.op_id.argtypes = [ctypes.c_char_p]
lib.op_name.restype = ctypes.c_char_p
lib.add_buffer.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int]


def O_pointer(name):
    return lib.op_id(name.encode())


KINDS = [
    *("RACE_WW", "RACE_RW", "RACE_WR", "CROSS_CTA", "OOB", "ASYNC_OVERWRITE", "NOFENCE", "UNINIT_SH"),
    *("MISALIGNED", "SAME_WW", "DIVERGE", "BARMISMATCH", "INTRAWARP", "UNINIT_G", "BADOP", "CPNOFENCE"),
]

SIMPLE = {
    "add.s32": "ADD32",
    "add.u32": "ADD32",
    "sub.s32": "SUB32",
    "mul.lo.s32": "MUL32",
    "mul.lo.u32": "MUL32",
    "mul.hi.u32": "MULHIU",
    "mul.hi.s32": "MULHIS",
    "mad.lo.s32": "MAD32",
    "and.b32": "AND32",
    "or.b32": "OR32",
    "xor.b32": "XOR32",
    "not.b32": "NOT32",
    "and.pred": "AND32",
    "or.pred": "OR32",
    "xor.pred": "XOR32",
    "not.pred": "NOTP",
    "and.b16": "AND32",
    "or.b16": "OR32",
    "xor.b16": "XOR32",
    "shl.b16": "SHL16",
    "shr.u16": "SHRU16",
    "add.s16": "ADD16",
    "shl.b32": "SHL32",
    "shr.u32": "SHRU32",
    "shr.b32": "SHRU32",
    "shr.s32": "SHRS32",
    "min.s32": "MINS32",
    "max.s32": "MAXS32",
    "min.u32": "MINU32",
    "max.u32": "MAXU32",
    "neg.s32": "NEG32",
    "popc.b32": "POPC",
    "bfe.u32": "BFEU",
    "bfe.s32": "BFES",
    "div.s32": "DIVS32",
    "rem.s32": "REMS32",
    "div.u32": "DIVU32",
    "rem.u32": "REMU32",
    "mul.wide.s32": "MULWS",
    "mul.wide.u32": "MULWU",
    "mad.wide.s32": "MADWS",
    "mad.wide.u32": "MADWU",
    "cvt.s64.s32": "S64S32",
    "cvt.u64.u32": "U64U32",
    "cvt.u64.u16": "U64U32",
    "cvt.u32.u64": "U32U64",
    "cvt.s32.s64": "U32U64",
    "cvt.u16.u32": "LOW16",
    "cvt.u32.u16": "LOW16",
    "cvt.rn.f32.s32": "F32S32",
    "cvt.rn.f32.u32": "F32U32",
    "cvt.rzi.s32.f32": "S32F32",
    "cvt.rna.tf32.f32": "RNATF32",
    "cvt.rn.bf16x2.f32": "BF16X2",
    "cvt.rn.bf16.f32": "BF16",
    "cvt.rn.f16x2.f32": "F16X2",
    "cvt.rn.f16.f32": "F16",
    "cvt.f32.bf16": "F32BF16",
    "cvt.f32.f16": "F32F16",
    "prmt.b32": "PRMT",
    "add.f32": "FADD",
    "sub.f32": "FSUB",
    "mul.f32": "FMUL",
    "add.rn.f32": "FADD",
    "sub.rn.f32": "FSUB",
    "mul.rn.f32": "FMUL",
    "div.full.f32": "FDIV",
    "div.rn.f32": "FDIV",
    "div.approx.f32": "FDIV",
    "fma.rn.f32": "FFMA",
    "fma.rn.ftz.f32": "FFMA",
    "add.ftz.f32": "FADD",
    "mul.ftz.f32": "FMUL",
    "sub.ftz.f32": "FSUB",
    "max.f32": "FMAX",
    "min.f32": "FMIN",
    "neg.f32": "FNEG",
    "abs.f32": "FABS",
    "sqrt.rn.f32": "FSQRT",
    "sqrt.approx.f32": "FSQRT",
    "sqrt.approx.ftz.f32": "FSQRT",
    "rcp.rn.f32": "FRCP",
    "rcp.approx.ftz.f32": "FRCP",
    "ex2.approx.ftz.f32": "FEX2",
    "ex2.approx.f32": "FEX2",
    "lg2.approx.f32": "FLG2",
    "lg2.approx.ftz.f32": "FLG2",
    "rsqrt.approx.f32": "FRSQRT",
    "selp.b32": "SEL32",
    "selp.f32": "SEL32",
    "selp.b16": "SEL32",
    "selp.s32": "SEL32",
    "selp.u32": "SEL32",
    "selp.pred": "SEL32",
    "selp.b64": "SEL64",
    "add.s64": "ADD64",
    "add.u64": "ADD64",
    "sub.s64": "SUB64",
    "mul.lo.s64": "MUL64",
    "mad.lo.s64": "MAD64",
    "and.b64": "AND64",
    "or.b64": "OR64",
    "xor.b64": "XOR64",
    "shl.b64": "SHL64",
    "shr.u64": "SHRU64",
    "shr.s64": "SHRS64",
    "neg.s64": "NEG64",
    "div.s64": "DIVS64",
    "rem.s64": "REMS64",
    "div.u64": "DIVU64",
    "rem.u64": "REMU64",
    "min.s64": "MINS64",
    "max.s64": "MAXS64",
}
# operand classes: d = 64-bit, r = 32-bit
SIG = {
    "MUL64": "ddd",
    "MAD64": "dddd",
    "SEL64": "dddr",
    "MULWS": "drr",
    "MULWU": "drr",
    "MADWS": "drrd",
    "MADWU": "drrd",
    "S64S32": "dr",
    "U64U32": "dr",
    "U32U64": "rd",
    "SHL64": "ddr",
    "SHRU64": "ddr",
    "SHRS64": "ddr",
    "NEG64": "dd",
}
for n in ["ADD64", "SUB64", "AND64", "OR64", "XOR64", "DIVS64", "REMS64", "DIVU64", "REMU64", "MINS64", "MAXS64"]:
    SIG[n] = "ddd"


def split_ops(s):
    out, depth, cur = [], 0, ""
    for ch in s:
        if ch in "{[":
            depth += 1
        if ch in "}]":
            depth -= 1
        if ch == "," and depth == 0:
            out.append(cur.strip())
            cur = ""
        else:
            cur += ch
    if cur.strip():
        out.append(cur.strip())
    return out


class Program:
    """One kernel's PTX, decoded: an opcode that core.cpp lacks raises NotImplementedError with the line."""

    def __init__(self, ptx):
        self.r, self.d = {}, {}
        self.c32, self.c64 = {}, {}
        self.params, self.lines = [], ptx.splitlines()
        self.special = {"%tid.x": -1, "%ctaid.x": -1, "%nctaid.x": -1, "%laneid": -1}
        for m in re.finditer(r"\.param \.(\w+)\s+(?:\.ptr \.global \.align \d+ )?(\w+_param_\d+)", ptx):
            self.params.append((m[2], m[1]))
        self.warps = int(re.search(r"\.reqntid (\d+)", ptx)[1]) // 32
        self.param_reg = {}
        ins, labels, fix = [], {}, []
        body = False
        for number, line in enumerate(self.lines, 1):
            s = re.sub(r"//.*", "", line).strip()
            if s.startswith(".reqntid"):
                body = True
                continue
            if not body or not s or s in "{})(":
                continue
            if m := re.match(r"\.loc\s+(\d+) (\d+)", s):
                continue
            if s.startswith("."):
                if s.startswith(".section"):
                    break
                continue
            if m := re.match(r"(\$\w+):", s):
                labels[m[1]] = len(ins)
                continue
            if s == "}":
                continue
            for part in [x.strip() for x in s.split(";")]:
                if part:
                    self.emit(part, number, ins, fix)
        for i, label in fix:
            ins[i][4][0] = labels[label]
        ops, rows = [], []
        for op, guard, neg, line, o in ins:
            rows.append((op, guard, neg, line, len(o), len(ops)))
            ops += o
        self.rows = np.array(rows, np.int32)
        self.ops = np.array(ops, np.int64)
        assert (np.abs(self.ops) < 2**31).all()
        self.ops = self.ops.astype(np.int32)

    def reg32(self, t):
        if t in self.special:
            if self.special[t] < 0:
                self.special[t] = self.r.setdefault(t, len(self.r))
            return self.r[t]
        if t.startswith(("%", "$")):
            assert not t.startswith("%rd"), t
            return self.r.setdefault(t, len(self.r))
        if t == "global_smem":
            v = 1024
        elif re.match(r"0[fF][0-9A-Fa-f]{8}$", t):
            v = int(t[2:], 16)
        else:
            v = int(t, 0) & 0xFFFFFFFF
        key = f"#{v}"
        i = self.r.setdefault(key, len(self.r))
        self.c32[i] = v
        return i

    def reg64(self, t):
        if t.startswith("%"):
            assert t.startswith("%rd"), t
            return self.d.setdefault(t, len(self.d))
        v = 1024 if t == "global_smem" else int(t, 0) & (2**64 - 1)
        key = f"#{v}"
        i = self.d.setdefault(key, len(self.d))
        self.c64[i] = v
        return i

    def addr(self, t, wide):
        m = re.match(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]$", t)
        assert m, t
        return (self.reg64 if wide else self.reg32)(m[1]), int(m[2] or 0)

    def vec(self, t):
        return [x.strip() for x in t.strip("{} ").split(",")]

    def emit(self, s, line, ins, fix):
        guard, neg = -1, 0
        if m := re.match(r"@(!?)(%\w+)\s+(.*)", s):
            neg, guard, s = int(bool(m[1])), self.reg32(m[2]), m[3]
        m = re.match(r"([\w.:]+)\s*(.*)", s)
        name, rest = m[1], m[2]
        a = split_ops(rest)

        def put(op, *o):
            i = O_pointer(op)
            assert i >= 0, op
            ins.append([i, guard, neg, line, list(o)])

        R, D = self.reg32, self.reg64
        if name in SIMPLE:
            op = SIMPLE[name]
            sig = SIG.get(op, "r" * len(a))
            assert len(sig) == len(a), (s, sig)
            return put(op, *((D if c == "d" else R)(t) for c, t in zip(sig, a)))
        if name.startswith("ld.param"):
            p = a[1].strip("[]")
            wide = a[0].startswith("%rd")
            if wide:
                i = self.d.setdefault("$" + p, len(self.d))
                self.param_reg[("d", p)] = i
                return put("MOV64", D(a[0]), i)
            i = self.r.setdefault("$" + p, len(self.r))
            self.param_reg[("r", p)] = i
            return put("MOV32", R(a[0]), i)
        if name == "mov.pred" and not a[1].startswith("%"):
            return put("MOV32", R(a[0]), R("1" if int(a[1], 0) else "0"))
        if name.startswith("mov."):
            if a[0].startswith("{"):
                q = self.vec(a[0])
                return put("UNPACK64", R(q[0]), R(q[1]), D(a[1])) if name == "mov.b64" else put("UNPACK16", R(q[0]), R(q[1]), R(a[1]))
            if a[1].startswith("{"):
                q = self.vec(a[1])
                return put("PACK64", D(a[0]), R(q[0]), R(q[1])) if name == "mov.b64" else put("PACK16", R(a[0]), R(q[0]), R(q[1]))
            return put("MOV64", D(a[0]), D(a[1])) if a[0].startswith("%rd") else put("MOV32", R(a[0]), R(a[1]))
        if m := re.match(r"setp\.(\w+)\.(\w+)$", name):
            c, t = m[1], m[2]
            if t == "f32":
                op = {"num": "FNUM", "nan": "FNAN"}.get(c, "F" + c.upper())
                return put(op, R(a[0]), R(a[1]), R(a[2]))
            w = "64" if t.endswith("64") else "32"
            k = "U" if t[0] in "u" or c in ("lo", "ls", "hi", "hs") else "S"
            op = "S" + c.upper() + ("" if c in ("eq", "ne") else k) + w
            if w == "64":
                return put(op, R(a[0]), D(a[1]), D(a[2]))
            return put(op, R(a[0]), R(a[1]), R(a[2]))
        if m := re.match(
            r"(ld|st)\.(?:volatile\.|relaxed\.\w+\.)?(global|shared)(?:::\w+)?((?:\.L\w+::\w+|\.nc)*)(\.v\d)?\.([bufs])(\d+)$", name
        ):
            assert not m[3], name
            n, by, wide = int(m[4][2:]) if m[4] else 1, int(m[6]) // 8, m[2] == "global"
            where, what = (a[1], a[0]) if m[1] == "ld" else (a[0], a[1])
            at, off = self.addr(where, wide)
            names = self.vec(what)
            assert len(names) == n
            widened = [t for t in names if by < 8 and t.startswith("%rd")]
            if widened:
                assert m[1] == "ld" and by == 4 and m[5] in "su"
                put(("LDG" if wide else "LDS"), n, by, at, off, *(R("$wide" + t) for t in names))
                for t in names:
                    put("S64S32" if m[5] == "s" else "U64U32", D(t), R("$wide" + t))
                return
            assert not (by < 4 and m[5] == "s")
            regs = [(D if by == 8 else R)(t) for t in names]
            return put(("LD" if m[1] == "ld" else "ST") + ("G" if wide else "S"), n, by, at, off, *regs)
        if m := re.match(r"shfl\.sync\.(bfly|idx|down|up)\.b32$", name):
            assert "|" not in a[0]
            return put({"bfly": "SHFLB", "idx": "SHFLI", "down": "SHFLD", "up": "SHFLU"}[m[1]], R(a[0]), R(a[1]), R(a[2]), R(a[3]))
        if m := re.match(r"cp\.async\.c[ag]\.shared\.global(?:\.L\w+::\w+)*$", name):
            d, do = self.addr(a[0], False)
            g, go = self.addr(a[1], True)
            return put("CPASYNC", int(a[2], 0), d, do, g, go, R(a[3]) if len(a) > 3 else R(a[2]))
        if name == "cp.async.commit_group":
            return put("CPCOMMIT")
        if name == "cp.async.wait_group":
            return put("CPWAIT", int(a[0]))
        if name == "bar.sync":
            assert len(a) == 1 and a[0] == "0", s
            return put("BAR")
        if name in ("bra", "bra.uni"):
            fix.append((len(ins), a[0]))
            return put("BRA", 0)
        if name == "ret":
            return put("RET")
        if m := re.match(r"mma\.sync\.aligned\.(m16n8k8|m16n8k16)\.row\.col\.f32\.(tf32|bf16|f16)\.(tf32|bf16|f16)\.f32$", name):
            v = [self.vec(x) for x in a]
            assert [len(x) for x in v] == [4, 4, 2, 4], s
            return put({"tf32": "MMATF32", "bf16": "MMABF16", "f16": "MMAF16"}[m[2]], *(R(t) for x in v for t in x))
        if m := re.match(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x(\d)(\.trans)?\.shared\.b16$", name):
            what, where = (a[0], a[1]) if m[1] == "ld" else (a[1], a[0])
            at, off = self.addr(where, False)
            return put(
                ("LD" if m[1] == "ld" else "ST") + "MATRIX" + ("T" if m[3] else ""), int(m[2]), at, off, *(R(t) for t in self.vec(what))
            )
        if m := re.match(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(tf32|bf16|f16)\.\w+$", name):
            N, kind = int(m[1]), {"tf32": 0, "bf16": 1, "f16": 2}[m[3]]
            acc = self.vec(a[0])
            assert len(acc) == N // 2
            areg = a[1].startswith("{")
            rest = a[4:]
            assert rest[:2] == ["1", "1"], s
            ta = tb = 0
            if kind:
                t = [int(x) for x in rest[2:]]
                if areg:
                    tb = t[0]
                else:
                    ta, tb = t
            A = [R(t) for t in self.vec(a[1])] if areg else [D(a[1])]
            return put("WGMMA", kind, N, int(areg), ta, tb, R(a[3]), D(a[2]), *A, *(R(t) for t in acc))
        if name.startswith("wgmma.commit"):
            return put("WGCOMMIT")
        if name.startswith("wgmma.wait"):
            return put("WGWAIT", int(a[0]))
        if name.startswith("fence.proxy.async"):
            return put("FENCEPROXY")
        if name.startswith(("wgmma.fence", "bar.warp.sync", "membar", "fence")):
            return put("NOP")
        raise NotImplementedError(s)

    def launch(self, grid, values, smem, seed=0, ctas=None):
        """values: one per .param, ints (pointers too) or floats."""
        c32, c64 = dict(self.c32), dict(self.c64)
        for (name, kind), v in zip(self.params, values, strict=True):
            if ("d", name) in self.param_reg:
                c64[self.param_reg["d", name]] = int(v) & (2**64 - 1)
            if ("r", name) in self.param_reg:
                c32[self.param_reg["r", name]] = struct.unpack("<I", struct.pack("<f", v))[0] if kind == "f32" else int(v) & 0xFFFFFFFF
        k32, v32 = np.array(list(c32), np.int32), np.array(list(c32.values()), np.uint32)
        k64, v64 = np.array(list(c64), np.int32), np.array(list(c64.values()), np.uint64)
        sp = np.array([self.special[k] for k in ("%tid.x", "%ctaid.x", "%nctaid.x", "%laneid")], np.int32)
        bars = ctypes.c_long(0)
        lo, hi = ctas or (0, grid)
        global _warps
        _warps = max(_warps, self.warps)
        rc = lib.run(
            _pointer(self.rows),
            len(self.rows),
            _pointer(self.ops),
            len(self.r),
            len(self.d),
            _pointer(k32),
            _pointer(v32),
            len(k32),
            _pointer(k64),
            _pointer(v64),
            len(k64),
            _pointer(sp),
            self.warps,
            int(grid),
            int(smem),
            int(seed),
            ctypes.byref(bars),
            ctypes.c_long(lo),
            ctypes.c_long(hi),
        )
        return rc, bars.value


COUNTERS = [
    *("loads", "load_bytes", "load_sectors", "stores", "store_sectors", "lds_waves", "sts_waves", "lds", "sts"),
    *("ldmatrix_waves", "wgmma", "macs", "barriers", "mma", "lds_ideal", "sts_ideal", "instructions"),
]


def counts() -> dict[str, int]:
    """How often each kind of report was made since `lib.clear_reports`."""
    x = (ctypes.c_uint64 * 16)()
    lib.get_counts(x)
    return {k: int(v) for k, v in zip(KINDS, x) if v}


def reports() -> list[tuple]:
    """(kind, PTX line, other's line, warp, other warp, buffer, offset) of the first reports of each kind."""
    x = (ctypes.c_long * 7000)()
    n = lib.get_reports(x, 1000)
    return [(KINDS[x[7 * i]], *x[7 * i + 1 : 7 * i + 7]) for i in range(n)]


def counted() -> dict[str, int]:
    """Traffic, barriers and instructions since `lib.clear_perf`, summed over warps; a sector has 32 bytes."""
    x = (ctypes.c_uint64 * 24)()
    lib.get_perf(x)
    return dict(zip(COUNTERS, map(int, x)))
