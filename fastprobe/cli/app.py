"""The shell's door: arguments in, the library called, exit code out. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import InputError
from ..protocol.config import ProbeConfig
from ..protocol.optimizers import OPTIMIZERS
from ..protocol.probes import PROBES as KINDS
from ..protocol.probes import SIMILARITIES
from ..runs.request import BACKEND_NAMES, RunRequest
from . import curve as cli_curve
from . import demo as cli_demo
from . import query as cli_query
from . import runs as cli_runs
from .config_file import merged, name_tables
from .embed import app as _embed
from .options import (
    LabelColumn,
    VectorColumn,
    choice,
    example,
    listed_parameters,
    name_columns,
    on_this_machine,
    option_parameters,
    plain,
    read_several,
    with_options,
)

app = typer.Typer(
    name="fastprobe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Millions of small contrastive linear probes, trained as one job, with p-values that hold up.",
)


app.add_typer(_embed, name="embed")
app.add_typer(cli_query.app, name="index")


_SCALE = "Many devices and machines"
PROBE = option_parameters(ProbeConfig, "The probe")
PROBES = listed_parameters(PROBE)
ONE = option_parameters(RunRequest, "The run")
# Of these several values make a curve, a run for each.
POINTS = [p for p in ONE if p.name in ("train_fraction", "clips", "gallery_size")]
RUN = [next((q for q in listed_parameters(POINTS) if q.name == p.name), p) for p in ONE]
# What `plan` does not need: the k beside that of the statistic, and how lists are served.
PLAN = [p for p in ONE if p.name not in ("k", "retrieval")]
# What a configuration file may hold besides, for the run alone.
RUN_ALONE = {"k", "retrieval", "out", "resume", "quiet", "engine", "address", "devices", "shard", "log_json"}
if TYPE_CHECKING:  # to mypy a class made while the module loads is no type; what arrives is text
    Backend = str
    Engine = str
    Optimizer = str
else:
    Backend = choice("Backend", BACKEND_NAMES)
    Engine = choice("Engine", ("local", "ray"))
    Optimizer = choice("Optimizer", OPTIMIZERS)
_Probe = Annotated[
    list[str] | None,
    typer.Option(
        help="contrastive (with the options below), " + ", ".join(KINDS) + "; with options, as ridge:alpha=0.1,1,10; repeatable.",
        show_default="contrastive",
        rich_help_panel="The probe",
    ),
]
_Config = Annotated[
    Path | None,
    typer.Option(help="TOML file with the names of these options, its paths relative to it; the shell wins.", callback=on_this_machine),
]
_Similarity = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Over class centroids, without a split: {', '.join(SIMILARITIES)}, knn:k=5; repeatable.", rich_help_panel="The probe"
    ),
]


def _whole_numbers(name: str, values: Any) -> list[int] | None:
    """["1,3", "5"] or [1, 3, 5] or 3 as a list of int; None when nothing was given."""
    items = values if isinstance(values, list) else [] if values is None else [values]
    try:
        return [int(part) for item in items for part in str(item).split(",")] or None
    except ValueError:
        raise InputError(f"`{name}` must be whole numbers, as 1,3,5; got {', '.join(map(str, items))}.") from None


def _probes(named: Any, fields: dict[str, Any]) -> list[Any]:
    """The probes of `--probe`; "contrastive" stands for every combination of the options under The probe."""
    named = ["contrastive"] if not named else named if isinstance(named, list) else [named]
    if "contrastive" not in named:
        unused = _unused(named, [name for name, value in fields.items() if value not in (None, False)])
        if unused:  # no error: one --config, or one line of a script, may serve several probes
            typer.echo(f"note: {unused}", err=True)
    trained = ProbeConfig.grid(**read_several(PROBE, fields))
    return [probe for name in named for probe in (trained if name == "contrastive" else [name])]


def _unused(named: list[Any], given: list[str]) -> str | None:
    """Which options of the trained probe change nothing, because none is trained."""
    if not given:
        return None
    probes = ", ".join(n if isinstance(n, str) else str(n.get("kind")) if isinstance(n, dict) else type(n).__name__ for n in named)
    options = ", ".join(f"`{name}`" for name in given)
    return (
        f"{options}: options of the contrastive probe, and the probes are {probes}: nothing reads them. "
        "Leave them out, or add --probe contrastive."
    )


@app.command(**example("fastprobe run --text bert.npz --audio passt.npz --out runs/first"))
@with_options(request=RUN, fields=PROBES)
def run(
    ctx: typer.Context,
    *,
    text: Annotated[list[str] | None, typer.Option(help="Text table (.npz, .safetensors, .parquet), a file or a URL; repeatable.")] = None,
    audio: Annotated[list[str] | None, typer.Option(help="Audio table; repeatable: all pairs are tested.")] = None,
    probe: _Probe = None,
    similarity: _Similarity = None,
    out: Annotated[str | None, typer.Option(help="Run directory, or its URL (s3://, gs://, ...).", show_default="runs/DATE-TIME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    config: _Config = None,
    engine: Annotated[Engine, typer.Option(help="Who executes: this machine, or a Ray cluster.", rich_help_panel=_SCALE)] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster: auto, HOST:PORT, ray://HOST:PORT.", rich_help_panel=_SCALE)
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="GPUs of this machine, a process each: 0,1.", rich_help_panel=_SCALE, show_default="all")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Only part I of N, as 3/10; `merge` joins them.", metavar="I/N", rich_help_panel=_SCALE)
    ] = None,
    log_json: Annotated[
        str | None, typer.Option(help="JSON lines about the run to FILE, or - for stderr.", metavar="FILE", rich_help_panel=_SCALE)
    ] = None,
    vector_column: VectorColumn = None,
    label_column: LabelColumn = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    request: dict,
    fields: dict,
) -> None:
    """Test all pairs of text and audio tables: a p-value each, with its evidence in a run directory."""
    how = {
        "resume": resume,
        "quiet": quiet,
        "engine": plain(engine),
        "address": address,
        "devices": devices,
        "shard": shard,
        "log_json": log_json,
    }
    columns = {"vector_column": vector_column, "label_column": label_column}
    given = {"text": text, "audio": audio, "out": out, "probe": probe, "similarity": similarity, **how, **columns, **request, **fields}
    given = merged(ctx, given, config)
    name_tables(given)
    given["k"] = _whole_numbers("k", given["k"])
    along = read_several(POINTS, {p.name: given[p.name] for p in POINTS})
    rest = {n: given[n] for n in request if n not in {p.name for p in POINTS}}
    probes = {"probe": _probes(given["probe"], {n: given[n] for n in fields}), "similarity": given["similarity"]}
    out = given["out"] or time.strftime("runs/%Y%m%d-%H%M%S")
    asked, ways = {**probes, **rest, **along}, {name: given[name] for name in how}
    if any(isinstance(v, list) for v in along.values()):
        cli_curve.carry_out(given["text"], given["audio"], asked, out, **ways)
    else:
        cli_runs.carry_out(given["text"], given["audio"], RunRequest(**asked), out, **ways)


app.command(**example("fastprobe demo"))(cli_demo.demo)
app.command(**example("fastprobe status runs/first --watch"))(cli_runs.status)
app.command(**example("fastprobe merge runs/whole runs/part0 runs/part1"))(cli_runs.merge)
app.command(**example("fastprobe verify runs/first --sample 200"))(cli_runs.verify)


@app.command(**example("fastprobe fit --text bert.npz --audio passt.npz --train-fraction 0.7 --out probe.safetensors"))
@with_options(fields=PROBE)
def fit(
    ctx: typer.Context,
    *,
    text: Annotated[str, typer.Option(help="Text table, a file or a URL.")],
    audio: Annotated[str, typer.Option(help="Audio table.")],
    out: Annotated[str, typer.Option(help="The probe, a .safetensors file.")],
    probe: Annotated[
        str,
        typer.Option(help="contrastive (with the options below), " + ", ".join(KINDS) + "; with options, as ridge:alpha=0.1,1,10."),
    ] = "contrastive",
    train_fraction: Annotated[
        float | None, typer.Option(help="Hold out the other classes and print acc@k on them; by default all are trained on.")
    ] = None,
    k: Annotated[int, typer.Option(help="For acc@k.")] = 3,
    backend: Annotated[Backend, typer.Option(help="What trains the probe.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    vector_column: VectorColumn = None,
    label_column: LabelColumn = None,
    fields: dict,
) -> None:
    """Fit one probe and save it."""
    from ..protocol.metrics import check_ks
    from ..protocol.plan import split_classes
    from ..protocol.probes import as_probe
    from ..retrieval.fit import fit as fit_one
    from ..retrieval.linear import check_probe_file
    from ..tables.embeddings import EmbeddingTable

    check_probe_file(out)
    if probe == "contrastive":
        config = as_probe(ProbeConfig(**fields))
    else:
        config = as_probe(probe)
        sources = {name: ctx.get_parameter_source(name) for name in fields}
        unused = _unused([probe], [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"])
        if unused:
            raise InputError(unused)
    text, audio = name_columns([text, audio], vector_column, label_column)
    texts = EmbeddingTable.load(text)
    names = sorted(set(texts.labels.tolist()))
    check_ks((k,), len(names))
    train = None
    if train_fraction is not None:
        train = [names[i] for i in split_classes(seed, 0, len(names), train_fraction).train]
    fitted = fit_one(texts, audio, config, classes=train, backend=plain(backend), device=device, seed=seed)
    fitted.save(out)
    which = "unseen classes" if train else "the classes it was fitted to"
    how = f"trained on {len(fitted.train_classes_)} classes with {fitted.meta['backend']}"
    if not isinstance(config, ProbeConfig):
        how = f"{config.name} fitted to {len(fitted.train_classes_)} classes"
    typer.echo(f"{out}: {how}; acc@{k} {fitted.score(k):.3f} on {which}")


app.command(**example("fastprobe query dog.wav --probe probe.safetensors --gallery captions.txt -k 3"))(cli_query.query)


@app.command(**example("fastprobe plan --text bert.npz --audio passt.npz --permutations 1000 --effect 0.03"))
@with_options(request=PLAN, fields=PROBES)
def plan(
    ctx: typer.Context,
    *,
    text: Annotated[list[str] | None, typer.Option(help="Text table; repeatable.")] = None,
    audio: Annotated[list[str] | None, typer.Option(help="Audio table; repeatable.")] = None,
    probe: _Probe = None,
    similarity: _Similarity = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The TOML file of the run; what only a run needs is passed over. The shell wins.", callback=on_this_machine),
    ] = None,
    effect: Annotated[
        float | None, typer.Option(help="Expected gain over the control, for the power.", show_default="no power is given")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level of the test.")] = 0.05,
    seconds: Annotated[float, typer.Option(help="Time to spend on the calibration.")] = 5.0,
    vector_column: VectorColumn = None,
    label_column: LabelColumn = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines to read.")] = False,
    request: dict,
    fields: dict,
) -> None:
    """What a run can show, how long it takes here, what it needs: measured in a few seconds, nothing stored."""
    from ..runs import forecast
    from ..runs.experiment import prepare

    columns = {"vector_column": vector_column, "label_column": label_column}
    given = {"text": text, "audio": audio, "probe": probe, "similarity": similarity, **columns, **request, **fields}
    given = merged(ctx, given, config, also=RUN_ALONE)
    name_tables(given)
    for point in POINTS:
        if isinstance(value := given[point.name], list):
            raise InputError(
                f"`{point.name}` has {len(value)} values, which make a curve, a run for each. Plan one of them: "
                f"--{point.name.replace('_', '-')} {value[0]}."
            )
    probes = {"probe": _probes(given["probe"], {n: given[n] for n in fields}), "similarity": given["similarity"]}
    experiment = prepare(given["text"], given["audio"], RunRequest(**probes, **{n: given[n] for n in request}))
    found = forecast.plan_run(experiment, effect, alpha, seconds)
    if as_json:
        from ..runs.manifest import to_json

        typer.echo(to_json(found.to_dict()), nl=False)
        return
    for line in forecast.describe(found):
        typer.echo(line)


@app.command(**example("fastprobe report runs/first"))
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run directory, curve, or its URL; two are compared.")],
    out: Annotated[str | None, typer.Option(help="The page, a file or a URL.", show_default="RUN/report.html, RUN/atlas.html")] = None,
    categories: Annotated[str | None, typer.Option(help="CSV with columns label, category.")] = None,
    atlas: Annotated[bool, typer.Option("--atlas", help="All pairs of any number of runs: heat map, details, table to sort.")] = False,
) -> None:
    """One page that answers in a sentence per pair, with figures (SVG, PDF) and tables (CSV, LaTeX) beside it."""
    from ..report import write_atlas, write_report

    if atlas:
        if categories is not None:
            raise InputError("`categories` are for the report of one run; an atlas has none. Leave them out.")
        typer.echo(str(write_atlas(runs, out)))
        return
    typer.echo(str(write_report(runs, out, categories)))


@app.command(**example("fastprobe bench --shape A --probe ridge"))
def bench(
    shape: Annotated[list[str] | None, typer.Option(help="A, B, ... or train,r_text,r_audio,d; repeatable.", show_default="A B")] = None,
    optimizer: Annotated[list[Optimizer] | None, typer.Option(help="Repeatable.", show_default="adam-mini")] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="contrastive, " + ", ".join((*KINDS, *SIMILARITIES)) + ", with options as in run; repeatable.", show_default="all"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns each method takes.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="For machines to read.")] = False,
) -> None:
    """What this machine computes per second: every backend and kind of probe, interleaved, after a check."""
    from ..kernels.bench import main as measure

    typer.echo(
        measure(tuple(shape or ("A", "B")), tuple(plain(o) for o in optimizer or ("adam-mini",)), rounds, as_json, tuple(probe or ()))
    )


@app.command(**example("fastprobe doctor"))
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For machines to read.")] = False) -> None:
    """What this machine has, what fastprobe uses of it, and what would help."""
    from .doctor import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, number in found["versions"].items():
        typer.echo(f"  {name:<16} {number or '-':<14} {found['purposes'].get(name, '')}".rstrip())
    typer.echo("devices: " + ", ".join(found["devices"]))
    faiss = found["faiss"]
    typer.echo(
        "faiss: "
        + (
            f"{faiss['version']} ({', '.join(faiss['packages']) or 'built by hand'}), "
            + (f"uses {faiss['gpus']} GPUs" if faiss["gpu_build"] else "CPU build")
            if faiss["version"]
            else "none"
        )
    )
    typer.echo(
        "backends: "
        + ", ".join(n + ("" if why is None else " (no)") for n, why in found["backends"].items())
        + f"; auto takes {found['auto']}"
    )
    for line in found["advice"]:
        typer.echo("  - " + line)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: 0 done, 1 a check that failed, 2 bad input or usage, 130 interrupted, 143 terminated."""
    try:
        app()
    except InputError as error:
        print(f"fastprobe: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        print("fastprobe: out of memory. Lower `permutations` per run or `dim`, or use a machine with more.", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `fastprobe ... | head`
        sys.exit(0)
    except OSError as error:  # a disk that fills up, a folder that may not be entered: nobody needs a traceback for these
        where = f"{error.filename}: " if error.filename else ""
        print(f"fastprobe: {where}{error.strerror or error}. Everything finished is kept.", file=sys.stderr)
        sys.exit(2)
