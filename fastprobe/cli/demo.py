"""`fastprobe demo`: the whole job on the tables that come with fastprobe, and what came out in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runs.request import BACKEND_NAMES, RunRequest
from . import runs as cli_runs
from .options import choice, plain

if TYPE_CHECKING:  # to mypy a class made while the module loads is no type; what arrives is text
    Backend = str
else:
    Backend = choice("Backend", BACKEND_NAMES)

LEVEL = 0.05
SHOWN = {"minilm": "MiniLM (a language model)", "word2vec": "word2vec (word vectors)", "char-ngrams": "their spelling alone"}
QUESTION = """\
Does a model of language know what things sound like? Here are {clips} real recordings of {classes} kinds of sound (AudioSet, as
the audio model VGGish hears them) and the kinds' names as two models of language and a spelling baseline see them. A probe
learns from 70% of the kinds which name goes with which sound; then it hears the others, which it has never met, and picks
names for them. 'minilm-shuffled' has its vectors dealt out to the wrong names: nothing is there to be found.
"""
SIMULATED = """\
SIMULATED embeddings over the names of {classes} FSD50K classes: in 'planted' the sounds follow the texts weakly, in 'null' not
at all. No model and no recording is involved.
"""


def demo(
    out: Annotated[str | None, typer.Option(help="Run directory, or its URL.", show_default="runs/demo-DATE-TIME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Simulated embeddings instead: one pair with a weak planted alignment, one with none.")
    ] = False,
    permutations: Annotated[int, typer.Option(help="Shuffled repetitions beside the observed run.")] = 100,
    splits: Annotated[int, typer.Option(help="Partitions of the classes.")] = 5,
    backend: Annotated[Backend, typer.Option(help="What trains the probes.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Try the whole job on real recordings: two language models and a spelling baseline, and a pair that is null by construction."""
    texts, sounds, question = simulated_tables(seed) if simulated else real_tables()
    if not quiet:
        typer.echo(question, err=True)
    out = out or time.strftime("runs/demo-%Y%m%d-%H%M%S")
    request = RunRequest(permutations=permutations, splits=splits, backend=plain(backend), seed=seed)
    opening: Callable[[dict[str, Any]], list[str]] | None = None if simulated else meaning
    cli_runs.carry_out(texts, sounds, request, out, resume=resume, quiet=quiet, opening=opening)
    if not quiet:
        typer.echo(f"figures, retrieved names and the methods paragraph: fastprobe report {out}", err=True)


def real_tables() -> tuple[list[Any], list[Any], str]:
    """Files of text tables (the last one shuffled) and of audio tables, and the words that introduce them."""
    from ..tables.demo import AUDIO, TEXTS, demo_file, demo_table

    sounds = demo_table(AUDIO)
    question = QUESTION.format(clips=len(sounds), classes=len(set(sounds.labels.tolist())))
    return [str(demo_file(name)) for name in TEXTS], [str(demo_file(AUDIO))], question


def simulated_tables(seed: int) -> tuple[list[Any], list[Any], str]:
    """A text table, an audio table aligned with it and one that is not, and the words that introduce them."""
    from ..tables.simulate import fsd50k_leaf_names, simulate_pair

    names = fsd50k_leaf_names()
    text, planted = simulate_pair(names, alignment=0.5, seed=seed, number=0)
    null = simulate_pair(names, alignment=0.0, seed=seed, number=2)[1]
    for table, name in ((text, "simulated"), (planted, "planted"), (null, "null")):
        table.meta["name"] = name
    return [text], [planted, null], SIMULATED.format(classes=len(names))


def meaning(summary: dict[str, Any]) -> list[str]:
    """What the real demo's results mean, in words that follow the numbers.

    Parameters
    ----------
    summary : dict
        As in summary.json.

    Returns
    -------
    list of str
        Paragraphs.
    """
    records = {r["text"]: r for r in summary["pairs"]}
    first, null = records["minilm"], records["minilm-shuffled"]
    permutations = first["n_permutations"]
    if not permutations:
        return ["No permutation was run, so there is nothing to compare the models with: give --permutations."]
    k = int(first["metric"].partition("@")[2])
    reached = ", ".join(f"in {_percent(records[name]['statistic'])} by {words}" for name, words in SHOWN.items())
    lines = [
        f"WHAT CAME OUT: for recordings of kinds of sound that a probe has never met, the right name is among its first {k} of "
        f"{k / first['chance']:.0f} {reached}. With shuffled names it is in {_percent(first['null_mean'])}."
    ]
    found = [name for name in SHOWN if records[name]["pvalue_maxT"] <= LEVEL]
    if models := [name for name in found if name != "char-ngrams"]:
        exceed = max(round(records[name]["pvalue"] * (1 + permutations)) - 1 for name in models)
        lines.append(
            f"So {' and '.join(models)} arrange{'s' * (len(models) == 1)} names in part as the sounds are arranged: "
            f"{f'at most {exceed}' if exceed else 'none'} of {permutations:,} shufflings did as well "
            f"(p = {max(records[name]['pvalue_maxT'] for name in models):.3g}, adjusted for all {len(records)} tests)."
        )
    else:
        lines.append("So here is no evidence that these models arrange names as the sounds are arranged.")
    lines.append(
        "Spelling carries over too: kinds that share a word ('alarm', 'car alarm') may sound alike. Knowledge of sound is at most what a "
        "model has beyond that."
        if "char-ngrams" in found
        else "Spelling alone gives no evidence of it."
    )
    lines.append(
        f"Dealt out to the wrong names, MiniLM reaches {_percent(null['statistic'])} (p = {null['pvalue_maxT']:.2g}): "
        + ("nothing is found where nothing is." if null["pvalue_maxT"] > LEVEL else "a false alarm, as up to one run in 20 raises.")
    )
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
