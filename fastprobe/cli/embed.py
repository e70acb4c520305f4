"""`fastprobe embed text` and `fastprobe embed audio`: class names and recordings -> tables."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..extract.models import family_names
from .options import choice, example, on_this_machine, plain

app = typer.Typer(
    no_args_is_help=True,
    help="Class names and recordings to embedding tables.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


if TYPE_CHECKING:  # to mypy a class made while the module loads is no type; what arrives is text
    Pool = str
    Dtype = str
    Mode = str
    Pad = str
    Subset = str
    Leaves = str
    Multi = str
else:
    Pool, Dtype = choice("Pool", ("mean", "last", "cls", "max")), choice("Dtype", ("float32", "float16", "bfloat16"))
    Mode, Pad = choice("Mode", ("embed_only", "all", "logits")), choice("Pad", ("trained", "none"))
    Subset = choice("Subset", ("all", "dev", "eval", "train", "val"))
    Leaves, Multi = choice("Leaves", ("ground-truth", "ontology")), choice("Multi", ("drop", "repeat"))


def _check_out(out: str) -> None:
    """Refuse a place the table cannot go to before hours are spent on it."""
    from ..errors import InputError
    from ..storage import is_url, local_path, suffix_of
    from ..tables.embeddings import SUFFIXES

    if suffix_of(out) not in SUFFIXES:
        raise InputError(f"`out` must end in {', '.join(SUFFIXES)}; got {out!r}.")
    if is_url(out):
        return
    path = local_path(out)
    if path.is_dir() or not (path.parent.is_dir() or not path.parent.exists()):
        raise InputError(f"`out` {out} cannot be a file: {path if path.is_dir() else path.parent} is in the way.")


def _places(out: str, layers: Iterable[int]) -> dict[int, str]:
    """Where the table of each layer goes: to `out` where there is one, else to bert-layer00.npz, bert-layer01.npz, ..."""
    from ..storage import beside, name_of

    numbers, name = list(layers), name_of(out)
    if len(numbers) == 1:
        return {numbers[0]: out}
    return {layer: str(beside(out, f"{name.stem}-layer{layer:02d}{name.suffix}")) for layer in numbers}


@app.command(**example("fastprobe embed text --model bert-base-uncased --classes names.txt --out bert.npz"))
def text(
    *,
    model: Annotated[
        str,
        typer.Option(help="A name on the Hugging Face hub, a model's folder, or word vectors (GloVe, word2vec as text or .bin; .gz too)."),
    ],
    classes: Annotated[
        str,
        typer.Option(
            help="One label per line; a .csv with a column `label` (and perhaps `name`, the words to "
            "embed); or an audio table, whose labels are taken."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="The table: .npz, .safetensors or .parquet. Several layers: one table each, with -layer00 ... before the suffix."
        ),
    ],
    layers: Annotated[str, typer.Option(help="last, all, or numbers such as 0,6,-1. 0 is the input embedding.")] = "last",
    pool: Annotated[Pool, typer.Option(help="Over the tokens of the class name; cls: the class token instead.")] = "mean",
    template: Annotated[
        list[str] | None,
        typer.Option(
            help='A prompt with {} for the name, as "the sound of {}". Repeatable: their vectors are averaged.', show_default="{}"
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and activations.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="cuda if there is one")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per forward pass.")] = 256,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    random_init: Annotated[
        bool, typer.Option("--random-init", help="Untrained weights of the model's configuration: a control. The table says so.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of --random-init.")] = 0,
) -> None:
    """Embed class names with a language model."""

    _check_out(out)
    from ..extract.names import read_classes
    from ..extract.spec import TextSpec
    from ..extract.text import embed_classes
    from ..storage import name_of

    spec = TextSpec(
        model=model,
        revision=revision,
        pool=plain(pool),
        templates=tuple(template or ("{}",)),
        dtype=plain(dtype),
        random_init=random_init,
        seed=seed,
    )
    names = read_classes(classes)
    started = time.perf_counter()
    tables = embed_classes(names, spec, layers, device=device, batch_size=batch_size)
    several = len(tables) > 1
    places = _places(out, tables)
    for layer, table in tables.items():
        table.meta["name"] = name_of(places[layer]).stem
        table.save(places[layer])
        typer.echo(
            f"{places[layer]}: {len(table)} classes, {table.width} wide, layer {layer} of {table.meta['n_layers']}"
            + (", UNTRAINED weights" if random_init else "")
        )
    typer.echo(f"{len(names)} classes, {len(tables)} table{'s' * several} in {time.perf_counter() - started:.1f} s", err=True)


@app.command(**example("fastprobe embed audio --model passt --folder sounds/ --out passt.npz"))
def audio(
    *,
    model: Annotated[
        str,
        typer.Option(
            help=f"{family_names()} (hear: anything with the HEAR API). A variant after a colon: passt:passt_20sec, ast:NAME, ..."
        ),
    ],
    out: Annotated[str, typer.Option(help="The table: .npz, .safetensors or .parquet.")],
    manifest: Annotated[Path | None, typer.Option(help="CSV with columns path,label[,id].", callback=on_this_machine)] = None,
    folder: Annotated[Path | None, typer.Option(help="A folder with one subfolder per class.", callback=on_this_machine)] = None,
    dataset: Annotated[
        tuple[str, Path] | None,
        typer.Option(metavar="NAME DIR", help="fsd50k, esc50 or urbansound8k, and where it lies.", callback=on_this_machine),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Local weights; without it the published ones are fetched by name.", callback=on_this_machine),
    ] = None,
    revision: Annotated[str | None, typer.Option(help=f"Branch, tag or commit on the hub ({family_names('on_hub')}).")] = None,
    random_init: Annotated[bool, typer.Option("--random-init", help="Untrained weights: a control. The table says so.")] = False,
    seed: Annotated[int, typer.Option(help="Of --random-init.")] = 0,
    mode: Annotated[Mode, typer.Option(help=f"Features, features and logits, or logits ({family_names('has_modes')}).")] = "embed_only",
    pad: Annotated[
        Pad, typer.Option(help=f"Short clips: padded as the model was trained, or as they are ({family_names('any_length')}).")
    ] = "trained",
    layers: Annotated[
        str | None,
        typer.Option(
            help=f"last, all, or numbers as 0,6,-1, a table each from one pass ({family_names('has_layers')}).", show_default="the output"
        ),
    ] = None,
    allow_label_leak: Annotated[
        bool,
        typer.Option("--allow-label-leak", help="Take a model that was fine-tuned on the very labels under test. The table says so."),
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be decoded, and count them.")] = False,
    subset: Annotated[Subset | None, typer.Option(help="Of fsd50k.", show_default="all that is there")] = None,
    leaves: Annotated[
        Leaves | None,
        typer.Option(help="Leaf classes of fsd50k: by its ground truth, or by the ontology file.", show_default="ground-truth"),
    ] = None,
    multi: Annotated[
        Multi | None, typer.Option(help="Clips of fsd50k with several leaf labels: dropped, or once for each.", show_default="drop")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="cuda if there is one")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per forward pass.")] = 8,
    workers: Annotated[int | None, typer.Option(help="Decoding threads.", show_default="CPUs, at most 8")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where finished clips are kept.", show_default="$FASTPROBE_CACHE or ~/.cache/fastprobe", callback=on_this_machine
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep nothing, and embed all again.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Embed recordings with an audio model. What is embedded already is taken from the cache, after an interruption too."""
    from ..errors import InputError

    if [manifest, folder, dataset].count(None) != 2:
        raise InputError(
            "give exactly one of --manifest CSV, --folder DIR and --dataset NAME DIR; got "
            f"{3 - [manifest, folder, dataset].count(None)} of them."
        )
    if no_cache and cache:
        raise InputError("--cache and --no-cache exclude each other. Give one of them.")
    _check_out(out)
    from ..extract.audio import AudioEmbedder, build_table, check_leak, layer_tables
    from ..extract.cache import default_folder
    from ..extract.datasets import from_folder, from_manifest, load_dataset
    from ..extract.spec import AudioSpec
    from ..extract.text import choose_layers
    from ..runs.follow import follow
    from ..storage import name_of
    from ..tables.embeddings import first_few

    spec = AudioSpec(
        model=model,
        layers=None if layers is None else (0,),  # whether it has any is asked now; which ones, once it is loaded
        checkpoint=str(checkpoint) if checkpoint else None,
        revision=revision,
        random_init=random_init,
        seed=seed,
        mode=plain(mode),
        pad=plain(pad),
    )
    options = {"subset": plain(subset), "leaves": plain(leaves), "multi": plain(multi)}
    if dataset is None and (given := [k for k, v in options.items() if v is not None]):
        raise InputError(f"--{given[0]} is an option of --dataset fsd50k. Leave it out.")
    if dataset:
        corpus = load_dataset(*dataset, **options)
    elif folder:
        corpus = from_folder(folder)
    else:
        assert manifest is not None  # one of the three is given, as asked above
        corpus = from_manifest(manifest)
    check_leak(spec, corpus.clips, corpus.name, allow_label_leak)
    if (missing := corpus.missing()) and not skip_bad:
        raise InputError(
            f"{len(missing)} of {len(corpus.clips)} sound files are missing: {first_few(missing, 3)}. Complete the data, or "
            "leave them out with --skip-bad."
        )
    typer.echo(f"{len(corpus.clips)} clips of {len(corpus.classes())} classes; loading {model} ...", err=True)
    how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "cache": None if no_cache else cache or default_folder()}
    embedder = AudioEmbedder(spec, device, **how)
    if layers is not None:
        embedder = embedder.at_layers(choose_layers(layers, len(embedder.model.blocks)))
    check_leak(embedder.spec, corpus.clips, corpus.name, allow_label_leak, embedder.model.provenance)
    total = len(corpus.clips)
    done = follow(embedder.embed(c.path for c in corpus.clips), "embedding", "clips", lambda _, n: (n, total, 0), quiet)
    table = build_table(
        corpus.clips, embedder, done, skip_bad=skip_bad, allow_label_leak=allow_label_leak, dataset=corpus.name, about=corpus.about
    )
    table.meta["name"] = name_of(out).stem
    if embedder.spec.layers is None:
        table.save(out)
    else:
        tables = layer_tables(table, embedder.spec, len(embedder.model.blocks))
        for layer, place in _places(out, tables).items():
            tables[layer].meta["name"] = name_of(place).stem
            tables[layer].save(place)
            typer.echo(f"{place}: layer {layer} of {len(embedder.model.blocks)}, {tables[layer].width} wide")
    skipped, cached = table.meta["skipped"], table.meta["n_cached"]
    for line in skipped["files"]:
        typer.echo(f"skipped: {line}", err=True)
    fresh = len(table) - cached
    typer.echo(
        f"{out}: {len(table)} clips of {len(set(table.labels.tolist()))} classes, "
        + (f"{table.width} wide" if embedder.spec.layers is None else f"{len(embedder.spec.layers)} layers")
        + (", UNTRAINED weights" if random_init else "")
        + (f", {skipped['count']} file{'s' * (skipped['count'] > 1)} skipped" if skipped["count"] else "")
    )
    share = f", {embedder.model_seconds / embedder.seconds:.0%} of the time in the model" if fresh else ""
    typer.echo(f"{fresh} embedded, {cached} from the cache, in {embedder.seconds:.1f} s{share}", err=True)
    if table.meta["label_leak"]:
        typer.echo(f"LABEL LEAK (allowed): {table.meta['label_leak']}.", err=True)
