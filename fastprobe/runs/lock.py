"""`RunLock`: one run at a time in a directory, with the holder named.

The lock is a small file with the holder's host, process and a beat that a thread renews. A lock whose
process is dead on this machine is taken over at once. One of another machine (or another container) is
taken over when its beat stands still for `PATIENCE` seconds *of our own monotonic clock*: no two clocks
are ever compared, so a wrong or jumping clock changes nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..storage import Folder, RemoteFolder

NAME = "run.lock"
BEAT = 5.0
PATIENCE = 20.0


def _namespace() -> str:
    """What process ids are relative to: the boot and the container."""
    out = []
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            out.append(read())
        except OSError:
            out.append("?")
    return "/".join(out)


def process_started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks since boot; None when it is dead or a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return None if Path("/proc/self").exists() else "?"
    except (OSError, IndexError):
        return "?"
    return None if fields[0] in "ZX" else fields[19]


class RunLock:
    """Hold a run directory. A context manager; `check` raises once the lock is lost.

    Parameters
    ----------
    folder : Folder or RemoteFolder
    patience : float
        Seconds of silence after which another machine's lock is stale.
    beat : float
        Seconds between signs of life.
    """

    def __init__(self, folder: Folder | RemoteFolder, patience: float = PATIENCE, beat: float = BEAT) -> None:
        self.folder, self.patience, self.beat = folder, patience, beat
        self.record: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": _now(),
            "token": secrets.token_hex(8),
            "namespace": _namespace(),
            "started": process_started(os.getpid()),
            "beat": 0,
        }
        self._stop = threading.Event()
        self._lost: dict[str, Any] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        while not self.folder.create(NAME, self._content()):
            holder = read_lock(self.folder)
            if holder is None:  # released between the two looks, or not a lock at all
                time.sleep(0.2)
                if NAME in self.folder.names() and read_lock(self.folder) is None:
                    self.folder.remove(NAME)
                continue
            self._wait_until_stale(holder)
            if (read_lock(self.folder) or {}).get("token") == holder.get("token"):
                self.folder.remove(NAME)
        # Two that took over the same stale lock at the same moment: the later one's content stands.
        if (read_lock(self.folder) or {}).get("token") != self.record["token"]:
            raise self._refuse(read_lock(self.folder) or {})
        self._thread = threading.Thread(target=self._keep, name="fastprobe-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _content(self) -> bytes:
        return json.dumps(self.record).encode()

    def _wait_until_stale(self, holder: dict[str, Any]) -> None:
        if is_dead(holder):
            return
        if is_here(holder):
            raise self._refuse(holder)
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            time.sleep(min(self.beat / 2, self.patience / 4))
            now = read_lock(self.folder)
            if now is None:
                return
            if (now.get("token"), now.get("beat")) != (holder.get("token"), holder.get("beat")):
                raise self._refuse(now)

    def _refuse(self, holder: dict[str, Any]) -> StoreError:
        return StoreError(
            f"{self.folder}: another run holds this directory: {describe(holder)}. Wait for it or stop it; "
            "two runs in one directory would do the same work twice."
        )

    def _keep(self) -> None:
        while not self._stop.wait(self.beat):
            held = read_lock(self.folder)
            if held is not None and held.get("token") != self.record["token"]:
                self._lost = held
                return
            self.record["beat"] += 1
            try:
                self.folder.write(NAME, self._content())
            except StoreError:
                continue  # a full disk must not stop the beat for good; the next shard will say so

    def check(self) -> None:
        """Raises StoreError when another run has taken the lock (this one was suspended for long)."""
        if self._lost is not None:
            raise StoreError(
                f"{self.folder}: this run lost the directory to {describe(self._lost)}, after it had been "
                "silent for too long. Everything it finished is kept."
            )

    def release(self) -> None:
        """Give the directory back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)
        try:
            if (read_lock(self.folder) or {}).get("token") == self.record["token"]:
                self.folder.remove(NAME)
        except StoreError:  # a read-only folder now: the next run sees that this process is dead
            return


def read_lock(folder: Folder | RemoteFolder) -> dict[str, Any] | None:
    """The holder's record; None when nobody holds the lock or its file is torn."""
    try:
        record = json.loads(folder.read(NAME))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("pid"), int) else None


def is_here(holder: dict[str, Any]) -> bool:
    """Whether the holder's process id means something on this machine and in this container."""
    return holder.get("host") == socket.gethostname() and holder.get("namespace") == _namespace()


def is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder certainly is gone: it was a process of this machine, and is no more."""
    if not is_here(holder):
        return False
    started = process_started(holder["pid"])
    return started is None or started != holder.get("started")


def describe(holder: dict[str, Any]) -> str:
    """The holder in words: process, host, since when."""
    return f"process {holder.get('pid')} on {str(holder.get('host'))[:80]!r} since {str(holder.get('since'))[:40]}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
