"""The shell's options, made from the fields of `RunRequest` and `ProbeConfig`: names, defaults, choices and help stand there."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from types import UnionType
from typing import Annotated, Any

import typer


def choice(name: str, values: Iterable[str]) -> Any:
    """The type of an option with these values."""
    return Enum(name, {v: v for v in values}, type=str)


def plain(value: Any) -> Any:
    """The word behind a choice; anything else as it is."""
    return value.value if isinstance(value, Enum) else value


def _shell_type(field: dataclasses.Field[Any], hint: Any) -> Any:
    """The type that Typer is to parse: the first plain one of a union, a choice where the field has choices."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,)
    if choices := field.metadata.get("choices"):
        kind: Any = choice(field.name.title().replace("_", ""), choices)
    elif any(typing.get_origin(t) is not None and issubclass(typing.get_origin(t), Sequence) for t in parts):
        kind = list[str]
    else:
        kind = next((t for t in parts if t in (bool, int, float, str)), str)
    return kind | None if field.default is None else kind


def option_parameters(fields_of: type, heading: str, names: Iterable[str] | None = None) -> list[inspect.Parameter]:
    """A keyword parameter for every field of a dataclass that was made with `option`.

    Parameters
    ----------
    fields_of : type
        The dataclass.
    heading : str
        Under which the shell lists those that name no `group`.
    names : iterable of str, optional
        Only these.
    """
    hints = typing.get_type_hints(fields_of)
    out = []
    for field in dataclasses.fields(fields_of):
        if "help" not in field.metadata or (names is not None and field.name not in names):
            continue
        words = {k: v for k, v in field.metadata.items() if k in ("help", "metavar", "show_default")}
        info = typer.Option(**words, rich_help_panel=field.metadata.get("group", heading))
        out.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[_shell_type(field, hints[field.name]), info],
            )
        )
    return out


def with_options(**sources: list[inspect.Parameter]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add options to a command, which receives those of each source as one dictionary, by the name of the source."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(command, include_extras=True)
        kept = [
            inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=hints[p.name])
            for p in inspect.signature(command).parameters.values()
            if p.name not in sources
        ]
        added = [p for parameters in sources.values() for p in parameters]

        @functools.wraps(command)
        def wrapped(**kwargs: Any) -> Any:
            grouped = {name: {p.name: plain(kwargs.pop(p.name)) for p in parameters} for name, parameters in sources.items()}
            return command(**kwargs, **grouped)

        wrapped.__signature__ = inspect.Signature(kept + added)  # type: ignore[attr-defined]  # as PEP 362 allows
        wrapped.__annotations__ = {p.name: p.annotation for p in kept + added}
        del wrapped.__wrapped__  # typer would look through it to the bare command
        return wrapped

    return decorate
