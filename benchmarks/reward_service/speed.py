"""Speed: every kind of load through every client, the two servers side by side, and whether their rewards agree."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Literal, cast

import orjson
from benchmarks.reward_service import client, loads
from benchmarks.reward_service.client import Measured, Reply, quantile
from benchmarks.reward_service.loads import Case
from benchmarks.reward_service.servers import Server

from vtriune.reward.judge import judge_item
from vtriune.reward.wire import encode_verdict
from vtriune.types import Preset

CONCURRENCY = 32
BATCH, IN_FLIGHT = 256, 4
SHUFFLED = 256
"""One-sample requests arrive in random order within so many answers."""
TOLERANCE = 1e-9
PREPARED = {"baseline": 1000, "vtriune": 4000, "batches": 12_000}
"""Answers prepared per second of measuring; a cell that uses them up ends early."""

Client = Literal["session", "keep-alive", "modern", "official_code"]
"""Of one-sample requests to /judge: the released client's way or keep-alive. Of /v1/judge batches: their preset."""

BATCHED: tuple[Client, ...] = ("modern", "official_code")

CELLS: tuple[tuple[str, Client], ...] = (
    ("baseline", "session"),
    ("vtriune", "session"),
    ("baseline", "keep-alive"),
    ("vtriune", "keep-alive"),
    ("vtriune", "modern"),
    ("vtriune", "official_code"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table."""

    kind: str
    workers: int
    system: str
    client: Client
    requests: float
    """Per second."""
    verdicts: float
    """Per second."""
    p50: float
    """Milliseconds of a request."""
    p99: float
    server_cpu: float
    """Milliseconds of CPU per verdict, all server processes."""
    total_cpu: float
    """The client's included."""
    faults: int
    """Requests answered with anything but 200."""

    def line(self) -> str:
        return (
            f"{self.kind:10}{self.workers:2}  {self.system:9}{described(self.client):25}{self.requests:9.1f}"
            f"{self.verdicts:10.1f}{self.p50:9.1f}{self.p99:9.1f}{self.server_cpu:9.2f}{self.total_cpu:8.2f}"
            f"{self.faults:7}"
        )


HEAD = (
    f"{'load':10}{'w':>2}  {'server':9}{'client':25}{'req/s':>9}{'verd/s':>10}{'p50 ms':>9}{'p99 ms':>9}"
    f"{'cpu srv':>9}{'+client':>8}{'not 200':>7}"
)


def described(sent: Client) -> str:
    return f"/v1/judge, {sent}" if sent in BATCHED else f"/judge, {sent}"


@dataclass(slots=True)
class Agreement:
    """Where rewards of baseline and /judge differ, or batches from the embedded judge."""

    compared: int = 0
    alike: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def differ(self, how: str, example: str) -> None:
        self.differences[how] += 1
        self.examples.setdefault(how, " ".join(example.split())[-200:])


class Speed:
    """The cells measured so far, and the replies kept to be compared."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.cells: list[Cell] = []
        self._replies: dict[tuple[int, str, Client, str, int], Measured] = {}

    def measure(self, kind: str, workers: int, servers: dict[str, Server]) -> None:
        """All cells of one kind of load, there and back again, so that a busier minute hits both servers."""
        for number, order in enumerate((CELLS, CELLS[::-1])):
            for system, sent in order:
                measured = self._measure(kind, servers[system], system, sent, number)
                self._replies[workers, system, sent, kind, number] = measured
        for system, sent in CELLS:
            rounds = [self._replies[workers, system, sent, kind, number] for number in (0, 1)]
            self.cells.append(cell(kind, workers, system, sent, rounds))
            print(self.cells[-1].line(), flush=True)

    def _measure(self, kind: str, server: Server, system: str, sent: Client, number: int) -> Measured:
        seconds = self._seconds / 2
        cases = self.load(kind, sent, number, round(PREPARED["batches" if sent in BATCHED else system] * seconds))
        at = server.port, server.pid
        if sent in BATCHED:
            batches = batch_requests(cases, cast(Preset, sent))
            return client.alone(client.closed_loop, *at, batches, IN_FLIGHT, seconds)
        way = client.as_released if sent == "session" else client.closed_loop
        return client.alone(way, *at, one_by_one(cases), CONCURRENCY, seconds)

    def load(self, kind: str, sent: Client, number: int, n: int) -> list[Case]:
        """The first answers of a cell's load; no server gets the same answer twice."""
        seed = f"{sent} {number}"
        return loads.load(kind, seed, n) if sent in BATCHED else shuffled(kind, seed, n)

    def best_baseline(self, kind: str, workers: int) -> Cell:
        """The baseline through whichever client it is faster with."""
        ours = [c for c in self.cells if (c.kind, c.workers, c.system) == (kind, workers, "baseline")]
        return max(ours, key=lambda c: c.verdicts)

    def find(self, kind: str, workers: int, system: str, sent: Client) -> Cell:
        wanted = (kind, workers, system, sent)
        return next(c for c in self.cells if (c.kind, c.workers, c.system, c.client) == wanted)

    def agreement(self) -> Agreement:
        """Every figure of /judge, to TOLERANCE, on all that both servers answered."""
        found = Agreement()
        for (workers, system, sent, kind, number), theirs in self._replies.items():
            if system != "baseline":
                continue
            ours = {reply.index: reply for reply in self._replies[workers, "vtriune", sent, kind, number].replies}
            cases = self.load(kind, sent, number, max(ours, default=0) + 1)
            for reply in theirs.replies:
                if reply.index in ours:
                    compare(reply, ours[reply.index], cases[reply.index], found)
        return found

    def exactness(self) -> Agreement:
        """Every verdict of the batches, to the last bit, against the judge embedded in a process."""
        found = Agreement()
        answered: dict[tuple[Client, str, int], dict[int, list[dict[str, Any]]]] = {}
        for (_, _, sent, kind, number), measured in self._replies.items():
            if sent in BATCHED:
                verdicts = answered.setdefault((sent, kind, number), {})
                for reply in measured.replies:
                    batch = orjson.loads(reply.body)["verdicts"] if reply.status == 200 else []
                    for offset, verdict in enumerate(batch):
                        verdicts.setdefault(reply.index * BATCH + offset, []).append(verdict)
        # The workers' hash seed: sympy tries things in the order of its sets.
        os.environ["PYTHONHASHSEED"] = "0"
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for (sent, kind, number), verdicts in answered.items():
                cases = self.load(kind, sent, number, max(verdicts, default=-1) + 1)
                indices = sorted(verdicts)
                tasks = [(cases[index], sent) for index in indices]
                for index, expected in zip(indices, pool.map(embedded, tasks, chunksize=64), strict=True):
                    for verdict in verdicts[index]:
                        found.compared += 1
                        if verdict == {"id": str(index), **expected}:
                            found.alike += 1
                        else:
                            found.differ(f"{kind}, {sent}", f"{verdict} instead of {expected}")
        del os.environ["PYTHONHASHSEED"]
        return found


def shuffled(kind: str, seed: str, n: int) -> list[Case]:
    """A load for one-sample requests, which arrive as the answers of 32 groups end."""
    cases = loads.load(kind, seed, -(-n // SHUFFLED) * SHUFFLED)
    rng = random.Random(0)
    windows = (cases[start : start + SHUFFLED] for start in range(0, len(cases), SHUFFLED))
    return [case for window in windows for case in rng.sample(window, len(window))]


def embedded(task: tuple[Case, Preset]) -> dict[str, Any]:
    case, preset = task
    verdict: dict[str, Any] = orjson.loads(encode_verdict(judge_item(case.item(preset))))
    return verdict


def one_by_one(cases: Sequence[Case]) -> list[bytes]:
    return [client.post("/judge", orjson.dumps(case.released())) for case in cases]


def batch_requests(cases: Sequence[Case], preset: Preset, size: int = BATCH) -> list[bytes]:
    """Batches of `size`; an item's id is its position in `cases`."""
    items = [case.json(str(index), preset) for index, case in enumerate(cases)]
    starts = range(0, len(items), size)
    return [client.post("/v1/judge", orjson.dumps({"items": items[start : start + size]})) for start in starts]


def cell(kind: str, workers: int, system: str, sent: Client, rounds: Sequence[Measured]) -> Cell:
    """The line of a cell measured in some rounds."""
    replies = [reply for measured in rounds for reply in measured.replies]
    good = [reply for reply in replies if reply.status == 200]
    verdicts = sum(len(orjson.loads(reply.body)["verdicts"]) for reply in good) if sent in BATCHED else len(good)
    wall = sum(measured.wall for measured in rounds)
    server_cpu = sum(measured.server_cpu for measured in rounds) * 1000 / max(verdicts, 1)
    client_cpu = sum(measured.client_cpu for measured in rounds) * 1000 / max(verdicts, 1)
    times = [reply.seconds * 1000 for reply in good]
    return Cell(
        kind,
        workers,
        system,
        sent,
        requests=len(good) / wall,
        verdicts=verdicts / wall,
        p50=quantile(times, 0.5),
        p99=quantile(times, 0.99),
        server_cpu=server_cpu,
        total_cpu=server_cpu + client_cpu,
        faults=len(replies) - len(good),
    )


def compare(theirs: Reply, ours: Reply, case: Case, found: Agreement) -> None:
    if theirs.status != 200:
        return
    found.compared += 1
    about = f"gold {case.gold[:80]} answer {case.response[-80:]}"
    if ours.status != 200:
        found.differ(f"{case.verifier}: HTTP {ours.status} by /judge", f"{about}: {ours.body[:120]!r}")
        return
    expected, given = orjson.loads(theirs.body)["rewards"], orjson.loads(ours.body)["rewards"]
    if missing := expected.keys() ^ given.keys():
        found.differ(f"{case.verifier}: other keys", str(sorted(missing)))
        return
    apart = [name for name in expected if not abs(expected[name] - given[name]) <= TOLERANCE]
    if apart:
        values = {name: (expected[name], given[name]) for name in apart[:3]}
        silent = " where the baseline says 0" if not any(expected.values()) else ""
        found.differ(f"{case.verifier}: {apart[0]}{silent}", f"{about}: {json.dumps(values)}")
    else:
        found.alike += 1
