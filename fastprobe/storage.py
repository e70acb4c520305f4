"""Files that are whole or absent: in a folder of this machine, or behind a URL (s3://, gs://, memory://, ...).

    a folder        temporary name in the same folder, fsync, rename, fsync of the folder
    an object store one put, which is atomic there
    anything else   temporary name, then a move (what sftp:// or smb:// can do)

`Disk` holds the few operations the first line is made of, so that a test can fail each of them.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from .errors import InputError, StoreError

# Protocols whose put shows either the old object or the whole new one.
ATOMIC_PUT = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "hf"})


def is_url(location: str | os.PathLike) -> bool:
    """Whether a location is a URL that fsspec must open; ``file://`` is a path."""
    return "://" in str(location) and not str(location).startswith("file://")


def local_path(location: str | os.PathLike) -> Path:
    """The path of a location on this machine; understands ``file://``."""
    text = os.fspath(location)
    return Path(unquote(urlsplit(text).path)) if text.startswith("file://") else Path(text)


def absolute(location: str | os.PathLike) -> str:
    """The location as another process or a later shell can use it."""
    return str(location) if is_url(location) else str(local_path(location).absolute())


class Disk:
    """The operations on a folder of this machine. Each is atomic or fails with OSError."""

    def write(self, path: Path, data: bytes) -> None:
        """Write a file and flush it to the disk."""
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def create(self, path: Path, data: bytes) -> None:
        """Write a file that must not be there yet (FileExistsError)."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.write(temporary, data)
            try:
                os.link(temporary, path)  # exclusive, and whole from the first moment
            except FileExistsError:
                raise
            except OSError:  # a filesystem without hard links
                with open(path, "xb") as file:
                    file.write(data)
        finally:
            temporary.unlink(missing_ok=True)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, over what is there."""
        os.replace(source, target)

    def sync_folder(self, path: Path) -> None:
        """Flush the names of a folder: a rename survives a power cut only after this."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def unlink(self, path: Path) -> None:
        """Remove a file; absent is fine."""
        path.unlink(missing_ok=True)

    def read(self, path: Path) -> bytes:
        """All of a file."""
        return path.read_bytes()

    def names(self, path: Path) -> list[str]:
        """Names in a folder; an absent folder is empty."""
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []

    def make(self, path: Path) -> None:
        """A folder and its parents."""
        path.mkdir(parents=True, exist_ok=True)


class Folder:
    """A run directory on this machine.

    Parameters
    ----------
    path : path-like
    disk : Disk
        What does the work; another one in tests.
    """

    shared = False  # whether a worker on another machine can write here too

    def __init__(self, path: str | os.PathLike, disk: Disk | None = None) -> None:
        self.path = local_path(path)
        self.disk = disk or Disk()

    def __str__(self) -> str:
        return str(self.path)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all.

        Raises
        ------
        StoreError
            A full disk, a read-only folder; what was there before stays.
        """
        path = self.path / name
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.disk.write(temporary, data)
            self.disk.replace(temporary, path)
            self.disk.sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):  # the folder itself is gone or read-only: nothing is left to clean
                self.disk.unlink(temporary)
            raise _cannot_write(path, error) from None

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it is there; False when it is."""
        try:
            self.disk.create(self.path / name, data)
        except FileExistsError:
            return False
        except OSError as error:
            raise _cannot_write(self.path / name, error) from None
        return True

    def read(self, name: str) -> bytes:
        """All of a file; FileNotFoundError when absent, other OSError as they come."""
        return self.disk.read(self.path / name)

    def names(self, below: str = "") -> list[str]:
        """Names directly in the folder, or in one below it."""
        return self.disk.names(self.path / below)

    def remove(self, name: str) -> None:
        """Remove a file; absent is fine."""
        try:
            self.disk.unlink(self.path / name)
        except OSError as error:
            raise _cannot_write(self.path / name, error) from None

    def make(self, below: str = "") -> None:
        """Create the folder, or one below it."""
        path = self.path / below
        try:
            self.disk.make(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be created: {error.strerror or error}. Choose another `out`.") from None

    def sweep(self, below: str = "") -> None:
        """Remove what killed writers left under temporary names. Only for who holds the lock."""
        for name in self.names(below):
            if name.startswith(".") and name.endswith(".tmp"):
                self.remove(os.path.join(below, name))


def _cannot_write(path: object, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written: {error.strerror or error}. Everything stored before is kept; free "
        "space or choose another `out`, then continue with `--resume`."
    )


class RemoteFolder:
    """A run directory behind a URL, through fsspec. The same methods as `Folder`.

    Parameters
    ----------
    url : str
    filesystem : fsspec filesystem, optional
        An open one; by default the URL's own.
    """

    def __init__(self, url: str, filesystem: Any = None) -> None:
        self.url = str(url).rstrip("/")
        self.protocol = self.url.split("://", 1)[0]
        self.fs, self.root = (filesystem, self.url.split("://", 1)[1]) if filesystem is not None else _connect(self.url)
        self.root = self.root.rstrip("/")

    @property
    def shared(self) -> bool:
        """Whether a worker on another machine can write here too (memory:// is this process's own)."""
        return self.protocol != "memory"

    def __str__(self) -> str:
        return self.url

    def _full(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def write(self, name: str, data: bytes) -> None:
        """Write an object whole or not at all.

        Raises
        ------
        StoreError
            The store refuses; what was there before stays.
        """
        try:
            if self.protocol in ATOMIC_PUT:
                self.fs.pipe_file(self._full(name), data)
            else:
                temporary = self._full(f"{name}.{os.getpid()}.tmp")
                self.fs.pipe_file(temporary, data)
                self.fs.mv(temporary, self._full(name))
        except Exception as error:  # every filesystem package has errors of its own
            raise self._refused(name, error) from None

    def create(self, name: str, data: bytes) -> bool:
        """Write a small object unless it is there; False when it is.

        Where the filesystem package has no exclusive put, looks first: two that come within the same
        round trip are told apart by who reads its own content back.
        """
        try:
            try:
                self.fs.pipe_file(self._full(name), data, mode="create")
                return True
            except (TypeError, NotImplementedError, ValueError):
                if self.fs.exists(self._full(name)):
                    return False
                self.fs.pipe_file(self._full(name), data)
                return self.read(name) == data
        except FileExistsError:
            return False
        except Exception as error:
            raise self._refused(name, error) from None

    def read(self, name: str) -> bytes:
        """All of an object; FileNotFoundError when absent."""
        try:
            return self.fs.cat_file(self._full(name))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from None

    def names(self, below: str = "") -> list[str]:
        """Names directly in the folder, or in one below it."""
        self.fs.invalidate_cache()
        try:
            return [path.rsplit("/", 1)[-1] for path in self.fs.ls(self._full(below), detail=False)]
        except FileNotFoundError:
            return []
        except Exception as error:
            raise StoreError(f"{self.url}/{below}: cannot be listed: {type(error).__name__}: {error}.") from None

    def remove(self, name: str) -> None:
        """Remove an object; absent is fine."""
        try:
            self.fs.rm_file(self._full(name))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._refused(name, error) from None

    def make(self, below: str = "") -> None:
        """Create the folder where folders exist."""
        try:
            self.fs.makedirs(self._full(below), exist_ok=True)
        except Exception as error:
            raise StoreError(f"{self.url}: cannot be created: {type(error).__name__}: {error}. Choose another `out`.") from None

    def sweep(self, below: str = "") -> None:
        """Remove what killed writers left under temporary names. Only for who holds the lock."""
        for name in self.names(below):
            if name.endswith(".tmp"):
                self.remove(f"{below}/{name}" if below else name)

    def _refused(self, name: str, error: Exception) -> StoreError:
        return StoreError(
            f"{self.url}/{name}: cannot be written: {type(error).__name__}: {error}. Everything stored before "
            "is kept; continue with `--resume` when the store answers again."
        )


def _connect(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"{url}: needs a filesystem package: {str(error).rstrip('.')}. Install it (s3fs for s3://, gcsfs for gs://, adlfs for az://)."
        ) from None
    except Exception as error:
        raise InputError(f"{url}: cannot be opened: {type(error).__name__}: {error}.") from None


def open_folder(location: str | os.PathLike | Folder | RemoteFolder) -> Folder | RemoteFolder:
    """The folder at a path or URL."""
    if isinstance(location, (Folder, RemoteFolder)):
        return location
    return RemoteFolder(str(location)) if is_url(location) else Folder(location)


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
    filesystem, key = _connect(str(location))
    with tempfile.TemporaryDirectory(prefix="fastprobe-") as folder:
        copy = Path(folder) / "copy"
        try:
            copy.write_bytes(filesystem.cat_file(key))
        except FileNotFoundError:
            raise InputError(f"{location}: no such file.") from None
        except Exception as error:
            raise InputError(f"{location}: cannot be read: {type(error).__name__}: {error}.") from None
        yield copy


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
        RemoteFolder(parent).write(name, data)
    else:
        path = local_path(path)
        Folder(path.parent).write(path.name, data)
