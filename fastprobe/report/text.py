"""Numbers in prose."""

from __future__ import annotations

from typing import Any

from ..protocol.probes import is_similarity


def number(value: float | None, digits: int = 3) -> str:
    """A number with three decimals; a dash for none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def pvalue(p: float | None, relation: bool = False) -> str:
    """A p-value with two significant digits ("0.0050", never "0.005"), never rounded to 0; with `relation`, "p = 0.012"."""
    if p is None or p != p:
        return "–"
    text = "0" if p == 0 else f"{p:#.2g}" if p >= 0.0001 else f"{p:.1e}".replace("e-0", "e-")
    return f"p\u00a0=\u00a0{text}" if relation else text  # one word: a line does not break within it


def between(low: float | None, high: float | None) -> str:
    """An interval whose ends may be negative; a dash for none."""
    return "–" if low is None else f"{number(low)} – {number(high)}"


def sentence(record: dict[str, Any], n_pairs: int, lower_is_better: bool, stopped: bool = False) -> tuple[bool, str]:
    """Whether the pair carries over, further than its baselines where it has any, and the answer in one sentence."""
    name = f"{record['text']} × {record['audio']}"
    where = "over all classes" if is_similarity(record.get("probe", "")) else "on classes the probe never saw"
    value = f"{record['metric']} is {number(record['statistic'])} {where}"
    if not record["n_permutations"]:
        return False, f"{name}: {value}; no control was run, so nothing can be concluded."
    p = record["pvalue_maxT"]
    what = "combinations of pair and probe" if "table" in record else "pairs"
    adjusted = f", adjusted for {n_pairs} {what}" if n_pairs > 1 else ""
    sign = -1.0 if lower_is_better else 1.0
    against = f"against {number(record['null_mean'])} for its control"
    how = f"{pvalue(p, relation=True)}{adjusted}, {record['n_permutations']:,} permutations{', stopped by rule' if stopped else ''}"
    if p <= 0.05:
        if (beats := record.get("beats_baseline")) is None:
            return True, f"{name}: yes; {value}, {against} ({how})."
        beyond = (
            f"{'' if record['baseline_difference'] < 0 else '+'}{number(record['baseline_difference'])} against "
            f"{record['baseline']}, {pvalue(record['pvalue_baseline'], relation=True)}"
        )
        answer = (
            f"yes, and further than {record['baseline_words']}"
            if beats
            else f"it carries over, but no more than {record['baseline_words']}"
        )
        return bool(beats), f"{name}: {answer} ({beyond}); {value}, {against} ({how})."
    gap = "a gap the control shows as well by chance" if sign * (record["statistic"] - record["null_mean"]) > 0 else "no better"
    return False, f"{name}: no evidence; {value}, {against}: {gap} ({how})."


def listing(names: list[str], limit: int = 12) -> str:
    """a, b and c; long lists end in their count."""
    shown = names[:limit]
    if len(names) > limit:
        return ", ".join(shown) + f" and {len(names) - limit} more"
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def plural(n: int, word: str) -> str:
    """1 pair, 2 pairs, 3 classes."""
    ending = "" if n == 1 else "es" if word.endswith("s") else "s"
    return f"{n:,} {word}{ending}"
