"""Files damaged by accident or on purpose, and a process of its own that reads them.

A reader that is handed such a file may refuse it by an `InputError`, or read it where the damage is harmless. Anything else (another
exception, a crash of the process, two gigabytes of memory) is a fault.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

MEMORY = 2 << 30


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Truncations, flipped bits, zeroed, repeated and inserted stretches, and numbers of the file's head made huge."""
    rng = np.random.default_rng(seed)
    yield b""
    yield b"\0" * 64
    for _ in range(count - 2):
        kind, out = int(rng.integers(7)), bytearray(data)
        at = int(rng.integers(len(data)))
        # Heads and tails hold the structure of most formats.
        at = int([at, at % 256, len(data) - 1 - at % 256][rng.integers(3)] % len(data))
        size = int(rng.integers(1, 24))
        if kind == 0:
            del out[at:]
        elif kind == 1:
            for i in rng.integers(max(at - 16, 0), min(at + 16, len(out)), 3):
                out[i] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            out[at : at + size] = bytes(len(out[at : at + size]))
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            out[at:at] = rng.bytes(size)
        elif kind == 5:
            out[at : at + 8] = b"\xff" * len(out[at : at + 8])
        else:
            numbers = list(re.finditer(rb"\d+", bytes(out)))
            if numbers:
                found = numbers[int(rng.integers(len(numbers)))]
                out[found.start() : found.end()] = str(rng.choice(["-1", "0", "1.5", "99999999999", "9" * 30])).encode()
        yield bytes(out)


def json_mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """The same document with one value replaced by one of another type or size, or taken away."""
    rng = np.random.default_rng(seed)
    strange = [None, True, -1, 0, 1.5, 10**30, 1e400, "", "x", "../../x", [], [[]], {}, {"a": {}}, ["a"] * 3, float("nan")]
    for _ in range(count):
        document = json.loads(data)
        at = document
        while isinstance(at, (dict, list)) and at:
            key = list(at)[rng.integers(len(at))] if isinstance(at, dict) else int(rng.integers(len(at)))
            if not isinstance(at[key], (dict, list)) or not at[key] or rng.random() < 0.3:
                if rng.random() < 0.15:
                    del at[key]
                else:
                    at[key] = strange[rng.integers(len(strange))]
                break
            at = at[key]
        yield json.dumps(document).encode()


def faults(
    source: Path, work: Path, part: str, read: Callable[[Path], object], mutate=mutations, seed: int = 0, count: int = 40
) -> list[str]:
    """What went wrong with damaged copies of a file, or of one file of a folder.

    Parameters
    ----------
    source : Path
        A whole file, or a folder.
    part : str
        In a folder, the file that is damaged.
    """
    from fastprobe.errors import InputError

    try:
        read(source)
    except SystemExit as stop:
        assert not stop.code, "the undamaged file was refused"
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    out = []
    whole = (source / part if part else source).read_bytes()
    for i, data in enumerate(mutate(whole, seed, count)):
        print(f"case {i}", flush=True)  # the last one stands in the message when the process crashes
        target = work / f"{i}-{source.name}"
        if part:
            shutil.copytree(source, target)
            (target / part).write_bytes(data)
        else:
            target.write_bytes(data)
        try:
            read(target)
        except InputError as error:
            if not str(error).strip() or str(error).count("\n") > 3:
                out.append(f"case {i}: the message {str(error)!r}")
        except SystemExit as stop:
            if stop.code not in (0, 2):
                out.append(f"case {i}: exit code {stop.code}")
        except BaseException as error:
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if "fastprobe" in f.filename]
            out.append(f"case {i}: {type(error).__name__}: {str(error)[:120]} at {' '.join(where[-3:])}")
        finally:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    return out


def shell(arguments: Callable[[Path], list[str]]) -> Callable[[Path], object]:
    """A reader that is a command of the shell, in this process."""

    def read(path: Path) -> None:
        from fastprobe.cli import main

        sys.argv = ["fastprobe", *arguments(path)]
        main()

    return read
