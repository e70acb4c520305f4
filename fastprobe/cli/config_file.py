"""The file of `--config`: options of a run by their names, which the shell overrules."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError
from ..extract.ngrams import MODEL
from ..storage import is_url
from .options import name_columns


def _beside(config: Path, value: Any) -> Any:
    """Paths of a configuration file are relative to it, as in other tools; URLs and names such as fsd50k stay."""
    if isinstance(value, list):
        return [_beside(config, v) for v in value]
    if not isinstance(value, str) or is_url(value) or value.split(":")[0] in ("fsd50k", MODEL):
        return value
    return str(config.parent / value)


def _read_toml(path: Path, known: set[str]) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"`config` {path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"`config` {path}: not TOML: {error}.") from None
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if key == "probe" and isinstance(value, list) and "probe" in known:  # [[probe]] kind = "ridge"
            flat["probe"] = value
            continue
        for name, inner in (value if key in ("probe", "run") and isinstance(value, dict) else {key: value}).items():
            name = name.replace("-", "_")
            if name in flat:
                raise InputError(f"`config` {path}: `{name}` is given twice. Keep one.")
            flat[name] = inner
    if unknown := sorted(set(flat) - known):
        raise InputError(f"`config` {path}: unknown names {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    return flat


def merged(ctx: typer.Context, given: dict[str, Any], config: Path | None, also: Collection[str] = ()) -> dict[str, Any]:
    """What the shell gives, and where it is silent, the file.

    Parameters
    ----------
    given : dict
        Every option of the command, with its default where the shell is silent.
    also : collection of str
        Names that the file may hold too, and that this command has no use for.
    """
    out = dict(given)
    if config is None:
        return out
    for name, value in _read_toml(config, {*given, *also}).items():
        source = ctx.get_parameter_source(name)
        if name in given and (source is None or source.name != "COMMANDLINE"):
            out[name] = _beside(config, value) if name in ("text", "audio", "groups", "out", "covariates", "baseline") else value
    _check_types(out)
    return out


def _check_types(given: dict[str, Any]) -> None:
    """What no library function checks, because only a file can hold another type."""
    for name in ("out", "within", "address", "devices", "shard", "log_json"):
        if not isinstance(given.get(name), str | None):
            raise InputError(f"`{name}` must be text, written as in the shell; got {given[name]!r}.")
    for name in ("resume", "quiet"):
        if not isinstance(given.get(name, False), bool):
            raise InputError(f"`{name}` must be true or false; got {given[name]!r}.")
    if given.get("engine", "local") not in ("local", "ray"):
        raise InputError(f"`engine` must be local or ray; got {given['engine']!r}.")


def name_tables(given: dict[str, Any]) -> None:
    """Put lists of tables, with their columns named, in the place of what was given for text, audio and baseline.

    Raises
    ------
    InputError
        A side without a table, or something that names none.
    """
    for side in ("text", "audio"):
        if isinstance(given[side], str):
            given[side] = [given[side]]
        if not given[side]:
            raise InputError(f"`{side}` is missing: give --{side} FILE (repeatable), or `{side}` in --config.")
        if not (isinstance(given[side], list) and all(isinstance(p, str) for p in given[side])):
            raise InputError(f"`{side}` must be a file or a list of files; got {given[side]!r}.")
    sides = [side for side in ("text", "audio", "baseline") if isinstance(given[side], list)]
    tables = iter(name_columns([at for side in sides for at in given[side]], given["vector_column"], given["label_column"]))
    for side in sides:
        given[side] = [next(tables) for _ in given[side]]
