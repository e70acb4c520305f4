"""The compiled trainer, on every instruction set of this machine: test_backends.py has the laws all backends share."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprobe import _cpp
from fastprobe.errors import BackendUnavailableError, InputError
from fastprobe.kernels import cpp_backend, reference, torch_backend
from fastprobe.protocol.config import ProbeConfig
from support.strategies import batch_of, configs

ISAS = _cpp.supported_isas()
FIELDS = ("loss", "ranks", "ranks_unseen", "text_heads", "audio_heads")


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """These problems are tiny: on a busy machine the threads of two OpenMP pools would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(batch, *device, threads=1, **options):
    return cpp_backend.train(batch, *device, threads=threads, **options)


def same_bits(a, b, probes=slice(None)):
    return all(np.array_equal(getattr(a, f), getattr(b, f)[probes], equal_nan=True) for f in FIELDS)


def head_error(result, truth):
    """Root-mean-square error over both heads."""
    return np.sqrt(np.mean([np.mean((getattr(result, f) - getattr(truth, f)) ** 2) for f in FIELDS[3:]]))


@pytest.mark.parametrize("isa", ISAS)
def test_exp2_keeps_its_bound(isa):
    x = np.concatenate([np.linspace(-124, 0, 600_001), -np.logspace(-30, 0, 1001), -np.arange(124.0)]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(-np.inf))])
    out = np.full_like(x, np.nan)
    _cpp.exp2(x, out, isa)
    assert np.max(np.abs(out / np.exp2(np.maximum(x, -124).astype(np.float64)) - 1)) < 2e-7
    x = np.array([-124.5, -200, -np.inf, np.nan, 0.0], np.float32)
    out = np.zeros_like(x)
    _cpp.exp2(x, out, isa)
    assert (out[:3] < 5e-38).all() and np.isnan(out[3]) and out[4] == 1


@cache
def problems(optimizer, sampling, symmetric):
    """Batches at odd sizes, their float64 results, and the error of plain float32 on each."""
    found = []
    for (number, (classes, text_width, audio_width, dim)), decay in product(
        enumerate(((7, 1, 3, 1), (23, 19, 7, 9), (60, 33, 130, 31), (101, 65, 17, 67))), (0.0, 0.02)
    ):
        config = ProbeConfig(
            dim=dim,
            steps=9,
            optimizer=optimizer,
            sampling=sampling,
            symmetric=symmetric,
            weight_decay=decay,
            clips_per_class=1 + number % 2,
        )
        batch = batch_of(config, n_probes=2, seed=number, classes=classes, text_width=text_width, audio_width=audio_width)
        want = reference.train(batch, heads=True)
        found.append((batch, want, head_error(torch_backend.train(batch, "cpu", heads=True), want)))
    return found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("optimizer", ["adam-mini", "sgd", "adam"])
def test_errs_at_most_twice_as_much_as_plain_float32(isa, optimizer):
    """Against float64, over odd sizes and every choice of sampling, loss, decay and algebra."""
    for sampling, symmetric, algebra in product(("clip", "centroid"), (False, True), ("direct", "gram")):
        ours, plain = [], []
        for batch, want, error in problems(optimizer, sampling, symmetric):
            got = train(batch, heads=True, isa=isa, algebra=algebra)
            assert np.allclose(got.loss, want.loss, rtol=3e-5, atol=3e-6)
            scale = np.abs(want.text_heads).max()
            ours.append(max(head_error(got, want) / scale, 1e-9))
            plain.append(max(error / scale, 1e-9))
        # Adam divides the rounding of a gradient that is nearly zero by its own size, which is luck in any one run.
        typical = np.median if optimizer == "adam" else np.mean
        assert typical(np.log(np.array(ours) / plain)) <= np.log(2), (sampling, symmetric, algebra, ours, plain)


