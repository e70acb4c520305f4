"""The kinds of probe beside the trained one, and the similarities: their options, names and words; no arithmetic."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from operator import attrgetter
from typing import Any, ClassVar, Literal

from ..errors import InputError
from .config import ProbeConfig


def _whole(name: str, value: Any, low: int, *, optional: bool = False) -> int | None:
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise InputError(f"`{name}` must be a whole number of at least {low}; got {value!r}.")
    return int(value)


@dataclass(frozen=True)
class _Named:
    """What probes and similarities share: a name that leaves out options at their default, and plain values."""

    @property
    def name(self) -> str:
        """Stable short text, such as ``ridge:alpha=0.1,1,10``; `parse_probe` and `parse_similarity` read it back."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "kind"}
        default = {f.name: f.default for f in dataclasses.fields(self)}
        options = [f"{name}={_text(value)}" for name, value in given.items() if value != default[name]]
        return ":".join([self._kind(), *options])

    def _kind(self) -> str:
        # A field of similarities, and of probes a constant of the class: no declaration here would fit both.
        return str(attrgetter("kind")(self))

    def to_dict(self) -> dict[str, Any]:
        """The kind and all options as plain values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"kind": self._kind(), **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_text(v) for v in value)
    if isinstance(value, float):  # 10 rather than 10.0, and every digit that the value needs
        return repr(value).removesuffix(".0")
    return str(value)


class ClosedProbe(_Named):
    """What all closed forms have: fitted on the train classes without a step of training.

    Attributes
    ----------
    kind : str
        What its name begins with.
    words : str
        For help and for the methods paragraph, options in parentheses.
    csls : int
        Neighbours of the correction for hubs; 0 for none.
    """

    kind: ClassVar[str]
    words: ClassVar[str]
    csls: int


@dataclass(frozen=True, kw_only=True)
class Ridge(ClosedProbe):
    """Ridge regression of the text embeddings on the sounds.

    Attributes
    ----------
    alpha : float or tuple of float
        Penalty, times the number of training rows. Of several, the best by leave-one-class-out is taken inside every replicate.
    csls : int
        Neighbours of the correction for hubs; 0 for none.
    fit_on : {"centroid", "clip"}
        Training rows: the mean of the clips of each train class, or all of its clips.

    Raises
    ------
    InputError
        When an option is outside its range.
    """

    kind: ClassVar[str] = "ridge"
    words: ClassVar[str] = "ridge regression from sounds to texts (alpha, csls, fit_on)"
    alpha: float | tuple[float, ...] = 1.0
    csls: int = 0
    fit_on: Literal["centroid", "clip"] = "centroid"

    def __post_init__(self) -> None:
        given = self.alpha
        values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if not values:
            raise InputError("`alpha` must be a positive number or several; got none.")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < float("inf"):
                raise InputError(f"`alpha` must be a finite number above 0; got {value!r}.")
        values = tuple(float(v) for v in values)
        if len(set(values)) < len(values):
            raise InputError(f"`alpha` must not name a value twice; got {_text(values)}. Give each once.")
        object.__setattr__(self, "alpha", tuple(sorted(values)) if len(values) > 1 else values[0])
        object.__setattr__(self, "csls", _whole("csls", self.csls, 0))
        if self.fit_on not in ("centroid", "clip"):
            raise InputError(f"`fit_on` must be one of centroid, clip; got {self.fit_on!r}.")

    @property
    def alphas(self) -> tuple[float, ...]:
        """All penalties, ascending."""
        return self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)


@dataclass(frozen=True, kw_only=True)
class Procrustes(ClosedProbe):
    """The rotation that brings the sounds of the train classes closest to their texts.

    Attributes
    ----------
    dim : int, optional
        Leading components kept; all of them when None.
    csls : int
        Neighbours of the correction for hubs; 0 for none.
    """

    kind: ClassVar[str] = "procrustes"
    words: ClassVar[str] = "orthogonal Procrustes from sounds to texts (dim, csls)"
    dim: int | None = None
    csls: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", _whole("dim", self.dim, 1, optional=True))
        object.__setattr__(self, "csls", _whole("csls", self.csls, 0))


@dataclass(frozen=True, kw_only=True)
class CCA(ClosedProbe):
    """Canonical correlation: Procrustes between whitened spaces.

    Attributes
    ----------
    dim : int
        Leading components kept.
    shrinkage : float
        Share of the mean variance mixed into each covariance, in (0, 1].
    csls : int
        Neighbours of the correction for hubs; 0 for none.
    """

    kind: ClassVar[str] = "cca"
    words: ClassVar[str] = "canonical correlation with shrinkage (dim, shrinkage, csls)"
    dim: int = 16
    shrinkage: float = 0.5
    csls: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", _whole("dim", self.dim, 1))
        object.__setattr__(self, "csls", _whole("csls", self.csls, 0))
        value = self.shrinkage
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
            raise InputError(f"`shrinkage` must lie in (0, 1]; got {value!r}.")
        object.__setattr__(self, "shrinkage", float(value))


@dataclass(frozen=True, kw_only=True)
class Similarity(_Named):
    """One number over the class centroids: no split and no query.

    Attributes
    ----------
    kind : {"cka", "rsa", "knn", "protest"}
    k : int
        Neighbours; for ``knn`` only.
    """

    kind: str
    k: int = 10

    def __post_init__(self) -> None:
        if self.kind not in SIMILARITIES:
            raise InputError(f"`similarity` must be one of {', '.join(SIMILARITIES)}; got {self.kind!r}.")
        object.__setattr__(self, "k", _whole("k", self.k, 1))
        if self.kind != "knn" and self.k != 10:
            raise InputError(f"`k` is an option of knn alone; got k={self.k} for {self.kind}. Leave it out.")


# The closed forms by their kind, and each similarity in words.
CLOSED: dict[str, type[ClosedProbe]] = {cls.kind: cls for cls in (Ridge, Procrustes, CCA)}
PROBES = {kind: cls.words for kind, cls in CLOSED.items()}
SIMILARITIES = {
    "cka": "debiased linear centred kernel alignment",
    "rsa": "Spearman correlation of the two matrices of cosine distances",
    "knn": "share of common nearest neighbours by cosine (k)",
    "protest": "Procrustes correlation squared, 1 - m2",
}
Probe = ProbeConfig | ClosedProbe | Similarity


def _number(cls: type, option: str, value: str) -> Any:
    """The value of an option as its annotation has it: a word, a whole number or a number; text where there is no such option."""
    kinds = _plain_types(typing.get_type_hints(cls).get(option))
    if not kinds & {int, float}:
        return value
    try:
        return float(value) if float in kinds else int(value)
    except ValueError:
        raise InputError(f"`{option}` must be a number; got {value!r}.") from None


def _plain_types(hint: Any) -> set[Any]:
    return {hint}.union(*map(_plain_types, typing.get_args(hint)))


def _parse(what: str, text: str, known: dict[str, Any], of: type | None = None) -> tuple[str, dict[str, Any]]:
    kind, *parts = text.split(":")
    if kind not in known:
        raise InputError(f"`{what}` must be one of {', '.join(known)}; got {kind!r}.")
    options: dict[str, Any] = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if not equals or not value:
            raise InputError(f"`{what}` takes options as name=value after a colon; got {part!r} in {text!r}.")
        if option in options:
            raise InputError(f"`{what}` names the option {option!r} twice in {text!r}. Give it once.")
        values = tuple(_number(of or known[kind], option, v) for v in value.split(","))
        options[option] = values if len(values) > 1 else values[0]
    return kind, options


def _build(what: str, kind: str, cls: Callable[..., Any], options: dict[str, Any], known: list[str]) -> Any:
    for option in options:
        if option not in known:
            raise InputError(f"`{what}` {kind} has no option {option!r}; it has {', '.join(known) or 'none'}.")
    return cls(**options)


def parse_probe(text: str) -> ClosedProbe:
    """The probe that a text such as ``ridge:alpha=0.1,1,10`` names.

    Raises
    ------
    InputError
        Unknown kinds and options (the known ones are listed), and values out of range.
    """
    kind, options = _parse("probe", text, CLOSED)
    cls = CLOSED[kind]
    return _build("probe", kind, cls, options, [f.name for f in dataclasses.fields(cls)])


def parse_similarity(text: str) -> Similarity:
    """The similarity that a text such as ``knn:k=10`` names.

    Raises
    ------
    InputError
        Unknown kinds and options (the known ones are listed), and values out of range.
    """
    kind, options = _parse("similarity", text, SIMILARITIES, Similarity)
    known = ["k"] if kind == "knn" else []
    return _build("similarity", kind, lambda **o: Similarity(kind=kind, **o), options, known)


def probe_from_dict(values: dict[str, Any]) -> ClosedProbe | Similarity:
    """What `to_dict` wrote, or a table of a configuration file.

    Raises
    ------
    InputError
        A missing or unknown ``kind``, unknown options, values out of range.
    """
    options = dict(values)
    kind = options.pop("kind", None)
    if kind in SIMILARITIES:
        return _build("similarity", kind, lambda **o: Similarity(kind=kind, **o), options, ["k"])
    if kind not in PROBES:
        raise InputError(f"`kind` must be one of {', '.join([*PROBES, *SIMILARITIES])}; got {kind!r}.")
    cls = CLOSED[kind]
    return _build("probe", kind, cls, options, [f.name for f in dataclasses.fields(cls)])


def as_probe(value: Any) -> ProbeConfig | ClosedProbe:
    """A probe as the library, the shell or a file names it: an object, "ridge:alpha=1", or a table with a `kind`.

    Raises
    ------
    InputError
        Anything else; the message lists the kinds.
    """
    if isinstance(value, (ProbeConfig, ClosedProbe)):
        return value
    if isinstance(value, str):
        if value.split(":")[0] not in ("contrastive", *PROBES):
            raise InputError(f"`probe` must be one of contrastive, {', '.join(PROBES)}; got {value!r}.")
        return ProbeConfig() if value == "contrastive" else parse_probe(value)
    if isinstance(value, dict):
        probe = read_probe(value)
        if not isinstance(probe, Similarity):
            return probe
    raise InputError(f"`probe` must be a ProbeConfig, or one of {', '.join(PROBES)}, or a list of them; got {type(value).__name__}.")


def as_similarity(value: Any) -> Similarity:
    """A similarity as the library, the shell or a file names it: an object, or "knn:k=10".

    Raises
    ------
    InputError
        Anything else; the message lists the kinds.
    """
    if isinstance(value, Similarity):
        return value
    if isinstance(value, str):
        return parse_similarity(value)
    raise InputError(f"`similarity` must be one of {', '.join(SIMILARITIES)}; got {value!r}.")


def read_probe(values: dict[str, Any]) -> Probe:
    """What `to_dict` of any probe wrote; contrastive ones need no `kind`."""
    if values.get("kind", "contrastive") == "contrastive":
        try:
            return ProbeConfig(**{name: value for name, value in values.items() if name != "kind"})
        except TypeError:
            known = [f.name for f in dataclasses.fields(ProbeConfig)]
            unknown = sorted(set(values) - {"kind", *known})
            raise InputError(f"`probe` contrastive has no option {', '.join(unknown)}; it has {', '.join(known)}.") from None
    return probe_from_dict(values)


def is_similarity(name: str) -> bool:
    """Whether a probe's name is that of a similarity."""
    return name.split(":")[0] in SIMILARITIES


def is_trained(name: str) -> bool:
    """Whether a probe's name is that of a trained probe."""
    return name.split(":")[0] == "contrastive"
