"""`LinearProbe`: what every fitted probe can do, whatever made it: project, rank, score, retrieve, be saved.

a_c = norm(W' (t_c - mean_t))        b_i = norm(V' (x_i - mean_x))        s(c, i) = <a_c, b_i>
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..errors import InputError
from ..kernels.reference import norm, ranks
from ..protocol.config import ProbeConfig
from ..protocol.features import PairData, Preprocessing
from ..storage import local_copy, name_of, new_file
from ..tables.embeddings import EmbeddingTable, first_few

# Version 2 holds closed forms; trained probes are written as version 1, which older versions read.
_FORMAT = 2


class LinearProbe:
    """A fitted pair of heads; see `ContrastiveProbe` and `ClosedFormProbe`, which fit one.

    Attributes
    ----------
    config : ProbeConfig, Ridge, Procrustes or CCA
    classes_ : str (C,)
        Texts of the gallery, ascending.
    train_classes_ : str (n_train,)
        Those the probe was fitted to; the others are unseen.
    text_head_, audio_head_ : float64 (r_text, d), (r_audio, d)
        W and V.
    text_mean_, audio_mean_ : float64 (r_text,), (r_audio,) or None
        Taken off the features before.
    """

    config: Any
    text_head_: np.ndarray
    audio_head_: np.ndarray
    text_mean_: np.ndarray | None = None
    audio_mean_: np.ndarray | None = None
    classes_: np.ndarray
    train_classes_: np.ndarray
    gallery_: np.ndarray
    text_preprocessing: Preprocessing
    audio_preprocessing: Preprocessing
    _fitted_on: PairData | None = None
    csls = 0

    def __init__(self) -> None:
        self.meta: dict[str, Any] = {}

    @property
    def width(self) -> int:
        """d, of the space that texts and sounds share."""
        self._check_fitted()
        return int(self.text_head_.shape[1])

    def _check_fitted(self) -> None:
        if not hasattr(self, "text_head_"):
            raise InputError(f"this probe is not fitted. Call `fit(text, audio)` or `{type(self).__name__}.load(path)` first.")

    def _tables_of(self, text: Any, audio: Any) -> tuple[EmbeddingTable, EmbeddingTable]:
        return EmbeddingTable.coerce(text, "text"), EmbeddingTable.coerce(audio, "audio")

    def _keep(self, pair: PairData, train: np.ndarray, text: EmbeddingTable, audio: EmbeddingTable) -> None:
        """What any fit remembers of its tables, once the heads are there."""
        self.classes_, self.train_classes_ = pair.classes, pair.classes[train]
        self.text_preprocessing, self.audio_preprocessing = pair.text_preprocessing, pair.audio_preprocessing
        self.gallery_ = norm(self._text(pair.text))[0]
        self._fitted_on = pair
        self.meta = {"text": text.meta, "audio": audio.meta, "text_digest": text.digest, "audio_digest": audio.digest}

    def _text(self, features: np.ndarray) -> np.ndarray:
        return (features if self.text_mean_ is None else features - self.text_mean_) @ self.text_head_

    def _audio(self, features: np.ndarray) -> np.ndarray:
        return (features if self.audio_mean_ is None else features - self.audio_mean_) @ self.audio_head_

    # ---- using it --------------------------------------------------------------------------------

    def project_text(self, vectors: Any) -> np.ndarray:
        """a = norm(W' t) of text embeddings (n, D_t) or a table: float64 (n, d), unit rows."""
        self._check_fitted()
        return norm(self._text(self.text_preprocessing.apply(vectors_of(vectors))))[0]

    def project_audio(self, vectors: Any) -> np.ndarray:
        """b = norm(V' x) of audio embeddings (n, D_a) or a table: float64 (n, d), unit rows."""
        self._check_fitted()
        return norm(self._audio(self.audio_preprocessing.apply(vectors_of(vectors))))[0]

    def queries(self, vectors: Any) -> np.ndarray:
        """Sounds as `search` takes them; for probes that correct no hubs, `project_audio`."""
        return self.project_audio(vectors)

    def search(self, queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows (n, k) of the projected texts `gallery` nearest to `queries`, best first."""
        from ..kernels.topk import top_k

        return top_k(queries, gallery, k)

    def _rank(self, features: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ranks(self.gallery_, norm(self._audio(features))[0], y)

    def rank(self, audio: Any = None) -> np.ndarray:
        """Rank of the true class of each clip among all texts, int32 (n,); 1 is best, ties count against.

        Parameters
        ----------
        audio : table, path or (vectors, labels), optional
            By default the clips of the unseen classes it was fitted with (all clips, when it saw all classes),
            grouped by class.
        """
        return self._ranks(audio)[0]

    def _ranks(self, audio: Any) -> tuple[np.ndarray, np.ndarray]:
        self._check_fitted()
        if audio is None:
            pair = self._fitted_on
            if pair is None:
                raise InputError("a loaded probe has no clips. Give `audio`.")
            unseen = ~np.isin(pair.classes, self.train_classes_)
            rows = np.flatnonzero(unseen[pair.labels]) if unseen.any() else np.arange(len(pair.labels))
            features, y = pair.audio[rows], pair.labels[rows]
        else:
            table = EmbeddingTable.coerce(audio, "audio")
            if unknown := sorted(set(table.labels.tolist()) - set(self.classes_.tolist())):
                raise InputError(f"`audio` has {len(unknown)} labels that the probe's texts lack: {first_few(unknown)}.")
            features, y = self.audio_preprocessing.apply(table.vectors), np.searchsorted(self.classes_, table.labels)
        return self._rank(features, y), y

    def score(self, k: int = 3, audio: Any = None) -> float:
        """acc@k, the mean over classes of the share of clips whose true text is among the k nearest.

        Parameters
        ----------
        k : int
        audio : optional
            As in `rank`.
        """
        from ..protocol.metrics import check_ks

        self._check_fitted()
        (k,) = check_ks((k,), len(self.classes_))
        rank, y = self._ranks(audio)
        _, position = np.unique(y, return_inverse=True)
        return float(np.mean(np.bincount(position, rank <= k) / np.bincount(position)))

    def retrieve(self, audio: Any, k: int = 3, gallery: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest texts of each clip, best first.

        Parameters
        ----------
        audio : table, path, or float (n, D_a)
        k : int
            1 ... rows of the gallery.
        gallery : table, path, `GalleryIndex`, or None
            Texts embedded by the model the probe was trained on; by default the probe's own classes. Equal scores
            go by the gallery's order.

        Returns
        -------
        str (n, k)
            Labels.
        float32 (n, k)
            Scores s(c, i).

        Raises
        ------
        InputError
            Another width than the probe's, k above the gallery's size; see `check_model` for tables of other models.
        """
        from .gallery import GalleryIndex

        self._check_fitted()
        queries = self.queries(audio)
        if gallery is None:
            labels, scores_rows = self.classes_, self.search(queries, self.gallery_, k)
        elif isinstance(gallery, GalleryIndex):
            check_no_csls(self, "an index")
            gallery.check_probe(self.digest)
            found = gallery.search(queries, k)
            return gallery.texts(found[1]), found[0]
        else:
            table = EmbeddingTable.coerce(gallery, "gallery")
            labels, scores_rows = table.labels, self.search(queries, self.project_text(table), k)
        scores, rows = scores_rows
        return labels[rows], scores

    # ---- files -----------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """SHA-256 over heads and preprocessing: what decides where a text or a sound lands."""
        self._check_fitted()
        h = hashlib.sha256(json.dumps(self._identity()).encode())
        for head, mean, pre in (
            (self.text_head_, self.text_mean_, self.text_preprocessing),
            (self.audio_head_, self.audio_mean_, self.audio_preprocessing),
        ):
            given = (head, pre.mean, np.array([pre.scale]), pre.basis, mean)
            for array in (a for a in given if a is not None):
                h.update(f"{array.shape};".encode() + np.ascontiguousarray(array, "<f8").tobytes())
        return h.hexdigest()

    def _identity(self) -> list[Any]:
        """What the digest holds beside the arrays."""
        return [self.config.name]

    def _more_tensors(self) -> dict[str, np.ndarray]:
        """What a kind of probe stores beside what all do."""
        return {}

    def save(self, path: str | os.PathLike) -> None:
        """Write heads, preprocessing, gallery and meta as one .safetensors file, local or by URL, whole or not at all."""
        from safetensors.numpy import save

        self._check_fitted()
        check_probe_file(path)
        tensors = {"text_head": self.text_head_, "audio_head": self.audio_head_, "gallery": self.gallery_, **self._more_tensors()}
        for side, pre, mean in (
            ("text", self.text_preprocessing, self.text_mean_),
            ("audio", self.audio_preprocessing, self.audio_mean_),
        ):
            tensors[f"{side}_mean"], tensors[f"{side}_scale"] = pre.mean, np.array([pre.scale])
            if pre.basis is not None:
                tensors[f"{side}_basis"] = pre.basis
            if mean is not None:
                tensors[f"{side}_centre"] = mean
        header = {
            "format": "fastprobe-probe",
            "version": 1 if isinstance(self.config, ProbeConfig) else _FORMAT,
            "config": self.config.to_dict(),
            "meta": self.meta,
            "classes": self.classes_.tolist(),
            "train_classes": self.train_classes_.tolist(),
        }
        with new_file(path) as file:
            file.write(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata={"fastprobe": json.dumps(header)}))

    def _restore(self, stored: Stored) -> None:
        """Take the place of the probe that was saved."""
        header, tensors = stored
        self.meta = header["meta"]
        self.classes_, self.train_classes_ = np.array(header["classes"]), np.array(header["train_classes"])
        self.text_head_, self.audio_head_, self.gallery_ = (tensors[n] for n in ("text_head", "audio_head", "gallery"))
        self.text_mean_, self.audio_mean_ = tensors.get("text_centre"), tensors.get("audio_centre")
        bias = header["config"].get("bias", False)
        self.text_preprocessing, self.audio_preprocessing = (
            Preprocessing(tensors[f"{s}_mean"], float(tensors[f"{s}_scale"][0]), tensors.get(f"{s}_basis"), bias) for s in ("text", "audio")
        )

    @classmethod
    def load(cls: type[P], path: str | os.PathLike) -> P:
        """Read a saved probe.

        Raises
        ------
        InputError
            A missing, foreign or damaged file, one of another kind of probe, or one from a newer version.
        """
        return restored(cls, read_probe_file(path), path)


P = TypeVar("P", bound=LinearProbe)


class Stored(NamedTuple):
    """A probe file: its header and its arrays."""

    header: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def kind(self) -> str:
        """Of the probe: contrastive, ridge, ..."""
        return str(self.header["config"].get("kind", "contrastive"))


def _damaged(path: str | os.PathLike, error: Exception) -> InputError:
    return InputError(f"{path}: not a saved probe, or a damaged one ({error}).")


def read_probe_file(path: str | os.PathLike) -> Stored:
    """Header and arrays of a saved probe of any kind.

    Raises
    ------
    InputError
        A missing, foreign or damaged file, or one from a newer version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with local_copy(path) as source, safe_open(source, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["fastprobe"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header["format"] != "fastprobe-probe" or not isinstance(header["config"], dict):
            raise KeyError("format")
        if header["version"] > _FORMAT:
            raise InputError(f"{path}: written by a newer fastprobe. Upgrade fastprobe.")
        return Stored(header, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, error) from None


def restored(cls: type[P], stored: Stored, path: str | os.PathLike) -> P:
    """The probe of a file, by the class of its kind.

    Raises
    ------
    InputError
        Another class's kind, or a file that lacks something.
    """
    try:
        probe = cls.__new__(cls)
        probe._restore(stored)
        return probe
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise _damaged(path, error) from None


def check_no_csls(probe: LinearProbe, what: str) -> None:
    """Refuse a probe that corrects hubs where only cosines are searched.

    Raises
    ------
    InputError
        A probe with `csls`.
    """
    if probe.csls:
        raise InputError(
            f"{what} is searched by cosine alone, and this probe corrects each text by `csls`={probe.csls}. Query a table or a text file "
            "with it, or fit it without `csls`."
        )


def train_rows(pair: PairData, classes: Any) -> np.ndarray:
    """Numbers of the classes to fit to, all when `classes` is None.

    Raises
    ------
    InputError
        Labels that the tables lack, fewer than two classes.
    """
    if classes is None:
        train = np.arange(len(pair.classes))
    else:
        wanted = np.unique(np.asarray(list(classes), dtype=str))
        if unknown := sorted(set(wanted.tolist()) - set(pair.classes.tolist())):
            raise InputError(f"`classes` has {len(unknown)} labels that the tables lack: {first_few(unknown)}.")
        train = np.flatnonzero(np.isin(pair.classes, wanted))
    if len(train) < 2:
        raise InputError(f"`classes` must name at least 2 classes to train on; got {len(train)}.")
    return train


def check_probe_file(path: str | os.PathLike) -> None:
    """Refuse a name that a probe cannot be saved under; to be asked before it is trained.

    Raises
    ------
    InputError
        A suffix other than .safetensors.
    """
    if name_of(path).suffix != ".safetensors":
        raise InputError(f"{path}: a probe is saved as .safetensors; got the suffix {name_of(path).suffix!r}.")


def vectors_of(value: Any) -> np.ndarray:
    """The rows of a table, a path or an array."""
    if isinstance(value, (str, os.PathLike)):
        value = EmbeddingTable.load(value)
    return value.vectors if isinstance(value, EmbeddingTable) else np.asarray(value)
