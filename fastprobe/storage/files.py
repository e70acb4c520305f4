"""Single files, whole or absent: fetched from behind a URL, written in one step."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, StoreError
from .credentials import explain
from .folders import Folder, RemoteFolder
from .places import connect, is_url, local_path, suffix_of


@contextlib.contextmanager
def local_copy(location: str | os.PathLike) -> Iterator[Path]:
    """The path of a file on this machine; what lies behind a URL is fetched for as long as the block lasts.

    Raises
    ------
    InputError
        No such file, no such filesystem package, no permission.
    """
    if not is_url(location):
        path = local_path(location)
        if not path.is_file():
            raise InputError(f"{path}: {'a directory, not a file' if path.is_dir() else 'no such file'}.")
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: cannot be read: permission denied.")
        yield path
        return
    with Fetched(location) as copy:
        yield copy


class Fetched:
    """A file from behind a URL, on this machine for as long as this object lives, or until it is closed.

    A context manager over the path. The name is kept: sound files and tables are told apart by their suffix.

    Raises
    ------
    InputError
        No such file, no such filesystem package, no permission.
    """

    def __init__(self, location: str | os.PathLike) -> None:
        filesystem, key = connect(str(location))
        self._folder = tempfile.TemporaryDirectory(prefix="fastprobe-")
        self.path = Path(self._folder.name) / f"copy{suffix_of(location)}"
        try:
            filesystem.get_file(key, str(self.path))
        except FileNotFoundError:
            self.close()
            raise InputError(f"{location}: no such file.") from None
        except Exception as error:
            self.close()
            raise InputError(f"{location}: cannot be read: {explain(error)}.") from None
        if not self.path.is_file():  # what fsspec makes of a folder
            self.close()
            raise InputError(f"{location}: a directory, not a file.")

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy."""
        self._folder.cleanup()


class FetchedFolder(Fetched):
    """Like `Fetched`, the files that lie directly in a folder; those that are not there are left out.

    Parameters
    ----------
    location : str
    names : sequence of str
        Which files.
    """

    def __init__(self, location: str | os.PathLike, names: Sequence[str]) -> None:
        filesystem, key = connect(str(location).rstrip("/"))
        self._folder = tempfile.TemporaryDirectory(prefix="fastprobe-")
        self.path = Path(self._folder.name)
        try:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    filesystem.get_file(f"{key.rstrip('/')}/{name}", str(self.path / name))
        except Exception as error:
            self.close()
            raise InputError(f"{location}: cannot be read: {explain(error)}.") from None


def put_files(folder: Path, location: str, names: Sequence[str]) -> None:
    """Store files of a folder of this machine behind a URL, in this order: who sees the last one sees all.

    Raises
    ------
    StoreError
        The store refuses.
    """
    filesystem, key = connect(location.rstrip("/"))
    target = RemoteFolder(location, filesystem)
    target.make()
    for name in names:
        try:
            filesystem.put_file(str(folder / name), f"{key.rstrip('/')}/{name}")
        except Exception as error:
            raise StoreError(f"{location}/{name}: cannot be written: {explain(error)}.") from None


@contextlib.contextmanager
def new_file(location: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to be filled, local or by URL, that takes its place whole when the block ends without an error.

    Raises
    ------
    InputError
        It cannot be written; what was there before stays.
    """
    if is_url(location):
        buffer = io.BytesIO()
        yield buffer
        write_atomically(location, buffer.getvalue())
        return
    path = local_path(location)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}. Choose another place or free space.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file, local or by URL, whole or not at all.

    Raises
    ------
    StoreError
        A full disk, a read-only folder; what was there before stays.
    """
    if is_url(path):
        parent, name = str(path).rsplit("/", 1)
        folder = RemoteFolder(parent)
        folder.make()
        folder.write(name, data)
    else:
        path = local_path(path)
        Folder(path.parent).write(path.name, data)
