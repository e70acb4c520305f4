"""Exact top-k on every path, ranks against lists, indexes in memory and on disk."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.kernels.reference import ranks as reference_ranks
from fastprobe.kernels.topk import PATHS, _in_order, choose_path, top_k
from fastprobe.retrieval.build import build_index, plan_index
from fastprobe.retrieval.gallery import GalleryIndex, code_parts, inverted_lists, memory_estimate
from fastprobe.runs.observed import top_lists
from fastprobe.tables.embeddings import EmbeddingTable
from fastprobe.tables.streams import TableStream
from support.strategies import SEEDS, tables

FAST = {"probe": fp.ProbeConfig(dim=4, steps=5), "permutations": 2, "splits": 2, "backend": "torch", "baselines": False}


def unit(rng, n, d):
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(queries, gallery, k):
    """The definition: float64 scores, a stable sort."""
    s = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    rows = np.argsort(-s, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(s, rows, 1), rows


@given(SEEDS, st.integers(1, 40), st.integers(1, 300), st.integers(1, 20), st.data())
def test_every_path_finds_the_same_lists(seed, n, size, d, data):
    rng = np.random.default_rng(seed)
    q, g, k = unit(rng, n, d), unit(rng, size, d), data.draw(st.integers(1, size))
    scores, rows = by_hand(q, g, k)
    for path in ("auto", *PATHS):
        if path == "groups" and size < 32:
            continue
        found = top_k(q, g, k, path=path)
        np.testing.assert_allclose(found[0], scores, atol=1e-5)
        # Rows may differ only where float32 cannot tell the scores apart.
        differ = found[1] != rows
        s = q.astype(np.float64) @ g.T.astype(np.float64)
        assert np.abs(np.take_along_axis(s, found[1], 1) - scores)[differ].max(initial=0) < 1e-6
        assert all(len(set(r)) == k for r in found[1].tolist())


@given(SEEDS, st.integers(1, 20), st.integers(2, 200), st.integers(1, 4), st.data())
def test_equal_scores_go_by_row_on_every_path(seed, n, size, d, data):
    rng = np.random.default_rng(seed)
    q, g = (rng.integers(-1, 2, (rows, d)).astype(np.float32) for rows in (n, size))  # small whole numbers: products are exact
    k = data.draw(st.integers(1, size))
    scores, rows = by_hand(q, g, k)
    for path in PATHS:
        if path == "groups" and size < 32:
            continue
        found = top_k(q, g, k, path=path)
        assert np.array_equal(found[0], scores) and np.array_equal(found[1], rows), path


def test_equal_scores_across_blocks_and_chunks(monkeypatch):
    import fastprobe.kernels.topk as module

    monkeypatch.setattr(module, "_CHUNK_ROWS", 128)
    monkeypatch.setattr(module, "_TILE_ROWS", 64)
    monkeypatch.setitem(module._BLOCK_FLOATS, "cpu", 512)
    rng = np.random.default_rng(0)
    q, g = rng.integers(-1, 2, (70, 5)).astype(np.float32), rng.integers(-1, 2, (1003, 5)).astype(np.float32)
    for k in (1, 7, 40):
        want = by_hand(q, g, k)
        for path in PATHS:
            found = top_k(q, g, k, path=path)
            assert np.array_equal(found[1], want[1]), (path, k)
    q, g = unit(rng, 70, 16), unit(rng, 1003, 16)
    for path in PATHS:
        assert np.array_equal(top_k(q, g, 9, path=path)[1], by_hand(q, g, 9)[1]), path


def test_stable_selection_over_many_blocks():
    g = torch.zeros(200_000, 3)
    g[[5, 70_000, 150_000], 0] = 1.0
    scores, rows = _in_order(torch.tensor([[1.0, 0, 0]]), g, 5)
    assert rows.tolist() == [[5, 70_000, 150_000, 0, 1]] and scores.tolist() == [[1, 1, 1, 0, 0]]


@given(SEEDS, st.integers(2, 60), st.integers(1, 30), st.integers(1, 12))
def test_true_class_in_the_top_k_exactly_when_its_rank_is_at_most_k(seed, classes, n, d):
    """FAISS's own lists against ranks that were counted, every k, on data without ties."""
    faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
    rng = np.random.default_rng(seed)
    q, g = unit(rng, n, d), unit(rng, classes, d)
    y = rng.integers(0, classes, n)
    s = q.astype(np.float64) @ g.T.astype(np.float64)
    gap = np.abs(s - s[np.arange(n), y][:, None])
    gap[np.arange(n), y] = 1
    clear = (gap > 1e-6).all(axis=1)  # width 1 has ties throughout
    ranks = reference_ranks(g.astype(np.float64), q.astype(np.float64), y)
    index = faiss.IndexFlatIP(d)
    index.add(g)
    for k in range(1, classes + 1):
        for rows in (index.search(q, k)[1], top_k(q, g, k, path="faiss")[1], top_k(q, g, k)[1]):
            assert np.array_equal((rows == y[:, None]).any(axis=1)[clear], (ranks <= k)[clear])


