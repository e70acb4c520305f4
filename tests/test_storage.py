"""Whole or absent, wherever the files lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from fastprobe.errors import InputError, StoreError
from fastprobe.runs import run
from fastprobe.runs.store import ResultStore, read_manifest
from fastprobe.storage import Folder, RemoteFolder, absolute, is_url, open_folder, write_atomically
from fastprobe.tables.embeddings import EmbeddingTable
from support.small_runs import experiment, finish, rows, same_rows, save_tables, sized, tables


@pytest.fixture
def memory():
    """A root of memory:// of this test's own."""
    fs = fsspec.filesystem("memory")
    root = "memory://test-storage"
    yield root
    if fs.exists("/test-storage"):
        fs.rm("/test-storage", recursive=True)


@pytest.fixture(params=["path", "file", "memory", "directory"])
def folder(request, tmp_path, memory):
    """The same folder four ways; "directory" is a filesystem without an atomic put."""
    if request.param == "path":
        return Folder(tmp_path / "run")
    if request.param == "file":
        return open_folder(f"file://{tmp_path}/run")
    if request.param == "memory":
        return open_folder(f"{memory}/run")
    return RemoteFolder("dir://run", DirFileSystem(str(tmp_path), fs=fsspec.filesystem("file")))


def test_a_folder_is_the_same_everywhere(folder):
    folder.make("results")
    assert folder.names("results") == [] and folder.names("nothing") == []
    folder.write("results/a", b"one")
    folder.write("results/a", b"two")
    assert folder.read("results/a") == b"two" and folder.names("results") == ["a"]
    assert folder.create("lock", b"x") and not folder.create("lock", b"y") and folder.read("lock") == b"x"
    folder.remove("lock")
    folder.remove("lock")
    with pytest.raises(FileNotFoundError):
        folder.read("lock")


def test_a_run_is_the_same_everywhere(folder):
    exp = experiment(20)
    want = finish(exp, run.open_store(exp, None))
    store = ResultStore.create(folder, run.manifest(exp, "running"))
    steps = run.execute(exp, store, sized(6))
    next(steps), next(steps)
    steps.close()
    assert len(store.done()) == 1
    finish(exp, ResultStore.create(folder, run.manifest(exp, "running"), resume=True), sized(5))
    store = ResultStore.open(folder)
    assert same_rows(store, want)
    assert all(store.damage(u) is None for u in store.done())
    assert read_manifest(folder)["status"] == "done"
    with pytest.raises(StoreError, match="already holds this run"):
        ResultStore.create(folder, run.manifest(exp, "running"))


class FailingStore(MemoryFileSystem):
    """An object store that refuses every put after the first few."""

    protocol = "s3"
    store, pseudo_dirs = {}, [""]
    left = 0

    def pipe_file(self, path, value, **kwargs):
        if FailingStore.left == 0:
            raise PermissionError("403 Forbidden")
        FailingStore.left -= 1
        return super().pipe_file(path, value, **kwargs)


def test_an_object_store_that_fails_keeps_whole_shards():
    exp = experiment(20)
    FailingStore.left, FailingStore.store, FailingStore.pseudo_dirs = 7, {}, [""]
    folder = RemoteFolder("s3://bucket/run", FailingStore(skip_instance_cache=True))
    with pytest.raises(StoreError, match=r"s3://bucket/run/.*cannot be written.*403 Forbidden.*--resume"):
        finish(exp, ResultStore.create(folder, run.manifest(exp, "running")), sized(3))
    FailingStore.left = 10**6
    kept = len(ResultStore.open(folder).done())
    assert kept > 0
    store = finish(exp, ResultStore.create(folder, run.manifest(exp, "running"), resume=True), sized(3))
    assert same_rows(store, finish(exp, run.open_store(exp, None)))


