"""Checkpoints: reading, digesting, loading; and keeping packages quiet and off the network while they load."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..tables.embeddings import first_few


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what packages print, log and warn about while they load. Exceptions pass."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def no_network(what: str) -> Iterator[None]:
    """Refuse every outgoing connection inside the block: local weights must be enough.

    Raises
    ------
    InputError
        When a package tries to connect.
    """

    def refuse(self: socket.socket, address: Any) -> None:
        raise InputError(
            f"{what} tried to reach the network ({address}) although local weights were asked for. "
            "Give all of its files in `checkpoint`, or leave `checkpoint` out to let it download."
        )

    saved = socket.socket.connect, socket.socket.connect_ex
    socket.socket.connect = socket.socket.connect_ex = refuse  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        socket.socket.connect, socket.socket.connect_ex = saved  # type: ignore[method-assign]


def state_digest(module: Any) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, in the order of their names.

    The same weights give the same digest whether they came from a file, a download or a seed.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def read_state(path: str | os.PathLike) -> dict[str, Any]:
    """The tensors of a checkpoint file; the usual wrappings (``state_dict``, ``model``, ``module.``) are taken off.

    Nothing is unpickled but tensors and plain containers.

    Raises
    ------
    InputError
        A missing, damaged or foreign file.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise InputError(f"`checkpoint` must be a file of weights; {path} is {'a folder' if path.is_dir() else 'not there'}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_harmless()):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch each have their own
        raise InputError(
            f"`checkpoint` {path} is not a readable file of weights ({str(error).splitlines()[0][:160]}). Give "
            "a .pt, .pth, .bin or .safetensors file that holds tensors only."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"`checkpoint` {path} holds no tensors by name; got {type(state).__name__}.")
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}


def _harmless() -> list[Any]:
    """What published checkpoints carry beside tensors, and what cannot do anything: arrays and argparse's results."""
    import argparse

    import numpy as np

    rebuild = np.zeros(1).__reduce__()[0]
    return [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        (rebuild, "numpy.core.multiarray._reconstruct"),
        rebuild,
        *{type(np.dtype(kind)) for kind in "?bhilqBHILQfd"},
    ]


def load_state(module: Any, state: Mapping[str, Any], source: str, ignore: tuple[str, ...] = ()) -> None:
    """Load weights into a module; every tensor must fit, none may be left at its random start.

    Raises
    ------
    InputError
        Missing, unexpected or misshapen tensors; the first few are named. `ignore` lists prefixes of tensors that
        may be missing or too many, because the embedding does not depend on them.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.startswith(ignore)]
    extra = [k for k in state if k not in own and not k.startswith(ignore)]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape and not k.startswith(ignore)
    ]
    for problem, names in (("lacks", missing), ("has unknown", extra), ("has misshapen", shapes)):
        if names:
            raise InputError(
                f"`checkpoint` {source} does not fit the model: it {problem} {len(names)} tensors: "
                f"{first_few(names)}. Give weights of this architecture."
            )
    module.load_state_dict({k: v for k, v in state.items() if k in own and v.shape == own[k].shape}, strict=False)


def fetch_state(url: str, what: str) -> dict[str, Any]:
    """Published weights, downloaded once into torch.hub's cache.

    Raises
    ------
    InputError
        Without a network, and when the server refuses.
    """
    import torch

    name = url.rsplit("/", 1)[-1].split("?")[0]
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except OSError as error:
            raise InputError(
                f"the weights of {what} could not be fetched from {url} ({error}). Connect to the network, "
                "give `checkpoint` a local file, or ask for `random_init`."
            ) from None
    return read_state(target)
