"""EmbeddingTable: files that go round, and bad input that is refused in one clear message."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastprobe.errors import InputError
from fastprobe.tables.embeddings import SUFFIXES, EmbeddingTable, check_labels, keep_common


def table(n=4, width=3, **kwargs):
    return EmbeddingTable(np.arange(1, n * width + 1, dtype=np.float32).reshape(n, width), [f"c{i}" for i in range(n)], **kwargs)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    before = table(ids=["a", "b", "ç", "d"], meta={"model": "m", "layer": 3})
    before.save(tmp_path / f"t{suffix}")
    after = EmbeddingTable.load(tmp_path / f"t{suffix}")
    assert np.array_equal(after.vectors, before.vectors) and after.vectors.dtype == np.float32
    assert after.labels.tolist() == before.labels.tolist() and after.ids.tolist() == before.ids.tolist()
    assert after.meta == {"name": "t", "model": "m", "layer": 3}
    assert after.digest == before.digest


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(0.5, 100, width=32)),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=6, max_size=6),
)
def test_any_label_goes_round(tmp_path_factory, vectors, labels):
    labels = [label.strip() or "x" for label in labels[: len(vectors)]]
    before = EmbeddingTable(vectors, labels)
    for suffix in SUFFIXES:
        path = tmp_path_factory.mktemp("t") / f"t{suffix}"
        before.save(path)
        assert EmbeddingTable.load(path).labels.tolist() == labels


def test_the_digest_depends_on_content_alone():
    assert table().digest == table(meta={"x": 1}).digest
    assert table().digest != table(ids=["x", "1", "2", "3"]).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, y: (np.where(np.arange(3) == 1, np.nan, v), y), "row 0 .*'c0'.*NaN"),
        (lambda v, y: (v * np.array([[1], [np.inf], [1], [1]]), y), "row 1 .*'c1'"),
        (lambda v, y: (v * np.array([[1], [1], [0], [1]]), y), "zero.*row 2 .*'c2'"),
        (lambda v, y: (v.astype(object), y), "must be numbers"),
        (lambda v, y: (v[0], y), "shape"),
        (lambda v, y: (v[:0], y[:0]), "shape"),
        (lambda v, y: (v, y[:2]), "one entry for each of the 4"),
        (lambda v, y: (v, ["a", "", "c", "d"]), "empty label in row 1"),
        (lambda v, y: (v, [None, "a", "b", "c"]), "strings"),
    ],
)
def test_bad_values_are_named(change, message):
    good = table()
    with pytest.raises(InputError, match=message):
        EmbeddingTable(*change(good.vectors.astype(np.float64), good.labels))


def test_bad_rows_name_their_file(tmp_path):
    vectors = np.ones((3, 2))
    vectors[1, 1] = np.nan
    np.savez(tmp_path / "bad.npz", vectors=vectors, labels=["a", "b", "c"])
    with pytest.raises(InputError, match=r"bad\.npz.*row 1.*'b'"):
        EmbeddingTable.load(tmp_path / "bad.npz")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        EmbeddingTable.load(tmp_path / "absent.npz")
    with pytest.raises(InputError, match="suffix"):
        EmbeddingTable.load(tmp_path / "table.csv")
    for suffix in SUFFIXES:
        path = tmp_path / f"text{suffix}"
        path.write_text("label,vector\ndog,1\n")
        with pytest.raises(InputError, match=f"text{suffix}"):
            EmbeddingTable.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_truncated_files(tmp_path, suffix, share):
    path = tmp_path / f"t{suffix}"
    table(50, 40).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=r"truncated|readable"):
        EmbeddingTable.load(path)


def test_pickles_are_refused_and_never_loaded(tmp_path):
    np.savez(tmp_path / "p.npz", vectors=np.ones((2, 2)), labels=np.array(["a", {}], dtype=object))
    with pytest.raises(InputError, match="pickle"):
        EmbeddingTable.load(tmp_path / "p.npz")


def test_missing_arrays_are_named(tmp_path):
    np.savez(tmp_path / "m.npz", vectors=np.ones((2, 2)))
    with pytest.raises(InputError, match="array `labels` is missing; found vectors"):
        EmbeddingTable.load(tmp_path / "m.npz")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, suffix):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        table().save(tmp_path / "file" / f"t{suffix}")


def test_a_single_array_is_no_table(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.ones((2, 2)))
    with pytest.raises(InputError, match="a single array"):
        EmbeddingTable.load(tmp_path / "a.npz")


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    np.savez(tmp_path / "b.npz", vectors=np.ones((1, 2)), labels=np.array([b"caf\xe9"]))
    with pytest.raises(InputError, match=r"`labels` of .*b.npz must be UTF-8.*caf\\xe9"):
        EmbeddingTable.load(tmp_path / "b.npz")


def test_a_folder_named_like_a_column_adds_none(tmp_path):
    folder = tmp_path / "label=cat"
    table().save(folder / "t.parquet")
    assert EmbeddingTable.load(folder / "t.parquet").labels.tolist() == table().labels.tolist()


def test_swapped_tables_are_suspected():
    with pytest.raises(InputError, match="Are text and audio swapped"):
        check_labels(EmbeddingTable(np.ones((2, 2)), ["c0", "c0"]), EmbeddingTable(np.ones((1, 2)), ["c0"]))


def test_ragged_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a", "b"], "label": ["x", "y"], "vector": [[1.0], [1.0, 2.0]]}), tmp_path / "r.parquet")
    with pytest.raises(InputError, match="one width"):
        EmbeddingTable.load(tmp_path / "r.parquet")


def test_save_is_whole_or_absent(tmp_path, monkeypatch):
    import os

    path = tmp_path / "t.npz"
    table().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left"):
        table(9).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_labels_of_a_pair():
    text, audio = table(), table()
    check_labels(text, audio)
    with pytest.raises(InputError, match=r"1 labels that text table .* lacks \(1 clips\): 'dog'"):
        check_labels(text, EmbeddingTable(np.ones((5, 2)), ["c0", "c1", "c2", "c3", "dog"]))
    with pytest.raises(InputError, match="2 classes without a clip.*'c2', 'c3'"):
        check_labels(text, EmbeddingTable(np.ones((2, 2)), ["c0", "c1"]))
    with pytest.raises(InputError, match="duplicate labels: 'c0'"):
        check_labels(EmbeddingTable(np.ones((2, 2)), ["c0", "c0"]), audio)


def test_keep_common():
    kept = keep_common([table(4), table(3)])
    assert [t.labels.tolist() for t in kept] == [["c0", "c1", "c2"]] * 2
    with pytest.raises(InputError, match="no class in common"):
        keep_common([table(2), EmbeddingTable(np.ones((1, 1)), ["z"])])


def test_coerce_says_what_it_takes():
    assert EmbeddingTable.coerce((np.ones((1, 2)), ["a"]), "text").name == "text"
    with pytest.raises(InputError, match="`audio` must be an EmbeddingTable, a path, a pair"):
        EmbeddingTable.coerce(3, "audio")


def test_bfloat16_is_read_whole_and_in_blocks(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch writes the file, and is not installed")
    from safetensors.torch import save_file

    from fastprobe.tables.streams import TableStream

    vectors = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"other": torch.ones(5), "vectors": vectors}, tmp_path / "t.safetensors", metadata={"labels": json.dumps(list("abcdefg"))})
    table = EmbeddingTable.load(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(table.vectors, vectors.float().numpy())
    blocks = list(TableStream.open(tmp_path / "t.safetensors").blocks(3))
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in blocks]), table.vectors)
    assert [len(b.labels) for b in blocks] == [3, 3, 1]