def test_tables_by_url(memory):
    text, audio = tables(1)
    for suffix in (".npz", ".safetensors", ".parquet"):
        url = f"{memory}/audio{suffix}"
        audio[0].save(url)
        assert EmbeddingTable.load(url).digest == audio[0].digest
    text.meta.pop("name")
    text.save(f"{memory}/words.npz")
    assert EmbeddingTable.load(f"{memory}/words.npz").name == "words"
    exp = run.prepare(f"{memory}/words.npz", f"{memory}/audio.npz", permutations=2, backend="reference", train_fraction=0.5)
    assert exp.paths["text/words"] == f"{memory}/words.npz"
    assert memory not in json.dumps(exp.identity())
    with pytest.raises(InputError, match=f"{memory}/none.npz: no such file"):
        EmbeddingTable.load(f"{memory}/none.npz")
    with pytest.raises(InputError, match="suffix"):
        EmbeddingTable.load(f"{memory}/none.pkl")
    write_atomically(f"{memory}/broken.npz", b"PK\3\4 not really")
    with pytest.raises(InputError, match=f"{memory}/broken.npz: not a readable npz"):
        EmbeddingTable.load(f"{memory}/broken.npz")


def test_urls_and_paths():
    assert is_url("s3://a/b") and is_url("memory://x") and not is_url("/a/b") and not is_url("file:///a/b")
    assert absolute("s3://a/b") == "s3://a/b" and absolute("file:///a/b") == "/a/b" and os.path.isabs(absolute("x"))
    with pytest.raises(InputError, match="nosuch"):
        open_folder("nosuch://bucket/run")
    if not any(shutil.which(p) for p in ("s3fs",)) and not _installed("s3fs"):
        with pytest.raises(InputError, match="s3fs"):
            open_folder("s3://bucket/run")


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_identity_has_no_path(tmp_path):
    arguments = save_tables(tmp_path / "a", 1)
    exp = run.prepare(arguments[1], arguments[3], permutations=2, backend="reference", train_fraction=0.5)
    assert str(tmp_path) not in json.dumps(exp.identity()) and exp.paths["text/text"] == arguments[1]


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from support.small_runs import *
from fastprobe.runs import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
exp = experiment(4000, splits=1)
store = run.open_store(exp, sys.argv[1])
steps = run.execute(exp, store, sized(int(sys.argv[3])))
print(next(steps).done)
for step in steps:
    print(step.done, flush=True)
    if step.done >= 400:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
"""


def test_a_write_that_the_system_refuses_keeps_what_is_stored(tmp_path):
    """The kernel refuses bytes beyond a file size, as it does on a full disk."""
    out = tmp_path / "run"
    code = subprocess.run([sys.executable, "-c", FULL, str(out), os.path.dirname(__file__), "200"], capture_output=True, text=True)
    assert code.returncode != 0 and "StoreError" in code.stderr and "cannot be written" in code.stderr and "--resume" in code.stderr
    store = ResultStore.open(out)
    assert len(store.done()) == 2 and all(store.damage(u) is None for u in store.done())
    assert not [n for n in os.listdir(out / "results") if n.endswith(".tmp")]
    exp = experiment(4000, splits=1)
    assert len(rows(store)) == 400
    steps = run.execute(exp, run.open_store(exp, out, resume=True), sized(200))
    assert next(steps).resumed == 400
    steps.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_keeps_what_is_stored(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        exp = experiment(4000, splits=1)
        with pytest.raises(StoreError, match="No space left on device.*--resume"):
            finish(exp, run.open_store(exp, disk / "run"), sized(200))
        store = ResultStore.open(disk / "run")
        kept = store.done()
        assert kept and all(store.damage(u) is None for u in kept)
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        steps = run.execute(exp, run.open_store(exp, disk / "run", resume=True), sized(200))
        assert next(steps).resumed == sum(u.stop - u.start for u in kept)
        steps.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match="cannot be written: Read-only file system"):
            finish(exp, run.open_store(exp, disk / "run", resume=True))
        with pytest.raises(StoreError, match="cannot be created: Read-only file system"):
            run.open_store(exp, disk / "other")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
