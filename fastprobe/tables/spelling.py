"""Labels that nearly match: how the nearest one differs, for messages. Nothing is ever matched by it."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence


def _number(label: str) -> str:
    try:
        return f"{float(label):g}"
    except ValueError:
        return label


# What people's labels differ by, and the spelling in which they then agree.
_FORMS: dict[str, Callable[[str], str]] = {
    "Unicode form": lambda s: unicodedata.normalize("NFKC", s),
    "underscores or hyphens": lambda s: re.sub(r"[_-]+", " ", s),
    "spaces": lambda s: " ".join(s.split()),
    "case": str.casefold,
    "the way a number is written": _number,
}


def _plain(label: str, without: str = "") -> str:
    for name, form in _FORMS.items():
        label = label if name == without else form(label)
    return label


def how_they_differ(a: str, b: str) -> list[str]:
    """What two labels differ by, if by nothing but ways of writing; empty for equal labels and for different ones.

    Examples
    --------
    >>> how_they_differ("dog_bark", "Dog bark ")
    ['underscores or hyphens', 'spaces', 'case']
    """
    if a == b or _plain(a) != _plain(b):
        return []
    return [name for name in _FORMS if _plain(a, name) != _plain(b, name)] or ["ways of writing"]


def near_misses(missing: Sequence[str], present: Iterable[str], limit: int = 3) -> str:
    """A sentence on the labels that are nearly there, with a space before it; empty if there are none.

    Examples
    --------
    >>> near_misses(["Rain"], ["rain", "wind"])
    " 'Rain' is there as 'rain' (it differs in case)."
    """
    there = sorted(set(map(str, present)))
    plain = {_plain(label): label for label in there}
    out = []
    for label in map(str, missing[:50]):
        if twin := plain.get(_plain(label)):
            # Two Unicode forms look alike on a screen; ascii() shows the difference.
            shown = ascii if unicodedata.normalize("NFC", label) == unicodedata.normalize("NFC", twin) else repr
            out.append(f"{shown(label)} is there as {shown(twin)} (it differs in {' and '.join(how_they_differ(label, twin))})")
        elif close := difflib.get_close_matches(label, there, 1, 0.85):
            out.append(f"the nearest to {label!r} is {close[0]!r}")
        if len(out) == limit:
            break
    return f" {'; '.join(out)[:1].upper()}{'; '.join(out)[1:]}." if out else ""