@given(SEEDS, st.integers(2, 40), st.integers(1, 30), st.sampled_from(["torch", "faiss"]))
def test_lists_hold_the_true_class_at_its_rank_ties_included(seed, classes, n, path):
    rng = np.random.default_rng(seed)
    q, g = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (n, classes))
    y = rng.integers(0, classes, n)
    ranks = reference_ranks(g, q, y)
    for k in range(1, classes + 1):
        rows, scores = top_lists(g, q, y, ranks, k, path)
        assert rows.shape == (n, k) and np.all(np.diff(scores, axis=1) <= 0)
        for i in range(n):
            s = g @ q[i]
            assert len(set(rows[i])) == k and np.array_equal(s[rows[i]], scores[i])
            # The rule: by score; the true class after its equals; rivals by number.
            want = sorted(range(classes), key=lambda c, s=s, i=i: (-s[c], c == y[i], c))[:k]
            assert rows[i].tolist() == want and (y[i] in rows[i]) == (ranks[i] <= k)


def test_tensors_stay_tensors_and_arrays_arrays(tmp_path):
    rng = np.random.default_rng(0)
    q, g = unit(rng, 5, 8), unit(rng, 50, 8)
    want = top_k(q, g, 3)
    scores, rows = top_k(torch.from_numpy(q), g, 3)
    assert isinstance(scores, torch.Tensor) and np.array_equal(rows.numpy(), want[1])
    assert isinstance(top_k(q, torch.from_numpy(g), 3)[0], np.ndarray)
    np.save(tmp_path / "g.npy", g)
    assert np.array_equal(top_k(q, np.load(tmp_path / "g.npy", mmap_mode="r"), 3)[1], want[1])
    assert top_k(q[:0], g, 3)[1].shape == (0, 3)
    assert np.array_equal(top_k(q.astype(np.float64), g, 3)[1], want[1])


def test_the_rule():
    assert choose_path(1000, 10_000_000, 10) == "groups" and choose_path(1, 10_000_000, 10) == "torch"
    assert choose_path(10_000, 100_000, 10) == "groups" and choose_path(100, 100_000, 50_000) == "torch"
    assert choose_path(8, 1_000_000, 10) == "torch" and choose_path(1000, 16_384, 10) == "torch"
    assert choose_path(10_000, 144, 10) in ("faiss", "torch") and choose_path(10, 10, 1, "mps") == "torch"


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "message"),
    [
        (np.ones((2, 3)), np.ones((0, 3)), 1, "at least one row"),
        (np.ones((2, 4)), np.ones((5, 3)), 1, "width of the gallery, 3"),
        (np.ones((2, 3)), np.ones((5, 3)), 6, "at most the size of the gallery, 5; got 6"),
        (np.ones((2, 3)), np.ones((5, 3)), 0, "at least 1; got 0"),
        (np.ones((2, 3)), np.ones((5, 3)), True, "whole number"),
        (np.full((2, 3), np.nan), np.ones((5, 3)), 1, "NaN or infinity"),
        (np.full((2, 3), "a"), np.ones((5, 3)), 1, "must be numbers"),
    ],
)
def test_errors(queries, gallery, k, message):
    with pytest.raises(InputError, match=message):
        top_k(queries, gallery, k)


def test_unknown_path():
    with pytest.raises(InputError, match="auto, faiss, groups, torch, numpy; got 'magic'"):
        top_k(np.ones((1, 2)), np.ones((3, 2)), 1, path="magic")


