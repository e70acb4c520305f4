"""Many probes at once with batched products in PyTorch: CPU, CUDA or MPS, float32.

The gradients are written out (`reference` has the equations): autograd would keep every intermediate.
Libraries choose a routine, and so the last bits, by the size of a batched product and by how its operands
are aligned. Probes are therefore trained in chunks of one size, a function of the shapes alone (a short
chunk is filled up), and every matrix is padded with zeros so that it begins on a cache line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import BackendUnavailableError, OutOfMemoryError
from ..protocol.config import ProbeConfig
from .batch import BatchResult, ProbeBatch
from .reference import BETA1, BETA2_ADAM, BETA2_MINI, EPS, EPS_ADAM

CHUNK_BYTES = {"cpu": 96 << 20, "cuda": 2 << 30, "mps": 512 << 20}
MAX_CHUNK = {"cpu": 16, "cuda": 512, "mps": 64}
QUERY_BLOCK = 2048
ALIGN = 16  # float32 of a 64-byte cache line


def resolve_device(device: str | None) -> torch.device:
    """The torch device of that name, or the best there is.

    Raises
    ------
    BackendUnavailableError
        When the device is not there; the message names those that are.
    """
    present = ["cpu"] + (["cuda"] if torch.cuda.is_available() else []) + (["mps"] if torch.backends.mps.is_available() else [])
    if device is None:
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if d in present))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in present or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise BackendUnavailableError(
            f"`device`={device!r} is not there. PyTorch sees: {', '.join(present)} ({torch.cuda.device_count()} CUDA devices)."
        )
    return chosen


def float64_device(device: str | None) -> torch.device:
    """Where closed forms and similarities are computed for a run on a device: there, but for Apple's, which have no float64."""
    chosen = resolve_device(device)
    return torch.device("cpu") if chosen.type == "mps" else chosen


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies in tf32: NVIDIA's since Ampere, AMD's gfx942."""
    if device.type != "cuda":
        return False
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.startswith("gfx942")
    return torch.cuda.get_device_capability(device)[0] >= 8


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse tf32 where there are no matrix units for it."""
    if device.type != "cuda" and precision not in ("auto", "ieee"):
        raise BackendUnavailableError(f'`precision`={precision!r} needs a CUDA device; got {device.type!r}. Use "ieee".')


@contextmanager
def _matmul_precision(device: torch.device, precision: str) -> Iterator[None]:
    check_precision(device, precision)
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _probe_bytes(batch: ProbeBatch) -> int:
    """Working set of one probe."""
    (classes, r_text), r_audio, d = batch.text.shape, batch.audio.shape[1], batch.config.dim
    n, m, q = batch.n_rows, len(batch.train_classes), min(len(batch.queries), QUERY_BLOCK)
    floats = 4 * (r_text + r_audio) * d + classes * r_text + 6 * (n + m) * d + 4 * n * m + q * (d + 2 * classes)
    if batch.config.csls:
        floats += (q + batch.config.csls) * 2 * classes
    return 4 * floats


