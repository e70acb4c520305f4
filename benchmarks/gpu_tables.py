"""The GPU report as Markdown."""

from __future__ import annotations

from typing import Any


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *("| " + " | ".join(row) + " |" for row in rows), ""]


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def _millions(value: float) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e5 else f"{value:,.0f}"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def markdown(report: dict[str, Any]) -> str:
    """Tables of a report of benchmarks.gpu."""
    v = report["versions"]
    lines = [
        f"# One {v['device']}, {report['date']}",
        "",
        ", ".join(f"{k} {x}" for k, x in v.items() if k != "device") + ". `python -m benchmarks.gpu`; methods interleaved, "
        "medians, each behind a gate against float64.",
        "",
        "Ceilings measured here: "
        + ", ".join(f"{k} product {x:.4g} TFLOP/s" for k, x in report["ceilings"].items() if k in ("ieee", "tf32", "bf16"))
        + f", copy {report['ceilings']['copy_TB_per_s']:.3g} TB/s (read plus written).",
        "",
    ]
    for name, t in report["training"].items():
        lines += [
            f"## Training, shape {name} {tuple(t['shape'])}, {t['steps']} steps, {t['flops_per_step'] / 1e6:.3g} MFLOP per probe-step",
            "",
        ]
        done = [m["probe_steps_per_s"] for k, m in t["methods"].items() if "probe_steps_per_s" in m and k == "ours, tf32"]
        best = done[-1] if done else None
        rows = []
        for method, m in t["methods"].items():
            if "probe_steps_per_s" in m:
                rows.append(
                    [
                        method,
                        m["optimizer"],
                        f"{m['error']:.1e}",
                        str(m["probes"]),
                        _millions(m["probe_steps_per_s"]),
                        _number(m["TFLOP_per_s"]),
                        f"{m['ceiling_share']:.1%}",
                        _mebibytes(m["memory_bytes"]),
                        "-" if best is None else f"{best / m['probe_steps_per_s']:.3g}x",
                        f"{m['seconds']['low'] * 1e3:.3g} ... {m['seconds']['high'] * 1e3:.3g}",
                    ]
                )
            else:
                rows.append([method, m["optimizer"], _number(m["error"], ".1e"), m.get("why_not", "gate failed, not timed"), *["-"] * 6])
        lines += _table(
            [
                "method",
                "optimiser",
                "error, 10 steps",
                "probes",
                "probe-steps/s",
                "TFLOP/s",
                "of ceiling",
                "MiB",
                "ours (tf32) is",
                "ms, low ... high",
            ],
            rows,
        )
        if best is not None and t["trainer"] in t["bytes_per_step"]:
            moved = t["bytes_per_step"]
            lines += [
                f"Ours is the trainer `{t['trainer']}`. Counted: {moved[t['trainer']] / 1e3:.0f} kB of L2 traffic per probe-step, "
                f"{best * moved[t['trainer']] / 1e12:.3g} TB/s at this rate; least device memory traffic "
                f"{moved['least'] / 1e3:.2f} kB per probe-step.",
                "",
            ]
        if t["trainer"] == "gram":
            executed = t["methods"]["ours, tf32"].get("executed_flops_per_step", 0)
            lines += [
                f"TFLOP/s counts the usual form of the algorithm for every method; ours executes {executed / 1e6:.3g} MFLOP per "
                "probe-step through the Gram matrices, and its share of the ceiling counts these.",
                "",
            ]
    if "rank" in report:
        lines += [f"## Ranks: (probes, queries, gallery, r, d) = {tuple(report['rank']['probes, queries, gallery, r, d'])}", ""]
        lines += _table(
            ["method", "acc@3 agreement", "ms", "TFLOP/s", "of ceiling", "queries/s", "MiB"],
            [
                [
                    k,
                    _number(m["acc3_agreement"], ".4f"),
                    *(
                        [
                            _number(m["seconds"]["median"] * 1e3),
                            _number(m["TFLOP_per_s"]),
                            f"{m['ceiling_share']:.1%}",
                            _millions(m["queries_per_s"]),
                            _mebibytes(m["memory_bytes"]),
                        ]
                        if "seconds" in m
                        else ["gate failed, not timed", *["-"] * 4]
                    ),
                ]
                for k, m in report["rank"]["methods"].items()
            ],
        )
    if report["loss"]:
        lines += ["## Contrastive loss, forward and backward: (probes, m, n, d)", ""]
        lines += _table(
            ["size", "method", "gradient error", "ms", "TFLOP/s", "MiB"],
            [
                [
                    size,
                    k,
                    _number(m["error"], ".1e"),
                    *(
                        [_number(m["seconds"]["median"] * 1e3), _number(m["TFLOP_per_s"]), _mebibytes(m["memory_bytes"])]
                        if "seconds" in m
                        else [m.get("why_not", "gate failed, not timed"), "-", "-"]
                    ),
                ]
                for size, table in report["loss"].items()
                for k, m in table.items()
            ],
        )
    for name, rates in report["sweep"].items():
        lines += [f"## Configurations, shape {name}", ""]
        fastest_first = sorted(rates.items(), key=lambda item: -item[1])
        lines += _table(["configuration", "probe-steps/s"], [[k, _millions(x)] for k, x in fastest_first])
    if report.get("errors"):
        lines += ["## What failed", "", *(f"- {k}: {e}" for k, e in report["errors"].items()), ""]
    return "\n".join(lines)
