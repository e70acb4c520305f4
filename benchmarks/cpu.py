"""The CPU table: `python benchmarks/cpu.py` writes benchmarks/results/cpu.md and cpu.json.

    python benchmarks/cpu.py                     every shape and optimiser with the peers that need no long compilation
    python benchmarks/cpu.py --peers A B         every peer, adam-mini, at these shapes
    python benchmarks/cpu.py --same-algebra A B  every peer in its best form, Gram matrices and batch sizes swept; float32 and bfloat16
    python benchmarks/cpu.py --scaling           twice the probes, two threads

Run it on an idle machine. Records of a (shape, optimiser, method) already in cpu.json are replaced, others kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import peers_gram
from fastprobe.kernels import bench, cpp_backend
from fastprobe.protocol.config import ProbeConfig
from peers import PEERS
from shapes import SHAPES

RESULTS = Path(__file__).parent / "results"


def scaling(rounds: int = 9) -> list[dict]:
    """Twice the probes, and two threads against one, at A and B: medians of ratios within a turn."""
    records = []
    for name in ("A", "B"):
        shape = SHAPES[name]
        config = ProbeConfig(dim=shape.dim, steps=20, sampling=shape.sampling)
        many = bench.make_problem(shape, config, 128)
        half = dataclasses.replace(many, permutations=many.permutations[:64])
        turns = []
        for _ in range(rounds + 1):
            turn = []
            for batch, threads in ((half, 2), (many, 2), (half, 1)):
                time.sleep(0.01)
                start = time.perf_counter()
                cpp_backend.train(batch, threads=threads)
                turn.append(time.perf_counter() - start)
            turns.append(turn)
        turns = turns[1:]
        records.append(
            {
                "shape": name,
                "twice the probes": statistics.median(b / a for a, b, _ in turns),
                "two threads": statistics.median(c / a for a, _, c in turns),
            }
        )
    return records


def _training_alone(precision: str) -> bench.Method:
    """cpp with eight queries to rank: the peers rank none, and a turn of few steps would charge a run's ranking to these."""

    def prepare(shape, config, probes):
        batch = bench.make_problem(shape, config, probes)
        batch = dataclasses.replace(batch, queries=batch.queries[:8])

        def call():
            result = cpp_backend.train(batch)
            return result.loss, None

        return bench.Prepared(call, batch)

    return bench.Method("cpp, training alone", prepare, precision=precision)


def same_algebra(shapes: list[str], rounds: int) -> list[dict]:
    """fastprobe against every peer in its best form: through Gram matrices or not, the best of several batch sizes, two precisions.

    One interleaved run for each shape and precision, after a check; a ratio is the median over turns.
    """
    records = []
    for name in shapes:
        for half in (False, True):
            own = _training_alone("bf16" if half else "ieee")
            direct = [] if half else [m for m in PEERS if m.name in ("torch.compile", "torch.bmm", "JAX jit+vmap+scan")]
            sizes = peers_gram.SIZES[:2] if SHAPES[name].train >= 500 else peers_gram.SIZES
            # Forty steps: a run has a hundred, and what is made once for a probe (the peers are given it) must not decide.
            found = bench.run([SHAPES[name]], [own, *direct, *peers_gram.methods(half, sizes)], rounds=rounds, steps=40)
            best: dict[str, dict] = {}
            for r in found[1:]:
                peer = r["method"].split(",")[0].removesuffix(" jit+vmap+scan")
                if peer not in best or r["speedup"] < best[peer]["speedup"]:
                    best[peer] = r
            for peer, r in best.items():
                form = r["method"].split(", ", 1)[1] if ", " in r["method"] else "heads, 32 probes"
                records.append(
                    {
                        "shape": name,
                        "precision": "bfloat16 products" if half else "float32",
                        "peer": peer,
                        "form": form,
                        "us": float(r["us"]),
                        "cpp us": float(found[0]["us"]),
                        "cpp share": float(found[0]["share"]),
                        "ratio": r["speedup"],
                    }
                )
                print(records[-1], flush=True)
    return records


def same_algebra_table(records: list[dict]) -> list[str]:
    """The records as Markdown."""
    lines = [
        "| shape | products | peer | its best form | us / probe-step | cpp | times cpp |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for r in records:
        lines.append(
            f"| {r['shape']} | {r['precision']} | {r['peer']} | {r['form']} | {r['us']:.1f} | {r['cpp us']:.1f} | {r['ratio']:.2f} |"
        )
    return lines


def main() -> None:
    """Measure, merge with what is there, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--optimizers", nargs="+", default=["adam-mini", "sgd", "adam"])
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--same-algebra", nargs="+", choices=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "cpu.json"
    stored = json.loads(path.read_text()) if path.exists() else {"records": [], "scaling": []}
    if options.scaling:
        stored["scaling"] = scaling()
    elif options.same_algebra:
        new = same_algebra(options.same_algebra, options.rounds)
        kept = [r for r in stored.get("same algebra", []) if r["shape"] not in options.same_algebra]
        order = list(SHAPES)
        stored["same algebra"] = sorted([*kept, *new], key=lambda r: (order.index(r["shape"]), r["precision"] != "float32", r["ratio"]))
    else:
        usual = ("cpp", "cpp, direct", "cpp, bf16", "torch.bmm", "torch.func.vmap")
        methods = PEERS if options.peers else [m for m in PEERS if m.name in usual]
        new = bench.run(
            [SHAPES[s] for s in options.peers or options.shapes],
            methods,
            ["adam-mini"] if options.peers else options.optimizers,
            options.rounds,
        )
        done = {(r["shape"], r["optimizer"], r["method"]) for r in new}
        order = list(SHAPES)
        stored["records"] = sorted(
            [r for r in stored["records"] if (r["shape"], r["optimizer"], r["method"]) not in done] + new,
            key=lambda r: (order.index(r["shape"]), r["optimizer"].startswith("adam ("), r["optimizer"]),
        )
    stored["environment"] = {**stored.get("environment", {}), **bench.environment()}
    path.write_text(json.dumps(stored, indent=1) + "\n")
    text = [
        "# CPU",
        "",
        "`python benchmarks/cpu.py`; " + ", ".join(f"{k} {v}" for k, v in stored["environment"].items()) + ".",
        "",
        *(
            [
                "## Every peer in its best form",
                "",
                "`python benchmarks/cpu.py --same-algebra A B 35 222 500`: the same algebra (Gram matrices, no wide heads) where that is "
                "faster, 8 to 64 probes side by side, the best kept; one interleaved run for each shape and precision, medians of ratios. "
                "Ranking is left out, since the peers have none; `cpp` gathers the clips of a step itself, which the peers are given.",
                "",
                *same_algebra_table(stored["same algebra"]),
                "",
                "## Every shape, optimiser and backend",
                "",
            ]
            if stored.get("same algebra")
            else []
        ),
        "GFLOP/s counts the operations of the plain algorithm; `cpp` goes through the Gram matrix where that is less work, "
        "`cpp, direct` never. Shares and ratios are medians over interleaved turns.",
        "",
        bench.table(stored["records"]),
        "",
    ]
    if stored["scaling"]:
        text += ["| shape | twice the probes take | two threads give |", "| --- | ---: | ---: |"]
        text += [f"| {r['shape']} | {r['twice the probes']:.3f} x | {r['two threads']:.3f} x |" for r in stored["scaling"]] + [""]
    (RESULTS / "cpu.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
