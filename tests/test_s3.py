"""Runs, reports and indexes on a real S3 server (moto's, on the loopback), and what a bad network does to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from fastprobe.errors import InputError, StoreError
from fastprobe.report import write_report
from fastprobe.retrieval.gallery import GalleryIndex
from fastprobe.runs.store import ResultStore
from fastprobe.storage import RemoteFolder, open_folder
from fastprobe.tables.embeddings import EmbeddingTable
from fastprobe.tables.streams import TableStream
from support.s3_server import served
from support.small_runs import same_rows, save_tables, tables

FAST = ["--backend", "reference", "--steps", "3", "--dim", "2", "--permutations", "1500", "--splits", "2", "--train-fraction", "0.5", "-q"]
SHARDS = "/results/part-"


@pytest.fixture(scope="module")
def server():
    with served() as running:
        yield running


@pytest.fixture
def bucket(server):
    """URL of a folder of this test's own, and no fault before or after it."""
    server.fault = None
    yield f"s3://{server.bucket}/{os.environ['PYTEST_CURRENT_TEST'].split('::')[-1].split(' ')[0].replace('[', '-').strip(']')}"
    server.fault = None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run on this machine: what every run on the store must equal; and the arguments that made it."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [*save_tables(folder, 1), *FAST]
    done = fastprobe("run", *arguments, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return arguments, folder / "run"


def command(*arguments):
    return [sys.executable, "-c", "from fastprobe.cli.app import main; main()", *map(str, arguments)]


def fastprobe(*arguments, **kwargs):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240, **kwargs)


def same_run(url, local):
    store = ResultStore.open(url)
    assert all(store.damage(unit) is None for unit in store.done())
    return same_rows(store, ResultStore.open(local))


def test_a_run_is_killed_resumed_watched_verified_and_reported(server, bucket, whole, tmp_path):
    arguments, local = whole
    third = threading.Event()
    seen = []

    def swallow_the_third_shard(method, path):
        if method == "PUT" and SHARDS in path:
            seen.append(path)
            if len(seen) >= 3:
                third.set()
                return "gone"
        return None

    server.fault = swallow_the_third_shard
    process = subprocess.Popen(command("run", *arguments, "--out", bucket), stderr=subprocess.PIPE)
    assert third.wait(60)
    process.kill()
    process.communicate()
    server.fault = None
    kept = len(ResultStore.open(bucket).done())
    assert kept == 2
    assert "interrupted" in fastprobe("status", bucket).stdout
    again = fastprobe("run", *arguments, "--out", bucket)
    assert again.returncode == 2 and "--resume" in again.stderr
    done = fastprobe("run", *arguments, "--out", bucket, "--resume")
    assert done.returncode == 0, done.stderr
    assert same_run(bucket, local)
    status = json.loads(fastprobe("status", bucket, "--json", "--check").stdout)
    assert status["done"] == status["total"] == 1501 * 2
    verified = fastprobe("verify", bucket, "--sample", "8", "--seed", "1")
    assert verified.returncode == 0 and "they agree" in verified.stdout, verified.stderr
    reported = fastprobe("report", bucket)
    assert reported.returncode == 0, reported.stderr
    assert reported.stdout.strip() == f"{bucket}/report.html"
    # The same page as that of the run on this machine, but for its times; and nothing was written here.
    assert {"report.html", "figures", "tables"} <= set(open_folder(bucket).names())
    write_report([local], tmp_path / "here" / "report.html")
    assert open_folder(f"{bucket}/tables").read("results.csv") == (tmp_path / "here/tables/results.csv").read_bytes()
    assert not [n for n in os.listdir() if n.startswith("s3:")]
    compared = write_report([bucket, local], f"{bucket}/both.html")
    assert compared == f"{bucket}/both.html" and b"Nothing but the data" in open_folder(bucket).read("both.html")