def test_without_faiss_all_exact_search_works_and_the_rest_says_what_to_install(tmp_path):
    """In a process where `import faiss` fails, as on a machine without it."""
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'faiss' else find(name, *a)\n"
        "import numpy as np, fastprobe as fp\n"
        "from fastprobe.retrieval.gallery import GalleryIndex\n"
        "from fastprobe.kernels.topk import choose_path, top_k\n"
        "from fastprobe.cli.doctor import examine\n"
        "rng = np.random.default_rng(0); g = rng.standard_normal((20000, 8)); q = g[:4]\n"
        "assert choose_path(100, 144, 3) == 'torch' and GalleryIndex(g).search(q, 1)[1].ravel().tolist() == [0, 1, 2, 3]\n"
        "for call in (lambda: top_k(q, g, 1, path='faiss'), lambda: GalleryIndex(g, kind='hnsw'),\n"
        "             lambda: fp.permutation_test(None, None, retrieval='faiss')):\n"
        "    try: call()\n"
        "    except fp.InputError as e: assert 'pip install faiss-cpu' in str(e), e\n"
        "    else: raise SystemExit('no error')\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stderr


# ---- indexes ---------------------------------------------------------------------------------------


def clustered(n, d=16, centres=200, seed=0):
    rng = np.random.default_rng(seed)
    c = unit(rng, centres, d)
    x = c[rng.integers(0, centres, n)] + 0.2 * rng.standard_normal((n, d)).astype(np.float32)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_approximate_kinds_reach_the_recall_asked_for(kind):
    pytest.importorskip("faiss", reason="FAISS is not installed")
    x, q = clustered(12_000), clustered(100, seed=0)
    index = GalleryIndex(x, kind=kind, recall=0.9, queries=q)
    assert index.meta["recall"] >= 0.9 and index.recall(q) == pytest.approx(index.meta["recall"], abs=1e-3)
    scores, rows = index.search(q, 5)
    np.testing.assert_allclose(scores, np.einsum("nkd,nd->nk", x[rows], q), atol=1e-5)
    assert np.all(np.diff(scores, axis=1) <= 0)
    assert np.array_equal(index.search(q, 5, exact=True)[1], top_k(q, x, 5)[1])
    # k beyond what the lists looked into hold: the rest is found exactly
    assert index.search(q[:3], 9000)[1].shape == (3, 9000)
    assert all(len(set(r)) == 9000 for r in index.search(q[:3], 9000)[1].tolist())


def test_gallery_in_parts_on_several_devices_is_the_whole():
    rng = np.random.default_rng(0)
    g, q = rng.integers(-2, 3, (101, 4)).astype(np.float32) + 0.5, rng.integers(-2, 3, (9, 4)).astype(np.float32) + 0.5
    whole = GalleryIndex(g)
    for devices in (["cpu"], ["cpu"] * 3, ["cpu"] * 150):
        for k in (1, 40, 101):
            found = GalleryIndex(g, devices=devices).search(q, k)
            np.testing.assert_allclose(found[0], whole.search(q, k)[0], atol=1e-6)
    rows = GalleryIndex(np.repeat(g[:1], 6, axis=0), devices=["cpu"] * 3).search(q, 4)[1]
    assert rows.tolist() == [[0, 1, 2, 3]] * 9  # equal scores go by row across parts too
    with pytest.raises(InputError, match="splits an exact search"):
        GalleryIndex(clustered(6000), kind="hnsw", devices=["cpu"])


def test_index_errors():
    with pytest.raises(InputError, match="at least one row"):
        GalleryIndex(np.ones((0, 3)))
    with pytest.raises(InputError, match="`kind` must be auto, exact"):
        GalleryIndex(np.ones((2, 3)), kind="best")
    with pytest.raises(InputError, match="one entry for each of the 2"):
        GalleryIndex(np.ones((2, 3)), ["a"])
    with pytest.raises(InputError, match="needs at least 5,000 rows"):
        GalleryIndex(np.ones((20, 3)), kind="ivfpq")
    index = GalleryIndex(np.eye(3), ["a", "b", "c"])
    with pytest.raises(InputError, match="width of the gallery"):
        index.search(np.ones((1, 2)), 1)
    with pytest.raises(InputError, match="size of the gallery, 3"):
        index.search(np.ones((1, 3)), 4)
    assert index.texts(index.search(np.eye(3)[:2], 1)[1]).tolist() == [["a"], ["b"]]


