"""The shell's door to whole runs: how one is carried out, and `status`, `merge`, `verify`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..report.text import plural
from ..runs.request import RunRequest

LOOK_AGAIN = 3.0  # seconds between two looks of `status --watch`
_LOCATION = "Run directory, or its URL (s3://, gs://, ...)."


def parse_shard(text: str | None) -> tuple[int, int]:
    """ "3/10" as (3, 10); None as all, (0, 1)."""
    if text is None:
        return 0, 1
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and len(text) < 20 and int(index) < int(count)):
        raise InputError(f"`shard` must be I/N with 0 <= I < N, as 0/10 ... 9/10; got {text!r}.")
    return int(index), int(count)


def engine_of(experiment: Any, out: str | None, engine: str, address: str | None, devices: str | None) -> dict[str, Any]:
    """Arguments of `run.execute` for the engine of that name."""
    from ..runs.engines import local

    if engine == "local":
        if address is not None:
            raise InputError(f'`address` is where a Ray cluster answers; got {address!r} with `engine`="local". Add --engine ray.')
        names = local.device_names(devices, experiment.backend, experiment.device)
        return {"engine": partial(local.execute, devices=names)}
    if devices is not None:
        raise InputError(f'`devices` names those of this machine; got {devices!r} with `engine`="ray", which takes what the cluster has.')
    from ..runs.engines import ray
    from ..storage import open_folder

    ray.load_ray()
    return {"engine": partial(ray.execute, address=address), "workers_write": out is not None and open_folder(out).shared}


@contextmanager
def interruptible(where: object, log: Any = None, again: str = "the same command") -> Iterator[None]:
    """Leave within seconds on Ctrl-C (130) and SIGTERM (143), saying what is kept."""
    from ..runs.interrupt import exit_code, leave, listening

    try:
        with listening():
            yield
    except KeyboardInterrupt as error:
        code = exit_code(error)
        if log is not None:
            log("interrupted", exit_code=code)
        typer.echo(f"interrupted: everything finished is stored in {where}; continue with {again}.", err=True)
        leave(code)


def carry_out(
    text: list[Any],
    audio: list[Any],
    request: RunRequest,
    out: str,
    *,
    resume: bool = False,
    quiet: bool = False,
    engine: str = "local",
    address: str | None = None,
    devices: str | None = None,
    shard: str | None = None,
    log_json: str | None = None,
    opening: Callable[[dict[str, Any]], Iterable[str]] | None = None,
    show: bool = True,
) -> None:
    """Prepare, execute, analyse and show one run; `opening` makes of the summary the paragraphs that stand before the table."""
    from ..runs import run as _run
    from ..runs import siblings
    from ..runs.progress import JsonLog

    part = parse_shard(shard)
    file = None
    if log_json is not None:
        try:
            file = sys.stderr if log_json == "-" else open(log_json, "a", encoding="utf-8")  # noqa: SIM115 (open to the end)
        except OSError as error:
            raise InputError(f"`log_json` {log_json}: cannot be written: {error.strerror}.") from None
    log = None if file is None else JsonLog(file)
    quiet = quiet or log_json == "-"
    with interruptible(out, log, f"the same command and --resume --out {out}"):
        try:
            experiment = _run.continued(_run.prepare(text, audio, _run.as_begun(request, out)), out)
            plan = experiment.plan
            if experiment.request.groups is not None and experiment.groups is None:
                typer.echo("note: the groups are a baseline here; to permute within them, add --control permute-within.", err=True)
            for note in experiment.notes:
                typer.echo(f"note: {note}", err=True)
            if not quiet:
                whole = "" if part[1] == 1 else f", part {part[0]}/{part[1]} of it"
                typer.echo(
                    f"{_pairs(experiment)} x {_probes(experiment)}{plural(plan.n_splits, 'split')} x {plural(plan.n_seeds, 'seed')} x "
                    f"(1 + {plan.n_permutations:,} permutations) = {plan.n_jobs:,} probes{whole}, backend {experiment.backend}, into {out}",
                    err=True,
                )
            if (again := siblings.warning(siblings.tried(out, _run.manifest(experiment, "running")))) is not None:
                if log is not None:
                    log("warning", message=again)
                typer.echo(f"fastprobe: warning: {again}", err=True)
            how = engine_of(experiment, out, engine, address, devices)
            store = _run.open_store(experiment, out, resume, part)  # last: a wrong option leaves no directory behind
            steps = _run.execute(experiment, store, part=part, **how)
            _drive(steps, plan, quiet, log)
            if not (part[1] == 1 or _run.is_complete(experiment, store)):
                if log is not None:
                    log("part_done", run=str(out), part=list(part))
                typer.echo(f"part {part[0]}/{part[1]} is stored in {out}; join the parts with `fastprobe merge OUT RUN...`.", err=True)
                return
            summary = _run.summary(experiment, _run.analyse(experiment, store), store)
            store.write_summary(summary)
        except InputError as error:
            if log is not None:
                log("error", message=str(error))
            raise
        if log is not None:
            log("done", run=str(out), pairs=[{k: r[k] for k in ("text", "audio", "statistic", "pvalue")} for r in summary["pairs"]])
    if opening is not None:
        typer.echo("\n".join(opening(summary)))
    if show:
        show_summary(summary)
        typer.echo(f"run directory: {out}", err=True)


def _pairs(experiment: Any) -> str:
    references = experiment.plan.observed_only // len(experiment.probes)
    beside = [f"baselines {', '.join(experiment.baselines)}"] if experiment.baselines else []
    beside += [f"{plural(references, 'ceiling')}, observed only"] if references else []
    return plural(len(experiment.names), "pair") + (f" (with {'; '.join(beside)})" if beside else "")


def _probes(experiment: Any) -> str:
    n = len(experiment.probes)
    return f"{n} probes x " if n > 1 else ""


def _drive(steps: Generator[Any, None, None], plan: Any, quiet: bool, log: Any) -> None:
    from .console import show_progress

    try:
        for step in show_progress(steps, quiet):
            for shard, why in step.mended:
                if log is not None:
                    log("mended", shard=shard, why=why)
                typer.echo(f"{shard}: {why}. Removed; its jobs are computed again.", err=True)
            if log is not None and step.unit is None:
                log("start", done=step.done, total=step.total)
            elif log is not None and step.unit is not None:
                log(
                    "unit",
                    cell=step.unit.cell,
                    permutations=[step.unit.start, step.unit.stop],
                    worker=step.worker,
                    worker_seconds=round(step.seconds, 3),
                    jobs=plan.count([step.unit]),
                    done=step.done,
                    total=step.total,
                )
    finally:
        steps.close()  # also when the interrupt came while a line was being shown: workers end, the lock is given back


def show_summary(summary: dict[str, Any]) -> None:
    """Results table and conclusions on stdout."""
    from .console import best_configurations, conclusion, output, references, results_table

    console = output()
    console.print(results_table(summary["pairs"]))
    for line in references(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for record in (r for r in summary["pairs"] if r.get("role") != "baseline"):
        console.print(conclusion(record, summary["control"]), highlight=False, markup=False, soft_wrap=True)
    for line in best_configurations(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def status(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help=_LOCATION)],
    check: Annotated[bool, typer.Option("--check", help="Read every shard against its digest, and the tables.")] = False,
    estimate: Annotated[bool, typer.Option(help="Running estimate of each p, from what is stored.")] = True,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until the run ends, or Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines to read.")] = False,
) -> None:
    """How far a run is, live, from another shell or machine too. Exit code 1 when --check finds damage."""
    from ..runs.audit import examine
    from .console import output, show_status

    if watch and as_json:
        raise InputError("--watch is for eyes and --json for machines, which can ask again themselves. Give one of them.")
    console, found = output(), examine(run_dir, check, estimate)
    try:
        while watch and found["state"].startswith("running"):
            console.clear()  # nothing where the output is no terminal
            show_status(found)
            time.sleep(LOOK_AGAIN)
            found = examine(run_dir, check, estimate)
    except KeyboardInterrupt:
        raise typer.Exit from None
    if as_json:
        from ..runs.manifest import to_json

        typer.echo(to_json(found), nl=False)
    else:
        if watch:
            console.clear()
        show_status(found)
    if found.get("damaged") or found.get("twice") or found.get("inputs"):
        raise typer.Exit(1)


def merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="New run directory, or one that an earlier merge began.")],
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs made with --shard I/N, or any runs of one plan.")],
) -> None:
    """Join the parts of a run. Refuses other tables, another configuration, and jobs stored twice with different content."""
    from ..runs.merge import merge as _merge

    with interruptible(out):
        merged = _merge(out, runs)
    twice = f" ({merged.overlapping:,} were in several runs, with equal content)" if merged.overlapping else ""
    typer.echo(f"{out}: {merged.done:,} of {merged.total:,} probes from {len(runs)} runs{twice}", err=True)
    if merged.summary is None:
        typer.echo(
            "not complete yet, so there is no summary: merge the other parts into it too, or continue it with `fastprobe run --resume`.",
            err=True,
        )
    else:
        show_summary(merged.summary)


def verify(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help=_LOCATION)],
    sample: Annotated[int, typer.Option(help="Jobs to train again, drawn at random from all that are stored.")] = 50,
    backend: Annotated[str, typer.Option(help="What trains them again; the run's own must agree bit for bit.")] = "reference",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sample.", show_default="random, and printed")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Where the text tables are now.")] = None,
    audio: Annotated[list[str] | None, typer.Option(help="Where the audio tables are now.")] = None,
    loss_tolerance: Annotated[float | None, typer.Option(help="Largest relative difference of losses.")] = None,
    hits_tolerance: Annotated[float | None, typer.Option(help="Mean difference of hits, as a share of the queries.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines to read.")] = False,
) -> None:
    """Train a random sample of stored jobs again and compare. Exit code 1 beyond the stated tolerance."""
    from ..runs.audit import verify as _verify
    from ..runs.manifest import to_json

    with interruptible(run_dir):
        found = _verify(
            run_dir,
            sample=sample,
            backend=backend,
            device=device,
            seed=seed,
            text=text,
            audio=audio,
            loss_tolerance=loss_tolerance,
            hits_tolerance=hits_tolerance,
        )
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        t = found["tolerances"]
        typer.echo(
            f"{found['jobs']} jobs of {run_dir} (trained by {found['stored_backend']}), trained again by {found['backend']} "
            f"(sample --seed {found['seed']}):\n"
            f"  losses differ by {found['loss_difference']:.2g} relatively at most (tolerance {t['loss']:g})\n"
            f"  hits differ by {found['hits_difference']:.2g} of the queries on average (tolerance {t['hits']:g}); "
            f"equal for every k in {found['equal_hits']:.0%} of the jobs"
        )
        if "inner_difference" in found:
            typer.echo(f"  what the nested choice goes by differs by {found['inner_difference']:.2g} on average (tolerance {t['hits']:g})")
        w = found["worst"]
        if not found["agrees"]:
            typer.echo(
                f"  worst: {w['text']} x {w['audio']}, split {w['split']}, seed {w['seed']}, permutation "
                f"{w['permutation']}: loss {w['loss']:.6g} stored, {w['again']:.6g} now"
            )
        typer.echo("they agree." if found["agrees"] else "THEY DO NOT AGREE.")
    if not found["agrees"]:
        raise typer.Exit(1)
