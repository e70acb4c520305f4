"""The compiled trainer, on every instruction set of this machine: tests/test_backends.py has the laws all backends share."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batch_of, configs

from fastprobe import _cpp
from fastprobe.config import ProbeConfig
from fastprobe.errors import BackendUnavailableError, InputError
from fastprobe.kernels import cpp_backend, reference, torch_backend

ISAS = _cpp.supported_isas()
FIELDS = ("loss", "ranks", "text_heads", "audio_heads")


def same_bits(a, b, probes=slice(None)):
    return all(np.array_equal(getattr(a, f), getattr(b, f)[probes], equal_nan=True) for f in FIELDS)


def head_error(result, truth):
    """Root-mean-square error over both heads."""
    return np.sqrt(np.mean([np.mean((getattr(result, f) - getattr(truth, f)) ** 2) for f in FIELDS[2:]]))


@pytest.mark.parametrize("isa", ISAS)
def test_exp_keeps_its_bound(isa):
    x = np.concatenate([np.linspace(-86, 0, 400_001), -np.logspace(-30, 0, 1001)]).astype(np.float32)
    out = np.full_like(x, np.nan)
    _cpp.exp(x, out, isa)
    assert np.max(np.abs(out / np.exp(x.astype(np.float64)) - 1)) < 2.5e-7
    x = np.array([-86.5, -200, -np.inf, np.nan, 0.0], np.float32)
    out = np.zeros_like(x)
    _cpp.exp(x, out, isa)
    assert (out[:3] < 5e-38).all() and np.isnan(out[3]) and out[4] == 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("optimizer", ["adam-mini", "sgd", "adam"])
def test_errs_at_most_twice_as_much_as_plain_float32(isa, optimizer):
    """Against float64, over odd sizes and every choice of sampling, loss, decay and algebra."""
    shapes = [{"classes": 7, "text_width": 1, "audio_width": 3, "dim": 1}, {"classes": 23, "text_width": 19, "audio_width": 7, "dim": 9},
              {"classes": 60, "text_width": 33, "audio_width": 130, "dim": 31}, {"classes": 101, "text_width": 65, "audio_width": 17, "dim": 67}]
    for sampling, symmetric in product(("clip", "centroid"), (False, True)):
        ours, plain = {"direct": [], "gram": []}, []
        for (number, shape), decay in product(enumerate(shapes), (0.0, 0.02)):
            sizes = {k: v for k, v in shape.items() if k != "dim"}
            batch = batch_of(ProbeConfig(dim=shape["dim"], steps=9, optimizer=optimizer, sampling=sampling, symmetric=symmetric,
                                         weight_decay=decay, clips_per_class=1 + number % 2), n_probes=2, seed=number, **sizes)
            want = reference.train(batch, heads=True)
            scale = np.abs(want.text_heads).max()
            plain.append(head_error(torch_backend.train(batch, "cpu", heads=True), want) / scale)
            for algebra, errors in ours.items():
                got = cpp_backend.train(batch, heads=True, isa=isa, algebra=algebra)
                errors.append(head_error(got, want) / scale)
                assert np.allclose(got.loss, want.loss, rtol=3e-5, atol=3e-6)
        # Adam magnifies the rounding of single near-zero gradients, which is luck in any one run: the mean of the logs is not.
        typical = {k: np.exp(np.mean(np.log(np.maximum(v, 1e-9)))) for k, v in {**ours, "plain": plain}.items()}
        for algebra in ours:
            assert typical[algebra] <= 2 * typical["plain"], (sampling, symmetric, typical)


@pytest.mark.parametrize("isa", ISAS)
def test_small_temperatures_do_not_underflow(isa):
    for symmetric in (False, True):
        batch = batch_of(ProbeConfig(dim=9, steps=5, temperature=0.004, lr=0.02, symmetric=symmetric), classes=30)
        want, got = reference.train(batch, heads=True), cpp_backend.train(batch, heads=True, isa=isa)
        assert np.allclose(got.loss, want.loss, rtol=1e-3)
        assert np.abs(got.text_heads - want.text_heads).max() < 1e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sampling", ["clip", "centroid"])
def test_more_than_a_thousand_classes(isa, sampling):
    """Rows beyond one block of similarities, texts beyond any tile."""
    batch = batch_of(ProbeConfig(dim=5, steps=2, sampling=sampling), n_probes=1, classes=1501, clips=2, text_width=6)
    want, got = reference.train(batch, heads=True), cpp_backend.train(batch, heads=True, isa=isa)
    assert np.allclose(got.loss, want.loss, rtol=1e-5) and np.abs(got.audio_heads - want.audio_heads).max() < 1e-4
    # Scores of 1,501 texts lie closer together than float32 resolves: single places may be swapped, no more.
    assert np.abs(got.ranks - want.ranks).max() <= 2 and np.mean(got.ranks != want.ranks) < 0.02


@pytest.mark.parametrize("isa", ISAS)
def test_no_steps_leaves_the_start(isa):
    batch = batch_of(ProbeConfig(dim=7, steps=0), n_probes=2)
    got = cpp_backend.train(batch, heads=True, isa=isa)
    assert np.isnan(got.loss).all() and np.array_equal(got.ranks, reference.train(batch).ranks)
    assert np.array_equal(got.text_heads[1], batch.text_start.astype(np.float32))
    assert np.array_equal(got.audio_heads[0], batch.audio_start.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=10)
@given(st.data())
def test_bits_do_not_depend_on_threads_or_batch(isa, data):
    batch = batch_of(data.draw(configs()), n_probes=6, seed=data.draw(st.integers(0, 50)), classes=data.draw(st.integers(6, 40)))
    whole = cpp_backend.train(batch, heads=True, isa=isa, threads=1)
    for threads in (2, 3, 8):
        assert same_bits(cpp_backend.train(batch, heads=True, isa=isa, threads=threads), whole)
    some = dataclasses.replace(batch, permutations=batch.permutations[[5, 2]])
    assert same_bits(cpp_backend.train(some, heads=True, isa=isa), whole, [5, 2])


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=10)
@given(st.data())
def test_a_permutation_is_a_reordered_table(isa, data):
    """pi applied in the kernel, and to the text rows beforehand: the same bits."""
    batch = batch_of(data.draw(configs()), n_probes=2, seed=data.draw(st.integers(0, 50)), classes=data.draw(st.integers(6, 40)))
    pi = batch.permutations[1]
    there = cpp_backend.train(dataclasses.replace(batch, permutations=pi[None]), heads=True, isa=isa)
    here = cpp_backend.train(dataclasses.replace(batch, text=batch.text[pi], permutations=np.arange(len(pi))[None]), heads=True, isa=isa)
    assert same_bits(there, here)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=10)
@given(st.data())
def test_queries_are_ranked_one_by_one(isa, data):
    """Their order, their number and their neighbours in memory change no rank; a batch without queries has none."""
    batch = batch_of(data.draw(configs(steps=2)), n_probes=2, classes=data.draw(st.integers(6, 60)), clips=9)
    whole = cpp_backend.train(batch, isa=isa).ranks
    assert whole.min() >= 1 and whole.max() <= len(batch.text)
    order = np.array(data.draw(st.lists(st.integers(0, len(batch.queries) - 1), min_size=0, max_size=40)), np.int64)
    some = cpp_backend.train(dataclasses.replace(batch, queries=batch.queries[order]), isa=isa).ranks
    assert np.array_equal(some, whole[:, order])


@pytest.mark.parametrize("isa", ISAS)
def test_a_duplicate_text_ties_exactly(isa):
    """Wherever in the gallery it stands: a rival with the true class's vector costs one place, and no other."""
    batch = batch_of(ProbeConfig(dim=37, steps=4), classes=53, n_probes=1, text_width=29)
    n = len(batch.text)
    copy = dataclasses.replace(batch, text=np.concatenate([batch.text, batch.text]), permutations=np.arange(2 * n)[None])
    once, twice = cpp_backend.train(batch, isa=isa), cpp_backend.train(copy, isa=isa)
    # Every rival is there twice, and the true class has its own double: 2 (rank - 1) + 2.
    assert np.array_equal(twice.ranks, 2 * once.ranks)


