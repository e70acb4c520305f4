"""The exceptions a user is meant to read: each names the argument, the rule, the value and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input or usage. The shell prints the message alone and exits with code 2.

    Examples
    --------
    >>> import fastprobe as fp
    >>> fp.ProbeConfig(dim=0)
    Traceback (most recent call last):
    ...
    fastprobe.errors.InputError: `dim` must be a whole number of at least 1; got 0.
    """


class BackendUnavailableError(InputError):
    """A backend was named that this machine cannot run. The message lists those it can."""


class StoreError(InputError):
    """A run directory that cannot be read, or must not be written to."""


class OutOfMemoryError(InputError):
    """The device cannot hold the smallest batch. The message says what would fit."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop (Ctrl-C, SIGTERM). Everything finished is stored."""


class MissingPackageError(InputError):
    """Something was asked for that needs packages beyond the core. The message names the extra that brings them."""


def install(extra: str) -> str:
    """The command that brings an extra, as messages say it.

    Examples
    --------
    >>> install("torch")
    "pip install 'fastprobe[torch]'"
    """
    return f"pip install 'fastprobe[{extra}]'"


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Imports inside the block belong to an extra: where a package is absent, the message says how to get it.

    Parameters
    ----------
    what : str
        What was asked for, as the user wrote it.
    extra : str
        Of pyproject.toml.

    Raises
    ------
    MissingPackageError
        A package that is not installed.

    Examples
    --------
    >>> with needs("`path`='torch'", "torch"):
    ...     import a_package_that_is_not_there
    Traceback (most recent call last):
    ...
    fastprobe.errors.MissingPackageError: `path`='torch' needs the package 'a_package_that_is_not_there', which is not installed: \
pip install 'fastprobe[torch]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "fastprobe").partition(".")[0] == "fastprobe":  # a fault of this package is no missing extra
            raise
        package = (error.name or "").partition(".")[0]
        raise MissingPackageError(f"{what} needs the package {package!r}, which is not installed: {install(extra)}.") from None
