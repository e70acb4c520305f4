"""Where something lies: a path of this machine, or a URL that fsspec opens."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import InputError
from .credentials import explain


def is_url(location: str | os.PathLike) -> bool:
    """Whether a location is a URL that fsspec must open; ``file://`` is a path."""
    return "://" in str(location) and not str(location).startswith("file://")


def local_path(location: str | os.PathLike) -> Path:
    """The path of a location on this machine; understands ``file://``.

    Raises
    ------
    InputError
        A URL, or one that pathlib has made a path of, which folds its slashes: ``Path("s3://a/b")`` is ``s3:/a/b``.
    """
    text = os.fspath(location)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) and not os.path.lexists(text.split("/", 1)[0]):
        if is_url(text):
            raise InputError(f"{text}: this must lie on this machine, not behind a URL. Copy it here and give its path.")
        raise InputError(
            f"{text}: a URL whose slashes were folded, as `pathlib.Path` does. Give it as text, or the path of something on this machine."
        )
    return Path(text)


def absolute(location: str | os.PathLike) -> str:
    """The location as another process or a later shell can use it."""
    return str(location) if is_url(location) else str(local_path(location).absolute())


def suffix_of(location: str | os.PathLike) -> str:
    """The suffix of a file's name in small letters, of a URL without its query."""
    return name_of(location).suffix.lower()


def name_of(location: str | os.PathLike) -> Path:
    """The last part of a path or URL, without the query of a URL."""
    text = os.fspath(location)
    return Path(text.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1] if is_url(text) else local_path(text))


def beside(location: str | os.PathLike, *names: str) -> str | Path:
    """What lies in the folder that a file lies in, as a path or URL."""
    return within(os.fspath(location).rsplit("/", 1)[0], *names) if is_url(location) else local_path(location).parent.joinpath(*names)


def within(folder: str | os.PathLike, *names: str) -> str | Path:
    """What lies in a folder, as a path or URL."""
    return "/".join((os.fspath(folder).rstrip("/"), *names)) if is_url(folder) else local_path(folder).joinpath(*names)


def connect(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and the key in it; InputError without its package."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"{url}: needs a filesystem package: {str(error).rstrip('.')}. Install it (s3fs for s3://, gcsfs for gs://, adlfs for az://)."
        ) from None
    except Exception as error:
        raise InputError(f"{url}: cannot be opened: {explain(error)}.") from None