def chunk_size(batch: ProbeBatch, device: torch.device) -> int:
    """Probes trained side by side: a power of two whose working set fits CHUNK_BYTES."""
    fit = max(CHUNK_BYTES[device.type] // _probe_bytes(batch), 1)
    return min(1 << (fit.bit_length() - 1), MAX_CHUNK[device.type])


def train(batch: ProbeBatch, device: str | None = None, heads: bool = False) -> BatchResult:
    """Train and rank all probes of a batch, in chunks that fit the memory.

    Raises
    ------
    OutOfMemoryError
        When the device cannot hold a chunk.
    """
    chosen = resolve_device(device)
    size = chunk_size(batch, chosen)
    parts: list[tuple[np.ndarray | None, ...]] = []
    with torch.inference_mode(), _matmul_precision(chosen, batch.config.precision):
        try:
            shared = _Shared(batch, chosen)
            for start in range(0, batch.n_probes, size):
                chunk = batch.permutations[start : start + size]
                filled = chunk[np.arange(size) % len(chunk)]
                parts.append(tuple(None if column is None else column[: len(chunk)] for column in _train_chunk(shared, filled, heads)))
        except torch.OutOfMemoryError:
            free = f", {torch.cuda.mem_get_info(chosen)[0] >> 20} MiB free" if chosen.type == "cuda" else ""
            raise OutOfMemoryError(
                f"device {chosen} is out of memory{free}: a chunk of {size} probes needs about "
                f"{(size * _probe_bytes(batch) + batch.audio32.nbytes) >> 20} MiB. Free memory on it, lower "
                '`dim`, or use `device="cpu"`. Everything finished is kept.'
            ) from None
    return BatchResult.of_parts(parts)


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def _padded(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """float32, filled up with zeros: they change no product."""
    out = np.zeros((rows, columns), np.float32)
    out[: array.shape[0], : array.shape[1]] = array
    return out


class _Shared:
    """Tensors that all probes of a batch read, padded."""

    def __init__(self, batch: ProbeBatch, device: torch.device) -> None:
        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.config, self.device = batch.config, device
        (self.classes, r_text), (n_clips, r_audio), d = batch.text.shape, batch.audio.shape, _up(batch.config.dim)
        self.dims = batch.config.dim, batch.text_start.shape[0], batch.audio_start.shape[0]
        r_text, r_audio = _up(r_text), _up(r_audio)
        self.n_train = len(batch.train_classes)
        # Row `classes` is all zero, and stands where a block of texts is filled up.
        self.text = put(_padded(batch.text32, self.classes + 1, r_text))
        self.audio = put(_padded(batch.audio32, n_clips, r_audio))
        self.train = batch.train_classes
        self.clips = None if batch.clips is None else put(batch.clips)
        self.centroids = put(_padded(batch.centroids, self.n_train, r_audio)) if self.clips is None else None
        self.rows = put(batch.row_classes)
        self.queries, self.query_classes = put(batch.queries), put(batch.labels[batch.queries])
        self.gallery = put(batch.gallery)
        self.starts = put(_padded(batch.text_start, r_text, d)), put(_padded(batch.audio_start, r_audio, d))

    def step_rows(self, step: int) -> torch.Tensor:
        if self.centroids is not None:
            return self.centroids
        assert self.clips is not None  # one of the two is there
        return self.audio[self.clips[step]]

    def texts(self, permutations: np.ndarray) -> torch.Tensor:
        """Text rows of each probe, (P, rows up to ALIGN, r)."""
        index = np.full((len(permutations), _up(permutations.shape[1])), self.classes)
        index[:, : permutations.shape[1]] = permutations
        return self.text[torch.from_numpy(index).to(self.device)]


def _train_chunk(shared: _Shared, permutations: np.ndarray, heads: bool) -> tuple[np.ndarray | None, ...]:
    c, n_probes = shared.config, len(permutations)
    train_text = shared.texts(permutations[:, shared.train])
    w, v = (s.repeat(n_probes, 1, 1) for s in shared.starts)
    of_w, of_v = _Optimizer(c, w), _Optimizer(c, v)
    loss = torch.full((n_probes,), torch.nan, device=shared.device)
    for step in range(c.steps):
        x = shared.step_rows(step).expand(n_probes, -1, -1)
        loss, dw, dv = _loss_and_gradient(w, v, train_text, x, shared.rows, shared.n_train, c)
        of_w.step(w, dw, c.learning_rate(step))
        of_v.step(v, dv, c.learning_rate(step))
    gallery = F.normalize(torch.bmm(shared.texts(permutations), w), dim=-1, eps=EPS)

    def scores(rows: torch.Tensor) -> torch.Tensor:
        z = torch.bmm(shared.audio[rows].expand(n_probes, -1, -1), v)
        # Without the correction for hubs the length of a query does not change its ranks.
        return torch.bmm(F.normalize(z, dim=-1, eps=EPS) if c.csls else z, gallery.mT)[:, :, : shared.classes]

    blocks = list(zip(shared.queries.split(QUERY_BLOCK), shared.query_classes.split(QUERY_BLOCK)))
    hubs = _hubs((scores(q) for q, _ in blocks), c.csls) if c.csls else None
    found = [_ranks(scores(q), y, shared.gallery, hubs) for q, y in blocks]
    ranks, unseen = (torch.cat(some, dim=1).to(torch.int32).cpu().numpy() for some in zip(*found))
    d, r_text, r_audio = shared.dims
    kept = (w[:, :r_text, :d].cpu().numpy(), v[:, :r_audio, :d].cpu().numpy()) if heads else (None, None)
    return loss.double().cpu().numpy(), ranks, unseen, *kept


def _norm(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min_(EPS)
    return z / length, length


def _through_norm(a: torch.Tensor, da: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """dz = (da - a <a, da>) / |z|."""
    return (da - a * (a * da).sum(-1, keepdim=True)) / length


def _loss_and_gradient(w, v, t, x, rows, m: int, c: ProbeConfig):
    """(P,), (P, r_text, d), (P, r_audio, d) of one step; see reference.loss_and_gradient. `m` of the texts count."""
    n = x.shape[1]
    (a, a_len), (b, b_len) = _norm(torch.bmm(t, w)), _norm(torch.bmm(x, v))
    s = torch.bmm(b, a.mT) / c.temperature  # (P, n, m and padding)
    s[:, :, m:] = -torch.inf
    index = rows.expand(len(s), n).unsqueeze(-1)
    true = s.gather(2, index).squeeze(-1)
    lse = s.logsumexp(dim=2)
    loss = (lse - true).mean(1)
    g = torch.exp(s - lse.unsqueeze(-1))
    if c.symmetric:
        lse_text = s[:, :, :m].logsumexp(dim=1)
        loss = 0.5 * (loss + (lse_text[:, rows] - true).mean(1))
        g[:, :, :m].add_(torch.exp(s[:, :, :m] - lse_text.unsqueeze(1)), alpha=n // m)
        g *= 0.5
    g.scatter_add_(2, index, torch.full_like(true, -1.0).unsqueeze(-1))
    g /= n * c.temperature
    da, db = torch.bmm(g.mT, b), torch.bmm(g, a)
    return loss, torch.bmm(t.mT, _through_norm(a, da, a_len)), torch.bmm(x.mT, _through_norm(b, db, b_len))


class _Optimizer:
    """reference.Optimizer over a leading probe axis, in place."""

    def __init__(self, config: ProbeConfig, w: torch.Tensor) -> None:
        self.config, self.t = config, 0
        self.m = torch.zeros_like(w)
        self.v = torch.zeros_like(w if config.optimizer == "adam" else w[:, :1, :1])

    def step(self, w: torch.Tensor, g: torch.Tensor, lr: float) -> None:
        c, self.t = self.config, self.t + 1
        if c.optimizer != "adam-mini" and c.weight_decay:
            g = g + c.weight_decay * w
        if c.optimizer == "sgd":
            self.m.mul_(c.momentum).add_(g)
            w.sub_(lr * self.m)
            return
        if c.optimizer == "adam":
            self.v.mul_(BETA2_ADAM).addcmul_(g, g, value=1 - BETA2_ADAM)
            denominator = (self.v / (1 - BETA2_ADAM**self.t)).sqrt_().add_(EPS_ADAM)
        else:
            squared = (g * g).sum(dim=(1, 2), keepdim=True) / c.dim
            self.v.mul_(BETA2_MINI).add_(squared, alpha=1 - BETA2_MINI)
            denominator = (self.v / (1 - BETA2_MINI**self.t)).sqrt_().clamp_min_(1e-30)
            if c.weight_decay:
                w.mul_(1 - lr * c.weight_decay)
        self.m.mul_(BETA1).add_(g, alpha=1 - BETA1)
        w.sub_(lr / (1 - BETA1**self.t) * self.m / denominator)


def _hubs(blocks: Iterator[torch.Tensor], k: int) -> torch.Tensor:
    """Mean of the k largest scores of each text: (P, 1, C) from the scores (P, n, C) of all clips, block by block."""
    top: torch.Tensor | None = None
    for s in blocks:
        s = s if top is None else torch.cat([top, s], dim=1)
        top = s.topk(min(k, s.shape[1]), dim=1).values
    assert top is not None  # there are at least k clips
    return top.mean(dim=1, keepdim=True)


def _ranks(s: torch.Tensor, y: torch.Tensor, gallery: torch.Tensor, hubs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """1 + rivals that score at least the true class, among all classes and among `gallery`: (P, n) of scores (P, n, C).

    The mean that `csls_scores` takes of a clip is the same for all its texts, and left out.
    """
    s = s if hubs is None else 2 * s - hubs
    below = s < s.gather(2, y.expand(len(s), -1).unsqueeze(-1))
    return s.shape[2] - below.sum(2), len(gallery) - below[:, :, gallery].sum(2)


def contrastive_loss(text: torch.Tensor, audio: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """See `fastprobe.kernels.contrastive_loss`."""
    s = audio @ text.mT / temperature
    labels = labels.expand(s.shape[:-1])
    return F.cross_entropy(s.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape).mean(-1)
