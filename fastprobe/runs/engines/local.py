"""This machine: one thread beside the caller's, or one process per device.

The thread lets the caller store a unit while the next one is computed, and answer a signal at once. With
several devices there is one process for each, told its own; the experiment lies once in a memory-mapped file.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, needs
from ...kernels import BACKENDS
from ...protocol.plan import Unit, Work
from . import Finished, Pace, Task, WorkerError

ATTEMPTS = 3


def execute(task: Task, work: Work, pace: Pace, devices: Sequence[str] | None = None) -> Generator[Finished, None, None]:
    """Compute all of `work` on this machine.

    Parameters
    ----------
    devices : sequence of str, optional
        From `device_names`. One process for each when there are several.

    Raises
    ------
    WorkerError
        A unit that failed on its device, or whose worker died `ATTEMPTS` times.
    """
    devices = list(devices or [])
    if len(devices) > 1:
        yield from _in_processes(task, work, pace, devices)
    else:
        yield from _in_thread(task.on(devices[0] if devices else None), work, pace)


def device_names(chosen: str | None, backend: str, device: str | None = None) -> list[str]:
    """The devices that a run uses on this machine.

    Parameters
    ----------
    chosen : str or None
        ``--devices``: "0,1" is cuda:0 and cuda:1; "cpu,cpu" two processes that share the cores. None takes
        every GPU there is when the backend runs on GPUs and no `device` is named.

    Raises
    ------
    InputError
        A device that is not there; the message lists those that are.
    """
    if chosen is None:
        if device not in (None, "cuda") or BACKENDS[backend].places == "cpu":
            return []
        import torch

        count = torch.cuda.device_count()
        return [f"cuda:{i}" for i in range(count)] if count > 1 else []
    if device is not None:
        raise InputError(f"`devices` and `device` name the same thing; got {chosen!r} and {device!r}. Give one of them.")
    names = [f"cuda:{part}" if part.isdecimal() else part for part in (p.strip() for p in chosen.split(","))]
    gpus = 0
    if any(n.startswith("cuda") for n in names):
        with needs(f"`devices`={chosen!r}", "gpu"):
            import torch

        gpus = torch.cuda.device_count()
    known = ["cpu", *(f"cuda:{i}" for i in range(gpus))]
    if unknown := [n for n in names if n not in known]:
        raise InputError(f"`devices` must name devices of this machine ({', '.join(known)}); got {unknown[0]!r}.")
    if twice := sorted({n for n in names if n != "cpu" and names.count(n) > 1}):
        raise InputError(f"`devices` names {twice[0]} twice. Name each GPU once.")
    return names


def _in_thread(task: Task, work: Work, pace: Pace) -> Generator[Finished, None, None]:
    inbox: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
    outbox: queue.SimpleQueue[tuple[Unit, Any, float]] = queue.SimpleQueue()
    stopped = threading.Event()
    worker = task.experiment.device or "this machine"

    def serve() -> None:
        while (unit := inbox.get()) is not None and not stopped.is_set():
            start = time.monotonic()
            try:
                outbox.put((unit, task(unit), time.monotonic() - start))
            except BaseException as error:  # it is raised again where the caller is
                outbox.put((unit, error, 0.0))

    thread = threading.Thread(target=serve, name="fastprobe-compute", daemon=True)
    thread.start()
    pending = 0
    try:
        while True:
            while pending < 2 and (unit := work.take(pace.size(work))):
                inbox.put(unit)
                pending += 1
            if not pending:
                return
            unit, result, seconds = outbox.get()
            pending -= 1
            if isinstance(result, BaseException):
                if isinstance(result, RuntimeError) and not isinstance(result, (NotImplementedError, RecursionError)):
                    raise task.failure(unit, worker, result) from result
                raise result
            pace.record(unit, seconds)
            yield Finished(unit, result, worker, seconds)
    finally:
        stopped.set()
        inbox.put(None)
        # A unit that was handed out ahead may still be computed. A program that ends now waits for it, since native code
        # must not run on while the interpreter is taken down.
        if thread.is_alive():
            atexit.register(thread.join)


def dump(value: Any, path: Path) -> None:
    """Pickle with all large arrays beside it, so that `load` maps them instead of copying."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    sizes, at = [], 0
    with open(path, "wb") as file:
        for buffer in buffers:
            raw = buffer.raw()
            file.write(b"\0" * (-at % 64))
            at += -at % 64
            sizes.append((at, raw.nbytes))
            file.write(raw)
            at += raw.nbytes
    path.with_suffix(".index").write_bytes(pickle.dumps((body, sizes)))


