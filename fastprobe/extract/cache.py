"""A content-addressed cache of clip vectors: what has been embedded once is not embedded again.

    key = SHA-256(bytes of the file), under SHA-256(model, weights, mode, windows, padding, rate)

so a renamed, copied or relabelled file is found, and a changed file, model, checkpoint or option is not. An entry is whole
or absent: it is written beside its place and moved there, and carries a digest of itself, so that a damaged entry counts as
missing. Several processes may share a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError


def default_folder() -> Path:
    """``$FASTPROBE_CACHE``, else ``$XDG_CACHE_HOME/fastprobe``, else ``~/.cache/fastprobe``."""
    if own := os.environ.get("FASTPROBE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastprobe"


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class VectorCache:
    """The vectors of one model and set of options.

    Parameters
    ----------
    folder
        Where caches live; made on the first write.
    options
        Everything that decides a vector beside the file's bytes. JSON-serialisable.
    """

    def __init__(self, folder: str | os.PathLike, options: Mapping[str, Any]) -> None:
        text = json.dumps(options, sort_keys=True)
        self.folder = Path(folder) / "audio" / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> np.ndarray | None:
        """The vector of a file with this digest, float32 (D,), or None."""
        try:
            data = self._place(key).read_bytes()
        except OSError:
            return None
        body, digest = data[:-32], data[-32:]
        if not body or len(body) % 4 or hashlib.sha256(body).digest() != digest:
            return None
        return np.frombuffer(body, "<f4").astype(np.float32)

    def put(self, key: str, vector: np.ndarray) -> None:
        """Store a vector.

        Raises
        ------
        InputError
            The folder cannot be written to.
        """
        place = self._place(key)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        body = vector.astype("<f4").tobytes()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(body + hashlib.sha256(body).digest())
            os.replace(temporary, place)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise InputError(
                f"`cache` {self.folder} cannot be written to ({error.strerror or error}). Name another folder, or turn "
                "the cache off (in the shell --no-cache)."
            ) from None
