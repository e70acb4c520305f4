"""The shell's options, made from the fields of `RunRequest` and `ProbeConfig`: names, defaults, choices and help stand there."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..storage import local_path
from ..tables.arrow import with_columns


def choice(name: str, values: Iterable[str]) -> Any:
    """The type of an option with these values."""
    return Enum(name, {v: v for v in values}, type=str)


def plain(value: Any) -> Any:
    """The word behind a choice; anything else as it is."""
    return value.value if isinstance(value, Enum) else value


def on_this_machine(ctx: Any, parameter: Any, value: Any) -> Any:
    """A callback of options whose file must lie here: a URL is refused by name, not taken for a path.

    Raises
    ------
    InputError
        A URL, or its form after pathlib folded its slashes.
    """
    for path in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(path, Path):
            try:
                local_path(path)
            except InputError:
                raise InputError(
                    f"`{parameter.name}` must be a path on this machine; got {str(path).replace(':/', '://', 1)!r}. Copy it here first."
                ) from None
    return value


VectorColumn = Annotated[
    str | None,
    typer.Option(help="Column of the vectors in Parquet tables of others.", show_default="vector", rich_help_panel="Parquet tables"),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Their column of class names.", show_default="label", rich_help_panel="Parquet tables"),
]


def example(command: str) -> dict[str, Any]:
    """Arguments of `app.command` that put an example below the help of a command."""
    return {"epilog": f"Example: {command}"}


def name_columns(locations: Sequence[str], vector: str | None, label: str | None) -> list[str]:
    """Locations of tables, the Parquet ones with the columns that --vector-column and --label-column name.

    Raises
    ------
    InputError
        No location is one of a Parquet file, or a name is no text.
    """
    for option, value in (("vector_column", vector), ("label_column", label)):
        if not isinstance(value, str | None) or value == "":
            raise InputError(f"`{option}` must name a column; got {value!r}.")
        if value is not None and not any(str(at).lower().endswith(".parquet") for at in locations):
            raise InputError(f"`{option}` names a column of Parquet tables; got {', '.join(map(str, locations))}. Leave it out.")
    return [with_columns(at, vector, label) for at in locations]


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


def several(name: str, value: Any, kind: Any) -> Any:
    """ "0.1,0.25" as [0.1, 0.25]; one value as it is.

    Raises
    ------
    InputError
        A part that is not of the kind, or not one of its choices.
    """
    if not isinstance(value, str):
        return value
    out = []
    for part in value.split(","):
        try:
            out.append(plain(kind(part.strip())))
        except ValueError:
            if isinstance(kind, type) and issubclass(kind, Enum):
                rule = f"one of {', '.join(member.value for member in kind)}"
            else:
                rule = {int: "a whole number", float: "a number"}.get(kind, "text")
            raise InputError(f"`{name}` must be {rule}, or several with commas between; got {value!r}.") from None
    return out if len(out) > 1 else out[0]


def listed_parameters(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """The same options, each taking several values with commas between (flags stay flags): for `several`."""
    out = []
    for p in parameters:
        kind, info = typing.get_args(p.annotation)
        base = _base(kind)
        if base is not bool:
            info = copy.copy(info)
            words = "|".join(m.value for m in base) if isinstance(base, type) and issubclass(base, Enum) else base.__name__
            info.metavar, info.show_default = f"<{words}>,...", info.show_default if p.default is None else str(p.default)
            p = p.replace(annotation=Annotated[str | None, info], default=None)
        out.append(p)
    return out


def _base(kind: Any) -> Any:
    """The one type that is not None."""
    return next(t for t in (typing.get_args(kind) or (kind,)) if t is not type(None))


def read_several(parameters: list[inspect.Parameter], given: dict[str, Any]) -> dict[str, Any]:
    """What the shell or a file gave for `listed_parameters`, as values or lists of values; options left out are left out."""
    kinds = {p.name: _base(typing.get_args(p.annotation)[0]) for p in parameters}
    return {name: several(name, value, kinds[name]) for name, value in given.items() if value is not None}


def option_parameters(fields_of: type, heading: str) -> list[inspect.Parameter]:
    """A keyword parameter for every field of a dataclass that was made with `option`.

    Parameters
    ----------
    fields_of : type
        The dataclass.
    heading : str
        Under which the shell lists those that name no `group`.
    """
    hints = typing.get_type_hints(fields_of)
    out = []
    for field in dataclasses.fields(fields_of):
        if "help" not in field.metadata:
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
