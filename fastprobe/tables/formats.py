"""Files of embedding tables, read and written whole: .npz, .safetensors, .parquet. `streams` reads the same files block by block.

Nothing here unpickles: arrays of objects are refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import InputError
from ..storage.columns import to_arrow
from .arrow import LABEL, OWN, VECTOR, Columns, read_arrow

if TYPE_CHECKING:
    from .embeddings import EmbeddingTable

SUFFIXES = (".npz", ".safetensors", ".parquet")


def suffix_of_table(name: Path, shown: str) -> str:
    """The suffix that names a table's format.

    Raises
    ------
    InputError
        Another one.
    """
    if name.suffix.lower() not in SUFFIXES:
        raise InputError(f"{shown}: the suffix {name.suffix!r} is not one of {', '.join(SUFFIXES)}. Save the table as one of these.")
    return name.suffix.lower()


def _foreign(path: object, kind: str, error: object) -> InputError:
    return InputError(
        f"{path}: not a readable {kind} file ({error}). It is truncated, or something else with this suffix: "
        "write it again, or give it the suffix of what it is."
    )


def _missing(path: str, what: str, found: Sequence[str]) -> InputError:
    return InputError(f"{path}: {what} is missing; found {', '.join(sorted(found)) or 'nothing'}.")


def read_meta(path: object, text: str | None) -> dict[str, Any]:
    """The meta of a table's file; InputError when it is not a JSON object."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _foreign(path, "embedding", f"its meta is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _foreign(path, "embedding", "its meta is not an object")
    return value


def _read_npz(source: Path, path: str, columns: Columns):
    try:
        archive = np.load(source, allow_pickle=False)
        if not hasattr(archive, "files"):
            raise InputError(f"{path}: a single array (.npy), not an .npz archive with `vectors` and `labels`.")
        with archive as file:
            for name in ("vectors", "labels"):
                if name not in file.files:
                    raise _missing(path, f"array `{name}`", file.files)
            ids = file["ids"] if "ids" in file.files else None
            meta = read_meta(path, str(file["meta"])) if "meta" in file.files else {}
            return file["vectors"], file["labels"], ids, meta
    except InputError:
        raise
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickle" in str(error).lower():
            raise InputError(
                f"{path}: holds pickled objects, which are never unpickled here, or is not an .npz file. "
                "Save plain arrays: numbers for `vectors`, strings for `labels`."
            ) from None
        raise _foreign(path, "npz", error) from None
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, MemoryError, NotImplementedError, SyntaxError) as error:
        raise _foreign(path, "npz", error) from None
    except Exception as error:  # zlib.error and whatever else a damaged archive provokes
        if type(error).__module__ in ("zlib", "struct", "tokenize"):
            raise _foreign(path, "npz", error) from None
        raise


def _write_npz(table: EmbeddingTable, file) -> None:
    np.savez(file, vectors=table.vectors, labels=table.labels, ids=table.ids, meta=json.dumps(table.meta))


def read_bfloat16(source: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `start` ... `stop`-1 of the tensor `vectors` in bfloat16, as float32: NumPy has no such type.

    A bfloat16 is the upper half of a float32. The layout of the file (length of the header, header in JSON, data) is that of
    https://huggingface.co/docs/safetensors/index#format.
    """
    with open(source, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        tensor = json.loads(file.read(size))["vectors"]
        shape, first = tensor["shape"], 8 + size + tensor["data_offsets"][0]
        width = int(np.prod(shape[1:]))
        stop = shape[0] if stop is None else min(stop, shape[0])
        file.seek(first + 2 * width * start)
        halves = np.frombuffer(file.read(2 * width * (stop - start)), "<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(stop - start, *shape[1:])


def _read_safetensors(source: Path, path: str, columns: Columns):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="numpy") as file:
            names, header = list(file.keys()), file.metadata() or {}
            if "vectors" not in names:
                raise _missing(path, "tensor `vectors`", names)
            kind = file.get_slice("vectors").get_dtype()
            vectors = read_bfloat16(source) if kind == "BF16" else file.get_tensor("vectors")
    except SafetensorError as error:
        raise _foreign(path, "safetensors", error) from None
    except (OSError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise _foreign(path, "safetensors", error) from None
    if "labels" not in header:
        raise _missing(path, "`labels` (a JSON list in the file's metadata)", list(header))
    try:
        labels = json.loads(header["labels"])
        ids = json.loads(header["ids"]) if "ids" in header else None
    except json.JSONDecodeError as error:
        raise _foreign(path, "safetensors", f"labels or ids are not JSON: {error}") from None
    return vectors, np.asarray(labels), None if ids is None else np.asarray(ids), read_meta(path, header.get("meta"))


def _write_safetensors(table: EmbeddingTable, file) -> None:
    from safetensors.numpy import save

    file.write(
        save(
            {"vectors": table.vectors},
            metadata={"labels": json.dumps(table.labels.tolist()), "ids": json.dumps(table.ids.tolist()), "meta": json.dumps(table.meta)},
        )
    )


def _read_parquet(source: Path, path: str, columns: Columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        frame = pq.ParquetFile(source).read()  # not read_table, which takes folder names like a=b for columns
        frame.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _foreign(path, "parquet", str(error).splitlines()[0]) from None
    meta = read_meta(path, (frame.schema.metadata or {}).get(OWN, b"").decode("utf-8", "replace"))
    return *read_arrow(frame, path, columns), meta


def _write_parquet(table: EmbeddingTable, file) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.FixedSizeListArray.from_arrays(to_arrow(table.vectors.ravel()), table.width)
    frame = pa.table({"id": table.ids.tolist(), LABEL: table.labels.tolist(), VECTOR: vector})
    pq.write_table(frame.replace_schema_metadata({OWN: json.dumps(table.meta).encode()}), file)


class Format(NamedTuple):
    """A kind of file: read(file on this machine, name for messages, columns) -> vectors, labels, ids, meta; write(table, open file)."""

    read: Callable[[Path, str, Columns], tuple[Any, ...]]
    write: Callable[[EmbeddingTable, BinaryIO], None]


FORMATS = {
    ".npz": Format(_read_npz, _write_npz),
    ".safetensors": Format(_read_safetensors, _write_safetensors),
    ".parquet": Format(_read_parquet, _write_parquet),
}