def unaligned(array):
    """The same numbers, four bytes off every larger alignment."""
    room = np.empty(array.nbytes + 68, np.uint8)
    start = (-room.ctypes.data) % 64 + 4
    view = room[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


@pytest.mark.parametrize("isa", ISAS)
def test_unaligned_inputs_give_the_same_bits(isa):
    for sampling in ("clip", "centroid"):
        batch = batch_of(ProbeConfig(dim=19, steps=4, sampling=sampling), classes=30)
        shifted = dataclasses.replace(batch)
        shifted.__dict__.update(text32=unaligned(batch.text32), audio32=unaligned(batch.audio32))
        assert shifted.text32.ctypes.data % 8 == 4
        assert same_bits(cpp_backend.train(shifted, heads=True, isa=isa), cpp_backend.train(batch, heads=True, isa=isa))


@pytest.mark.parametrize("isa", ISAS)
def test_every_output_is_written(isa, monkeypatch):
    """Outputs start as NaN and -1 here; the guards around them keep their values."""
    batch = batch_of(ProbeConfig(dim=11, steps=3), classes=30, n_probes=3)
    clean, guards = cpp_backend.train(batch, heads=True, isa=isa), []

    def poisoned(shape, dtype=np.float64):
        room = np.full((shape[0] if isinstance(shape, tuple) else shape) + 2, 0).astype(dtype)
        if isinstance(shape, tuple):
            room = np.zeros((shape[0] + 2, *shape[1:]), dtype)
        room.fill(-1 if np.issubdtype(dtype, np.integer) else np.nan)
        guards.append(room)
        return room[1:-1]

    monkeypatch.setattr(np, "empty", poisoned)
    got = cpp_backend.train(batch, heads=True, isa=isa)
    monkeypatch.undo()
    assert len(guards) == 4 and same_bits(got, clean)
    for room in guards:
        for guard in (room[0], room[-1]):
            assert np.isnan(guard).all() if room.dtype.kind == "f" else np.all(guard == -1)


@pytest.mark.parametrize("isa", ISAS)
def test_scores_that_are_not_numbers_come_last(isa):
    batch = batch_of(ProbeConfig(dim=5, steps=4, optimizer="sgd", lr=1e38, schedule="constant"), classes=20)
    got = cpp_backend.train(batch, heads=True, isa=isa)
    lost = np.isnan(got.audio_heads).any(axis=(1, 2)) | np.isnan(got.text_heads).any(axis=(1, 2))
    assert lost.any() and (got.ranks[lost] == len(batch.text)).all() and np.isnan(got.loss[lost]).all()


def test_python_threads_may_train_at_once():
    batches = [batch_of(ProbeConfig(dim=16, steps=6, sampling=s), classes=40, seed=i) for i in range(4) for s in ("clip", "centroid")]
    alone = [cpp_backend.train(b, heads=True) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: cpp_backend.train(b, heads=True), batches * 3))
    for i, got in enumerate(together):
        assert same_bits(got, alone[i % len(alone)])


