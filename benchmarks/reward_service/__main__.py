r"""The reward service beside the released design, on this machine: speed, agreement, poison, startup.

    PYTHONPATH=src python -m benchmarks.reward_service [--quick] [--seconds 8]

Prints requests and verdicts per second, p50 and p99 of a request and CPU time per verdict for four kinds of load
(loads.py) over 1 and 2 workers, for the released design rebuilt (baseline.py) and for `vtriune serve`; p99 at half the
saturation load; whether the rewards agree; what poisonous answers do to others; and each target of the service with
its ratio, met or missed. Ratios are what counts: both servers are measured in turns on the same machine, and ratios are
taken against the baseline's faster client. It never fails for a missed target: it is for reading.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.reward_service import client, loads
from benchmarks.reward_service.client import quantile
from benchmarks.reward_service.poison import Beside, batch_delays, beside
from benchmarks.reward_service.servers import Server, memory
from benchmarks.reward_service.speed import (
    BATCH,
    CONCURRENCY,
    HEAD,
    IN_FLIGHT,
    Agreement,
    Speed,
    batch_requests,
    one_by_one,
    shuffled,
)

LOADS = ("math", "math24", "detection", "mix")


class Targets:
    """What the service promises, and what came out."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def check(self, name: str, value: float, bound: str, limit: float, unit: str = "x") -> None:
        """`bound` is "at least" or "at most"."""
        met = value >= limit if bound == "at least" else value <= limit
        self._lines.append(f"{name:72}{value:9.2f}{unit:4}{bound:>9} {limit:g}{unit:4} {'met' if met else 'MISSED'}")

    def show(self) -> None:
        print("\nTargets")
        print("\n".join(self._lines))


def warm_up(servers: dict[str, Server], n: int) -> None:
    """What libraries import late and remember is not timed: `n` answers of each load that no cell asks."""
    for system, server in servers.items():
        for kind in LOADS:
            cases = loads.load(kind, "warm", n)
            requests = one_by_one(cases) + (batch_requests(cases, "modern", 8) if system == "vtriune" else [])
            client.alone(client.closed_loop, server.port, server.pid, requests, CONCURRENCY, 20.0)


def half_load(speed: Speed, servers: dict[str, Server], workers: int, seconds: float, targets: Targets) -> None:
    """p99 of the mix at half of what each way of asking was measured to bear."""
    print(
        f"\nThe mix at half the saturation load, {workers} worker(s), Poisson arrivals: p50 and p99 in ms of a request"
    )
    for system, server in servers.items():
        rate = speed.find("mix", workers, system, "keep-alive").requests / 2
        requests = one_by_one(shuffled("mix", "half", round(rate * seconds)))
        ways = {"/judge, one by one": (requests, rate)}
        if system == "vtriune":
            rate = speed.find("mix", workers, system, "modern").verdicts / 2 / loads.G
            cases = loads.load("mix", "half groups", round(rate * seconds) * loads.G)
            ways["/v1/judge, a group of 8 each"] = batch_requests(cases, "modern", loads.G), rate
        for way, (requests, rate) in ways.items():
            measured = client.alone(client.open_loop, server.port, server.pid, requests, rate)
            times = [reply.seconds * 1000 for reply in measured.replies if reply.status == 200]
            p99 = quantile(times, 0.99)
            faults = len(measured.replies) - len(times)
            print(f"  {system:9}{way:30}{rate:8.1f} req/s {quantile(times, 0.5):9.1f}{p99:9.1f}  not 200: {faults}")
            if system == "vtriune":
                targets.check(f"p99 of the mix at half load, {way}, {workers} w", p99, "at most", 100, " ms")


def show_agreement(title: str, found: Agreement) -> None:
    print(f"\n{title}: {found.alike} of {found.compared}")
    for how, count in found.differences.most_common():
        print(f"  {count:5} x {how}; e.g. {found.examples[how]}")


def ratios(speed: Speed, targets: Targets, numbers: Sequence[int]) -> None:
    for workers in numbers:
        for kind in LOADS:
            base = speed.best_baseline(kind, workers).verdicts
            single = speed.find(kind, workers, "vtriune", "keep-alive").verdicts / base
            batches = speed.find(kind, workers, "vtriune", "modern").verdicts / base
            same_preset = speed.find(kind, workers, "vtriune", "official_code").verdicts / base
            per_preset = f"batches {batches:6.2f}x (preset official_code {same_preset:6.2f}x)"
            print(f"  {kind:10}{workers:2} w: /judge {single:6.2f}x, {per_preset}")
            if kind == "mix":
                targets.check(f"/judge, one sample a request, mix, {workers} w", single, "at least", 4)
            least = {"mix": 8, "detection": 25}.get(kind, 2.5)
            targets.check(f"/v1/judge batches, {kind}, {workers} w", batches, "at least", least)


