"""Tables as other programs write them: Parquet of pandas and Hugging Face `datasets`, frames, tensors, whole-number labels."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastprobe import EmbeddingTable, InputError, ProbeConfig, permutation_test
from fastprobe.cli.app import main
from fastprobe.runs.audit import examine, verify
from fastprobe.tables.arrow import split_location, with_columns
from fastprobe.tables.streams import TableStream

CLASSES = [f"class {i}" for i in range(12)]


@pytest.fixture
def tables():
    rng = np.random.default_rng(3)
    text = rng.standard_normal((12, 5)).astype(np.float32)
    audio = rng.standard_normal((36, 4)).astype(np.float32)
    return EmbeddingTable(text, CLASSES, meta={"name": "names"}), EmbeddingTable(audio, CLASSES * 3, meta={"name": "clips"})


def foreign(path, table, vector="embedding", label="text", width=None, **further):
    kind = pa.list_(pa.float32(), width or -1)
    frame = pa.table({**further, label: table.labels.tolist(), vector: pa.array(table.vectors.tolist(), kind)})
    pq.write_table(frame, path)
    return str(path)


def shell(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fastprobe", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.mark.parametrize("vector", ["embedding", "embeddings", "a=b"])
@pytest.mark.parametrize("label", ["text", "name", "label"])
@pytest.mark.parametrize("width", [None, 5])
def test_named_columns_are_read_whole_and_in_blocks(tmp_path, tables, vector, label, width):
    path = foreign(tmp_path / "t.parquet", tables[0], vector, label, width)
    named = with_columns(path, vector, label)
    for found in (EmbeddingTable.load(path, vector_column=vector, label_column=label), EmbeddingTable.load(named)):
        np.testing.assert_array_equal(found.vectors, tables[0].vectors)
        assert found.labels.tolist() == CLASSES and found.name == "t"
    stream = TableStream.open(named)
    blocks = list(stream.blocks(5))
    assert [len(b.labels) for b in blocks] == [5, 5, 2] and [label for b in blocks for label in b.labels] == CLASSES
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in blocks]), tables[0].vectors)


@pytest.mark.parametrize("read", [EmbeddingTable.load, TableStream.open])
def test_the_message_names_the_columns_that_it_could_be(tmp_path, tables, read):
    path = foreign(tmp_path / "t.parquet", tables[0], url=["u"] * 12, score=np.arange(12.0))
    with pytest.raises(InputError) as error:
        read(path)
    said = str(error.value)
    assert "vectors could be in `embedding`: give --vector-column embedding" in said
    assert "labels could be in `text` or `url`: give --label-column text" in said and "score" in said.split("Its columns")[1]
    assert "score" not in said.split("Its columns")[0]
    with pytest.raises(InputError, match="column `nothing` is missing; the vectors could be in `embedding`"):
        read(with_columns(path, "nothing", "text"))
    with pytest.raises(InputError, match="column `score` must hold lists of numbers; got double"):
        read(with_columns(path, "score", "text"))


def test_without_a_column_that_fits_the_message_says_what_one_is(tmp_path):
    pq.write_table(pa.table({"a": [1.5]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="no column holds lists of numbers.*no column holds text or whole numbers"):
        EmbeddingTable.load(tmp_path / "t.parquet")


def test_only_parquet_has_columns_to_name(tmp_path, tables):
    tables[0].save(tmp_path / "t.npz")
    with pytest.raises(InputError, match="only Parquet has columns to name; got `embedding`"):
        EmbeddingTable.load(tmp_path / "t.npz", vector_column="embedding")


def test_class_labels_of_hugging_face_datasets_are_read_by_their_names(tmp_path, tables):
    features = {"label": {"names": ["bell", "dog"], "_type": "ClassLabel"}}
    frame = pa.table({"label": [1, 0], "embedding": [[1.0, 0.0], [0.0, 1.0]]})
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(frame.replace_schema_metadata(meta), tmp_path / "t.parquet")
    path = with_columns(tmp_path / "t.parquet", "embedding", None)
    assert EmbeddingTable.load(path).labels.tolist() == ["dog", "bell"]
    assert next(TableStream.open(path).blocks(9)).labels == ["dog", "bell"]


def test_every_command_takes_the_columns(tmp_path, tables, monkeypatch, capsys):
    text = foreign(tmp_path / "names.parquet", tables[0])
    audio = str(tmp_path / "clips.parquet")
    tables[1].save(audio)  # one of ours among them keeps its own columns
    columns = ("--vector-column", "embedding", "--label-column", "text")
    out, few = tmp_path / "run", ("--permutations", 9, "--steps", 2, "--splits", 2, "--seeds", 1)
    sides = ("--text", text, "--audio", audio)
    code, said = shell(monkeypatch, capsys, "run", *sides, *few, "--out", out)
    assert code == 2 and "--vector-column embedding" in said
    code, said = shell(monkeypatch, capsys, "run", *sides, *few, "--out", out, *columns)
    assert code == 0, said
    assert examine(out, check=True)["inputs"] == []
    assert verify(out, sample=3)["agrees"]
    (tmp_path / "run.toml").write_text(
        'text = "names.parquet"\naudio = "clips.parquet"\nvector-column = "embedding"\nlabel-column = "text"\n'
    )
    code, said = shell(monkeypatch, capsys, "run", "--config", tmp_path / "run.toml", *few, "--out", tmp_path / "again")
    assert code == 0, said
    code, said = shell(monkeypatch, capsys, "report", out)
    assert code == 0, said
    code, said = shell(monkeypatch, capsys, "plan", *sides, *few, *columns, "--seconds", 0.1)
    assert code == 0, said
    probe = tmp_path / "p.safetensors"
    code, said = shell(monkeypatch, capsys, "fit", *sides, "--out", probe, "--steps", 2, *columns)
    assert code == 0, said
    for gallery in (text, with_columns(text, "embedding", "text")):
        code, said = shell(
            monkeypatch, capsys, "query", audio, "--probe", probe, "--gallery", gallery, *(columns if gallery == text else ())
        )
        assert code == 0 and "class" in said, said
    index = tmp_path / "index"
    code, said = shell(monkeypatch, capsys, "index", "build", text, "--probe", probe, "--out", index, *columns)
    assert code == 0, said
    code, said = shell(monkeypatch, capsys, "index", "search", index, audio)
    assert code == 0, said
    code, said = shell(monkeypatch, capsys, "index", "search", index, tmp_path / "p.npz", *columns)
    assert code == 2 and "names a column of Parquet tables" in said


def test_frames_of_pandas_and_arrow(tables):
    import pandas as pd

    frame = pd.DataFrame({"text": pd.Categorical(CLASSES), "embedding": list(tables[0].vectors), "id": range(12)})
    for found in (
        EmbeddingTable.from_frame(frame, vector_column="embedding", label_column="text"),
        EmbeddingTable.coerce(frame.rename(columns={"text": "label", "embedding": "vector"}), "text"),
        EmbeddingTable.coerce(pa.table({"label": CLASSES, "vector": tables[0].vectors.tolist()}), "text"),
        EmbeddingTable.coerce((frame["embedding"].tolist(), frame["text"]), "text"),
    ):
        np.testing.assert_array_equal(found.vectors, tables[0].vectors)
        assert found.labels.tolist() == CLASSES
    with pytest.raises(InputError, match="`text`: column `vector` is missing; the vectors could be in `embedding`"):
        EmbeddingTable.coerce(frame, "text")
    with pytest.raises(InputError, match="`text`: DataFrame has columns that Arrow cannot hold"):
        EmbeddingTable.coerce(pd.DataFrame({"label": ["a"], "vector": [object()]}), "text")


def test_frames_of_polars(tables):
    pl = pytest.importorskip("polars", reason="polars is not installed")
    frame = pl.DataFrame({"label": CLASSES, "vector": tables[0].vectors.tolist()})
    found = EmbeddingTable.coerce(frame, "text")
    np.testing.assert_array_equal(found.vectors, tables[0].vectors)
    assert EmbeddingTable.coerce((tables[0].vectors, frame["label"]), "text").labels.tolist() == CLASSES


def test_tensors_of_pytorch(tables):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensor = torch.from_numpy(tables[0].vectors)
    for given in (tensor, tensor.requires_grad_(), torch.nn.Parameter(tensor)):
        np.testing.assert_array_equal(EmbeddingTable(given, CLASSES).vectors, tables[0].vectors)
    halves = EmbeddingTable.coerce((tensor.bfloat16(), torch.arange(12)), "text")
    np.testing.assert_allclose(halves.vectors, tables[0].vectors, rtol=2**-8)
    assert halves.labels.tolist() == [str(i) for i in range(12)]
    result = permutation_test((tensor, CLASSES), tables[1], permutations=3, splits=1, probe=ProbeConfig(steps=1))
    assert 0 < result.pvalue <= 1


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors"])
def test_whole_numbers_against_text_are_said_once(tmp_path, tables, monkeypatch, capsys, suffix):
    text, audio = tables
    numbers = np.arange(12)
    EmbeddingTable(audio.vectors, np.tile(numbers, 3).astype(str)).save(tmp_path / "clips.npz")
    path = tmp_path / f"names{suffix}"
    if suffix == ".npz":
        np.savez(path, vectors=text.vectors, labels=numbers)
    elif suffix == ".parquet":
        pq.write_table(pa.table({"label": numbers, "vector": text.vectors.tolist()}), path)
    else:
        from safetensors.numpy import save_file

        save_file({"vectors": text.vectors}, path, metadata={"labels": json.dumps(numbers.tolist())})
    arguments = ("run", "--text", path, "--audio", tmp_path / "clips.npz", "--permutations", 5, "--steps", 1, "--splits", 1)
    code, said = shell(monkeypatch, capsys, *arguments, "--out", tmp_path / "run")
    assert code == 0 and said.count("labels are whole numbers in 'names' and text in 'clips'") == 1


@pytest.mark.parametrize("location", ["a.parquet#x=1", "a.npz#vector=v", "a#b.parquet", "s3://b/k.parquet?x#vector"])
def test_other_locations_stay_as_they_are(location):
    assert split_location(location)[0] == location