@pytest.mark.parametrize("isa", ISAS)
def test_small_temperatures_do_not_underflow(isa):
    for symmetric in (False, True):
        batch = batch_of(ProbeConfig(dim=9, steps=5, temperature=0.004, lr=0.02, symmetric=symmetric), classes=30)
        want, got = reference.train(batch, heads=True), train(batch, heads=True, isa=isa)
        assert np.allclose(got.loss, want.loss, rtol=1e-3)
        assert np.abs(got.text_heads - want.text_heads).max() < 1e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sampling", ["clip", "centroid"])
def test_more_than_a_thousand_classes(isa, sampling):
    """Rows beyond one block of similarities, texts beyond any tile."""
    batch = batch_of(ProbeConfig(dim=5, steps=2, sampling=sampling), n_probes=1, classes=1501, clips=2, text_width=6)
    want, got = reference.train(batch, heads=True), train(batch, heads=True, isa=isa)
    assert np.allclose(got.loss, want.loss, rtol=1e-5) and np.abs(got.audio_heads - want.audio_heads).max() < 1e-4
    # Scores of 1,501 texts lie closer together than float32 resolves: single places may be swapped, no more.
    assert np.abs(got.ranks - want.ranks).max() <= 2 and np.mean(got.ranks != want.ranks) < 0.02


@pytest.mark.parametrize("isa", ISAS)
def test_no_steps_leaves_the_start(isa):
    batch = batch_of(ProbeConfig(dim=7, steps=0), n_probes=2)
    got = train(batch, heads=True, isa=isa)
    assert np.isnan(got.loss).all() and np.array_equal(got.ranks, reference.train(batch).ranks)
    assert np.array_equal(got.text_heads[1], batch.text_start.astype(np.float32))
    assert np.array_equal(got.audio_heads[0], batch.audio_start.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=10)
@given(st.data())
def test_bits_do_not_depend_on_threads_or_batch(isa, data):
    batch = batch_of(data.draw(configs()), n_probes=6, seed=data.draw(st.integers(0, 50)), classes=data.draw(st.integers(6, 40)))
    whole = train(batch, heads=True, isa=isa)
    for threads in (2, 3, 8):
        assert same_bits(train(batch, heads=True, isa=isa, threads=threads), whole)
    some = dataclasses.replace(batch, permutations=batch.permutations[[5, 2]])
    assert same_bits(train(some, heads=True, isa=isa, threads=0), whole, [5, 2])


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=10)
@given(st.data())
def test_a_permutation_is_a_reordered_table(isa, data):
    """pi applied in the kernel, and to the text rows beforehand: the same bits."""
    batch = batch_of(data.draw(configs()), n_probes=2, seed=data.draw(st.integers(0, 50)), classes=data.draw(st.integers(6, 40)))
    pi = batch.permutations[1]
    there = train(dataclasses.replace(batch, permutations=pi[None]), heads=True, isa=isa)
    reordered = dataclasses.replace(batch, text=batch.text[pi], permutations=np.arange(len(pi))[None])
    here = train(reordered, heads=True, isa=isa)
    assert same_bits(there, here)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=10)
@given(st.data())
def test_queries_are_ranked_one_by_one(isa, data):
    """Their order, their number and their neighbours in memory change no rank; a batch without queries has none."""
    batch = batch_of(data.draw(configs(steps=2, csls=0)), n_probes=2, classes=data.draw(st.integers(6, 60)), clips=9)
    whole = train(batch, isa=isa).ranks
    assert whole.min() >= 1 and whole.max() <= len(batch.text)
    order = np.array(data.draw(st.lists(st.integers(0, len(batch.queries) - 1), min_size=0, max_size=40)), np.int64)
    some = train(dataclasses.replace(batch, queries=batch.queries[order]), isa=isa).ranks
    assert np.array_equal(some, whole[:, order])


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=10)
@given(st.data())
def test_the_order_of_queries_changes_no_corrected_rank(isa, data):
    config, clips = data.draw(configs(steps=2, csls=data.draw(st.integers(1, 6)))), data.draw(st.sampled_from([4, 9]))
    batch = batch_of(config, n_probes=2, classes=data.draw(st.integers(30, 60)), clips=clips)
    whole = train(batch, isa=isa)
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(len(batch.queries))
    some = train(dataclasses.replace(batch, queries=batch.queries[order]), isa=isa)
    assert np.array_equal(some.ranks, whole.ranks[:, order]) and np.array_equal(some.ranks_unseen, whole.ranks_unseen[:, order])


