"""The shell as a stranger meets it: help, messages, exit codes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer.main

from fastprobe.cli.app import app
from fastprobe.protocol.config import ProbeConfig
from support.strategies import tables

FAST = ["--steps", "5", "--dim", "4", "--permutations", "9", "--splits", "2", "--device", "cpu", "--no-baselines"]


@pytest.fixture
def files(tmp_path):
    text, audio = tables(classes=12)
    text.save(tmp_path / "text.npz")
    audio.save(tmp_path / "audio.parquet")
    return ["--text", "text.npz", "--audio", "audio.parquet"]


def test_help_imports_nothing_heavy(shell):
    code = (
        "import sys; sys.argv = ['fastprobe', '--help']\nfrom fastprobe.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'scipy', 'matplotlib', 'pyarrow', 'transformers', 'ray', 'faiss', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and "run" in done.stdout


def commands(command=None, path=("fastprobe",)):
    """Every command of the shell with its path."""
    command = command or typer.main.get_command(app)
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda v: "-".join(v) if isinstance(v, tuple) else "")
def test_every_help_ends_with_an_example_that_parses(path, command):
    words = shlex.split(command.epilog.removeprefix("Example: "))
    assert tuple(words[: len(path)]) == path
    context = command.make_context(path[-1], words[len(path) :])  # unknown options and missing arguments raise
    assert context.params


@pytest.mark.parametrize(("name", "marker"), [("bash", "complete -o default -F"), ("zsh", "#compdef fastprobe"), ("fish", "complete")])
def test_completion_is_offered_for_the_usual_shells(name, marker):
    def asked(**environment):
        command = [Path(sys.executable).with_name("fastprobe")]  # by its name, which the scripts of completion go by
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True).stdout

    assert marker in asked(_FASTPROBE_COMPLETE=f"source_{name}")
    found = asked(_FASTPROBE_COMPLETE="complete_bash", COMP_WORDS="fastprobe run --contr", COMP_CWORD="2")
    assert found.split() == ["--control"]


def test_run_has_an_option_for_every_probe_field(shell):
    text = shell("run", "--help", env={**os.environ, "COLUMNS": "200"}).stdout
    for name in ProbeConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


def test_run_and_status(shell, files, tmp_path):
    done = shell("run", *files, *FAST, "--out", "r", "--k", "1", "--k", "4", "--statistic", "acc@4")
    assert done.returncode == 0, done.stderr
    assert "acc@4" in done.stdout and "Traceback" not in done.stderr
    record = json.loads((tmp_path / "r/summary.json").read_text())["pairs"][0]
    assert record["metric"] == "acc@4" and 0.1 <= record["pvalue"] <= 1
    status = shell("status", "r")
    assert status.returncode == 0 and "20 of 20 probes" in status.stdout


def test_config_file_gives_what_the_shell_does_not(shell, files, tmp_path):
    (tmp_path / "e.toml").write_text(
        'text = ["text.npz"]\naudio = "audio.parquet"\npermutations = 9\nsplits = 3\ndevice = "cpu"\n'
        "[probe]\ndim = 4\nsteps = 5\noptimizer = 'sgd'\n"
    )
    done = shell("run", "--config", "e.toml", "--out", "r", "--splits", "2")
    assert done.returncode == 0, done.stderr
    identity = json.loads((tmp_path / "r/manifest.json").read_text())["identity"]
    assert (identity["splits"], identity["probe"]["optimizer"], identity["probe"]["dim"]) == (2, "sgd", 4)
    (tmp_path / "e.toml").write_text("splitz = 3\n")
    done = shell("run", "--config", "e.toml", "--out", "r2")
    assert done.returncode == 2 and "splitz" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--train-fraction", "0.99"], ["`train_fraction`", "0.99 of 12"]),
        (["--k", "99"], ["`k`", "99"]),
        (["--dim", "0"], ["`dim`", "0"]),
        (["--text", "absent.npz"], ["absent.npz", "no such file"]),
        (["--backend", "triton", "--device", "cpu"], ["triton", "Available here"]),
        (["--statistic", "accuracy"], ["`statistic`", "accuracy"]),
        (["--optimizer", "lion"], ["lion"]),
        (["--permutations", "many"], ["--permutations", "integer"]),
    ],
)
def test_bad_usage_exits_with_two_and_one_message(shell, files, change, words):
    done = shell("run", *files, *FAST, "--out", "r", *change)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words)


@pytest.mark.parametrize(
    "line",
    [
        "k = 3.5",
        "k = true",
        "shard = 3",
        "devices = [0, 1]",
        "devices = 0",
        "device = 1",
        "statistic = 3",
        "stop = 5",
        "splits = 2.5",
        "log_json = 77",
        "engine = 3",
        "backend = 3",
        "precision = [3]",
        "dim = 64.0",
        "lr = 'x'",
        "address = 5",
        "within = 5",
        "classes = 3",
        "resume = 1",
        "quiet = 'no'",
        "retrieval = 1",
        "energy = true",
        "text = 5",
        "audio = {a = 1}",
        "out = 5",
        "groups = 5",
        "[probe]\ndim = 5",
    ],
)
def test_a_value_of_another_type_in_a_config_file_is_named(tmp_path, monkeypatch, line):
    from fastprobe.cli.app import app
    from fastprobe.errors import InputError

    monkeypatch.chdir(tmp_path)
    for table, name in zip(tables(classes=12), ("text", "audio")):
        table.save(f"{name}.npz")
    name = "dim" if line.startswith("[") else line.split(" ")[0]
    rest = {"text": "'text.npz'", "audio": "'audio.npz'", "out": "'r'", "dim": "4", "control": "'permute-within'", "groups": "'fsd50k'"}
    lines = [f"{n} = {v}" for n, v in rest.items() if n != name or line.startswith("[")]
    (tmp_path / "e.toml").write_text("\n".join([*lines, line, ""]))
    with pytest.raises(InputError, match=f"`{name}`"):
        app(["run", "--config", "e.toml"], standalone_mode=False)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["fit", "--seed", "-1"], "seed"),
        (["fit", "--k", "99"], "k"),
        (["plan", "--effect", "nan", "--steps", "2"], "effect"),
        (["demo", "--seed", "-1"], "seed"),
        (["bench", "--rounds", "0"], "rounds"),
    ],
)
def test_numbers_out_of_range_are_named_by_every_command(tmp_path, monkeypatch, arguments, name):
    from fastprobe.cli.app import app
    from fastprobe.errors import InputError

    monkeypatch.chdir(tmp_path)
    for table, side in zip(tables(classes=12), ("text", "audio")):
        table.save(f"{side}.npz")
    files = ["--text", "text.npz", "--audio", "audio.npz"] if arguments[0] in ("fit", "plan") else []
    out = ["--out", "p.safetensors"] if arguments[0] == "fit" else []
    with pytest.raises(InputError, match=f"`{name}` must"):
        app([*arguments, *files, *out], standalone_mode=False)
    assert not (tmp_path / "p.safetensors").exists()


def test_missing_tables_are_asked_for(shell):
    done = shell("run")
    assert done.returncode == 2 and "--text FILE" in done.stderr


def test_bad_tables_exit_with_two(shell, files, tmp_path):
    text, _ = tables(classes=12)
    vectors = text.vectors.astype(np.float64)
    vectors[3, 2] = np.nan
    np.savez(tmp_path / "nan.npz", vectors=vectors, labels=text.labels)
    np.savez(tmp_path / "three.npz", vectors=text.vectors[:3], labels=text.labels[:3])
    (tmp_path / "csv.npz").write_text("label,vector\n")
    for name, words in (("nan.npz", "row 3"), ("three.npz", "labels that text table"), ("csv.npz", "csv.npz")):
        done = shell("run", "--text", name, "--audio", "audio.parquet", *FAST, "--out", "r")
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130)])
def test_ctrl_c_keeps_what_is_finished(files, tmp_path, number, code):
    command = [
        sys.executable,
        "-c",
        "from fastprobe.cli.app import main; main()",
        "run",
        *files,
        "--out",
        "r",
        "--backend",
        "reference",
        "--permutations",
        "100000",
        "--steps",
        "20",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("r/results/part-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code, stderr
    assert "--resume" in stderr and "Traceback" not in stderr
    assert list(tmp_path.glob("r/results/part-*.parquet")) and not list(tmp_path.glob("r/results/.*"))


def test_full_disk_keeps_what_is_finished(shell, files, tmp_path):
    """RLIMIT_FSIZE makes every write beyond it fail, as a full disk does."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from fastprobe.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "run", *files, *FAST, "--out", "r"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("r/results/*"))


def test_demo_finds_the_planted_pair_only(shell, tmp_path):
    done = shell("demo", "--simulated", "--out", "d", "--permutations", "40", "--splits", "2")
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stderr
    pairs = json.loads((tmp_path / "d/summary.json").read_text())["pairs"]
    planted, null = (r for r in pairs if r["role"] == "model")
    assert (planted["audio"], null["audio"]) == ("planted", "null")
    assert planted["pvalue"] == 1 / 41 and null["pvalue"] > 0.05


def test_fit_then_load(shell, files, tmp_path):
    done = shell("fit", *files, "--out", "p.safetensors", "--steps", "5", "--dim", "4", "--device", "cpu", "--train-fraction", "0.7")
    assert done.returncode == 0, done.stderr
    assert "trained on 8 classes" in done.stdout and "unseen" in done.stdout
    assert (tmp_path / "p.safetensors").stat().st_size > 0


def test_doctor(shell):
    found = json.loads(shell("doctor", "--json").stdout)
    assert found["backends"]["reference"] is None and found["versions"]["torch"]
    assert "backends:" in shell("doctor").stdout


def record(**kwargs):
    return {
        "text": "t",
        "audio": "a",
        "metric": "acc@3",
        "statistic": 0.5,
        "null_mean": 0.1,
        "pvalue_maxT": 0.001,
        "n_permutations": 999,
        **kwargs,
    }


def test_a_conclusion_says_no_more_than_was_tested():
    from fastprobe.cli.console import conclusion

    assert "carries over (" in conclusion(record()) and "the permuted control's 0.100" in conclusion(record())
    assert "the Gaussian control's" in conclusion(record(), "gaussian")
    assert "nothing is tested" in conclusion(record(n_permutations=0, null_mean=float("nan"), pvalue_maxT=1.0))
    few = conclusion(record(n_permutations=9, pvalue_maxT=0.1))
    assert "no evidence" in few and "p = 0.1, which 9 permutations cannot bring below 0.1" in few
    assert "cannot bring" not in conclusion(record(pvalue_maxT=0.1))


def test_a_demo_that_was_interrupted_goes_on(shell, tmp_path):
    common = ["demo", "--out", "d", "--permutations", "3", "--splits", "1"]
    assert shell(*common).returncode == 0
    for shard in tmp_path.glob("d/results/part-p0001*"):
        shard.unlink()
    assert shell(*common).returncode == 2
    done = shell(*common, "--resume")
    assert done.returncode == 0 and list(tmp_path.glob("d/results/part-p0001*"))


def test_plan_reads_the_configuration_file_of_the_run(shell, files, tmp_path):
    (tmp_path / "e.toml").write_text(
        'text = "text.npz"\naudio = "audio.parquet"\npermutations = 9\nsplits = 3\nout = "r"\nk = [1, 2]\nquiet = true\n'
        "[probe]\nsteps = 2\n"
    )
    done = shell("plan", "--config", "e.toml", "--seconds", "0.1", "--splits", "2", "--no-baselines")
    assert done.returncode == 0, done.stderr
    assert "1 pair x 2 splits x 1 seed x (1 + 9 permutations) = 20 probes" in done.stdout
    assert not (tmp_path / "r").exists()
    (tmp_path / "e.toml").write_text('text = "text.npz"\naudio = "audio.parquet"\ntrain_fraction = [0.3, 0.5]\n')
    done = shell("plan", "--config", "e.toml")
    assert done.returncode == 2 and "make a curve" in done.stderr and "--train-fraction 0.3" in done.stderr
    done = shell("plan")
    assert done.returncode == 2 and "`text` is missing" in done.stderr


def test_paths_of_a_configuration_file_are_relative_to_it(shell, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    for table, name in zip(tables(classes=12), ("text", "audio")):
        table.save(tmp_path / "there" / f"{name}.npz")
    (tmp_path / "there" / "e.toml").write_text(
        'text = ["text.npz"]\naudio = "audio.npz"\nout = "run"\npermutations = 2\n[probe]\nsteps = 2\ndim = 3\n'
    )
    done = shell("run", "--config", "../there/e.toml", "-q", cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "run" / "summary.json").exists()
    done = shell("run", "--config", "../there/e.toml", "--out", "mine", "-q", cwd=tmp_path / "here")
    assert done.returncode == 0 and (tmp_path / "here" / "mine" / "summary.json").exists()
