"""What the Triton tests compute, apart from pytest: the same cases run in the interpreter and on a GPU.

Nothing here imports Triton before it is called, so that a fresh process may choose the interpreter first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

import numpy as np
import torch

from fastprobe.kernels import reference, torch_backend
from fastprobe.kernels.batch import BatchResult, ProbeBatch
from fastprobe.protocol.config import ProbeConfig
from fastprobe.protocol.plan import permutations


def use_interpreter() -> None:
    """Called in a fresh process, before anything imports Triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


@contextlib.contextmanager
def poisoned():
    """Uninitialised memory is NaN (or the largest integer), so an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def make(classes: int, train: int, clips: int, r_text: int, r_audio: int, probes: int = 2, seed: int = 0, **config) -> ProbeBatch:
    """A batch with rows of length about 1 and audio that has something to do with text."""
    c = ProbeConfig(**{"steps": 3, "dim": 20, "precision": "ieee", **config})
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((classes, r_text)) / np.sqrt(r_text)
    labels = np.sort(np.concatenate([np.arange(classes), rng.integers(0, classes, clips - classes)]))
    audio = (text @ rng.standard_normal((r_text, r_audio)))[labels] / np.sqrt(r_audio) + rng.standard_normal((clips, r_audio)) / np.sqrt(
        r_audio
    )
    trained = np.sort(rng.permutation(classes)[:train])
    drawn = None
    if c.sampling == "clip":
        of = {k: np.flatnonzero(labels == k) for k in trained}
        drawn = (
            np.stack([np.concatenate([rng.choice(of[k], c.clips_per_class) for k in trained]) for _ in range(c.steps)])
            if c.steps
            else np.zeros((0, train * c.clips_per_class), np.int64)
        )
    queries = np.flatnonzero(~np.isin(labels, trained))
    starts = [rng.standard_normal((r, c.dim)) / np.sqrt(r) for r in (r_text, r_audio)]
    return ProbeBatch(c, text, audio, labels, trained, drawn, queries, permutations(seed, 0, probes, classes), *starts)


def train(batch: ProbeBatch, trainer: str | None = None, device: str | None = None) -> BatchResult:
    """Our result, on poisoned memory; `trainer` overrules the choice by shape."""
    from fastprobe.kernels.gpu import backend as triton_backend

    by_shape = triton_backend.trainers
    if trainer:
        triton_backend.trainers = lambda *_: [trainer]
    try:
        with poisoned():
            return triton_backend.train(batch, device, heads=True)
    finally:
        triton_backend.trainers = by_shape


def relative(x: np.ndarray, y: np.ndarray) -> float:
    """|x - y| / |y|."""
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def errors(got: BatchResult, want: BatchResult) -> dict[str, float]:
    """Relative errors of heads and loss, and the share of ranks that differ."""
    return {
        "text_heads": relative(got.text_heads, want.text_heads),
        "audio_heads": relative(got.audio_heads, want.audio_heads),
        "loss": relative(got.loss, want.loss),
        "ranks": float(np.mean(got.ranks != want.ranks)),
        "ranks_unseen": float(np.mean(got.ranks_unseen != want.ranks_unseen)),
    }


def compare(
    shape: tuple[int, ...],
    config: dict,
    trainer: str | None = None,
    device: str | None = None,
    peer_precision: str = "ieee",
    probes: int = 2,
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of ours and of the plain torch backend (in `peer_precision`), both against the definition."""
    batch = make(*shape, probes=probes, **config)
    plain = dataclasses.replace(batch, config=dataclasses.replace(batch.config, precision=peer_precision))
    want = reference.train(batch, heads=True)
    peer = torch_backend.train(plain, device or "cpu", heads=True)
    return errors(train(batch, trainer, device), want), errors(peer, want)


