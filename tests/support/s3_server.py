"""moto's S3 server on the loopback, in this process, with faults that a test can turn on."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid

BUSY = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


class S3Server:
    """A server with one bucket of its own.

    `fault(method, path)` is asked before every request and answers None, "error" (500), "lost" (carried out, the connection
    closed without an answer), "gone" (not carried out, nor answered) or a number of seconds to wait.
    """

    def __init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_):
                pass

        self.inner = DomainDispatcherApplication(create_backend_app)
        self.fault, self.requests = None, []
        self._one = threading.Lock()  # the server keeps one state, so that an exclusive put is exclusive
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True, request_handler=Silent)
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def environment(self):
        """Variables with which boto, hence s3fs, finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path) if self.fault is not None else None
        if isinstance(fault, float):
            time.sleep(fault)
        if fault == "error":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
            return [BUSY]
        with self._one:
            if fault not in ("lost", "gone"):
                return self.inner(environ, start_response)
            if fault == "lost":
                list(self.inner(environ, lambda *_: lambda _: None))
        with contextlib.suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response("200 OK", [])
        return []

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def served():
    """A running server; its variables are those of this process for as long as the block lasts."""
    import s3fs

    server = S3Server()
    kept = {name: os.environ.get(name) for name in [*server.environment, "AWS_PROFILE"]}
    os.environ.pop("AWS_PROFILE", None)
    os.environ.update(server.environment)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        s3fs.S3FileSystem().mkdir(server.bucket)
        yield server
    finally:
        server.fault = None
        server.close()
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