def test_parts_are_merged_from_and_into_the_store(bucket, whole):
    arguments, local = whole
    for i in range(2):
        part = fastprobe("run", *arguments, "--shard", f"{i}/2", "--out", f"{bucket}/part{i}")
        assert part.returncode == 0, part.stderr
    merged = fastprobe("merge", f"{bucket}/all", f"{bucket}/part0", f"{bucket}/part1")
    assert merged.returncode == 0, merged.stderr
    assert same_run(f"{bucket}/all", local)


def test_tables_probes_and_indexes_lie_on_the_store(bucket, shell, tmp_path):
    text, (audio, *_) = tables(1)
    text.save(f"{bucket}/text.npz")
    audio.save(f"{bucket}/audio.parquet")
    fitted = shell("fit", "--text", f"{bucket}/text.npz", "--audio", f"{bucket}/audio.parquet", "--out", f"{bucket}/probe.safetensors")
    assert fitted.returncode == 0, fitted.stderr
    for suffix in (".npz", ".safetensors", ".parquet"):
        text.save(f"{bucket}/texts{suffix}")
        assert [b.labels for b in TableStream.open(f"{bucket}/texts{suffix}").blocks(100)] == [text.labels.tolist()]
    for again in ((), ("--overwrite",)):
        built = shell("index", "build", f"{bucket}/text.npz", "--out", f"{bucket}/index", "--probe", f"{bucket}/probe.safetensors", *again)
        assert built.returncode == 0, built.stderr
        assert "meta.json" in open_folder(f"{bucket}/index").names()
    refused = shell("index", "build", f"{bucket}/text.npz", "--out", f"{bucket}/index")
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    answers = []
    for arguments in (
        ("index", "search", f"{bucket}/index", f"{bucket}/audio.parquet", "-k", "3", "--json"),
        ("query", f"{bucket}/audio.parquet", "--probe", f"{bucket}/probe.safetensors", "-k", "3", "--json", "--gallery", f"{bucket}/index"),
        (
            "query",
            f"{bucket}/audio.parquet",
            "--probe",
            f"{bucket}/probe.safetensors",
            "-k",
            "3",
            "--json",
            "--gallery",
            f"{bucket}/text.npz",
        ),
        ("query", f"{bucket}/audio.parquet", "--probe", f"{bucket}/probe.safetensors", "-k", "3", "--json"),
    ):
        found = shell(*arguments)
        assert found.returncode == 0, found.stderr
        answers.append([f["texts"] for f in json.loads(found.stdout)])
    assert len(answers[0]) == len(audio) and all(a == answers[0] for a in answers)
    open_folder(bucket).write("groups.csv", ("label,kind\n" + "".join(f"{c},{i % 2}\n" for i, c in enumerate(text.labels))).encode())
    within = ["--control", "permute-within", "--groups", f"{bucket}/groups.csv", "--within", "kind"]
    few = [*FAST, "--permutations", "3"]
    done = shell("run", "--text", f"{bucket}/text.npz", "--audio", f"{bucket}/audio.parquet", *few, *within, "--out", f"{bucket}/run")
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []  # no local folder `s3:`, from any of them


def test_an_index_on_the_store_needs_its_last_file(bucket, shell):
    text, _ = tables(1)
    text.save(f"{bucket}/text.npz")
    assert shell("index", "build", f"{bucket}/text.npz", "--out", f"{bucket}/index").returncode == 0
    assert len(GalleryIndex.load(f"{bucket}/index")) == len(text)
    open_folder(f"{bucket}/index").remove("meta.json")
    with pytest.raises(InputError, match="no index"):
        GalleryIndex.load(f"{bucket}/index")


def once_per_object(what):
    """A fault that meets every object's first put, and every object's first get."""
    seen = set()

    def fault(method, path):
        if (method, path) in seen or method not in ("PUT", "GET"):
            return None
        seen.add((method, path))
        return what

    return fault


@pytest.mark.parametrize("what", ["error", "lost", 0.3])
def test_a_bad_network_changes_nothing(server, bucket, whole, what):
    """Errors that pass, answers that never come, slow answers: the same rows, and no lock that is taken for another's."""
    arguments, local = whole
    server.fault = once_per_object(what)
    done = fastprobe("run", *arguments, "--out", bucket)
    assert done.returncode == 0, done.stderr
    server.fault = None
    assert same_run(bucket, local)
    assert "run.lock" not in open_folder(bucket).names()