@pytest.mark.parametrize("isa", ISAS)
def test_a_duplicate_text_ties_exactly(isa):
    """Wherever in the gallery it stands: a rival with the true class's vector costs one place, and no other."""
    batch = batch_of(ProbeConfig(dim=37, steps=4), classes=53, n_probes=1, text_width=29)
    n = len(batch.text)
    copy = dataclasses.replace(batch, text=np.concatenate([batch.text, batch.text]), permutations=np.arange(2 * n)[None])
    once, twice = train(batch, isa=isa), train(copy, isa=isa)
    # Every rival is there twice, and the true class has its own double: 2 (rank - 1) + 2.
    assert np.array_equal(twice.ranks, 2 * once.ranks)
    assert np.array_equal(twice.ranks_unseen, once.ranks_unseen)  # the doubles are of other classes, none of them unseen


def unaligned(array):
    """The same numbers, four bytes off every larger alignment."""
    room = np.empty(array.nbytes + 68, np.uint8)
    start = (-room.ctypes.data) % 64 + 4
    view = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


@pytest.mark.parametrize("isa", ISAS)
def test_unaligned_inputs_give_the_same_bits(isa):
    for sampling in ("clip", "centroid"):
        batch = batch_of(ProbeConfig(dim=19, steps=4, sampling=sampling), classes=30)
        shifted = dataclasses.replace(batch)
        shifted.__dict__.update(text32=unaligned(batch.text32), audio32=unaligned(batch.audio32))
        assert shifted.text32.ctypes.data % 8 == 4
        assert same_bits(train(shifted, heads=True, isa=isa), train(batch, heads=True, isa=isa))


@pytest.mark.parametrize("csls", [0, 4])
@pytest.mark.parametrize("isa", ISAS)
def test_every_output_is_written(isa, csls, monkeypatch):
    """Outputs start as NaN and -1 here; the guards around them keep their values."""
    batch = batch_of(ProbeConfig(dim=11, steps=3, csls=csls), classes=30, n_probes=3)
    clean, guards = train(batch, heads=True, isa=isa), []

    def poisoned(shape, dtype=np.float64):
        first, *rest = shape if isinstance(shape, tuple) else (shape,)
        room = np.zeros((first + 2, *rest), dtype)
        room.fill(-1 if np.issubdtype(dtype, np.integer) else np.nan)
        guards.append(room)
        return room[1:-1]

    monkeypatch.setattr(np, "empty", poisoned)
    got = train(batch, heads=True, isa=isa)
    monkeypatch.undo()
    assert len(guards) == 5 and same_bits(got, clean)
    for room in guards:
        for guard in (room[0], room[-1]):
            assert np.isnan(guard).all() if room.dtype.kind == "f" else np.all(guard == -1)