@given(st.integers(1, 400), st.integers(5000, 10**8))
def test_codes_and_lists_fit_any_shape(width, rows):
    assert width % code_parts(width) == 0
    assert 4 <= inverted_lists(rows) <= rows / 39
    for kind in ("exact", "hnsw", "ivfpq"):
        assert all(v > 0 for v in memory_estimate(kind, rows, width).values())


def big_table(path, n=20_000, d=16, seed=0, **meta):
    vectors = 3 * clustered(n, d, seed=seed)
    table = EmbeddingTable(vectors, np.array([f"caption {i}" for i in range(n)]), meta=meta)
    table.save(path)
    return table


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_streams_read_what_tables_hold(tmp_path, suffix):
    table = big_table(tmp_path / f"t{suffix}", 1000, 7, model="m")
    stream = TableStream.open(tmp_path / f"t{suffix}")
    assert (stream.rows, stream.width, stream.meta["model"]) == (1000, 7, "m")
    for rows in (1, 333, 5000) if suffix == ".npz" else (333,):
        blocks = list(stream.blocks(rows))
        assert all(len(b.vectors) <= rows for b in blocks) and [b.start for b in blocks] == list(range(0, 1000, rows))
        assert np.array_equal(np.concatenate([b.vectors for b in blocks]), table.vectors)
        assert [x for b in blocks for x in b.labels] == table.labels.tolist()


def test_streams_read_numbers_for_labels_as_tables_do(tmp_path):
    np.savez(tmp_path / "t.npz", vectors=np.ones((3, 2)), labels=np.arange(3))
    (block,) = TableStream.open(tmp_path / "t.npz").blocks(10)
    assert block.labels == EmbeddingTable.load(tmp_path / "t.npz").labels.tolist() == ["0", "1", "2"]


def test_streams_name_a_foreign_meta_and_a_column_of_scalars(tmp_path):
    np.savez(tmp_path / "t.npz", vectors=np.ones((3, 2)), labels=np.arange(3), meta="[1, 2]")
    with pytest.raises(InputError, match="meta is not an object"):
        TableStream.open(tmp_path / "t.npz")
    pq.write_table(pa.table({"label": ["a"], "vector": [1.0]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="t.parquet"):
        TableStream.open(tmp_path / "t.parquet")


def test_streams_refuse_what_tables_refuse(tmp_path):
    vectors, labels = np.ones((100, 4), np.float32), np.array([f"t{i}" for i in range(100)])
    for name, change, message in (("nan", np.nan, "row 77 .label 't77'. holds NaN"), ("zero", 0.0, "row 77 .* is zero")):
        bad = vectors.copy()
        bad[77] = change
        np.savez_compressed(tmp_path / f"{name}.npz", vectors=bad, labels=labels)
        with pytest.raises(InputError, match=message):
            list(TableStream.open(tmp_path / f"{name}.npz").blocks(10))
    np.savez(tmp_path / "cut.npz", vectors=vectors, labels=labels[:50])
    with pytest.raises(InputError, match="must be 100 strings"):
        list(TableStream.open(tmp_path / "cut.npz").blocks(10))
    np.savez(tmp_path / "objects.npz", vectors=vectors, labels=labels.astype(object))
    with pytest.raises(InputError, match="pickled objects"):
        list(TableStream.open(tmp_path / "objects.npz").blocks(10))
    (tmp_path / "foreign.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a readable parquet table"):
        TableStream.open(tmp_path / "foreign.parquet")
    nothing = pa.table({"label": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32()))})
    pq.write_table(nothing, tmp_path / "none.parquet")
    with pytest.raises(InputError, match="empty table"):
        TableStream.open(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="no such file"):
        TableStream.open(tmp_path / "gone.npz")
    whole = (tmp_path / "nan.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable npz table"):
        TableStream.open(tmp_path / "short.npz")


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivfpq"])
def test_an_index_on_disk_answers_as_the_one_in_memory(tmp_path, kind):
    if kind != "exact":
        pytest.importorskip("faiss", reason="FAISS is not installed")
    table = big_table(tmp_path / "t.parquet", 8000)
    assert list(build_index(plan_index(tmp_path / "t.parquet", kind), tmp_path / "index", recall=0.9))[-1] == 8000
    index = GalleryIndex.load(tmp_path / "index")
    assert isinstance(index.vectors, np.memmap) and len(index) == 8000 and index.meta["kind"] == kind
    q = clustered(50, seed=0)
    _scores, rows = index.search(q, 5)
    want = GalleryIndex(table.vectors).search(q, 5)
    if kind == "exact":
        assert np.array_equal(rows, want[1])
    else:
        assert index.meta["recall"] >= 0.9 and np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows.tolist(), want[1].tolist())]) > 0.8
    np.testing.assert_allclose(index.search(q, 5, exact=True)[0], want[0], atol=1e-6)
    assert np.array_equal(index.texts(rows), table.labels[rows])


