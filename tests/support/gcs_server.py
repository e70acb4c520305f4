"""A Google Cloud Storage emulator on the loopback, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

SERVE = (
    "import sys; from gcp_storage_emulator.server import create_server\n"
    "server = create_server('127.0.0.1', int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2])\n"
    "server.run()\n"
)


@contextlib.contextmanager
def served():
    """Its bucket; gcsfs in this process and its children finds it for as long as the block lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bucket, url = f"bucket-{uuid.uuid4().hex[:12]}", f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(port), bucket], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {"STORAGE_EMULATOR_HOST": url, "FSSPEC_GS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    kept = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/storage/v1/b/{bucket}", timeout=1).close()
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the emulator does not answer")
        yield bucket
    finally:
        process.terminate()
        process.wait()
        for name, value in kept.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
