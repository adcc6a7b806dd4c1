"""Servers that misbehave in every way a client may meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson

Answer = Callable[[bytes], tuple[int, bytes] | None]
"""What a server makes of the body of a POST: (status, body), or None: it never answers."""


@contextmanager
def strange_server(answer: Answer) -> Iterator[str]:
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


def garbage(body: bytes) -> tuple[int, bytes]:
    return 200, b"<html>hello</html>"


def zeros_for_somebody_else(body: bytes) -> tuple[int, bytes]:
    verdict: dict[str, object] = {
        "status": "scored",
        "reward": 0.0,
        "accuracy": 0.0,
        "format": 0.0,
        "correct": False,
        "report": {},
    }
    return 200, orjson.dumps({"verdicts": [verdict | {"id": "x", "reason": ""} for _ in orjson.loads(body)["items"]]})


def too_few(body: bytes) -> tuple[int, bytes]:
    return 200, b'{"verdicts": []}'


def scored_without_a_number(body: bytes) -> tuple[int, bytes]:
    verdict: dict[str, object] = {
        "status": "scored",
        "reward": None,
        "accuracy": 1.0,
        "format": 0.0,
        "correct": True,
        "report": {},
    }
    asked = orjson.loads(body)["items"]
    return 200, orjson.dumps({"verdicts": [verdict | {"id": one["id"], "reason": ""} for one in asked]})


def broken(body: bytes) -> tuple[int, bytes]:
    return 500, b"oops"


def hanging(body: bytes) -> None:
    return None


def failing(body: bytes) -> tuple[int, bytes]:
    verdict: dict[str, object] = {
        "status": "failed",
        "reward": None,
        "accuracy": None,
        "format": None,
        "correct": None,
        "report": {},
    }
    asked = orjson.loads(body)["items"]
    return 200, orjson.dumps({"verdicts": [verdict | {"id": one["id"], "reason": "no"} for one in asked]})


STRANGE = [garbage, zeros_for_somebody_else, too_few, scored_without_a_number, broken, hanging, failing]