def poison(server: Server, seconds: float, rounds: int, targets: Targets) -> None:
    delays = batch_delays(server, rounds)
    print(
        f"\nA streamed batch of {BATCH} with {len(delays.poisons)} poisonous answers: largest delay of another verdict"
    )
    largest = max(delays.largest)
    each = ", ".join(f"{delay:.0f}" for delay in delays.largest)
    print(f"  ms in each of {rounds} rounds: {each}; the same without poison: {delays.noise:.0f}")
    for name, verdict in delays.poisons.items():
        print(f"  {name:24}{verdict}")
    targets.check("largest delay of a neighbour of poison in a batch of 256", largest, "at most", 100, " ms")
    print("\nLight one-item requests, and health checks, beside four poisonous ones (ms)")
    normal, bad = beside(server, "vtriune", seconds, False), beside(server, "vtriune", seconds, True)
    show_beside("vtriune", normal, bad)
    ratio = quantile(bad.light, 0.99) / quantile(normal.light, 0.99)
    targets.check("p99 of light requests beside poison / their normal p99", ratio, "at most", 2)
    targets.check("slowest /healthz beside poison", max(bad.health) * 1000, "at most", 50, " ms")


def show_beside(system: str, normal: Beside, bad: Beside) -> None:
    for name, one in (("alone", normal), ("with poison", bad)):
        light, health = ([seconds * 1000 for seconds in times] for times in (one.light, one.health))
        print(
            f"  {system:9}{name:12}light p50 {quantile(light, 0.5):8.1f} p99 {quantile(light, 0.99):9.1f} "
            f"of {len(light)} (not 200: {one.refused}); "
            f"health p99 {quantile(health, 0.99):7.1f} max {max(health):8.1f} of {len(health)}"
        )


def startup(targets: Targets, numbers: Sequence[int], times: int) -> None:
    print("\nFrom exec to /readyz, and memory then")
    for workers in numbers:
        seconds = []
        for _ in range(times):
            with Server("vtriune", workers) as server:
                seconds.append(server.started)
                rss, pss, count = memory(server.pid)
        median = statistics.median(seconds)
        held = f"{count} processes, RSS {rss:.0f} MiB, PSS {pss:.0f} MiB"
        print(f"  {workers} worker(s): {median:.2f} s (median of {times}); {held}")
        targets.check(f"seconds until ready, {workers} w", median, "at most", 2, " s")
        targets.check(f"memory when ready (PSS of all processes), {workers} w", pss, "at most", 200, " MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: every part, figures worth nothing")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load per cell (default 8)")
    options = parser.parse_args()
    seconds, numbers, warm, times = (0.5, (2,), 64, 1) if options.quick else (options.seconds, (1, 2), 400, 3)
    targets = Targets()
    speed = Speed(seconds)
    print(
        f"{os.cpu_count()} cores; {seconds:g} s a cell; one-sample requests {CONCURRENCY} at a time, batches of "
        f"{BATCH} {IN_FLIGHT} at a time; groups of {loads.G}; w: workers; CPU in ms per verdict\n"
    )
    for workers in numbers:
        with ExitStack() as stack:
            servers = {system: stack.enter_context(Server(system, workers)) for system in ("baseline", "vtriune")}
            warm_up(servers, warm)
            print(HEAD)
            for kind in LOADS:
                speed.measure(kind, workers, servers)
            half_load(speed, servers, workers, 2 * seconds, targets)
            print()
    show_agreement("Rewards of /judge like the baseline's, every figure to 1e-9", speed.agreement())
    show_agreement("Verdicts of /v1/judge equal to the embedded judge's", speed.exactness())
    print("\nVerdicts per second as a ratio to the baseline's with its faster client")
    ratios(speed, targets, numbers)
    with Server("vtriune", 2) as server:
        warm_up({"vtriune": server}, warm)
        poison(server, 2 * seconds, times, targets)
    with Server("baseline", 2) as server:
        warm_up({"baseline": server}, warm)
        normal, bad = (beside(server, "baseline", 2 * seconds, poisoned) for poisoned in (False, True))
        show_beside("baseline", normal, bad)
    startup(targets, numbers, times)
    targets.show()


if __name__ == "__main__":
    main()
