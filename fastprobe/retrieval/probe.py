"""`ContrastiveProbe`: one trained pair of heads, to project, score, retrieve with, and keep on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..kernels import make_batch, select_backend
from ..protocol.config import ProbeConfig
from ..protocol.features import make_pair
from ..protocol.plan import Split
from .linear import LinearProbe, Stored, check_probe_file, train_rows

__all__ = ["ContrastiveProbe", "ProbeConfig", "check_probe_file"]


class ContrastiveProbe(LinearProbe):
    """Two linear heads that bring a class's text and its sounds together.

        a_c = norm(W' t_c)        b_i = norm(V' x_i)        s(c, i) = <a_c, b_i>

    Parameters
    ----------
    config : ProbeConfig, optional
    backend, device, seed
        As in `permutation_test`.

    Attributes
    ----------
    classes_ : str (C,)
        Texts of the gallery, ascending.
    train_classes_ : str (n_train,)
        Those the probe was trained on; the others are unseen.
    text_head_, audio_head_ : float64 (r_text, d), (r_audio, d)
        W and V.
    loss_ : float
        Training loss of the last step.

    Examples
    --------
    >>> import fastprobe as fp
    >>> from fastprobe.tables.simulate import simulate_pair
    >>> names = [f"class {i}" for i in range(12)]
    >>> text, audio = simulate_pair(names, alignment=1.0, clips=4, text_width=8, audio_width=8)
    >>> probe = fp.ContrastiveProbe(fp.ProbeConfig(dim=8), backend="reference").fit(text, audio, classes=names[:8])
    >>> probe.rank().shape  # clips of the four unseen classes
    (16,)
    >>> labels, scores = probe.retrieve(audio, k=3)
    >>> labels.shape
    (48, 3)
    """

    def __init__(self, config: ProbeConfig | None = None, *, backend: str = "auto", device: str | None = None, seed: int = 0) -> None:
        self.config = ProbeConfig() if config is None else config
        if not isinstance(self.config, ProbeConfig):
            raise InputError(f"`config` must be a ProbeConfig; got {type(config).__name__}.")
        if self.config.csls:
            raise InputError(
                f"`csls` corrects ranks by all clips of a run, and a probe in use meets them one by one; got {self.config.csls}. "
                "Leave it out here, or use it with `fastprobe run`."
            )
        self.backend, self.device, self.seed = backend, device, seed
        super().__init__()

    # ---- training --------------------------------------------------------------------------------

    def fit(self, text: Any, audio: Any, classes: Sequence[str] | None = None) -> ContrastiveProbe:
        """Train on the clips of `classes` (all classes by default) against their texts.

        Parameters
        ----------
        text, audio : EmbeddingTable, path, or (vectors, labels)
        classes : sequence of str, optional
            Labels to train on; the rest stays unseen, for `score`.

        Returns
        -------
        self

        Raises
        ------
        InputError
            Tables that do not belong together, unknown classes, fewer than two.
        """
        text, audio = self._tables_of(text, audio)
        pair = make_pair(text, audio, self.config)
        train = train_rows(pair, classes)
        test = np.setdiff1d(np.arange(len(pair.classes)), train)
        identity = np.arange(len(pair.classes))[None]
        batch = make_batch(pair, self.config, Split(train, test), self.seed, 0, 0, identity)
        chosen = select_backend(self.backend, self.config.precision, self.device, self.config.optimizer)
        self.config = chosen.settle(self.config, self.device)
        result = chosen.load()(batch, self.device, heads=True)
        self.text_head_, self.audio_head_ = (h[0].astype(np.float64) for h in (result.text_heads, result.audio_heads) if h is not None)
        self.loss_ = float(result.loss[0])
        self._keep(pair, train, text, audio)
        self.meta |= {"backend": chosen.name, "seed": self.seed, "loss": self.loss_}
        return self

    # ---- files -----------------------------------------------------------------------------------

    def _identity(self) -> list[Any]:
        return [self.config.bias, self.config.dim]

    def _restore(self, stored: Stored) -> None:
        if stored.kind != "contrastive":
            raise InputError(f"it holds a probe of kind {stored.kind}. Read it with `fastprobe.load_probe`.")
        self.__init__(ProbeConfig(**stored.header["config"]))  # type: ignore[misc]  # a probe as one that was just made
        super()._restore(stored)
        self.loss_ = self.meta["loss"]


# What makes two tables' vectors comparable, as `fastprobe embed` records it.
_MODEL_KEYS = ("kind", "weights", "model", "layer", "pooling", "template", "mode")


def model_difference(made: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """How the models behind two tables differ by their meta, in words; None when nothing speaks against them.

    Equal digests of the weights settle the model, wherever its files lie now. What one of them does not say is not compared.
    """
    same_weights = made.get("weights") is not None and made.get("weights") == given.get("weights")
    for key in _MODEL_KEYS:
        a, b = made.get(key), given.get(key)
        if a is None or b is None or a == b or (key == "model" and same_weights):
            continue
        if key == "weights":
            if made.get("model") == given.get("model"):
                return f"the same model name with other weights ({str(a)[:12]}... and {str(b)[:12]}...)"
            continue  # the name says it better
        return f"`{key}` is {a!r} there and {b!r} here"
    return None


def check_model(probe: LinearProbe, side: str, meta: Mapping[str, Any], width: int, what: str, any_model: bool = False) -> None:
    """Refuse vectors of another model than the one that a probe was trained on.

    Parameters
    ----------
    side : {"text", "audio"}
    meta, width
        Of the table at hand.
    what : str
        Its name, for the message.
    any_model : bool
        Compare the width only.

    Raises
    ------
    InputError
        Another width, or another model, layer, pooling, template, mode or weights by the two metas.
    """
    probe._check_fitted()
    expected = len((probe.text_preprocessing if side == "text" else probe.audio_preprocessing).mean)
    made = probe.meta.get(side) or {}
    if width != expected:
        raise InputError(
            f"{what}: its vectors have width {width}; the probe was trained on {side} embeddings of width {expected} "
            f"({made.get('model') or made.get('name', 'unknown model')}). Embed it with that model."
        )
    if not any_model and (difference := model_difference(made, meta)):
        raise InputError(
            f"{what}: embedded by another model than the probe's {side} side: {difference}. Embed it with the "
            "probe's model, or say `any_model` (in the shell --any-model) if the vectors are alike all the same."
        )
