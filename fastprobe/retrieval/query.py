"""What stands behind `fastprobe query` and `fastprobe index search`: sounds in, the nearest texts out.

Sounds are decoded and embedded by the model named in the probe's meta, so a probe file is all one needs to keep.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..storage import Fetched, is_url, local_copy, local_path, open_folder, suffix_of
from ..tables.arrow import split_location
from ..tables.embeddings import SUFFIXES, EmbeddingTable, first_few
from .fit import load_probe
from .gallery import GalleryIndex
from .linear import LinearProbe, check_no_csls
from .probe import check_model, model_difference


class Queries(NamedTuple):
    """Named sounds, projected by the probe: vectors (n, d)."""

    names: list[str]
    vectors: np.ndarray


class Found(NamedTuple):
    """The texts nearest to one query, best first."""

    query: str
    texts: list[str]
    scores: list[float]


def query(
    probe: Any,
    inputs: Sequence[str | os.PathLike],
    gallery: str | os.PathLike | None = None,
    k: int = 5,
    *,
    device: str | None = None,
    any_model: bool = False,
    audio_checkpoint: str | None = None,
    text_model: str | None = None,
    audio_model: str | None = None,
) -> list[Found]:
    """The k texts nearest to each sound.

    Parameters
    ----------
    probe : ContrastiveProbe, ClosedFormProbe or path
        A saved probe names the models that its tables came from.
    inputs : sequence of path
        Sound files, embedded by the probe's audio model; or audio tables, of which every row is a query.
    gallery : path, optional
        A text table, a text file with one text per line (embedded by the probe's text model), or the folder of an index.
        By default the probe's own classes.
    k : int
    device : str, optional
        For the embedding models.
    any_model : bool
        Accept tables of other models, if their width fits.
    audio_checkpoint, text_model : str, optional
        Where the weights lie now, when they have moved since the tables were made.
    audio_model : str, optional
        The audio model that the probe names, as "hear:MODULE". It must be given where loading it imports a module: a probe
        may come from strangers.

    Returns
    -------
    list of Found
        One per query, in the order of the inputs.

    Raises
    ------
    InputError
        A probe, table or index that does not fit; a file that is not a sound; k above the gallery's size; an empty gallery.
    """
    if not isinstance(probe, LinearProbe):
        probe = load_probe(probe)
    index = open_gallery(probe, gallery, device=device, any_model=any_model, text_model=text_model)
    if isinstance(k, int) and k > len(index):  # before any sound is decoded
        raise InputError(f"`k` must be at most the size of the gallery, {len(index):,}; got {k:,}. Lower it.")
    queries = project_inputs(probe, inputs, device=device, any_model=any_model, audio_checkpoint=audio_checkpoint, audio_model=audio_model)
    if probe.csls:  # the gallery lies in memory: `open_gallery` lets no index pass
        return _named(index, queries, *probe.search(queries.vectors, np.asarray(index.vectors), k))
    return lookup(index, queries, k)


def lookup(index: GalleryIndex, queries: Queries, k: int, exact: bool = False) -> list[Found]:
    """Search and name what was found."""
    return _named(index, queries, *index.search(queries.vectors, k, exact=exact))


def _named(index: GalleryIndex, queries: Queries, scores: np.ndarray, rows: np.ndarray) -> list[Found]:
    texts = index.texts(rows)
    return [Found(name, t.tolist(), [round(float(v), 6) for v in s]) for name, t, s in zip(queries.names, texts, scores)]


def search_index(
    path: str | os.PathLike,
    inputs: Sequence[str | os.PathLike],
    k: int = 5,
    *,
    exact: bool = False,
    device: str | None = None,
    any_model: bool = False,
    audio_model: str | None = None,
) -> list[Found]:
    """Look inputs up in an index on disk.

    An index that was built with a probe carries it and takes sound files and audio tables; one without takes tables of
    the model that embedded its texts.

    Raises
    ------
    InputError
        As `query`.
    """
    index = GalleryIndex.load(path)
    if index.probe_file is not None:
        probe = load_probe(index.probe_file)
        index.check_probe(probe.digest)
        queries = project_inputs(probe, inputs, device=device, any_model=any_model, audio_model=audio_model)
    else:
        names, vectors = [], []
        for file in inputs:
            if not _is_table(file):
                raise InputError(
                    f"{file}: this index was built without a probe, so only tables can be looked up in it. Build "
                    "it with --probe to look up sounds."
                )
            table = EmbeddingTable.load(file)
            if not any_model and (difference := model_difference(index.meta["source"], table.meta)):
                raise InputError(
                    f"{file}: embedded by another model than the index: {difference}. Embed it with the index's "
                    "model, or say --any-model if the vectors are alike all the same."
                )
            if table.width != index.meta["width"]:
                raise InputError(
                    f"{file}: its vectors have width {table.width}, those of the index {index.meta['width']}. Embed "
                    "it with the index's model."
                )
            names += table.ids.tolist()
            vectors.append(table.vectors)
        if not vectors:
            raise InputError("`inputs` must name at least one table; got none.")
        queries = Queries(names, np.concatenate(vectors))
    return lookup(index, queries, k, exact)


def _is_table(path: str | os.PathLike) -> bool:
    """Whether a location is one of a table, by its suffix."""
    return suffix_of(split_location(path)[0]) in SUFFIXES


def open_gallery(
    probe: LinearProbe,
    gallery: str | os.PathLike | None,
    *,
    device: str | None = None,
    any_model: bool = False,
    text_model: str | None = None,
) -> GalleryIndex:
    """The gallery of a query, projected by the probe and ready to be searched; see `query`."""
    if gallery is None:
        return GalleryIndex(probe.gallery_, probe.classes_, "exact")
    if _is_table(gallery) and (is_url(gallery) or not local_path(gallery).is_dir()):
        table = EmbeddingTable.load(gallery)
        check_model(probe, "text", table.meta, table.width, str(gallery), any_model)
        return GalleryIndex(probe.project_text(table), table.labels, "exact")
    # Behind a URL a folder is what holds an index: object stores know no others.
    if "meta.json" in open_folder(gallery).names() if is_url(gallery) else local_path(gallery).is_dir():
        check_no_csls(probe, f"`gallery` {gallery}, an index,")
        index = GalleryIndex.load(gallery)
        index.check_probe(probe.digest)
        return index
    texts = read_texts(gallery)
    vectors = _embed_texts(texts, _made_by(probe, "text"), text_model, device)
    check_model(probe, "text", {}, vectors.shape[1], str(gallery))
    return GalleryIndex(probe.project_text(vectors), texts, "exact")


def read_texts(path: str | os.PathLike) -> list[str]:
    """The texts of a file, one per line; empty lines are skipped.

    Raises
    ------
    InputError
        No such file, not UTF-8, no text in it.
    """
    try:
        if is_url(path):
            with local_copy(path) as source:
                lines = source.read_text("utf-8-sig").splitlines()
        else:
            lines = local_path(path).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"`gallery` {path}: cannot be read: {error.strerror}. Give a text table ({', '.join(SUFFIXES)}), a text "
            "file with one text per line, or the folder of an index."
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"`gallery` {path}: not UTF-8 text (byte {error.start}). Give a text file with one text per line, or "
            f"a table ({', '.join(SUFFIXES)})."
        ) from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"`gallery` {path}: an empty gallery. Write one text per line.")
    return texts


def project_inputs(
    probe: LinearProbe,
    inputs: Sequence[str | os.PathLike],
    *,
    device: str | None = None,
    any_model: bool = False,
    audio_checkpoint: str | None = None,
    audio_model: str | None = None,
) -> Queries:
    """Sound files and audio tables, in their order, in the probe's space; see `query`."""
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    if not inputs:
        raise InputError("`inputs` must name at least one sound file or audio table; got none.")
    if missing := [str(p) for p in inputs if not is_url(p) and not local_path(split_location(p)[0]).is_file()]:
        raise InputError(f"`inputs`: {len(missing)} are not there: {first_few(missing)}.")
    parts: list[tuple[list[str], np.ndarray]] = [([], np.empty(0))] * len(inputs)
    sounds = [i for i, p in enumerate(inputs) if not _is_table(p)]
    for i in sorted(set(range(len(inputs))) - set(sounds)):
        table = EmbeddingTable.load(inputs[i])
        check_model(probe, "audio", table.meta, table.width, str(inputs[i]), any_model)
        parts[i] = table.ids.tolist(), probe.queries(table)
    if sounds:
        made_by = _made_by(probe, "audio")
        with ExitStack() as copies:
            files = [copies.enter_context(Fetched(p)) if is_url(p) else local_path(p) for p in (inputs[i] for i in sounds)]
            vectors = _embed_files(files, made_by, audio_checkpoint, device, audio_model)
        check_model(probe, "audio", {}, vectors.shape[1], str(inputs[sounds[0]]))
        for i, row in zip(sounds, probe.queries(vectors)):
            parts[i] = [str(inputs[i])], row[None]
    return Queries([n for names, _ in parts for n in names], np.concatenate([v for _, v in parts]))


def _made_by(probe: LinearProbe, side: str) -> dict[str, Any]:
    """The meta of the probe's text or audio table, which must name the model that could embed more of them."""
    meta = probe.meta.get(side) or {}
    if not meta.get("spec"):
        what, give = ("sounds", "audio tables instead of sound files") if side == "audio" else ("texts", "a text table as gallery")
        raise InputError(
            f"the probe does not name a model that could embed {what}: its {side} table "
            f"({meta.get('name', 'unnamed')}) was not made by `fastprobe embed {side}`. Give {give}."
        )
    return meta


def _embed_files(paths: Sequence[Path], meta: dict[str, Any], checkpoint: str | None, device: str | None, model: str | None) -> np.ndarray:
    from ..extract.spec import AudioSpec

    spec = AudioSpec.from_meta(meta, checkpoint)
    spec.check_named(model, "the probe")  # before anything of the model is imported
    from ..extract.audio import embed_files

    return embed_files(paths, spec, device)


def _embed_texts(texts: Sequence[str], meta: dict[str, Any], model: str | None, device: str | None) -> np.ndarray:
    from ..extract.text import TextSpec, embed_texts

    return embed_texts(texts, TextSpec.from_meta(meta, model), device)


def to_json(found: Sequence[Found]) -> str:
    """A list with one object per query: query, texts, scores."""
    return json.dumps([f._asdict() for f in found], indent=2, ensure_ascii=False)


def to_table(found: Sequence[Found]):
    """For a terminal: a rich table, one line per text."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name, options in (
        ("query", {"overflow": "fold"}),
        ("", {"justify": "right"}),
        ("text", {"overflow": "fold"}),
        ("score", {"justify": "right", "no_wrap": True}),
    ):
        table.add_column(name, **options)
    for f in found:
        for i, (text, score) in enumerate(zip(f.texts, f.scores)):
            table.add_row(f.query if i == 0 else "", str(i + 1), text, f"{score:.3f}", end_section=i + 1 == len(f.texts))
    return table
