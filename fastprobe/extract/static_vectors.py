"""Word vectors in files (GloVe, fastText, word2vec as text or binary) as a language model with one layer."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

from ..errors import InputError
from ..tables.embeddings import first_few
from .spec import TextSpec

_WORD = re.compile(r"[^\W_]+(?:['\-][^\W_]+)*")


def is_vector_file(model: str) -> bool:
    """Whether a `model` is a file (of word vectors) and not a folder or a name."""
    return Path(model).is_file()


class _Hashed:
    """A reader that digests what passes through it: the file is read once."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.digest = raw, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self.raw.read(size)
        self.digest.update(block)
        return block


def _opened(path: Path, source: _Hashed) -> gzip.GzipFile | IO[bytes]:
    raw = cast(IO[bytes], source)  # reading forward asks a file for nothing but `read`
    return gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw


def _is_binary(path: Path) -> bool:
    """Whether a file has the binary format of word2vec, by its name: .bin or .bin.gz, as GoogleNews has."""
    return path.name.lower().removesuffix(".gz").endswith(".bin")


def _entries(path: Path, source: _Hashed) -> Iterator[tuple[bytes, bytes]]:
    """Words and float32 numbers of a binary file: a line "WORDS WIDTH", then a word, a space and WIDTH numbers for each.

    Raises
    ------
    InputError
        Not such a file, or one that ends too early.
    """
    stream = _opened(path, source)
    foreign = InputError(f"`model` {path}: not the binary format of word2vec, or truncated. Give text, or suffix it as what it is.")
    rest = bytes(stream.read(1 << 20))
    head, newline, rest = rest.partition(b"\n")
    counts = head.split()
    if not newline or len(counts) != 2 or not all(p.isdigit() and len(p) < 12 for p in counts) or not 1 < int(counts[1]) < 1 << 20:
        raise foreign
    size, at = 4 * int(counts[1]), 0
    for _ in range(int(counts[0])):
        space = rest.find(b" ", at)
        while space < 0 or space + 1 + size > len(rest):
            if not (block := stream.read(1 << 20)) or (space < 0 and len(rest) - at > 1 << 20):
                raise foreign
            rest, at = rest[at:] + block, 0
            space = rest.find(b" ", at)
        yield rest[at:space].lstrip(b"\n"), rest[space + 1 : space + 1 + size]
        at = space + 1 + size


def _lines(path: Path, source: _Hashed) -> Iterator[bytes]:
    stream = _opened(path, source)
    rest = b""
    while block := stream.read(1 << 20):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


def read_vectors(path: str | os.PathLike, wanted: Iterable[str]) -> tuple[dict[str, np.ndarray], str]:
    """The vectors of the wanted words, and the file's digest.

    Each line is a word and its numbers; a first line of two whole numbers (word2vec: words and width) is skipped. Names that end in
    .bin or .bin.gz are taken for word2vec's binary format. The file is streamed: only wanted words are held.

    Raises
    ------
    InputError
        Not such a file, lines of different widths, numbers that are not.
    """
    path = Path(path)
    keys = {word.encode(): word for word in wanted}
    found: dict[str, np.ndarray] = {}
    width = 0
    with open(path, "rb") as raw:
        source = _Hashed(raw)
        try:
            for word_bytes, numbers in _entries(path, source) if _is_binary(path) else ():
                word = keys.get(word_bytes)
                if word is not None and word not in found:
                    found[word] = np.frombuffer(numbers, "<f4").astype(np.float32)
                    if not np.isfinite(found[word]).all():
                        raise InputError(f"`model` {path}: {word!r} holds NaN or infinity.")
            for number, line in enumerate(() if _is_binary(path) else _lines(path, source), start=1):
                parts = line.rstrip().split(b" ")
                if number == 1 and len(parts) == 2 and all(p.isdigit() for p in parts):
                    continue
                width = width or len(parts) - 1
                if width < 2 or b"\0" in line[:200]:
                    raise InputError(
                        f"`model` {path}: line {number} is not a word and its numbers, with spaces between. Give the text "
                        "format of GloVe or word2vec (or a model's folder)."
                    )
                # A word may hold spaces (GloVe 840B has some): the numbers are the last `width` parts.
                word = keys.get(b" ".join(parts[:-width]))
                if word is not None and word not in found:
                    found[word] = _numbers(path, number, parts[-width:])
        except (gzip.BadGzipFile, EOFError) as error:
            raise InputError(f"`model` {path}: not a whole gzip file ({error}).") from None
        while source.read(1 << 20):
            pass
    return found, source.digest.hexdigest()


def _numbers(path: Path, number: int, parts: Sequence[bytes]) -> np.ndarray:
    try:
        vector = np.array([float(p) for p in parts], dtype=np.float32)
    except ValueError:
        raise InputError(f"`model` {path}: line {number} has other than numbers after its word, or fewer than the first line.") from None
    if not np.isfinite(vector).all():
        raise InputError(f"`model` {path}: line {number} holds NaN or infinity.")
    return vector


def words_of(text: str) -> list[str]:
    """The words of a text: letters and digits, with inner apostrophes and hyphens."""
    return _WORD.findall(text)


def static_embeddings(spec: TextSpec, names: Sequence[str]) -> tuple[np.ndarray, str]:
    """Vectors of names, float32 (n, D), and the file's digest: words pooled (mean, max, last), templates left out.

    A word is looked up as it stands, then in lower case, then, if hyphenated, in its parts; unknown words of a name that has known
    ones are passed over.

    Raises
    ------
    InputError
        `pool` "cls", a template, or a revision, which word vectors have not; names without one known word, listed.
    """
    if spec.pool == "cls":
        raise InputError('`pool`="cls" needs a class token, which word vectors have not. Use mean, last or max.')
    if spec.templates != ("{}",):
        raise InputError(f"`template` needs a model that reads sentences; {spec.model} holds word vectors. Leave it out.")
    if spec.revision or spec.random_init:
        raise InputError(f"`revision` and `random_init` are for models of transformers; {spec.model} holds word vectors.")
    words = {w for name in names for w in words_of(name)}
    wanted = words | {w.lower() for w in words} | {p for w in words for p in w.lower().split("-") if p}
    vectors, digest = read_vectors(spec.model, wanted)
    if spec.weights is not None and spec.weights != digest:
        raise InputError(
            f"`model` {spec.model}: not the file that made the table (digest {digest[:12]}... instead of "
            f"{spec.weights[:12]}...). Give that file, or embed the table again."
        )
    pools: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "max": np.max}
    rows, unknown = [], []
    for name in names:
        known = []
        for word in words_of(name):
            forms = [word] if word in vectors else [word.lower()] if word.lower() in vectors else word.lower().split("-")
            known += [vectors[f] for f in forms if f in vectors]
        if not known:
            unknown.append(name)
            continue
        rows.append(pools[spec.pool](known, axis=0) if spec.pool != "last" else known[-1])
    if unknown:
        raise InputError(
            f"`classes`: {len(unknown)} names have no word that {spec.model} knows: {first_few(unknown)}. Give them other "
            "names (a .csv with columns `label` and `name`) or drop them."
        )
    return np.array(rows, dtype=np.float32), digest
