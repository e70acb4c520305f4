"""Data sets on disk -> clips, and the whole way from a folder in FSD50K's layout to a run, in the README's script."""

from __future__ import annotations

import csv
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fastprobe.errors import InputError
from fastprobe.extract.datasets import esc50, find_leaves, from_folder, from_manifest, fsd50k, load_dataset, urbansound8k
from fastprobe.extract.names import fsd50k_vocabulary
from fastprobe.tables.embeddings import EmbeddingTable
from support.extract_models import HEAR_MODULE, passt_file, text_model, tone
from support.scripts import load_script

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def tiny():
    return load_script(EXAMPLES / "tiny_fsd50k.py")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "FSD50K"
    tiny.main(root, clips=3, seconds=0.2)
    return root


def write_csv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


# ---- FSD50K ----------------------------------------------------------------------------------------


def test_fsd50k_gives_clips_with_one_leaf(tiny, folder):
    corpus = fsd50k(folder)
    assert corpus.classes() == sorted(tiny.CLASSES) and len(corpus.clips) == 2 * 3 * len(tiny.CLASSES) and not corpus.missing()
    assert corpus.about == {
        "subset": "all",
        "leaves": "ground-truth",
        "n_leaves": len(tiny.CLASSES),
        "multi": "drop",
        "clips_with_several_leaves": 1,
        "clips_without_leaf": 0,
    }
    assert len(fsd50k(folder, subset="dev").clips) == len(fsd50k(folder, subset="train").clips) == 3 * len(tiny.CLASSES)
    repeated = fsd50k(folder, subset="eval", multi="repeat")
    assert len(repeated.clips) == 3 * len(tiny.CLASSES) + 2
    assert {c.label for c in repeated.clips[-2:]} == {"Bark", "Church_bell"} and "#" in repeated.clips[-1].id
    assert len({c.id for c in repeated.clips}) == len(repeated.clips)


def test_soundata_reads_the_same_labels(folder):
    from soundata.datasets.fsd50k import load_ground_truth

    theirs, order = load_ground_truth(str(folder / "FSD50K.ground_truth" / "dev.csv"))
    ours = fsd50k(folder, subset="dev").clips
    assert [c.id for c in ours] == order and all(c.label == theirs[c.id]["tags"][0] for c in ours)


def test_leaves_are_nobodys_ancestor():
    # D carries A and B always; E only B; C is alone; "Guitar" and its only child are on the same clips.
    clips = [["D", "A", "B"], ["D", "A", "B"], ["A"], ["B", "E"], ["C"], ["Acoustic_guitar", "Guitar"], ["X", "Y"]]
    assert find_leaves(clips) == ["Acoustic_guitar", "C", "D", "E", "X", "Y"]


def test_leaves_of_the_whole_vocabulary_propagated_by_its_own_tree():
    """On clips whose labels are propagated along the packaged parents, the rule finds the ontology's 143 leaves."""
    vocabulary = fsd50k_vocabulary()
    by_mid = {row["mid"]: label for label, row in vocabulary.items()}

    def up(label):
        parents = [by_mid[m] for m in vocabulary[label]["parent_mids"].split("|") if m in by_mid]
        return {label}.union(*(up(p) for p in parents))

    random = np.random.default_rng(0)
    labels = sorted(vocabulary)
    clips = [sorted(up(label)) for label in labels for _ in range(3)]
    clips += [sorted(up(a) | up(b)) for a, b in random.choice(labels, (300, 2))]
    assert find_leaves(clips) == sorted(x for x in labels if vocabulary[x]["is_leaf_in_ontology"] == "1")


def test_fsd50k_says_what_is_wrong(folder, tmp_path):
    with pytest.raises(InputError, match="neither FSD50K"):
        fsd50k(tmp_path)
    with pytest.raises(InputError, match="`subset` of fsd50k must be one of"):
        fsd50k(folder, subset="test")
    write_csv(tmp_path / "FSD50K.ground_truth" / "dev.csv", ["fname", "tags"], ["1", "Bark"])
    with pytest.raises(InputError, match="labels, split is missing"):
        fsd50k(tmp_path)
    write_csv(tmp_path / "FSD50K.ground_truth" / "dev.csv", ["fname", "labels", "mids", "split"], ["1", "Bark,Meow", "/m", "train"])
    with pytest.raises(InputError, match=r"`subset` 'eval' needs .*eval\.csv"):
        fsd50k(tmp_path, subset="eval")
    with pytest.raises(InputError, match="exactly one leaf label"):
        fsd50k(tmp_path)
    with pytest.raises(InputError, match="must be one of fsd50k, esc50"):
        load_dataset("fsd", tmp_path)
    with pytest.raises(InputError, match="is an option of fsd50k"):
        load_dataset("esc50", tmp_path, subset="dev")


