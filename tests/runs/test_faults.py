"""After any prefix of writes, renames and fsyncs, a kill, a power cut or a full disk, a resume ends in the same store."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastprobe.errors import StoreError
from fastprobe.runs import run
from fastprobe.runs.store import ResultStore
from fastprobe.storage import Folder
from support.small_runs import copying, experiment, finish, same_rows, sized


class Killed(BaseException):
    """The process is gone; nothing after this runs."""


class FakeDisk:
    """A disk in memory that can die, or fail, at any operation.

    `files` is what a process sees. A rename survives a power cut for certain only once its folder was synced.
    """

    def __init__(self):
        self.files: dict[Path, bytes] = {}
        self.pending: list[tuple[Path, bytes | None]] = []  # (path, what was there before) of names not yet synced
        self.fuse: int | None = None
        self.refuse: int | None = None
        self.dead = False

    def _step(self, half=None):
        if self.dead:
            raise Killed
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.dead = True
                if half is not None:
                    half()
                raise Killed
        if self.refuse is not None:
            self.refuse -= 1
            if self.refuse < 0:
                if half is not None:
                    half()
                raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, path, data):
        self._step(lambda: self._set(path, data[: len(data) // 2]))
        self._set(path, data)
        self._step()  # between the write and its fsync: the content may be torn after a power cut, under a temporary name

    def _set(self, path, data):
        self.pending.append((path, self.files.get(path)))
        self.files[path] = data

    def create(self, path, data):
        self._step()
        if path in self.files:
            raise FileExistsError(errno.EEXIST, "File exists")
        self._set(path, data)

    def replace(self, source, target):
        self._step()
        data = self.files[source]
        self._set(target, data)
        self.pending.append((source, data))
        del self.files[source]

    def sync_folder(self, path):
        self._step()
        self.pending = [(p, old) for p, old in self.pending if p.parent != path]

    def unlink(self, path):
        if self.dead:
            raise Killed
        if path in self.files:
            self.pending.append((path, self.files.pop(path)))

    def read(self, path):
        if self.dead:
            raise Killed
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file")
        return self.files[path]

    def names(self, path):
        if self.dead:
            raise Killed
        return [p.name for p in self.files if p.parent == path]

    def make(self, path):
        self._step()

    def power_cut(self, keep):
        """Undo, newest first, those unsynced changes of names that the disk had not got to."""
        for (path, old), kept in zip(reversed(self.pending), keep):
            if kept:
                break  # a journal keeps what came before what it kept
            if old is None:
                self.files.pop(path, None)
            else:
                self.files[path] = old
        self.pending = []


ROOT = Path("/fake/run")


class Faults(RuleBasedStateMachine):
    """A run on a disk that fails."""

    @initialize()
    def begin(self):
        self.disk, self.broken = FakeDisk(), {}  # rotten content by shard, until a run has mended it
        self.experiment = experiment(8, splits=1)
        if not hasattr(Faults, "whole"):
            Faults.whole = finish(self.experiment, run.open_store(self.experiment, None), sized(1000))

    def attempt(self, size):
        store = ResultStore.create(Folder(ROOT, self.disk), run.manifest(self.experiment, "running"), resume=True)
        finish(self.experiment, store, copying(Faults.whole, size))
        return store

    def after_death(self):
        """The killed process is dead: its lock says so."""
        self.disk.dead, self.disk.fuse = False, None
        lock = ROOT / "run.lock"
        if lock in self.disk.files:
            record = json.loads(self.disk.files[lock])
            self.disk.files[lock] = json.dumps({**record, "started": "0"}).encode()

    @rule(fuse=st.integers(0, 60), size=st.integers(1, 6), cut=st.none() | st.lists(st.booleans(), min_size=8, max_size=8))
    def killed(self, fuse, size, cut):
        self.disk.fuse = fuse
        try:
            self.attempt(size)
            self.disk.fuse = None
            self.broken.clear()
        except Killed:
            if cut is not None:
                self.disk.power_cut(cut)
            self.after_death()

    @rule(refuse=st.integers(0, 40), size=st.integers(1, 6))
    def disk_full(self, refuse, size):
        self.disk.refuse = refuse
        try:
            self.attempt(size)
        except StoreError as error:
            assert ("No space left" in str(error) and "--resume" in str(error)) or "cannot be created" in str(error)
        finally:
            self.disk.refuse = None

    @precondition(lambda self: any(p.suffix == ".parquet" and p.name.startswith("part") for p in self.disk.files))
    @rule(data=st.data())
    def rot(self, data):
        shards = sorted(p for p in self.disk.files if p.name.startswith("part"))
        path = data.draw(st.sampled_from(shards))
        raw = bytearray(self.disk.files[path])
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
        self.disk.files[path] = bytes(raw)
        self.broken[path.name] = bytes(raw)

    @invariant()
    def shards_are_whole_or_absent(self):
        if not hasattr(self, "disk") or ROOT / "manifest.json" not in self.disk.files:
            return
        store = ResultStore.open(Folder(ROOT, self.disk))
        for unit in store.done():
            path = ROOT / "results" / store.shard_path(unit).name
            if self.broken.get(path.name) != bytes(self.disk.files[path]):
                assert store.damage(unit) is None

    def teardown(self):
        if not hasattr(self, "disk"):
            return
        store = self.attempt(3)
        assert same_rows(store, Faults.whole)
        assert not [p for p in self.disk.files if p.name.endswith(".tmp") or p.name == "run.lock"]


TestFaults = Faults.TestCase
TestFaults.settings = settings(max_examples=30, stateful_step_count=6, deadline=None)