def test_bounded_calls_change_nothing(monkeypatch):
    batch = batch_of(ProbeConfig(dim=3, steps=2), n_probes=150, classes=8)
    whole = cpp_backend.train(batch, heads=True)
    calls = []
    native = _cpp.train
    monkeypatch.setattr(cpp_backend, "CALL_FLOPS", 1.0)
    monkeypatch.setattr(_cpp, "train", lambda **kw: calls.append(len(kw["loss"])) or native(**kw))
    assert same_bits(cpp_backend.train(batch, heads=True), whole) and calls == [64, 64, 22]


def fresh(code, **environment):
    """Run code in a new process, where the environment is read anew."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_openmp_threads_are_as_many_as_asked_for():
    code = """if True:
        from strategies import batch_of
        from fastprobe.config import ProbeConfig
        from fastprobe.kernels import cpp_backend
        import os
        batch = batch_of(ProbeConfig(dim=3, steps=1), n_probes=16)
        before = len(os.listdir("/proc/self/task"))
        cpp_backend.train(batch)
        print(len(os.listdir("/proc/self/task")) - before)"""
    for threads in (1, 3):
        done = fresh(code, OMP_NUM_THREADS=str(threads))
        assert done.stdout.split() == [str(threads - 1)], done.stderr


def test_the_instruction_set_can_be_named(monkeypatch):
    monkeypatch.delenv("FASTPROBE_ISA", raising=False)
    assert cpp_backend.instruction_set() == ISAS[0] and set(ISAS) <= set(_cpp.compiled_isas())
    for isa in ISAS:
        monkeypatch.setenv("FASTPROBE_ISA", isa)
        assert cpp_backend.instruction_set() == isa
    monkeypatch.setenv("FASTPROBE_ISA", "avx1024")
    with pytest.raises(InputError, match="`FASTPROBE_ISA` must be one of avx512, avx2, baseline, neon; got 'avx1024'"):
        cpp_backend.train(batch_of(ProbeConfig(dim=2, steps=1)))
    foreign = next(i for i in cpp_backend.ISAS if i not in _cpp.compiled_isas())
    monkeypatch.setenv("FASTPROBE_ISA", foreign)
    with pytest.raises(BackendUnavailableError, match=f"'{foreign}' is not available: this build does not hold it. Here: "):
        cpp_backend.instruction_set()
    monkeypatch.setattr(_cpp, "supported_isas", lambda: [ISAS[-1]])
    monkeypatch.setattr(_cpp, "compiled_isas", lambda: [ISAS[-1], foreign])
    with pytest.raises(BackendUnavailableError, match="this machine lacks it"):
        cpp_backend.instruction_set()


def test_the_environment_is_obeyed_in_a_fresh_process():
    code = "from fastprobe.kernels import cpp_backend; print(cpp_backend.instruction_set())"
    assert fresh(code, FASTPROBE_ISA=ISAS[-1]).stdout.strip() == ISAS[-1]
    assert "must be one of" in fresh(code, FASTPROBE_ISA="mmx").stderr


def test_only_the_cpu_is_a_device():
    batch = batch_of(ProbeConfig(dim=2, steps=1))
    cpp_backend.train(batch, "cpu")
    with pytest.raises(BackendUnavailableError, match="`device`='cuda' is not one the cpp backend has"):
        cpp_backend.train(batch, "cuda")


def test_indices_out_of_range_are_refused():
    """The module itself reads no foreign memory, whoever calls it."""
    batch = batch_of(ProbeConfig(dim=2, steps=1))
    for field, value, message in (("permutations", batch.permutations + 1, "permutations out of range"),
                                  ("queries", batch.queries - 10**6, "queries out of range"),
                                  ("clips", batch.clips + 10**6, "clips out of range")):
        with pytest.raises((ValueError, IndexError), match=message):
            train_raw(dataclasses.replace(batch, **{field: value}), batch)
    with pytest.raises(ValueError, match="no instruction set"):
        cpp_backend.train(batch, isa="sse9")


def train_raw(broken, sound):
    """As `train`, with the labels of the queries taken from a sound batch."""
    query_classes = sound.labels[sound.queries]
    c = sound.config
    _cpp.train(text=sound.text32, audio=sound.audio32, centroids=None, train_classes=sound.train_classes, clips=broken.clips,
               rows=sound.n_rows, queries=broken.queries, query_classes=query_classes, permutations=broken.permutations,
               text_start=sound.text_start.astype(np.float32), audio_start=sound.audio_start.astype(np.float32),
               rates=np.ones(c.steps), optimizer=c.optimizer, temperature=1.0, momentum=0.0, weight_decay=0.0, symmetric=False,
               loss=np.empty(sound.n_probes), ranks=np.empty((sound.n_probes, len(sound.queries)), np.int32), text_heads=None,
               audio_heads=None, isa=ISAS[0])