def test_a_store_that_stops_answering_keeps_whole_shards(server, bucket, whole):
    arguments, local = whole
    puts = []

    def refuse_after_two(method, path):
        if method == "PUT" and SHARDS in path:
            puts.append(path)
        return "error" if len(set(puts)) > 2 and method == "PUT" else None

    server.fault = refuse_after_two
    broken = fastprobe("run", *arguments, "--out", bucket)
    assert broken.returncode == 2, broken.stderr
    assert broken.stderr.count("\n") == 1 and "cannot be written" in broken.stderr and "--resume" in broken.stderr
    server.fault = None
    assert len(ResultStore.open(bucket).done()) == 2
    done = fastprobe("run", *arguments, "--out", bucket, "--resume")
    assert done.returncode == 0, done.stderr
    assert same_run(bucket, local)


def test_two_writers_of_one_run_are_told_apart(server, bucket, whole):
    arguments, local = whole
    server.fault = lambda method, path: 0.2 if method == "PUT" else None  # both are there before one is done
    both = [subprocess.Popen(command("run", *arguments, "--out", bucket), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    loser = told[[process.returncode for process in both].index(2)]
    assert "another run holds this directory" in loser or "already holds this run" in loser
    server.fault = None
    assert same_run(bucket, local)


def test_an_exclusive_put_is_made_by_one_of_many(bucket):
    folder = open_folder(bucket)
    won = []
    threads = [threading.Thread(target=lambda i=i: won.append(folder.create("lock", b"%d" % i))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["report", "{}"], "no run directory"),
        (["status", "{}"], "no run directory"),
        (["index", "search", "{}", "{}/a.npz"], "no index"),
        (["index", "build", "{}/a.npz", "--out", "{}/i"], "no such file"),
        (["query", "{}/a.npz", "--probe", "{}/p.safetensors"], "no such file"),
        (["run", "--text", "{}/t.npz", "--audio", "{}/a.npz"], "no such file"),
        (["embed", "text", "--model", "char-ngrams", "--classes", "{}/c.txt", "--out", "{}/t.npz"], "no such file"),
    ],
)
def test_what_is_not_there_is_named_by_its_url(bucket, shell, tmp_path, command, message):
    done = shell(*[word.format(bucket) for word in command])
    assert done.returncode == 2 and message in done.stderr and bucket in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and os.listdir(tmp_path) == []


def test_missing_credentials_name_what_is_read(server, bucket, shell):
    without = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
    }
    for arguments in (["report", bucket], ["status", bucket], ["index", "search", bucket, f"{bucket}/a.npz"]):
        done = shell(*arguments, env=without)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        for word in ("AWS_ACCESS_KEY_ID (not set)", "AWS_SECRET_ACCESS_KEY (not set)", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
            assert word in done.stderr
    done = shell("report", bucket, env={**without, "AWS_PROFILE": "nobody"})
    assert done.returncode == 2 and "'nobody' (AWS_PROFILE)" in done.stderr


def test_a_bucket_is_not_made_by_a_misspelt_name(server, whole):
    arguments, _ = whole
    done = fastprobe("run", *arguments, "--out", "s3://no-such-bucket-here/run")
    assert done.returncode == 2 and "no-such-bucket-here" in done.stderr
    assert not [path for method, path in server.requests if method == "PUT" and path.strip("/") == "no-such-bucket-here"]


def test_a_store_that_refuses_says_so(server, bucket):
    table = EmbeddingTable(np.eye(3), ["a", "b", "c"])
    server.fault = lambda method, path: "error"
    with pytest.raises((InputError, StoreError), match="cannot be written"):
        table.save(f"{bucket}/t.npz")
    with pytest.raises(StoreError, match="cannot be listed"):
        RemoteFolder(bucket).names()