def test_a_failed_build_leaves_nothing_and_an_old_index_stays(tmp_path):
    bad = big_table(tmp_path / "t.npz", 3000, 4).vectors.copy()
    bad[2999] = np.nan
    np.savez(tmp_path / "bad.npz", vectors=bad, labels=np.arange(3000).astype(str))
    list(build_index(plan_index(tmp_path / "t.npz"), tmp_path / "index"))
    before = (tmp_path / "index/meta.json").read_bytes()
    for out in ("index", "fresh"):
        with pytest.raises(InputError, match="row 2999"):
            list(build_index(plan_index(tmp_path / "bad.npz"), tmp_path / out, overwrite=True))
    stopped = build_index(plan_index(tmp_path / "t.npz"), tmp_path / "fresh")
    next(stopped)
    stopped.close()  # Ctrl-C
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npz", "index", "t.npz"]
    assert (tmp_path / "index/meta.json").read_bytes() == before
    with pytest.raises(InputError, match="exists"):
        list(build_index(plan_index(tmp_path / "t.npz"), tmp_path / "index"))
    with pytest.raises(InputError, match="it is not an index"):
        list(build_index(plan_index(tmp_path / "t.npz"), tmp_path / "t.npz", overwrite=True))
    list(build_index(plan_index(tmp_path / "t.npz"), tmp_path / "index", overwrite=True))
    assert len(GalleryIndex.load(tmp_path / "index")) == 3000


def test_damaged_indexes_are_refused(tmp_path):
    with pytest.raises(InputError, match="no index"):
        GalleryIndex.load(tmp_path)
    big_table(tmp_path / "t.npz", 500, 4)
    list(build_index(plan_index(tmp_path / "t.npz"), tmp_path / "index"))
    file, meta = tmp_path / "index/vectors.npy", tmp_path / "index/meta.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="a damaged index"):
        GalleryIndex.load(tmp_path / "index")
    file.write_bytes(whole)
    old = json.loads(meta.read_text())
    for change, message in (
        ({"version": 99}, "newer fastprobe"),
        ({"format": "else"}, "not an index"),
        ({"rows": 7}, "a damaged index"),
        ({"kind": "best"}, "not an index"),
        ({"version": "1"}, "not an index"),
        ({"kind": "hnsw"}, "not an index"),
        ({"kind": "hnsw", "effort": [16, 1]}, "not readable by FAISS"),
    ):
        meta.write_text(json.dumps({**old, **change}))
        with pytest.raises(InputError, match=message):
            GalleryIndex.load(tmp_path / "index")


