"""A Ray cluster: this machine's, or one that runs already (Slurm, Kubernetes, a cloud).

The experiment goes once into the object store, from which every node takes one copy and its workers map
it. A unit that is lost with its worker or node is given out again. Only a few units per slot are under
way at any time, so memory does not grow with the size of the run.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator
from typing import Any

from ...errors import InputError, needs
from ...kernels import BACKENDS
from ...protocol.plan import Unit, Work
from . import Finished, Pace, Task

ATTEMPTS = 6
LOOK_AGAIN = 5.0  # seconds between two counts of the cluster's slots


def execute(
    task: Task, work: Work, pace: Pace, address: str | None = None, num_cpus: float | None = None, num_gpus: float | None = None
) -> Generator[Finished, None, None]:
    """Compute all of `work` on a Ray cluster.

    Parameters
    ----------
    address : str, optional
        ``auto``, ``host:port`` or ``ray://host:port``; by default the environment's RAY_ADDRESS, or else a Ray of this
        machine's own is started.
    num_cpus, num_gpus : float, optional
        What one unit occupies: a GPU for a GPU backend, a core otherwise.

    Raises
    ------
    InputError
        Ray is not installed, or nothing answers at the address.
    WorkerError
        A unit that fails by itself, or was lost `ATTEMPTS` times.
    """
    ray, own = _connect(address)
    on_gpu = BACKENDS[task.experiment.backend].places == "gpu" or (task.experiment.device or "").startswith("cuda")
    cpus = num_cpus if num_cpus is not None else 1
    gpus = num_gpus if num_gpus is not None else (1 if on_gpu else 0)
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.RaySystemError,
        ray.exceptions.LocalRayletDiedError,
    )
    flying: dict[Any, Unit] = {}
    attempts: dict[Unit, int] = {}
    try:
        # max_retries=0: a lost unit comes back here, where it is counted and named.
        compute = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_compute)
        shared = ray.put(task.on("cuda") if on_gpu else task)
        slots, looked = _slots(ray, cpus, gpus), time.monotonic()
        while True:
            if time.monotonic() - looked > LOOK_AGAIN:
                slots, looked = _slots(ray, cpus, gpus), time.monotonic()
            while len(flying) < 2 * max(slots, 1) and (unit := work.take(pace.size(work, max(slots, 1)))):
                flying[compute.remote(shared, unit)] = unit
            if not flying:
                return
            for ref in ray.wait(list(flying), num_returns=1, timeout=1.0)[0]:
                unit = flying.pop(ref)
                try:
                    columns, worker, seconds = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    cause = getattr(error, "cause", None) or error
                    raise cause if isinstance(cause, InputError) else task.failure(unit, "a Ray worker", cause) from None
                except lost as error:
                    attempts[unit] = attempts.get(unit, 0) + 1
                    if attempts[unit] >= ATTEMPTS:
                        raise task.failure(unit, "Ray", f"lost {ATTEMPTS} times, last by {type(error).__name__}") from None
                    flying[compute.remote(shared, unit)] = unit
                    continue
                attempts.pop(unit, None)
                pace.record(unit, seconds)
                yield Finished(unit, columns, worker, seconds)
    finally:
        if own:
            ray.shutdown()
        else:
            for ref in flying:
                ray.cancel(ref, force=True)


def _compute(task: Task, unit: Unit) -> tuple[Any, str, float]:
    start = time.monotonic()
    columns = task(unit)
    return columns, f"{socket.gethostname()}:{os.getpid()}", time.monotonic() - start


def load_ray() -> Any:
    """The module `ray`; InputError when it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with needs('`engine`="ray"', "ray"):
        import ray
    return ray


def _connect(address: str | None) -> tuple[Any, bool]:
    """Ray, and whether it was started (or joined) here and is to be left at the end."""
    ray = load_ray()
    if ray.is_initialized():
        return ray, False
    # By itself Ray would join any cluster that it finds on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level="ERROR",
            namespace="fastprobe",
        )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"`address`={address!r}: no Ray cluster answers there ({type(error).__name__}: {first}). Start one "
            "(`ray start --head`), give this machine the cluster's token if it asks for one (RAY_AUTH_TOKEN; "
            "`ray get-auth-token` on the head prints it), or leave `address` out to use this machine."
        ) from None
    return ray, True


def _slots(ray: Any, cpus: float, gpus: float) -> int:
    """Units that the cluster can compute at once, as it is now."""
    have = ray.cluster_resources()
    by = [int(have.get(kind, 0) / need) for kind, need in (("CPU", cpus), ("GPU", gpus)) if need > 0]
    return min(by, default=1)
