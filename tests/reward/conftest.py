"""Real reward servers, and servers that misbehave in every way a client may meet."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest


@dataclass
class RunningServer:
    """`vtriune serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait()


Serve = Callable[..., RunningServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve("--workers", "1")` starts a server on a free port, or on the given `--port`; all end with the test."""
    running = []

    def start(*arguments: str, headers: dict[str, str] | None = None) -> RunningServer:
        port = () if "--port" in arguments else ("--port", "0")
        command = [sys.executable, "-m", "vtriune.cli", "serve", *port, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        running.append(process)
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        server = RunningServer(process, found.group())
        while httpx.get(server.url + "/readyz", headers=headers).status_code == httpx.codes.SERVICE_UNAVAILABLE:
            time.sleep(0.02)
        return server

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@contextmanager
def strange_server(answer: Callable[[bytes], tuple[int, bytes] | None]) -> Iterator[str]:
    """A server that is ready, and answers a POST with what `answer` makes of its body: (status, body), or never."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._tell(200, b"{}")

        def do_POST(self) -> None:
            told = answer(self.rfile.read(int(self.headers["Content-Length"])))
            if told is None:
                over.wait()
            else:
                self._tell(*told)

        def _tell(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
