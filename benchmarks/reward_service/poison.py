"""What poisonous answers do to everybody else: neighbours in their batch, light requests beside them, /healthz."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import orjson
from benchmarks.reward_service import client, loads
from benchmarks.reward_service.client import Connection
from benchmarks.reward_service.loads import Case
from benchmarks.reward_service.servers import Server
from benchmarks.reward_service.speed import BATCH, batch_requests, one_by_one

from vtriune.types import Preset

LIGHT_RATE = 40.0
"""Light requests per second beside the poison."""
BESIDE = ("9^9^9^9", "((5!)!)!", "2^(10^9)", "1,000 nested braces")
"""The four that light requests have to live with."""
HEALTH_EVERY = 0.01

Arrivals = dict[int, tuple[float, str]]
"""Seconds until the verdict at a position of the batch was there, and in short which one."""


@dataclass(frozen=True, slots=True)
class Delays:
    """Of each round with poison: the largest delay in ms of any other verdict."""

    largest: list[float]
    noise: float
    """The same of a round without poison."""
    poisons: dict[str, str]
    """Poison to verdict."""


def batch_delays(server: Server, rounds: int) -> Delays:
    """The same batch with and without poison, in turns; in every round only the thinking texts differ."""
    poisons = loads.poisons()
    rng = random.Random(0)
    light = loads.load("mix", "poison", BATCH - len(poisons))
    places = sorted(rng.sample(range(BATCH), len(poisons)))
    positions = [position for position in range(BATCH) if position not in places]
    clean: list[dict[int, float]] = []
    poisoned: list[dict[int, float]] = []
    verdicts: dict[str, str] = {}
    for number in range(rounds + 1):
        cases = [marked(case, f"round {number}") for case in light]
        found = client.alone(stream, server.port, stream_request(cases, "modern"))
        clean.append({index: seconds for index, (seconds, _) in found.items()})
        cases = [marked(case, f"round {number} again") for case in light]
        for place, case in zip(places, poisons.values(), strict=True):
            cases.insert(place, case)
        found = client.alone(stream, server.port, stream_request(cases, "modern"))
        if len(found) != BATCH:
            raise SystemExit(f"{BATCH - len(found)} of {BATCH} verdicts are missing in the stream")
        poisoned.append({index: found[position][0] for index, position in enumerate(positions)})
        verdicts = {name: found[place][1] for name, place in zip(poisons, places, strict=True)}
    # The first round of either kind fills what the server remembers of gold and answers.
    usual = {index: statistics.median(one[index] for one in clean[1:]) for index in clean[0]}
    largest = [max(one[index] - usual[index] for index in usual) * 1000 for one in poisoned[1:]]
    noise = max(one[index] - usual[index] for one in clean[1:] for index in usual) * 1000
    return Delays(largest, noise, verdicts)


def marked(case: Case, mark: str) -> Case:
    """The same answer after another thought."""
    return replace(case, response=case.response.replace("<think>\n", f"<think>\n{mark} ", 1))


def stream_request(cases: Sequence[Case], preset: Preset) -> bytes:
    items = [case.json(str(index), preset) for index, case in enumerate(cases)]
    return client.post("/v1/judge/stream", orjson.dumps({"items": items}))


def stream(port: int, request: bytes) -> Arrivals:
    """When each verdict of a streamed batch was there."""
    arrivals: Arrivals = {}
    rest = b""

    def on_part(part: bytes) -> None:
        nonlocal rest
        now = time.perf_counter() - start
        *lines, rest = (rest + part).split(b"\n")
        for line in filter(None, lines):
            verdict = orjson.loads(line)
            arrivals[verdict["index"]] = now, f"{verdict['status']} {verdict['reward']} {verdict['reason'][:60]}"

    async def main() -> None:
        connection = await Connection.open(port)
        status, body = await connection.request(request, on_part)
        if status != 200:
            raise SystemExit(f"/v1/judge/stream: HTTP {status} {body[:200]!r}")

    start = time.perf_counter()
    client.run(main())
    return arrivals


@dataclass(frozen=True, slots=True)
class Beside:
    """How light requests and health checks fared, in seconds."""

    light: list[float]
    health: list[float]
    refused: int
    """Light requests answered with anything but 200."""


def beside(server: Server, system: str, seconds: float, poisoned: bool) -> Beside:
    """Light one-item requests, half math, half boxes, by Poisson arrivals, and health checks meanwhile.

    With poison, four such answers are under way all the time, the next after the verdict on the last. The baseline
    gets four in all, or it would never end.
    """
    n = round(seconds * LIGHT_RATE)
    seed = f"light {poisoned}"
    pairs = zip(loads.load("math", seed, n), loads.load("detection", seed, n), strict=True)
    light = [case for pair in pairs for case in pair][:n]
    named = loads.poisons()
    times = (1 if system == "baseline" else round(seconds) * 4 + 1) if poisoned else 0
    bad = [[marked(named[name], f"{number}") for number in range(times)] for name in BESIDE]
    send = one_by_one if system == "baseline" else one_item_batches
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, mp_context=context) as pool:
        stop = manager.Event()
        health = pool.submit(polled, server.port, "/" if system == "baseline" else "/healthz", stop)
        others = [send(cases) for cases in bad]
        at = server.port, server.pid
        measured = pool.submit(client.open_loop, *at, send(light), LIGHT_RATE, beside=others).result()
        stop.set()
        times_taken = [reply.seconds for reply in measured.replies if reply.status == 200]
        return Beside(times_taken, health.result(), len(measured.replies) - len(times_taken))


def one_item_batches(cases: Sequence[Case]) -> list[bytes]:
    return batch_requests(cases, "modern", 1)


def polled(port: int, path: str, stop: threading.Event) -> list[float]:
    """Health checks until `stop`, which lives in another process and is waited for by a thread of its own."""
    stopped = threading.Event()

    def watch() -> None:
        stop.wait()
        stopped.set()

    threading.Thread(target=watch, daemon=True).start()
    return client.poll(port, path, HEALTH_EVERY, stopped.is_set)
