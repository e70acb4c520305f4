"""The GPU benchmark's parts that need no GPU."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import gpu, gpu_peers, gpu_peers_gram, make_gpu
from benchmarks.gpu_losses import PUBLISHED, head_width
from benchmarks.gpu_tables import markdown
from fastprobe.kernels import reference, torch_backend
from fastprobe.kernels.gpu import loss as triton_loss
from support import triton_cases as cases

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def measured(monkeypatch):
    """The table of the loss at a size, computed by plain torch on the CPU; and the report it stands in."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(triton_loss, "contrastive_loss", lambda *x, precision: torch_backend.contrastive_loss(*x))

    def measure(*size):
        report = {"loss": {}, "training": {}, "sweep": {}, "date": "", "versions": {"device": "CPU"}, "ceilings": {"copy_TB_per_s": 1.0}}
        gpu.loss_op(report, gpu.Clock(torch.device("cpu")), [size], 1)
        return report["loss"], report

    return measure


def install(monkeypatch, loss=F.cross_entropy):
    """Stand-ins for the published packages, with their signatures."""

    def module(name, **members):
        new = types.ModuleType(name)
        new.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(new).update(members)
        monkeypatch.setitem(sys.modules, name, new)

    class Liger:
        def __call__(self, lin_weight, _input, target):
            return loss(_input @ lin_weight.T, target)

    def linear_cross_entropy(e, c, targets, filter_eps):
        assert filter_eps is None
        return loss(e @ c.T, targets)

    def cal_flash_loss(q, k, labels, scale, head_dim):
        assert q.shape[1] % head_dim == 0
        return loss(scale * q.float() @ k.float().T, labels)[None]

    module("liger_kernel")
    module("liger_kernel.transformers", LigerFusedLinearCrossEntropyLoss=Liger)
    module("cut_cross_entropy", linear_cross_entropy=linear_cross_entropy)
    module("inf_cl", cal_flash_loss=cal_flash_loss)


def test_published_losses_that_are_not_installed_say_so(measured, monkeypatch):
    for name in [p.module for p in PUBLISHED]:
        monkeypatch.setitem(sys.modules, name, None)
    tables, report = measured(1, 20, 64, 32)
    for table in tables.values():
        assert table["ours"]["correct"] and "seconds" in table["ours"]
        for p in PUBLISHED:
            assert table[p.package]["why_not"] == f"not installed (pip install {p.package})"
            assert "seconds" not in table[p.package]
    assert "not installed (pip install liger-kernel)" in markdown(report)


def test_published_losses_pass_the_same_gate_and_are_timed(measured, monkeypatch):
    install(monkeypatch)
    tables, report = measured(1, 20, 64, 32)
    single, half = tables["(1, 20, 64, 32), tf32"], tables["(1, 20, 64, 32), bf16"]
    for row in (single["liger-kernel"], single["inf-cl"], *(half[p.package] for p in PUBLISHED)):
        assert row["correct"] and row["seconds"]["median"] > 0
    assert single["cut-cross-entropy"]["why_not"] == "its backward takes half precision only"
    assert "errors" not in report


def test_a_published_loss_that_errs_or_raises_gets_no_speed(measured, monkeypatch):
    install(monkeypatch, lambda scores, labels: F.cross_entropy(1.1 * scores, labels))
    tables, _ = measured(1, 20, 64, 32)
    for p in PUBLISHED:
        row = tables["(1, 20, 64, 32), bf16"][p.package]
        assert row["error"] > 0.05 and not row["correct"] and "seconds" not in row
    install(monkeypatch, lambda *_: torch.zeros(()).dot(torch.zeros(3)))
    tables, report = measured(1, 20, 64, 32)
    assert tables["(1, 20, 64, 32), bf16"]["liger-kernel"]["why_not"].startswith("RuntimeError")
    assert "errors" not in report  # what another package raises fails its line, not the run


def test_published_losses_are_asked_for_what_they_can(measured, monkeypatch):
    install(monkeypatch)
    assert [head_width(d) for d in (256, 768, 512, 96, 33)] == [256, 256, 256, 32, 1]
    tables, _ = measured(1, 20, 65, 32)
    assert tables["(1, 20, 65, 32), bf16"]["inf-cl"]["why_not"] == "needs n divisible by 64 and d by 16"
    tables, _ = measured(2, 9, 64, 16)
    assert not {p.package for p in PUBLISHED} & set(tables["(2, 9, 64, 16), bf16"])


@pytest.mark.parametrize("sampling", ["centroid", "clip"])
@pytest.mark.parametrize("peer", ["compiled_gram", "jax_gram"])
def test_peers_with_our_algebra_train_what_the_definition_does(peer, sampling):
    if peer == "jax_gram":
        pytest.importorskip("jax", reason="JAX is not installed")
    batch = gpu_peers.problem(20, 25, 30, 16, sampling, 3, 10, precision="ieee")
    want = reference.train(batch, heads=True)
    got = getattr(gpu_peers_gram, peer)(batch, torch.device("cpu"))()
    for heads, expected in zip(got, (want.text_heads, want.audio_heads)):
        assert gpu.relative_error(heads[:2], expected[:2]) < 1e-6


