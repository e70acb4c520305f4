"""The exceptions a user is meant to read: each names the argument, the rule, the value and the way out."""


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
