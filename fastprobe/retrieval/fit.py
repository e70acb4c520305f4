"""`fit` and `load_probe`: one fitted probe of any kind, by the same options that a run takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..protocol.config import ProbeConfig
from ..protocol.probes import as_probe
from .closed import ClosedFormProbe
from .linear import read_probe_file, restored
from .probe import ContrastiveProbe


def fit(
    text: Any,
    audio: Any,
    probe: Any = None,
    *,
    classes: Sequence[str] | None = None,
    backend: str = "auto",
    device: str | None = None,
    seed: int = 0,
) -> ContrastiveProbe | ClosedFormProbe:
    """One probe, fitted to tables, in use: to project, rank, score, retrieve with, and save.

    Parameters
    ----------
    text, audio : EmbeddingTable, path, or (vectors, labels)
    probe : ProbeConfig, Ridge, Procrustes, CCA, or their text form as "ridge:alpha=0.1,1", optional
        By default a contrastive probe. The same objects name the probes of a run.
    classes : sequence of str, optional
        Labels to fit to, all by default; the rest stays unseen, for `score`.
    backend, device, seed
        Of a contrastive probe, as in `permutation_test`. A closed form is solved in float64 on the CPU and draws nothing.

    Raises
    ------
    InputError
        What the tables and the options do not allow; a backend or a device for a closed form.

    Examples
    --------
    >>> import fastprobe as fp
    >>> names = [f"class {i}" for i in range(12)]
    >>> text, audio = fp.simulate.simulate_pair(names, alignment=1.0, clips=4, text_width=8, audio_width=8)
    >>> 0 <= fp.fit(text, audio, probe="procrustes", classes=names[:8]).score(k=3) <= 1
    True
    """
    config = ProbeConfig() if probe is None else as_probe(probe)
    if isinstance(config, ProbeConfig):
        return ContrastiveProbe(config, backend=backend, device=device, seed=seed).fit(text, audio, classes)
    if backend not in ("auto", "reference") or device not in (None, "cpu"):
        name, value = ("device", device) if device not in (None, "cpu") else ("backend", backend)
        raise InputError(f"`{name}` is of trained probes; {config.name} is solved in float64 on the CPU, and got {value!r}. Leave it out.")
    return ClosedFormProbe(config).fit(text, audio, classes)


def load_probe(path: str | os.PathLike) -> ContrastiveProbe | ClosedFormProbe:
    """A saved probe of any kind.

    Raises
    ------
    InputError
        A missing, foreign or damaged file, or one from a newer version.

    Examples
    --------
    >>> import tempfile, fastprobe as fp
    >>> names = [f"class {i}" for i in range(12)]
    >>> text, audio = fp.simulate.simulate_pair(names, alignment=1.0, clips=4, text_width=8, audio_width=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fp.fit(text, audio, probe=fp.CCA(dim=4)).save(f"{folder}/cca.safetensors")
    ...     fp.load_probe(f"{folder}/cca.safetensors").config
    CCA(dim=4, shrinkage=0.5, csls=0)
    """
    stored = read_probe_file(path)
    if stored.kind == "contrastive":
        return restored(ContrastiveProbe, stored, path)
    return restored(ClosedFormProbe, stored, path)