def load(path: Path) -> Any:
    """What `dump` wrote; its arrays are read-only views of the file."""
    body, sizes = pickle.loads(path.with_suffix(".index").read_bytes())
    data = np.memmap(path, np.uint8, "r").data if path.stat().st_size else memoryview(b"")
    return pickle.loads(body, buffers=[data[at : at + size] for at, size in sizes])


def _serve(connection: Connection, path: Path, device: str) -> None:
    """A worker process: units in, results out, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _die_with_parent()
    task = load(path).on(device)
    while True:
        try:
            if (unit := connection.recv()) is None:
                return
        except (EOFError, OSError):
            return
        start = time.monotonic()
        try:
            answer = (unit, task(unit), time.monotonic() - start)
        except InputError as error:
            answer = (unit, error, 0.0)
        except Exception as error:
            answer = (unit, task.failure(unit, device, error), 0.0)
        try:
            connection.send(answer)
        except OSError:
            return


def _die_with_parent() -> None:
    """Ask Linux to end this process with its parent, even after kill -9."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)


class _Worker:
    """A process on one device, and the unit it has."""

    def __init__(self, context: Any, path: Path, device: str, name: str, threads: int | None) -> None:
        self.device, self.name = device, name
        self.unit: Unit | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, path, device), name=f"fastprobe-{name}", daemon=True)
        # Libraries read this when they load, before any code of ours could tell them.
        before = os.environ.get("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        try:
            self.process.start()
        finally:
            if threads is not None:
                os.environ.pop("OMP_NUM_THREADS")
                if before is not None:
                    os.environ["OMP_NUM_THREADS"] = before
        theirs.close()

    def give(self, unit: Unit) -> None:
        self.unit = unit
        try:
            self.connection.send(unit)
        except OSError:
            return  # dead: found out, and its unit given to another, at the next wait

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _in_processes(task: Task, work: Work, pace: Pace, devices: list[str]) -> Generator[Finished, None, None]:
    context = multiprocessing.get_context("spawn")
    n_cpu = devices.count("cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    threads = {"cpu": max(cores // n_cpu, 1)} if n_cpu else {}
    lost: dict[Unit, int] = {}
    again: list[Unit] = []
    with tempfile.TemporaryDirectory(prefix="fastprobe-") as folder:
        path = Path(folder) / "experiment"
        dump(task, path)

        def start(device: str, name: str) -> _Worker:
            return _Worker(context, path, device, name, threads.get(device))

        def feed(worker: _Worker) -> None:
            unit = again.pop() if again else work.take(pace.size(work, len(devices)))
            if unit is not None:
                worker.give(unit)

        workers = [start(d, d if d != "cpu" else f"cpu:{i}") for i, d in enumerate(devices)]
        try:
            for worker in workers:
                feed(worker)
            while busy := [w for w in workers if w.unit is not None]:
                ready = wait([w.connection for w in busy] + [w.process.sentinel for w in busy])
                for worker in busy:
                    if worker.connection in ready or worker.process.sentinel in ready:
                        answer = _receive(worker)
                        if answer is None:
                            worker.process.join(timeout=5)
                            dead, code = worker.unit, worker.process.exitcode
                            assert dead is not None  # it was busy
                            lost[dead] = lost.get(dead, 0) + 1
                            if lost[dead] >= ATTEMPTS:
                                raise task.failure(dead, worker.name, f"its process ended {ATTEMPTS} times (exit code {code})")
                            worker.end()
                            again.append(dead)
                            workers[workers.index(worker)] = worker = start(worker.device, worker.name)
                        else:
                            unit, result, seconds = answer
                            worker.unit = None
                            if isinstance(result, BaseException):
                                raise result
                            pace.record(unit, seconds)
                            feed(worker)
                            yield Finished(unit, result, worker.name, seconds)
                            continue
                        feed(worker)
                for worker in workers:  # a unit of a dead worker, while this one had nothing left to do
                    if worker.unit is None and (again or work):
                        feed(worker)
        finally:
            for worker in workers:
                worker.end()


def _receive(worker: _Worker) -> tuple[Unit, Any, float] | None:
    """A worker's answer, or None when it died without one."""
    try:
        return worker.connection.recv() if worker.connection.poll() else None
    except (EOFError, OSError, pickle.UnpicklingError):
        return None


__all__ = ["WorkerError", "device_names", "execute"]
