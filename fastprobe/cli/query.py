"""The shell's door to text collections: `fastprobe query`, `fastprobe index build` and `fastprobe index search`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..storage import open_folder
from .options import LabelColumn, VectorColumn, choice, example, name_columns, plain

app = typer.Typer(no_args_is_help=True, help="Large text collections: build an index once, search it often.")
if TYPE_CHECKING:  # to mypy a class made while the module loads is no type; what arrives is text
    IndexKind = str
else:
    IndexKind = choice("IndexKind", ("auto", "exact", "hnsw", "ivfpq"))

AudioModel = Annotated[
    str | None,
    typer.Option(help="The audio model that the probe names, as hear:MODULE: needed where loading it would import a module."),
]


def query(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Sound files, or audio tables (every row a query).")],
    probe: Annotated[str, typer.Option(help="A saved probe.")],
    gallery: Annotated[
        str | None, typer.Option(help="Text table, text file (one per line), or index.", show_default="the probe's own classes")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Texts per query.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="A list of {query, texts, scores}.")] = False,
    device: Annotated[str | None, typer.Option(help="For the embedding models: cpu, cuda, cuda:1.")] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Accept tables of other models than the probe's.")] = False,
    audio_checkpoint: Annotated[str | None, typer.Option(help="Where the audio model's weights lie now, if moved.")] = None,
    text_model: Annotated[str | None, typer.Option(help="Where the text model lies now, if moved.")] = None,
    audio_model: AudioModel = None,
    vector_column: VectorColumn = None,
    label_column: LabelColumn = None,
) -> None:
    """The texts nearest to each sound, by a saved probe."""
    from ..retrieval import query as _query

    inputs, gallery = _with_columns(inputs, gallery, vector_column, label_column)

    _show_found(
        _query.query(
            probe,
            inputs,
            gallery,
            k,
            device=device,
            any_model=any_model,
            audio_checkpoint=audio_checkpoint,
            text_model=text_model,
            audio_model=audio_model,
        ),
        as_json,
    )


def _with_columns(
    inputs: list[str], further: str | None, vector_column: str | None, label_column: str | None
) -> tuple[list[str], str | None]:
    """The inputs of a command and one more table, or None, with their columns named."""
    named = name_columns([*inputs, *([] if further is None else [further])], vector_column, label_column)
    return named[: len(inputs)], None if further is None else named[-1]


def _show_found(found: list, as_json: bool) -> None:
    from ..retrieval import query as _query

    if as_json:
        typer.echo(_query.to_json(found))
    else:
        from rich.console import Console

        Console().print(_query.to_table(found))


@app.command("build", **example("fastprobe index build captions.parquet --probe probe.safetensors --out captions.index"))
def index_build(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Text table of any size (.npz, .safetensors, .parquet).")],
    out: Annotated[str, typer.Option(help="The index, a new folder.")],
    probe: Annotated[str | None, typer.Option(help="Project the texts by this probe, so that sounds can be looked up.")] = None,
    kind: Annotated[IndexKind, typer.Option(help="auto: exact below a million rows, then ivfpq.")] = "auto",
    recall: Annotated[float, typer.Option(help="recall@10 that hnsw and ivfpq must reach.")] = 0.95,
    queries: Annotated[
        str | None, typer.Option(help="Audio table to measure recall on (needs --probe).", show_default="noisy rows")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    any_model: Annotated[bool, typer.Option("--any-model", help="Accept a table of another model than the probe's.")] = False,
    vector_column: VectorColumn = None,
    label_column: LabelColumn = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a table as an index, block by block; the memory it will take is said beforehand."""
    from ..retrieval import build as indexing
    from ..retrieval.fit import load_probe
    from ..retrieval.query import project_inputs

    (table,), queries = _with_columns([table], queries, vector_column, label_column)
    loaded = None if probe is None else load_probe(probe)
    plan = indexing.plan_index(table, plain(kind), loaded, any_model)
    if queries is not None and loaded is None:
        raise InputError("`queries` are sounds, which only a probe can place among texts. Give --probe too.")
    sample = None if queries is None or loaded is None else project_inputs(loaded, [queries], any_model=any_model).vectors
    free = "" if plan.available is None else f" ({indexing.gib(plan.available)} free)"
    build, search, disk = (indexing.gib(plan.estimate[name]) for name in ("build", "search", "disk"))
    typer.echo(
        f"{plan.kind} index of {plan.rows:,} texts x {plan.width}: up to {build} of memory to build{free}, {search} to search, "
        f"{disk} on disk",
        err=True,
    )
    shown = time.monotonic()
    for done in indexing.build_index(plan, out, loaded, recall=recall, queries=sample, overwrite=overwrite):
        if not quiet and time.monotonic() - shown > 10:
            shown = time.monotonic()
            typer.echo(f"read {done:,} of {plan.rows:,} texts", err=True)
    meta = json.loads(open_folder(out).read("meta.json"))
    told = "" if plan.kind == "exact" else f"; {meta['factory']}, recall@10 {meta['recall']:.3f} on {meta['recall_on']}"
    typer.echo(f"{out}: {plan.rows:,} texts{told}")
    if plan.kind != "exact" and meta["recall"] < recall:
        typer.echo(
            f"fastprobe: recall@10 stays below the {recall:g} asked for at the greatest effort. Search with --exact, or "
            "build another kind.",
            err=True,
        )


@app.command("search", **example("fastprobe index search captions.index dog.wav -k 3"))
def index_search(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Folder of an index.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Sound files or audio tables; without a probe: tables.")],
    k: Annotated[int, typer.Option("-k", "--k", help="Texts per query.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="A list of {query, texts, scores}.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Score every text, whatever the kind.")] = False,
    device: Annotated[str | None, typer.Option(help="For the embedding models: cpu, cuda, cuda:1.")] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Accept tables of other models than the index's.")] = False,
    audio_model: AudioModel = None,
    vector_column: VectorColumn = None,
    label_column: LabelColumn = None,
) -> None:
    """Look inputs up in an index; it carries the probe it was built with."""
    from ..retrieval.query import search_index

    inputs, _ = _with_columns(inputs, None, vector_column, label_column)

    _show_found(search_index(index, inputs, k, exact=exact, device=device, any_model=any_model, audio_model=audio_model), as_json)