# ---- the others ------------------------------------------------------------------------------------


def test_esc50_and_urbansound8k(tmp_path):
    write_csv(
        tmp_path / "meta" / "esc50.csv",
        ["filename", "fold", "target", "category", "esc10", "src_file", "take"],
        ["1-100032-A-0.wav", "1", "0", "dog", "True", "100032", "A"],
        ["1-1-A-9.wav", "2", "9", "clock_tick", "False", "1", "A"],
    )
    assert [c[1:] for c in esc50(tmp_path).clips] == [("dog", "1-100032-A-0"), ("clock_tick", "1-1-A-9")]
    assert esc50(tmp_path).missing()[0].endswith("audio/1-100032-A-0.wav")
    write_csv(
        tmp_path / "metadata" / "UrbanSound8K.csv",
        ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"],
        ["100032-3-0-0.wav", "100032", "0", "0.3", "1", "5", "3", "dog_bark"],
    )
    [clip] = urbansound8k(tmp_path).clips
    assert clip[1:] == ("dog_bark", "100032-3-0-0") and clip.path.endswith("audio/fold5/100032-3-0-0.wav")
    for loader in (esc50, urbansound8k):
        with pytest.raises(InputError, match="is missing"):
            loader(tmp_path / "nowhere")


def test_a_folder_of_folders(tmp_path):
    for name in ("dog/1.wav", "dog/deep/2.FLAC", "cat/1.ogg", "cat/notes.txt", "loose.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [c[1:] for c in from_folder(tmp_path).clips] == [("cat", "cat/1.ogg"), ("dog", "dog/1.wav"), ("dog", "dog/deep/2.FLAC")]
    with pytest.raises(InputError, match="no sound file in a subfolder"):
        from_folder(tmp_path / "dog" / "deep")
    with pytest.raises(InputError, match="is not a folder"):
        from_folder(tmp_path / "loose.wav")


def test_a_manifest(tmp_path):
    write_csv(tmp_path / "m.csv", ["path", "label", "id"], ["a/1.wav", "dog", "x"], [str(tmp_path / "2.wav"), "cat", ""])
    clips = from_manifest(tmp_path / "m.csv").clips
    assert [(c.label, c.id) for c in clips] == [("dog", "x"), ("cat", str(tmp_path / "2.wav"))]
    assert [c.path for c in clips] == [str(tmp_path / "a" / "1.wav"), str(tmp_path / "2.wav")]
    for rows, match in (
        ([["path", "class"], ["a", "b"]], "label is missing"),
        ([["path", "label"], ["a", " "]], "line 2 has an empty `label`"),
        ([["path", "label"]], "holds no clip"),
        ([["path", "label", "id"], ["a", "b", "i"], ["c", "d", "i"]], "once"),
    ):
        write_csv(tmp_path / "bad.csv", *rows)
        with pytest.raises(InputError, match=match):
            from_manifest(tmp_path / "bad.csv")


# ---- the shell -------------------------------------------------------------------------------------


@pytest.fixture
def fastprobe(tmp_path, monkeypatch, capsys):
    """Run the shell's entry point in this process, with a HEAR module to be had and a cache of its own."""
    from fastprobe.cli.app import main

    (tmp_path / "quiet_hear_module.py").write_text(HEAR_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FASTPROBE_CACHE", str(tmp_path / "cache"))
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


def test_shell_embeds_and_then_only_what_is_missing(fastprobe, folder, tmp_path):
    command = ("embed", "audio", "--model", "hear:quiet_hear_module", "--dataset", "fsd50k", folder, "--subset", "dev")
    code, out, err = fastprobe(*command, "--out", "a.npz")
    assert code == 0 and "36 clips of 12 classes, 6 wide" in out and "36 embedded, 0 from the cache" in err
    table = EmbeddingTable.load(tmp_path / "a.npz")
    assert table.name == "a" and table.meta["dataset"] == "fsd50k" and table.meta["n_leaves"] == 12 and table.meta["subset"] == "dev"
    (folder / "FSD50K.dev_audio" / "notes.txt").write_text("")
    code, out, err = fastprobe(*command, "--out", "b.safetensors", "--quiet")
    assert code == 0 and "0 embedded, 36 from the cache" in err
    np.testing.assert_array_equal(EmbeddingTable.load(tmp_path / "b.safetensors").vectors, table.vectors)


def test_shell_counts_bad_files(fastprobe, tmp_path):
    for name in ("dog/1.wav", "dog/2.wav", "cat/1.wav"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "s" / name, tone(0.3, 16000, seed=len(name)), 16000)
    (tmp_path / "s" / "cat" / "2.wav").write_bytes(b"RIFF")
    command = ("embed", "audio", "--model", "hear:quiet_hear_module", "--folder", "s", "--out", "a.npz")
    code, _, err = fastprobe(*command)
    assert code == 2 and "cat/2.wav" in err and "--skip-bad" in err and not (tmp_path / "a.npz").exists()
    code, out, err = fastprobe(*command, "--skip-bad")
    assert code == 0 and "3 clips of 2 classes" in out and "1 file skipped" in out and "skipped: s/cat/2.wav" in err


@pytest.mark.parametrize(
    "arguments, match",
    [
        ((), "give exactly one of"),
        (("--folder", ".", "--manifest", "m.csv"), "give exactly one of"),
        (("--folder", ".", "--subset", "dev"), "is an option of --dataset fsd50k"),
        (("--folder", "."), "no sound file"),
        (("--manifest", "m.csv"), "missing"),
        (("--manifest", "there.csv"), "1 of 1 sound files are missing"),
        (("--folder", ".", "--cache", "c", "--no-cache"), "exclude each other"),
        (("--folder", ".", "--model", "nothing"), "`model` must be"),
    ],
)
def test_shell_refuses_with_a_message(fastprobe, tmp_path, arguments, match):
    write_csv(tmp_path / "there.csv", ["path", "label"], ["absent.wav", "dog"])
    model = () if "--model" in arguments else ("--model", "hear:quiet_hear_module")
    code, _, err = fastprobe("embed", "audio", *model, "--out", "a.npz", *arguments)
    assert code == 2 and match in err and "Traceback" not in err and not (tmp_path / "a.npz").exists()


def test_shell_refuses_a_leak_before_anything_is_fetched(fastprobe, folder):
    code, _, err = fastprobe("embed", "audio", "--model", "passt:fsd50k", "--dataset", "fsd50k", folder, "--out", "a.npz")
    assert code == 2 and "--allow-label-leak" in err and "fine-tuned on FSD50K" in err


def test_help_is_light():
    code = (
        "import sys; sys.argv = ['fastprobe', 'embed', '--help']\nfrom fastprobe.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'timm', 'soundfile', 'scipy', 'librosa') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout


def test_the_readmes_script_goes_from_sounds_to_p_values(tmp_path):
    """examples/fsd50k.sh as it stands, with small models in place of those it would fetch."""
    text_model("bert", tmp_path / "bert")
    passt_file(tmp_path / "passt.pt")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "fastprobe"
    program.write_text(f"#!{sys.executable}\nfrom fastprobe.cli.app import main\nmain()\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "PYTHON": sys.executable,
        "TEXT_MODEL": str(tmp_path / "bert"),
        "AUDIO_OPTIONS": f"--checkpoint {tmp_path / 'passt.pt'} --pad none",
        "RUN_OPTIONS": "--permutations 19 --splits 2 --steps 5 --backend torch",
        "FASTPROBE_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(p for p in [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")] if p),
    }
    done = subprocess.run(["sh", str(EXAMPLES / "fsd50k.sh")], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    audio = EmbeddingTable.load(tmp_path / "out" / "passt.npz")
    assert len(set(audio.labels.tolist())) == 12 and len(audio) == 96 and audio.meta["clips_with_several_leaves"] == 1
    summary = json.loads((tmp_path / "out" / "run" / "summary.json").read_text())
    assert [p["text"] for p in summary["pairs"]] == [*(f"text-layer{i:02d}" for i in range(4)), "char-ngrams"]
    assert all(p["audio"] == "passt" and p["n_permutations"] == 19 and 0.05 <= p["pvalue"] <= 1 for p in summary["pairs"])