def test_more_memory_than_there_is_is_refused_beforehand(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="FAISS is not installed")
    import fastprobe.retrieval.build as indexing

    big_table(tmp_path / "t.npz", 6000, 4)
    monkeypatch.setattr(indexing, "available_memory", lambda: 50 << 20)
    with pytest.raises(InputError, match="needs about .* to build; 50 MiB are free. Use kind exact"):
        plan_index(tmp_path / "t.npz", "ivfpq")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_building_stays_within_the_estimate(tmp_path, suffix):
    """Peak memory of an exact build of 154 MB of vectors, in its own process: the blocks, not the table."""
    pytest.importorskip("resource", reason="no getrusage on this system")
    rng = np.random.default_rng(0)
    n, d = 600_000, 64
    vectors, labels = rng.standard_normal((n, d), dtype=np.float32), np.arange(n).astype("U7")
    if suffix == ".npz":
        np.savez(tmp_path / "t.npz", vectors=vectors, labels=labels)
    else:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), d)
        pq.write_table(pa.table({"label": labels, "vector": column}), tmp_path / "t.parquet", row_group_size=150_000, use_dictionary=False)
    assert memory_estimate("exact", 10**5, d)["build"] == memory_estimate("exact", 10**7, d)["build"]  # whatever the rows
    code = (
        "import resource, sys\n"
        "from fastprobe.retrieval.build import build_index, plan_index\n"
        "import pyarrow.ipc, torch\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "plan = plan_index(sys.argv[1]); before = peak()\n"
        "for _ in build_index(plan, sys.argv[2]): pass\n"
        "print(peak() - before, plan.estimate['build'])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / f"t{suffix}", tmp_path / "i"], capture_output=True, text=True, check=True)
    grown, estimate = map(int, done.stdout.split())
    assert grown <= estimate


# ---- the run's lists -------------------------------------------------------------------------------


@pytest.mark.parametrize("retrieval", ["fused", "faiss"])
@pytest.mark.parametrize("k", [[1, 4], [12]])
def test_retrieved_lists_and_ranks_of_a_run_agree(tmp_path, retrieval, k):
    if retrieval == "faiss":
        pytest.importorskip("faiss", reason="FAISS is not installed")
    text, audio = tables(classes=12, clips=5)
    fp.permutation_test([text], [audio], k=k, statistic="acc@1", retrieval=retrieval, out=tmp_path / "run", **FAST)
    ranks = pq.read_table(tmp_path / "run/observed.parquet").to_pandas()
    lists = pq.read_table(tmp_path / "run/retrieved.parquet").to_pandas()
    assert list(ranks) == ["text", "audio", "probe", "split", "seed", "query", "label", "rank"]
    assert list(lists) == ["text", "audio", "probe", "split", "seed", "query", "label", "position", "retrieved", "score"]
    keys, deep = ["text", "audio", "probe", "split", "seed", "query", "label"], max(k)
    assert len(lists) == deep * len(ranks) and lists[keys].drop_duplicates().values.tolist() == ranks[keys].values.tolist()
    for _, group in lists.groupby(keys, sort=False):
        assert group.position.tolist() == list(range(1, deep + 1)) and group.retrieved.nunique() == deep
        assert (np.diff(group.score) <= 1e-6).all()
    true = lists[lists.label == lists.retrieved].merge(ranks, on=keys)
    assert (true.position == true["rank"]).all() and len(true) == (ranks["rank"] <= deep).sum()
    # and the stored metrics are those of these ranks
    part = next((tmp_path / "run/results").glob("part-*-b000000000-*.parquet"))
    stored = pq.read_table(part).to_pandas().query("permutation == 0").sort_values("split")
    assert [(g["rank"] <= deep).sum() for _, g in ranks.groupby("split")] == stored[f"hits@{deep}"].tolist()


def test_lists_agree_with_ranks_without_being_told(tmp_path):
    """The heads that the lists come from give the backend's ranks, before any list is put in order."""
    from fastprobe.runs.run import prepare

    text, audio = tables(classes=20, clips=5)
    experiment = prepare(text, audio, **FAST)
    batch = experiment.batch(0, 1, 0, 0, 1)
    from fastprobe.kernels import select_backend
    from fastprobe.kernels.reference import norm

    result = select_backend("torch").load()(batch, None, heads=True)
    gallery, queries = norm(batch.text @ result.text_heads[0])[0], norm(batch.audio[batch.queries] @ result.audio_heads[0])[0]
    _, rows = top_k(queries, gallery, 20)
    position = np.argmax(rows == batch.labels[batch.queries][:, None], axis=1) + 1
    assert np.array_equal(position, result.ranks[0])


def test_an_unknown_retrieval_is_refused():
    with pytest.raises(InputError, match="`retrieval` must be fused or faiss; got 'best'"):
        fp.permutation_test(None, None, retrieval="best")
