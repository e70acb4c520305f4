"""Where the instructions of a compiled kernel are: its loops, nested, with what each has outside the loops in it.

    python -m benchmarks.loops A gram            a shape and a kernel of benchmarks.aot, compute capability 9.0
    python -m benchmarks.loops B resident cc8.0

Instructions of a loop times its trips, which the reader knows, are what a warp issues; bounds come from that, not speeds. Loops are
told by branches that go back, and instructions are counted once whether or not a predicate lets them pass.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter

import triton

from .aot import SHAPES, TARGETS, disassembled, launches, source_of

# What an instruction's name begins with.
CLASSES = {
    "matrix": r"HMMA|HGMMA|UTC\w*MMA",
    "global": r"LDG|STG|LD\b|ST\b",
    "shared": r"LDS|STS",
    "spill": r"LDL|STL",
    "barrier": r"BAR|WARPGROUP|DEPBAR|MEMBAR|FENCE",
    "special": r"MUFU",
    "shuffle": r"SHFL",
    "float": r"F(?:FMA|MUL|ADD|SEL|SETP|MNMX)",
}


def loops(listing: str) -> list[tuple[int, int, int, Counter]]:
    """(depth, first address, last address, instructions by class) of the whole, depth 0, and of each loop, in order.

    Parameters
    ----------
    listing : str
        As ``cuobjdump -sass`` prints it, of one kernel.
    """
    found = [(int(address, 16), text) for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)]
    ends: dict[int, int] = {}
    for address, text in found:
        back = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if back and int(back[1], 16) < address:
            ends[int(back[1], 16)] = max(address, ends.get(int(back[1], 16), 0))
    spans = [(found[0][0], found[-1][0]), *sorted(ends.items(), key=lambda span: (span[0], -span[1]))]
    counts = [Counter() for _ in spans]
    for address, text in found:
        inner = max((i for i, (first, last) in enumerate(spans) if first <= address <= last), key=lambda i: (spans[i][0], -spans[i][1], i))
        name = re.sub(r"^@!?U?P\w+\s+", "", text)
        kind = next((k for k, pattern in CLASSES.items() if re.match(pattern, name)), "other")
        counts[inner] += Counter({"all": 1, kind: 1})
    return [
        (sum(outer[0] <= first and last <= outer[1] for outer in spans) - 1, first, last, count)
        for (first, last), count in zip(spans, counts)
    ]


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=[s.name for s in SHAPES])
    parser.add_argument("kernel", help="a part of its name")
    parser.add_argument("target", nargs="?", default="cc9.0", choices=[t for t in TARGETS if t.startswith("cc")])
    given = parser.parse_args()
    architecture, target = TARGETS[given.target]
    shape = next(s for s in SHAPES if s.name == given.shape)
    launch = next((x for x in launches(shape, architecture) if given.kernel in x[0].fn.__name__), None)
    if launch is None:
        parser.error(f"no kernel of shape {given.shape} has {given.kernel!r} in its name")
    source, options = source_of(*launch)
    for depth, first, last, count in loops(disassembled(triton.compile(source, target=target, options=options), "-sass")):
        kinds = ", ".join(f"{k} {count[k]}" for k in (*CLASSES, "other") if count[k])
        print(f"{'  ' * depth}{first:#07x} ... {last:#07x}  {count['all']:6,}  {kinds}")


if __name__ == "__main__":
    main()