@pytest.mark.parametrize("csls", [0, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_scores_that_are_not_numbers_come_last(isa, csls):
    batch = batch_of(ProbeConfig(dim=5, steps=4, optimizer="sgd", lr=1e38, schedule="constant", csls=csls), classes=20)
    got = train(batch, heads=True, isa=isa)
    lost = np.isnan(got.audio_heads).any(axis=(1, 2)) | np.isnan(got.text_heads).any(axis=(1, 2))
    assert lost.any() and (got.ranks[lost] == len(batch.text)).all() and (got.ranks_unseen[lost] == len(batch.gallery)).all()
    assert np.isnan(got.loss[lost]).all()


def test_python_threads_may_train_at_once():
    batches = [batch_of(ProbeConfig(dim=16, steps=6, sampling=s), classes=40, seed=i) for i in range(4) for s in ("clip", "centroid")]
    alone = [train(b, heads=True) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: train(b, heads=True, threads=2), batches * 3))
    for i, got in enumerate(together):
        assert same_bits(got, alone[i % len(alone)])


@pytest.mark.parametrize("isa", ISAS)
def test_clips_laid_out_for_many_probes_change_nothing(isa):
    """Eight probes or more share one copy of their steps' clips; fewer copy them as they go."""
    batch = batch_of(ProbeConfig(dim=5, steps=4, clips_per_class=2), n_probes=9, classes=10)
    whole = train(batch, heads=True, isa=isa)
    for p in range(batch.n_probes):
        alone = dataclasses.replace(batch, permutations=batch.permutations[p : p + 1])
        assert same_bits(train(alone, heads=True, isa=isa), whole, slice(p, p + 1))


def test_bounded_calls_change_nothing(monkeypatch):
    batch = batch_of(ProbeConfig(dim=3, steps=2), n_probes=150, classes=8)
    whole = train(batch, heads=True)
    calls = []
    native = _cpp.train
    monkeypatch.setattr(cpp_backend, "CALL_FLOPS", 1.0)
    monkeypatch.setattr(_cpp, "train", lambda **kw: calls.append(len(kw["loss"])) or native(**kw))
    assert same_bits(train(batch, heads=True), whole) and calls == [64, 64, 22]


def fresh(code, **environment):
    """Run code in a new process, where the environment is read anew."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_openmp_threads_are_as_many_as_asked_for():
    code = """if True:
        from support.strategies import batch_of
        from fastprobe.protocol.config import ProbeConfig
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
        train(batch_of(ProbeConfig(dim=2, steps=1)))
    foreign = next(i for i in cpp_backend.ISAS if i not in _cpp.compiled_isas())
    monkeypatch.setenv("FASTPROBE_ISA", foreign)
    with pytest.raises(BackendUnavailableError, match=f"'{foreign}' is not available: this build does not hold it. Here: "):
        cpp_backend.instruction_set()
    monkeypatch.setattr(_cpp, "supported_isas", lambda: [ISAS[-1]])
    monkeypatch.setattr(_cpp, "compiled_isas", lambda: [ISAS[-1], foreign])
    with pytest.raises(BackendUnavailableError, match="this machine lacks it"):
        cpp_backend.instruction_set()


def test_doctor_names_the_instruction_set(monkeypatch):
    from fastprobe.cli.doctor import examine

    monkeypatch.setenv("FASTPROBE_ISA", ISAS[-1])
    assert f"cpp uses {ISAS[-1]} (of {', '.join(ISAS)})" in examine()["devices"][0]
    monkeypatch.setenv("FASTPROBE_ISA", "mmx")
    found = examine()
    assert "cpp uses" not in found["devices"][0] and any("`FASTPROBE_ISA` must be one of" in a for a in found["advice"])


def test_the_environment_is_obeyed_in_a_fresh_process():
    code = "from fastprobe.kernels import cpp_backend; print(cpp_backend.instruction_set())"
    assert fresh(code, FASTPROBE_ISA=ISAS[-1]).stdout.strip() == ISAS[-1]
    assert "must be one of" in fresh(code, FASTPROBE_ISA="mmx").stderr


def test_bfloat16_decides_as_float32_does():
    """Hits of unseen classes, and the loss to the resolution of bfloat16; ranks themselves may move by places."""
    config = ProbeConfig(dim=24, steps=60, precision="bf16")
    for sampling, optimizer in product(("clip", "centroid"), ("adam-mini", "sgd", "adam")):
        batch = batch_of(
            dataclasses.replace(config, sampling=sampling, optimizer=optimizer, lr=None),
            n_probes=3,
            classes=60,
            clips=30,
            text_width=50,
            audio_width=45,
            ragged=False,
        )
        if _cpp.bf16_isa() is None:
            with pytest.raises(BackendUnavailableError, match="`precision`='bf16' needs a CPU with AVX512-BF16"):
                train(batch)
            continue
        want, got = reference.train(batch, heads=True), train(batch, heads=True)
        assert np.mean((got.ranks <= 3) == (want.ranks <= 3)) > 0.99
        assert np.allclose(got.loss, want.loss, rtol=0.02, atol=2e-3)
        exact = train(batch, heads=True, isa=ISAS[0])
        assert not np.array_equal(got.text_heads, exact.text_heads)  # it did round
        some = dataclasses.replace(batch, permutations=batch.permutations[[2]])
        assert same_bits(train(some, heads=True, threads=2), got, [2])


def test_bfloat16_is_refused_where_it_cannot_be(monkeypatch):
    batch = batch_of(ProbeConfig(dim=2, steps=1, precision="bf16"))
    monkeypatch.setenv("FASTPROBE_ISA", ISAS[-1])
    with pytest.raises(BackendUnavailableError, match=f"`FASTPROBE_ISA` asks for '{ISAS[-1]}'"):
        train(batch)
    monkeypatch.delenv("FASTPROBE_ISA")
    monkeypatch.setattr(_cpp, "bf16_isa", lambda: None)
    with pytest.raises(BackendUnavailableError, match="needs a CPU with AVX512-BF16"):
        train(batch)


@pytest.mark.skipif(_cpp.bf16_isa() is None, reason="needs a CPU with AVX512-BF16")
@settings(max_examples=15)
@given(st.data())
def test_bfloat16_at_odd_sizes(data):
    """Every choice, tails of every kind: losses of the first steps agree to the resolution of bfloat16."""
    config = data.draw(configs(precision="bf16", steps=2, temperature=0.5, optimizer="sgd"))
    batch = batch_of(
        config,
        n_probes=2,
        classes=data.draw(st.integers(6, 60)),
        text_width=data.draw(st.integers(1, 70)),
        audio_width=data.draw(st.integers(1, 70)),
        seed=data.draw(st.integers(0, 50)),
    )
    got, want = train(batch, heads=True), reference.train(batch, heads=True)
    assert np.allclose(got.loss, want.loss, rtol=0.05, atol=0.02) or config.dim == 1
    for a, b in ((got.text_heads, want.text_heads), (got.audio_heads, want.audio_heads)):
        assert np.isfinite(a).all() and (config.dim == 1 or np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b))


