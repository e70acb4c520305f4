"""Options of the shell that take one of a few words."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any


def choice(name: str, values: Iterable[str]) -> type[Enum]:
    """The type of an option with these values."""
    return Enum(name, {v: v for v in values}, type=str)


def plain(value: Any) -> Any:
    """The word behind a choice; anything else as it is."""
    return value.value if isinstance(value, Enum) else value
