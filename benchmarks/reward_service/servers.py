"""The servers under test as processes: started as a user starts them, observed from outside through /proc."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
START_LIMIT = 120.0


class Server:
    """A running server, `baseline` or `vtriune`; ends with the block. `started` is how long it took to be ready."""

    def __init__(self, system: str, workers: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        python = [sys.executable, "-m"]
        if system == "baseline":
            self.port = _free_port()
            module = "benchmarks.reward_service.baseline:app"
            command = [*python, "uvicorn", module, "--port", str(self.port), "--workers", str(workers)]
        else:
            self.port = 0
            command = [*python, "vtriune.cli", "serve", "--port", "0", "--workers", str(workers)]
        start = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        self.pid = self._process.pid
        try:
            self._await_ready("/" if system == "baseline" else "/readyz")
        except BaseException:
            self.close()
            raise
        self.started = time.perf_counter() - start

    def _await_ready(self, path: str) -> None:
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise SystemExit(f"the server has ended:\n{self.log()}")
            if not self.port and (told := re.search(r"http://127\.0\.0\.1:(\d+)", self.log())):
                self.port = int(told[1])
            if self.port and _answers(f"http://127.0.0.1:{self.port}{path}"):
                return
            time.sleep(0.01)
        raise SystemExit(f"the server is not ready after {START_LIMIT:g} s:\n{self.log()}")

    def log(self) -> str:
        """What it has written so far; never moves where it writes."""
        return os.pread(self._log.fileno(), 2**20, 0).decode(errors="replace")

    def close(self) -> None:
        """SIGTERM, and SIGKILL for whatever of its processes is left."""
        left = {pid: fields[19] for pid in tree(self.pid) if (fields := _stat(pid))}
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, born in left.items():
            if (fields := _stat(pid)) and fields[19] == born:  # not somebody else's by now
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            ended = "still runs" if self._process.poll() is None else f"has ended with {self._process.returncode}"
            error.add_note(f"server {self.pid} {ended}; its log ends:\n{self.log()[-2000:]}")
        self.close()


def tree(pid: int) -> list[int]:
    """`pid` and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time so far of `pid` and its descendants, the reaped ones included."""
    ticks = 0
    for one in tree(pid):
        if fields := _stat(one):
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> tuple[float, float, int]:
    """RSS and PSS in MiB of `pid` and its descendants, and how many they are."""
    rss = pss = count = 0
    for one in tree(pid):
        text = Path(f"/proc/{one}/smaps_rollup").read_text()
        found = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.MULTILINE))
        rss, pss, count = rss + int(found["Rss"]), pss + int(found["Pss"]), count + 1
    return rss / 1024, pss / 1024, count


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on: [1] parent, [11:15] CPU time, [19] start."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
