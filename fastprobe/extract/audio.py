"""Recordings through an audio model: `AudioEmbedder`, `embed_files`, `build_table`.

    x_i = 1/K_i sum_k f(window_k(clip i))        f: the model, K_i: windows of clip i (one, if it is short)

Files are decoded and cut in threads while the model runs; inputs of one shape, of whichever clips, form a batch. A clip's
vector does not depend on its batch.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..tables.embeddings import EmbeddingTable
from .cache import VectorCache, file_digest
from .datasets import Clip
from .meta import origin
from .models import load_model, packages
from .provenance import Provenance, by_name, refuse_leak
from .sounds import BadSoundError, read_sound
from .spec import AudioSpec

RECIPE = 1  # of decoding and pooling: raised when the same file and model would give another vector, so caches part


@dataclass(frozen=True, order=True)
class Embedded:
    """What became of file number `index`: a vector, float32 (D,), or the reason why there is none."""

    index: int
    path: str
    vector: np.ndarray | None
    error: str | None
    cached: bool


@dataclass
class _Pending:
    """A clip whose windows are on their way through the model."""

    index: int
    path: str
    key: str | None
    missing: int
    parts: list[np.ndarray]


class AudioEmbedder:
    """A loaded audio model that turns files into vectors.

    Parameters
    ----------
    spec
        Model and options; or a table's meta (`AudioSpec.from_meta`), and then the weights are checked against it.
    device
        Default: CUDA if there is one, else the CPU.
    batch_size
        Inputs (windows) per forward pass.
    workers
        Decoding threads. Default: the CPUs, at most 8.
    cache
        Folder of a content-addressed cache; None for none.

    Attributes
    ----------
    spec : AudioSpec
        With the digest of the loaded weights filled in.
    model_seconds, seconds : float
        Time inside the model, and time in all, since the start of the last `embed`.

    Raises
    ------
    InputError
        As `load_model`; a batch size or a number of workers below 1.
    """

    def __init__(
        self,
        spec: AudioSpec | Mapping[str, Any],
        device: str | None = None,
        *,
        batch_size: int = 8,
        workers: int | None = None,
        cache: str | os.PathLike | None = None,
    ) -> None:
        spec = spec if isinstance(spec, AudioSpec) else AudioSpec.from_meta(spec)
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"`{name}` must be a whole number of at least 1; got {value!r}.")
        self.model = load_model(spec, device)
        if spec.layers is not None and max(spec.layers) > len(self.model.blocks):
            raise InputError(f"`layers` of {spec.model} go from 0 to {len(self.model.blocks)}; got {max(spec.layers)}.")
        self.spec = dataclasses.replace(
            spec,
            weights=self.model.digest or None,
            checkpoint=str(Path(spec.checkpoint).resolve()) if spec.checkpoint else None,
            revision=spec.revision if spec.checkpoint or spec.random_init else self.model.revision or spec.revision,
        )
        self.batch_size, self.workers = batch_size, workers or min(os.cpu_count() or 1, 8)
        self._folder = cache
        self.cache = self._open_cache()
        self.model_seconds = self.seconds = 0.0

    def _open_cache(self) -> VectorCache | None:
        if self._folder is None:
            return None
        spec = self.spec
        options: dict[str, Any] = {
            "recipe": RECIPE,
            "model": spec.model,
            # A module without a state dict has no digest: then its own name and checkpoint must do.
            "weights": self.model.digest or [spec.checkpoint, spec.revision],
            "mode": spec.mode,
            "rate": self.model.sample_rate,
            **self.model.recipe,
        }
        if spec.layers is not None:
            options["layers"] = list(spec.layers)
        return VectorCache(self._folder, options)

    def at_layers(self, layers: Sequence[int]) -> AudioEmbedder:
        """The same loaded model, whose vectors are those of some hidden layers side by side; see `layer_tables`."""
        other = copy(self)
        other.spec = dataclasses.replace(self.spec, layers=tuple(layers))
        other.cache = other._open_cache()
        return other

    def embed(self, paths: Iterable[str | os.PathLike]) -> Iterator[Embedded]:
        """Embed files; each comes out once, as soon as it is done (not in order), and is in the cache by then.

        A file that cannot be embedded comes out with its reason; nothing is raised for it.
        """
        started, self.model_seconds = time.perf_counter(), 0.0
        buckets: dict[tuple[int, ...], deque[tuple[_Pending, np.ndarray]]] = {}
        for index, path, key, result in self._decoded(paths):
            if isinstance(result, str):
                yield Embedded(index, path, None, result, False)
            elif key is not None and result.ndim == 1:
                yield Embedded(index, path, result, None, True)
            else:
                clip = _Pending(index, path, key, len(result), [])
                for window in result:
                    bucket = buckets.setdefault(window.shape, deque())
                    bucket.append((clip, window))
                    if len(bucket) >= self.batch_size:
                        yield from self._forward(buckets, window.shape)
                # Clips of ever new lengths must not pile up: the fullest batch leaves although it is not full.
                while sum(map(len, buckets.values())) > 4 * self.batch_size:
                    yield from self._forward(buckets, max(buckets, key=lambda shape: len(buckets[shape])))
            self.seconds = time.perf_counter() - started
        for shape in list(buckets):
            yield from self._forward(buckets, shape)
        self.seconds = time.perf_counter() - started

    def _decoded(self, paths: Iterable[str | os.PathLike]) -> Iterator[tuple[int, str, str | None, Any]]:
        """(index, path, key, inputs | cached vector | reason), in order, decoded a few files ahead."""
        waiting: deque[tuple[int, str, Future]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for index, path in enumerate(paths):
                waiting.append((index, str(path), pool.submit(self._decode, str(path))))
                if len(waiting) >= 2 * self.workers + self.batch_size:
                    number, name, future = waiting.popleft()
                    yield number, name, *future.result()
            while waiting:
                number, name, future = waiting.popleft()
                yield number, name, *future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, path: str) -> tuple[str | None, Any]:
        key = None
        try:
            if self.cache is not None:
                key = file_digest(path)
                if (vector := self.cache.get(key)) is not None:
                    return key, vector
            return key, self.model.prepare(read_sound(path, self.model.sample_rate))
        except BadSoundError as error:
            return key, str(error)
        except OSError as error:
            return key, f"{path}: cannot be read ({error.strerror or error})."

    def _forward(self, buckets: dict, shape: tuple[int, ...]) -> Iterator[Embedded]:
        import torch

        bucket = buckets[shape]
        batch = [bucket.popleft() for _ in range(min(self.batch_size, len(bucket)))]
        if not bucket:
            del buckets[shape]
        inputs = torch.from_numpy(np.stack([window for _, window in batch]))
        before = time.perf_counter()
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the packages' own: deprecated calls, "image size" of a short clip
                given, layers = inputs.to(self.model.device), self.spec.layers
                found = self.model.forward(given) if layers is None else self.model.forward_layers(given, layers)
                vectors = found.float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise InputError(
                f"`batch_size` {self.batch_size} does not fit into the memory of {self.model.device}. Lower it; what "
                "is done so far is in the cache, if there is one."
            ) from None
        self.model_seconds += time.perf_counter() - before
        for (clip, _), vector in zip(batch, vectors):
            clip.parts.append(vector)
            clip.missing -= 1
            if not clip.missing:
                yield self._finished(clip)

    def _finished(self, clip: _Pending) -> Embedded:
        vector = np.asarray(np.mean(clip.parts, axis=0, dtype=np.float64), np.float32)
        if not np.isfinite(vector).all() or not vector.any():
            return Embedded(clip.index, clip.path, None, f"{clip.path}: the model's vector is zero, NaN or infinite.", False)
        if self.cache is not None and clip.key is not None:
            self.cache.put(clip.key, vector)
        return Embedded(clip.index, clip.path, vector, None, False)


def embed_files(
    paths: Sequence[str | os.PathLike],
    spec: AudioSpec | Mapping[str, Any],
    device: str | None = None,
    *,
    batch_size: int = 8,
    workers: int | None = None,
    cache: str | os.PathLike | None = None,
) -> np.ndarray:
    """Vectors of sound files, in their order, by the model that made a table.

    Parameters
    ----------
    paths
        Sound files (wav, flac, ogg, mp3, ...).
    spec
        An `AudioSpec`, or the ``meta`` of an audio table or of a probe's audio side: the model, its checkpoint and all options
        are taken from there, and the weights found must have the digest recorded there.

    Returns
    -------
    float32 (n, D)

    Raises
    ------
    InputError
        A meta that does not say how its vectors were made, other weights, a file that cannot be embedded (its path and reason).
    """
    embedder = AudioEmbedder(spec, device, batch_size=batch_size, workers=workers, cache=cache)
    paths = list(paths)
    if not paths:
        raise InputError("`paths` must name at least one sound file; got none.")
    vectors: dict[int, np.ndarray] = {}
    for done in embedder.embed(paths):
        if done.vector is None:
            raise InputError(str(done.error))
        vectors[done.index] = done.vector
    return np.stack([vectors[i] for i in range(len(paths))])


def check_leak(
    spec: AudioSpec, clips: Sequence[Clip], dataset: str | None = None, allow: bool = False, provenance: Provenance | None = None
) -> str | None:
    """Refuse a model that was tuned on the labels of these clips; without `provenance`, by its name alone.

    Called before anything is loaded or fetched, and again by `build_table` with what the checkpoint tells.

    Raises
    ------
    InputError
        Unless `allow`; then the reason is returned.
    """
    if provenance is None:
        provenance = Provenance((), by_name(spec.model) if not spec.random_init else frozenset())
    return refuse_leak(spec.model, provenance, {c.label for c in clips}, dataset, allow)


def build_table(
    clips: Sequence[Clip],
    embedder: AudioEmbedder,
    done: Iterable[Embedded] | None = None,
    *,
    skip_bad: bool = False,
    allow_label_leak: bool = False,
    dataset: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> EmbeddingTable:
    """The table of labelled clips.

    Parameters
    ----------
    clips
        What to embed, in the table's order.
    embedder
    done
        ``embedder.embed(clip.path for clip in clips)``, perhaps wrapped by a progress bar; made here if left out.
    skip_bad
        Leave out files that cannot be embedded; ``meta["skipped"]`` counts and lists them. Otherwise the first one raises.
    allow_label_leak
        Take a model that was tuned on these very labels; ``meta["label_leak"]`` then says so.
    dataset
        Name of the data set, for that check and for the meta.
    about
        More for the meta, e.g. the data set's subset.

    Raises
    ------
    InputError
        No clip, a leak, a bad file without `skip_bad`, nothing but bad files.
    """
    if not clips:
        raise InputError("`clips` must hold at least one sound file; got none.")
    reason = check_leak(embedder.spec, clips, dataset, allow_label_leak, embedder.model.provenance)
    vectors: dict[int, np.ndarray] = {}
    skipped, cached = [], 0
    for result in embedder.embed(c.path for c in clips) if done is None else done:
        if result.error and not skip_bad:
            raise InputError(
                f"{result.error} Repair or remove the file, or leave such files out with `skip_bad` (in the shell --skip-bad)."
            )
        if result.error:
            skipped.append((result.index, result.error))
        if result.vector is not None:
            vectors[result.index] = result.vector
        cached += result.cached
    kept = sorted(vectors)
    if not kept:
        raise InputError(f"none of the {len(clips)} files could be embedded; the first: {min(skipped)[1]}")
    model, spec = embedder.model, embedder.spec
    meta = {
        "name": spec.model.replace(":", "-"),
        "kind": "audio",
        "model": spec.model,
        "revision": model.revision,
        "checkpoint": spec.checkpoint,
        "weights": model.digest or None,
        "untrained": spec.random_init,
        "trained_on": list(model.provenance.trained_on),
        "label_leak": reason,
        "mode": spec.mode,
        "layer": "output" if spec.layers is None else list(spec.layers),
        "pooling": "mean over windows" if spec.layers is None else "mean over patch tokens and windows",
        "template": None,
        "sample_rate": model.sample_rate,
        "windows": dict(model.recipe),
        "dataset": dataset,
        **(about or {}),
        "n_clips": len(kept),
        "n_cached": cached,
        "skipped": {"count": len(skipped), "files": [text for _, text in sorted(skipped)[:100]]},
        **origin("numpy", "torch", "torchaudio", "soundfile", "soxr", *packages()),
        "spec": spec.to_dict(),
    }
    return EmbeddingTable(
        np.stack([vectors[i] for i in kept]), np.array([clips[i].label for i in kept]), np.array([clips[i].id for i in kept]), meta
    )


def layer_tables(table: EmbeddingTable, spec: AudioSpec, n_layers: int) -> dict[int, EmbeddingTable]:
    """A table of several layers side by side as one table for each, by its layer.

    Parameters
    ----------
    table : EmbeddingTable
        As `build_table` makes it with a spec that has `layers`.
    spec : AudioSpec
        The embedder's.
    n_layers : int
        Of the model.
    """
    assert spec.layers is not None
    out = {}
    for layer, vectors in zip(spec.layers, np.split(table.vectors, len(spec.layers), axis=1)):
        own = dataclasses.replace(spec, layers=(layer,)).to_dict()
        meta = {**table.meta, "name": f"{table.name}-layer{layer:02d}", "layer": layer, "n_layers": n_layers, "spec": own}
        out[layer] = EmbeddingTable(vectors, table.labels, table.ids, meta)
    return out
