"""Run directories: `Folder` on this machine, `RemoteFolder` behind a URL, with the same methods.

`Disk` holds the few operations that a folder of this machine is made of, so that a test can fail each of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .credentials import explain
from .places import connect, is_url, local_path

# Protocols whose put shows either the old object or the whole new one.
ATOMIC_PUT = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "hf"})


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
        self.fs, self.root = (filesystem, self.url.split("://", 1)[1]) if filesystem is not None else connect(self.url)
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
            # A put whose answer was lost is sent again by the filesystem package, and then finds its own object there.
            return self._holds(name, data)
        except Exception as error:
            if getattr(error, "errno", None) == errno.EINVAL and self._there(name):  # how s3fs tells of some stores' 412
                return self._holds(name, data)
            raise self._refused(name, error) from None

    def _there(self, name: str) -> bool:
        try:
            return bool(self.fs.exists(self._full(name)))
        except Exception:  # then the first error is the one to tell
            return False

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.read(name) == data
        except OSError:
            return False

    def read(self, name: str) -> bytes:
        """All of an object; FileNotFoundError when absent."""
        try:
            return self.fs.cat_file(self._full(name))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OSError(explain(error)) from None

    def names(self, below: str = "") -> list[str]:
        """Names directly in the folder, or in one below it."""
        self.fs.invalidate_cache()
        try:
            return [path.rsplit("/", 1)[-1] for path in self.fs.ls(self._full(below), detail=False)]
        except FileNotFoundError:
            return []
        except Exception as error:
            raise StoreError(f"{self.url}/{below}: cannot be listed: {explain(error)}.") from None

    def remove(self, name: str) -> None:
        """Remove an object; absent is fine."""
        try:
            self.fs.rm_file(self._full(name))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._refused(name, error) from None

    def make(self, below: str = "") -> None:
        """Create the folder where folders exist; an object store has none, and s3fs would create a bucket that is not there."""
        if self.protocol in ATOMIC_PUT - {"memory"}:
            return
        try:
            self.fs.makedirs(self._full(below), exist_ok=True)
        except Exception as error:
            raise StoreError(f"{self.url}: cannot be created: {explain(error)}. Choose another `out`.") from None

    def sweep(self, below: str = "") -> None:
        """Remove what killed writers left under temporary names. Only for who holds the lock."""
        for name in self.names(below):
            if name.endswith(".tmp"):
                self.remove(f"{below}/{name}" if below else name)

    def _refused(self, name: str, error: Exception) -> StoreError:
        return StoreError(
            f"{self.url}/{name}: cannot be written: {explain(error)}. Everything stored before "
            "is kept; continue with `--resume` when the store answers again."
        )


def open_folder(location: str | os.PathLike | Folder | RemoteFolder) -> Folder | RemoteFolder:
    """The folder at a path or URL."""
    if isinstance(location, (Folder, RemoteFolder)):
        return location
    return RemoteFolder(str(location)) if is_url(location) else Folder(location)
