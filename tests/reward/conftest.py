"""A reward server as a process of its own, and requests to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest


@dataclass
class Server:
    """A running `vtriune serve`, and a client of it."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    http: httpx.Client

    def await_ready(self) -> None:
        while self.http.get("/readyz").status_code != httpx.codes.OK:
            time.sleep(0.05)

    def stop(self) -> int:
        """Ask it to end, as an operator does. Returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait()

    def logged(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()


Serve = Callable[..., Server]


def item(name: str = "1", response: str = r"\boxed{4}", gold: str = "4", **changes: Any) -> dict[str, Any]:
    """An item of `/v1/judge`; `spec` is changed field by field."""
    spec = {"verifier": "mathverify", "gold": gold} | changes.pop("spec", {})
    progress = {"step": 0, "total_steps": 1, "split": "test"}
    return {"id": name, "response": response, "spec": spec, "progress": progress, **changes}


SLOW = 0.6
"""Seconds that an answer to the verifier `drowse` takes."""


@pytest.fixture(scope="module")
def own_verifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of verifiers of the user's own: one that takes its time without computing."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "sleepy.py").write_text(
        "import time\n\n\n"
        "def drowse(response: str, gold: str, *, seconds: float = 0.6) -> float:\n"
        "    time.sleep(seconds)\n"
        "    return float(response == gold)\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, own_verifiers: Path) -> Iterator[Serve]:
    """Start servers: `serve("--workers", "1")`; they end with the module."""
    servers: list[Server] = []

    def start(*arguments: str | Path, workers: int = 1, token: str = "") -> Server:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        command = [sys.executable, "-m", "vtriune.cli", "serve", "--port", "0", "--workers", str(workers)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=stream,
                cwd=own_verifiers,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        assert process.stdout
        line = process.stdout.readline().decode().strip()
        assert line.startswith("serving on http://"), (line, log.read_text(encoding="utf-8"))
        url = line.rpartition(" ")[2]
        # httpx would go through the proxies of the environment.
        http = httpx.Client(
            base_url=url.replace("0.0.0.0", "127.0.0.1"),
            timeout=120,
            trust_env=False,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )
        server = Server(process, url, log, http)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.http.close()
        server.process.kill()
        server.process.wait()
        assert server.process.stdout
        server.process.stdout.close()


@pytest.fixture(scope="module")
def server(serve: Serve) -> Server:
    """A server with its defaults, warmed up."""
    started = serve("--load", "sleepy:drowse")
    started.await_ready()
    return started