def test_a_gpu_machine_needs_none_of_the_other_packages():
    """`make gpu` runs where only torch, triton, numpy, scipy and pytest are installed."""
    absent = (
        "pyarrow",
        "faiss",
        "statsmodels",
        "typer",
        "rich",
        "pandas",
        "matplotlib",
        "soundfile",
        "soxr",
        "safetensors",
        "transformers",
        "timm",
        "ray",
        "jax",
        "hypothesis",
        "fastprobe._cpp",
    )
    wanted = (
        "fastprobe",
        "fastprobe.kernels",
        "fastprobe.kernels.gpu.backend",
        "benchmarks.gpu",
        "benchmarks.gpu_losses",
        "benchmarks.gpu_methods",
        "benchmarks.gpu_onchip",
        "benchmarks.gpu_peers",
        "benchmarks.gpu_peers_gram",
        "benchmarks.gpu_tables",
        "benchmarks.make_gpu",
        "kernels.test_cuda",
        "retrieval.test_faiss_cuda",
    )
    code = f"import sys, importlib\nfor name in {absent}: sys.modules[name] = None\nfor name in {wanted}: importlib.import_module(name)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=make_gpu.environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_triton_builds_with_is_looked_for_first(monkeypatch, tmp_path, capsys):
    """Not after every test has failed for the same reason."""
    monkeypatch.setattr(sys, "argv", ["make_gpu"])
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(make_gpu.shutil, "which", lambda _: None)
    assert make_gpu.main() == 2 and "C compiler" in capsys.readouterr().err
    monkeypatch.setattr(make_gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(make_gpu.sysconfig, "get_paths", lambda _: {"include": str(tmp_path)})
    assert make_gpu.main() == 2 and "Python's headers" in capsys.readouterr().err
    (tmp_path / "Python.h").touch()
    assert make_gpu.missing() is None


def test_a_test_that_hangs_is_stopped_and_named(tmp_path, capsys):
    """It costs its own process, and the others' results are there."""
    file = tmp_path / "test_two.py"
    file.write_text("import time\ndef test_hangs():\n    time.sleep(600)\ndef test_passes():\n    pass\n")
    assert make_gpu.run_tests([f"{file}::test_hangs", f"{file}::test_passes"], 2, seconds=15) == 1
    out = capsys.readouterr().out
    assert "test_hangs" in out and "stopped: not done after 15 s" in out
    assert "1 passed" in out


def test_instructions_are_counted_in_the_innermost_loop():
    from benchmarks.loops import loops

    lines = [
        "LDG.E.128 R4, [R2]",
        "FFMA R1, R2, R3, R4",
        "BAR.SYNC 0x0",
        "@P0 MUFU.EX2 R1, R1",
        "@!P1 BRA 0x20",
        "STG.E [R2], R4",
        "@P2 BRA 0x10",
        "BRA 0x80",
        "EXIT",
    ]
    listing = "".join(f"        /*{16 * i:04x}*/    {text} ;   /* 0x0 */\n" for i, text in enumerate(lines))
    whole, outer, inner = loops(listing)
    assert [x[0] for x in (whole, outer, inner)] == [0, 1, 2]
    assert inner[1:3] == (0x20, 0x40) and dict(inner[3]) == {"all": 3, "barrier": 1, "special": 1, "other": 1}
    assert dict(outer[3]) == {"all": 3, "float": 1, "global": 1, "other": 1}
    assert dict(whole[3]) == {"all": 3, "global": 1, "other": 2}


def test_rounded_factors_are_those_of_the_format():
    from benchmarks.precision import by_gram, by_heads, compare, rounding

    x = np.array([1 + 2.0**-10, 1 + 2.0**-11, 1 + 2.0**-12, -1 - 2.0**-11, 0.0])
    assert rounding(10, True).rounded(x).tolist() == [1 + 2.0**-10, 1 + 2.0**-10, 1.0, -1 - 2.0**-10, 0.0]
    assert rounding(10, False).rounded(x).tolist() == [1 + 2.0**-10, 1.0, 1.0, -1.0, 0.0]
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    np.testing.assert_array_equal(rounding(7, True).rounded(x), torch.from_numpy(x).bfloat16().double().numpy())
    for sampling, train in (("clip", by_heads), ("centroid", by_heads), ("centroid", by_gram)):
        batch = cases.make(13, 9, 40, 11, 19, probes=3, steps=6, dim=8, sampling=sampling)
        fine, coarse = compare(batch, rounding(23, False), train), compare(batch, rounding(4, True), train)
        assert fine["ranks"] == 1 and fine["heads"] < 1e-6 < 1e-3 < coarse["heads"]
