"""Ctrl-C and SIGTERM: out within seconds, whatever the main thread is doing.

A Python handler runs only between two bytecodes of the main thread, which may sit in a matrix product or
a driver call for long. So a second thread listens on the wakeup descriptor that the C-level handler writes
to, and after `LIMIT` seconds leaves by itself. Shards are whole or absent: leaving at any moment is safe.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Interrupted

LIMIT = 4.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_code(error: BaseException) -> int:
    """128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else signal.SIGINT
    return 128 + int(number)


@contextmanager
def listening(limit: float = LIMIT) -> Iterator[None]:
    """Raise `Interrupted` in the main thread on SIGINT and SIGTERM; leave with 130 or 143 after `limit` seconds.

    In another thread than the main one this does nothing: signals are not its to take.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _frame: object) -> None:
        for s in SIGNALS:  # a second Ctrl-C must not break what the first one tidies up; the limit stands
            signal.signal(s, signal.SIG_IGN)
        raise Interrupted(number)

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    done = threading.Event()
    before = {s: signal.signal(s, handler) for s in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while data := reader.recv(16):
            numbers = [n for n in data if n in SIGNALS]
            if not numbers:
                continue
            if not done.wait(limit):
                os.write(sys.stderr.fileno(), b"\nfastprobe: interrupted; everything finished is kept. Continue with --resume.\n")
                os._exit(128 + numbers[0])
            return

    thread = threading.Thread(target=watch, name="fastprobe-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(wakeup)
        for s, old in before.items():
            signal.signal(s, old)
        writer.close()
        thread.join(timeout=1)
        reader.close()


def leave(code: int) -> None:
    """End the process now: threads and processes that still compute are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