def test_only_the_cpu_is_a_device():
    batch = batch_of(ProbeConfig(dim=2, steps=1))
    train(batch, "cpu")
    with pytest.raises(BackendUnavailableError, match="`device`='cuda' is not one the cpp backend has"):
        train(batch, "cuda")


def test_indices_out_of_range_are_refused():
    """The module itself reads no foreign memory, whoever calls it."""
    batch = batch_of(ProbeConfig(dim=2, steps=1))
    for field, value, message in (
        ("permutations", batch.permutations + 1, "permutations out of range"),
        ("queries", batch.queries - 10**6, "queries out of range"),
        ("clips", batch.clips + 10**6, "clips out of range"),
    ):
        with pytest.raises((ValueError, IndexError), match=message):
            train_raw(dataclasses.replace(batch, **{field: value}), batch)
    with pytest.raises(ValueError, match="no instruction set"):
        train(batch, isa="sse9")


def train_raw(broken, sound):
    """As `train`, with the labels of the queries taken from a sound batch."""
    rest = np.setdiff1d(np.arange(len(sound.text)), sound.gallery)
    c = sound.config
    _cpp.train(
        text=sound.text32,
        audio=sound.audio32,
        centroids=None,
        train_classes=sound.train_classes,
        clips=broken.clips,
        rows=sound.n_rows,
        queries=broken.queries,
        order=np.concatenate([sound.gallery, rest]),
        unseen=len(sound.gallery),
        truth=np.searchsorted(sound.gallery, sound.labels[sound.queries]),
        permutations=broken.permutations,
        text_start=sound.text_start.astype(np.float32),
        audio_start=sound.audio_start.astype(np.float32),
        rates=np.ones(c.steps),
        optimizer=c.optimizer,
        temperature=1.0,
        momentum=0.0,
        weight_decay=0.0,
        symmetric=False,
        neighbours=0,
        loss=np.empty(sound.n_probes),
        ranks=np.empty((sound.n_probes, len(sound.queries)), np.int32),
        unseen_ranks=np.empty((sound.n_probes, len(sound.queries)), np.int32),
        text_heads=None,
        audio_heads=None,
        isa=ISAS[0],
    )
