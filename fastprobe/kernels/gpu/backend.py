"""`backend="triton"`: probes trained and ranked by fused kernels, in batches that fit the device.

Which trainer: at most 128 train classes and d <= 128 -> one program, one probe, all steps: `gram` where rows never
change and that is shorter (`onchip`, the same algebra, where the device and the precision allow it), else `resident`,
whatever the feature widths and however many sound rows; everything larger ->
`tiled`, and so is what a device whose blocks have little shared memory (consumer cards) cannot hold. The choice
depends on shapes, options and device model, and no arithmetic depends on how many probes run side by side, so the same
job gives the same bits in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import triton
from triton.runtime.errors import OutOfResources

from ...errors import BackendUnavailableError, OutOfMemoryError
from ..batch import BatchResult, ProbeBatch
from ..torch_backend import has_tf32, resolve_device
from . import gram as triton_gram
from . import resident as triton_resident
from . import tiled as triton_tiled
from .common import (
    FEATURE_ALIGN,
    TrainingOptions,
    architecture,
    empty,
    interpreted,
    pad_columns,
    padded_width,
    precisions,
    round_up,
    schedule_table,
)
from .project import norm_blocks, project
from .rank import rank, rank_csls, score, unseen_texts

# Of the free device memory, what one batch of probes may take; the rest is the allocator's and other people's.
MEMORY_SHARE = 0.6
MAX_PROBES = 16384
QUERY_BLOCK = 16384
QUERY_BYTES = 1 << 30
TRAINERS: dict[str, Callable[..., torch.Tensor]] = {
    "gram": triton_gram.train_gram,
    "resident": triton_resident.train_resident,
    "tiled": triton_tiled.train_tiled,
}
# Trainers whose factors are float16, and who trains again the probes that leave its range.
RANGE_OF_FLOAT32 = {"onchip": "gram", "stream": "resident"}
# Gluon is experimental and younger than the oldest Triton that is supported: the on-chip trainer is used with the release that
# it was executed and measured with.
HAS_ONCHIP = triton.__version__.startswith("3.6.")
if HAS_ONCHIP:
    from . import chip as triton_chip
    from . import onchip as triton_onchip
    from . import stream as triton_stream

    TRAINERS["onchip"] = triton_onchip.train_onchip
    TRAINERS["stream"] = triton_stream.train_stream


def train(batch: ProbeBatch, device: str | None = None, heads: bool = False) -> BatchResult:
    """Train and rank all probes of a batch, as many at a time as the device holds.

    Raises
    ------
    BackendUnavailableError
        When the device is not a GPU, or has no products in the configured precision.
    OutOfMemoryError
        When the device cannot hold a single probe; the message says what would fit.
    """
    chosen = _device(device)
    if chosen.type == "cuda":
        with torch.cuda.device(chosen), torch.inference_mode():
            return _train(batch, chosen, heads)
    with torch.inference_mode():
        return _train(batch, chosen, heads)


def _device(device: str | None) -> torch.device:
    if interpreted():
        return torch.device("cpu")
    chosen = resolve_device(device)
    if chosen.type != "cuda":
        raise BackendUnavailableError(
            f'`backend`="triton" needs a GPU; `device` is {str(chosen)!r}. Use `backend`="cpp" or "torch", or name a CUDA device.'
        )
    return torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)


def _train(batch: ProbeBatch, device: torch.device, heads: bool) -> BatchResult:
    if batch.config.precision == "auto":
        batch = replace(batch, config=replace(batch.config, precision="tf32" if has_tf32(device) else "ieee"))
    known, precision = precisions(architecture(device)), batch.config.precision
    if precision not in known:
        raise BackendUnavailableError(
            f"`precision`={precision!r} is not one that {architecture(device)} has ({', '.join(known)}). Choose one of these."
        )
    try:
        shared = Shared(batch, device)
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(_out_of_memory(batch, device, 0)) from None
    size = min(probes_that_fit(batch, device), batch.n_probes)
    parts, start = [], 0
    while start < batch.n_probes:
        if size < 1:
            raise OutOfMemoryError(_out_of_memory(batch, device, probe_bytes(batch)))
        try:
            part = shared.train(batch.permutations[start : start + size], heads)
        except torch.OutOfMemoryError:
            part = None
        if part is None:  # only here has the exception let go of the tensors of the failed attempt
            size //= 2
            torch.cuda.empty_cache()
        else:
            parts.append(part)
            start += size
    return BatchResult.of_parts(parts)


def trainers(batch: ProbeBatch, architecture: str = "") -> list[str]:
    """Names of the trainers that can do a batch on an architecture, the best first (see the module's rule)."""
    c, m = batch.config, len(batch.train_classes)
    shape = m, padded_width(c.dim), c.precision
    r_text, r_audio = (round_up(a.shape[1], FEATURE_ALIGN) for a in (batch.text, batch.audio))
    gram = (
        batch.clips is None
        and c.optimizer != "adam"
        and triton_gram.fits(*shape)
        and triton_gram.pays(m, len(batch.text), r_text, r_audio, c.steps)
    )
    on_chip = m, padded_width(c.dim), c.symmetric, c.temperature, c.precision, architecture
    onchip = HAS_ONCHIP and gram and triton_chip.fits(*on_chip)
    stream = (
        HAS_ONCHIP
        and batch.clips is not None
        and c.optimizer != "adam"
        and len(batch.text) <= triton_gram.MAX_TEXTS
        and triton_stream.fits(batch.n_rows, batch.clips.size * round_up(r_audio, triton_stream.SLAB), *on_chip)
    )
    return ["onchip"] * onchip + ["stream"] * stream + ["gram"] * gram + ["resident"] * triton_resident.fits(*shape) + ["tiled"]


def probe_bytes(batch: ProbeBatch) -> int:
    """Device memory that one probe takes while it is trained and ranked, an estimate from above."""
    c, width = batch.config, padded_width(batch.config.dim)
    r_text, r_audio = (round_up(a.shape[1], FEATURE_ALIGN) for a in (batch.text, batch.audio))
    state = (r_text + r_audio) * width * (3 if c.optimizer == "adam" else 2)
    rows = (len(batch.train_classes) + round_up(batch.n_rows, 128)) * (width + 4) * 2
    if "gram" in trainers(batch):
        rows = max(rows, triton_gram.state_size(len(batch.train_classes), width))
    ranking = len(batch.text) * (width + norm_blocks(width) + 1) + 3 * len(batch.queries)
    return 4 * (state + rows + ranking)


def probes_that_fit(batch: ProbeBatch, device: torch.device) -> int:
    """How many probes are trained side by side.

    Free memory decides. L2 needs no limit of its own: a resident program owns its probe from the first step to the
    last, so at any time only the probes in flight, one or two per multiprocessor, compete for it.
    """
    if device.type != "cuda":
        return MAX_PROBES
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(MEMORY_SHARE * free) // probe_bytes(batch), MAX_PROBES)


def _out_of_memory(batch: ProbeBatch, device: torch.device, needed: int) -> str:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if not needed:
        table = 4 * (batch.audio.size + batch.text.size)
        return (
            f"device {device} is out of memory: the tables take {table / 2**20:.0f} MiB and {free / 2**20:.0f} MiB "
            f"are free. At most about {int(MEMORY_SHARE * free) // (4 * batch.audio.shape[1])} clips of width "
            f"{batch.audio.shape[1]} fit. Free memory on it, or truncate the basis with `energy`."
        )
    per_dim = needed / padded_width(batch.config.dim)
    return (
        f"device {device} is out of memory with a single probe: it needs about {needed / 2**20:.0f} MiB and "
        f"{free / 2**20:.0f} MiB are free. With these tables `dim` up to about {int(MEMORY_SHARE * free / per_dim)} "
        "fits. Free memory on it, lower `dim`, or choose another device."
    )


class Shared:
    """What all probes of a batch read, on the device."""

    def __init__(self, batch: ProbeBatch, device: torch.device) -> None:
        def put(array: np.ndarray, dtype: type = np.int32) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(device)

        self.batch, self.device, config = batch, device, batch.config
        width = padded_width(config.dim)
        r_text, r_audio = (round_up(a.shape[1], FEATURE_ALIGN) for a in (batch.text, batch.audio))
        self.text = put(pad_columns(batch.text, r_text), np.float32)
        self.audio = put(pad_columns(batch.audio, r_audio), np.float32)
        self.sounds, self.sound_rows = self.audio, None
        if batch.clips is None:
            self.sounds = put(pad_columns(batch.centroids, r_audio), np.float32)
            self.sound_rows = put(np.arange(batch.n_rows)[None])
        else:
            self.sound_rows = put(batch.clips.reshape(-1, batch.n_rows))
        self.row_classes = put(batch.row_classes)
        self.train_classes = put(batch.train_classes, np.int64)
        self.queries, self.query_classes = put(batch.queries), put(batch.labels[batch.queries])
        self.gallery = put(batch.gallery, np.int64)
        self.all_texts = put(np.arange(len(batch.text))[None])
        self.starts = [
            put(_pad_head(start, r, width), np.float32) for start, r in ((batch.text_start, r_text), (batch.audio_start, r_audio))
        ]
        self.schedule = put(schedule_table(config), np.float32)
        self.architecture = architecture(device)
        self.trainers = trainers(batch, self.architecture)

    def train(self, permutations: np.ndarray, heads: bool) -> tuple[np.ndarray | None, ...]:
        """loss, both ranks and (with `heads`) both heads of the probes with these permutations."""
        batch, c = self.batch, self.batch.config
        of_classes = torch.from_numpy(np.ascontiguousarray(permutations, np.int32)).to(self.device)
        w, v, loss = self.fit(of_classes[:, self.train_classes].contiguous())
        ranks, unseen = self._rank(w, v, of_classes)
        kept = [
            h[:, : start.shape[0], : c.dim].cpu().numpy() if heads else None for h, start in ((w, batch.text_start), (v, batch.audio_start))
        ]
        return loss.double().cpu().numpy(), ranks.cpu().numpy(), unseen.cpu().numpy(), *kept

    def fit(self, text_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Padded heads float32 (P, r, D) of either side and losses (P,), all on the device.

        Parameters
        ----------
        text_rows : int32 (P, n_train)
            Row of the text table that each train class has in each probe.
        """
        c, n_probes = self.batch.config, len(text_rows)
        w, v = (start.repeat(n_probes, 1, 1) for start in self.starts)
        if not c.steps:
            return w, v, torch.full((n_probes,), torch.nan, device=self.device)
        per_class = self.batch.n_rows // len(self.batch.train_classes)
        fields = ("temperature", "dim", "optimizer", "momentum", "weight_decay", "symmetric", "precision")
        own = {name: getattr(c, name) for name in fields}
        options = TrainingOptions(row_classes=self.row_classes, per_class=per_class, architecture=self.architecture, **own)
        tensors = self.text, text_rows, self.sounds, self.sound_rows, w, v, self.schedule
        while True:
            try:
                loss = TRAINERS[self.trainers[0]](*tensors, options)
            except OutOfResources:  # raised before anything ran
                if len(self.trainers) == 1:
                    raise
                self.trainers = self.trainers[1:]
                continue
            # Float16 overflowed in these probes: they are trained again by a trainer with the range of float32.
            instead = RANGE_OF_FLOAT32.get(self.trainers[0])
            lost = torch.nonzero(~torch.isfinite(loss + w.sum((1, 2)) + v.sum((1, 2))))[:, 0] if instead else ()
            if instead and len(lost):
                heads = [start.repeat(len(lost), 1, 1) for start in self.starts]
                again = self.text, text_rows[lost].contiguous(), self.sounds, self.sound_rows, *heads, self.schedule
                loss[lost] = TRAINERS[instead](*again, options)
                w[lost], v[lost] = heads
            return w, v, loss

    def _rank(self, w: torch.Tensor, v: torch.Tensor, permutations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        precision, csls, n_queries = self.batch.config.precision, self.batch.config.csls, len(self.queries)
        gallery, squares = project(self.text, self.all_texts, w, precision=precision)
        unseen, n_unseen = unseen_texts(permutations, self.gallery), len(self.gallery)
        ranks = tuple(empty(len(w), n_queries, device=self.device, dtype=torch.int32) for _ in range(2))
        # The projected queries of a few probes at a time, and with `csls` their scores, of which there are three copies or so.
        block = min(n_queries, QUERY_BLOCK)
        floats = block * w.shape[2] + (3 * n_queries * gallery.shape[1] if csls else 0)
        probes = max(QUERY_BYTES // max(4 * floats, 1), 1)
        for p in range(0, len(w), probes):
            some = slice(p, p + probes)
            scores = empty(len(w[some]), n_queries, gallery.shape[1], device=self.device) if csls else None
            for at in range(0, n_queries, QUERY_BLOCK):
                q = slice(at, at + QUERY_BLOCK)
                z, z_squares = project(self.audio, self.queries[None, q], v[some], precision=precision, norms=scores is not None)
                if scores is not None:
                    score(z, z_squares, gallery[some], squares[some], precision=precision, out=scores[:, q])
                    continue
                of_classes, classes = permutations[some], self.query_classes[q]
                out = ranks[0][some, q], ranks[1][some, q]
                rank(z, gallery[some], squares[some], of_classes, classes, unseen[some], n_unseen, precision=precision, out=out)
            if scores is not None:
                found = rank_csls(scores, permutations[some], self.query_classes, unseen[some], n_unseen, csls)
                for to, values in zip(ranks, found):
                    to[some] = values
        return ranks[0], ranks[1]


def _pad_head(start: np.ndarray, r: int, width: int) -> np.ndarray:
    out = np.zeros((r, width), np.float32)
    out[: start.shape[0], : start.shape[1]] = start
    return out