def same_bits(
    shape: tuple[int, ...],
    config: dict,
    trainer: str | None = None,
    device: str | None = None,
    probes: int = 5,
    parts: tuple[tuple[int, ...], ...] = ((3,), (4, 0), (2, 1, 3)),
) -> list[str]:
    """Names of the results in which a probe depends on the batch it is in."""
    batch = make(*shape, probes=probes, **config)
    whole, differing = train(batch, trainer, device), []
    for part in parts:
        some = train(dataclasses.replace(batch, permutations=batch.permutations[list(part)]), trainer, device)
        for field in ("loss", "ranks", "ranks_unseen", "text_heads", "audio_heads"):
            a, b = getattr(whole, field)[list(part)], getattr(some, field)
            if a.tobytes() != b.tobytes():
                differing.append(f"{field} of {part}")
    return differing


def rank_case(
    n_probes: int,
    n_queries: int,
    n_gallery: int,
    width: int,
    precision: str = "ieee",
    device: str = "cpu",
    duplicates: bool = False,
    nan: bool = False,
    csls: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Both ranks by the kernel and by the definition (float64 scores of the same operands): (2, P, Q).

    With `duplicates` every text has a twin, so each true class ties with a rival. Values lie on a grid on which
    products and sums are exact in every precision, and all texts have length 1. With `csls`, whose means are not exact, queries
    are random: only twins tie.
    """
    from fastprobe.kernels.gpu.project import norm_blocks
    from fastprobe.kernels.gpu.rank import rank, rank_csls, score, unseen_texts
    from fastprobe.kernels.ranking import csls_scores, ranks_of

    rng = np.random.default_rng(n_queries + n_gallery)
    z = rng.integers(-8, 9, (n_probes, n_queries, width)).astype(np.float32)
    if csls:
        z = rng.standard_normal(z.shape).astype(np.float32)
    gallery = np.zeros((n_probes, n_gallery, width), np.float32)
    ones = rng.integers(0, width, (n_probes, n_gallery, 4))
    signs = rng.choice([-0.5, 0.5], ones.shape)
    for p in range(n_probes):
        for c in range(n_gallery):
            at = rng.choice(width, 4, replace=False)
            gallery[p, c, at] = signs[p, c]
    if duplicates:
        gallery[:, n_gallery // 2 : n_gallery // 2 * 2] = gallery[:, : n_gallery // 2]
    if nan:
        z[:, 0] = np.nan
    gallery_classes = np.sort(rng.permutation(n_gallery)[: -(-n_gallery // 3)])  # the unseen ones
    classes = rng.choice(gallery_classes, n_queries)
    permuted = np.stack([rng.permutation(n_gallery) for _ in range(n_probes)])
    blocks = norm_blocks(width)
    squares = np.zeros((n_probes, n_gallery, blocks), np.float32)
    squares[..., 0] = (gallery**2).sum(-1)

    def put(x, dtype):
        return torch.from_numpy(np.ascontiguousarray(x, dtype)).to(device)

    z_squares = np.zeros((n_probes, n_queries, blocks), np.float32)
    z_squares[..., 0] = (z**2).sum(-1)
    texts, lengths = put(gallery, np.float32), put(squares, np.float32)
    places, of_queries = put(permuted, np.int32), put(classes, np.int32)
    with poisoned():
        unseen, n_unseen = unseen_texts(places, put(gallery_classes, np.int64)), len(gallery_classes)
        if csls:
            scores = torch.empty(n_probes, n_queries, n_gallery, device=device)
            half = n_queries // 2  # into slices, as blocks of queries are
            for q in (slice(0, half), slice(half, n_queries)):
                score(put(z[:, q], np.float32), put(z_squares[:, q], np.float32), texts, lengths, precision=precision, out=scores[:, q])
            got = rank_csls(scores, places, of_queries, unseen, n_unseen, csls)
        else:
            got = rank(put(z, np.float32), texts, lengths, places, of_queries, unseen, n_unseen, precision=precision)
    want = []
    for g, q, pi in zip(gallery.astype(np.float64), z.astype(np.float64), permuted):
        # The length of a query matters to the correction alone, and would round scores that are exact.
        b = reference.norm(q)[0] if csls else q
        s = csls_scores(b @ g[pi].T, csls)
        want.append((ranks_of(s, classes), ranks_of(s, classes, gallery_classes)))
    return np.stack([x.cpu().numpy() for x in got]), np.stack(want, axis=1)


def loss_case(
    leading: tuple[int, ...],
    m: int,
    n: int,
    d: int,
    shared_labels: bool,
    dtype: str = "float32",
    device: str = "cpu",
    precision: str | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of the fused loss and its gradients, and of plain torch in the same dtype, against float64."""
    from fastprobe.kernels.gpu import loss as triton_loss

    generator = torch.Generator().manual_seed(m + n + d)
    text, audio = (torch.randn(*leading, rows, d, generator=generator).to(getattr(torch, dtype)) for rows in (m, n))
    labels = torch.randint(0, m, (*(() if shared_labels else leading), n), generator=generator)
    weight = torch.randn(leading, generator=generator).abs() + 0.5

    def run(loss, kind):
        t, a = (x.to(device, kind, copy=True).requires_grad_() for x in (text, audio))
        value = loss(t, a, labels.to(device), 0.3)
        value.backward(weight.to(device, value.dtype))
        return {"loss": value.detach(), "text": t.grad, "audio": a.grad}

    want = run(torch_backend.contrastive_loss, torch.float64)
    peer = run(torch_backend.contrastive_loss, getattr(torch, dtype))
    with poisoned():
        got = run(lambda *x: triton_loss.contrastive_loss(*x, precision=precision), getattr(torch, dtype))

    def error(x):
        return {k: float((x[k].double() - want[k]).norm() / want[k].norm()) for k in want}

    return error(got), error(peer)


def out_of_memory_case(fails: int) -> tuple[bool, str]:
    """Let the device run out of memory `fails` times: whether the result is unharmed, or the message."""
    from fastprobe.errors import OutOfMemoryError
    from fastprobe.kernels.gpu import backend as triton_backend

    batch = make(9, 6, 20, 5, 7, probes=4, steps=1, dim=4)
    want, real, left = train(batch), triton_backend.Shared.train, [fails]

    def failing(self, *args):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("simulated")
        return real(self, *args)

    triton_backend.Shared.train = failing
    try:
        got = train(batch)
    except OutOfMemoryError as error:
        return False, str(error)
    finally:
        triton_backend.Shared.train = real
    return all(getattr(got, f).tobytes() == getattr(want, f).tobytes() for f in ("loss", "ranks", "text_heads")), ""


def little_shared_memory_case(fits: str) -> tuple[list[str], bool]:
    """The trainers of a batch, and whether it is trained by `fits` when nothing before that fits the device."""
    from triton.runtime.errors import OutOfResources

    from fastprobe.kernels.gpu import backend as triton_backend

    batch = make(9, 6, 20, 60, 70, probes=2, steps=8, dim=4, sampling="centroid")
    names, want, real = triton_backend.trainers(batch), train(batch, fits), dict(triton_backend.TRAINERS)

    def too_large(*_, **__):
        raise OutOfResources(200_000, 100_000, "shared memory")

    triton_backend.TRAINERS.update(dict.fromkeys(names[: names.index(fits)], too_large))
    try:
        return names, train(batch).text_heads.tobytes() == want.text_heads.tobytes()
    finally:
        triton_backend.TRAINERS.update(real)


def dispatch_case() -> tuple[str, list[str]]:
    """Where `fp.kernels.contrastive_loss` is computed under the interpreter, and what shapes go to which trainer."""
    from fastprobe import kernels
    from fastprobe.kernels.gpu import backend as triton_backend

    loss = kernels.contrastive_loss(torch.randn(3, 4, requires_grad=True), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    shapes = (
        (150, 128, 128, {}),
        (150, 129, 64, {}),
        (20, 15, 129, {}),
        (20, 15, 64, {"sampling": "clip"}),
        (150, 100, 64, {"r": 144}),
        (150, 100, 64, {"r": 144, "optimizer": "adam"}),
        (150, 100, 64, {"r": 144, "sampling": "clip"}),
        (150, 100, 64, {"r": 144, "steps": 1}),
    )
    chosen = []
    for c, m, d, more in shapes:
        r = more.pop("r", 4)
        chosen.append(triton_backend.trainers(make(c, m, c + 5, r, r, dim=d, **{"steps": 10, "sampling": "centroid", **more}))[0])
    return type(loss.grad_fn).__name__, chosen
