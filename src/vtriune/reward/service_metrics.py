"""What the reward server counts, for Prometheus. What the training loop reports is monitor/'s."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import AsyncJudgePool
from vtriune.types import Status, Verdict
from vtriune.verifiers import registry

MAX_SOURCES = 50
"""Data sources counted by name; names come from outside, and each costs memory. The others are `other`."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class ServiceMetrics:
    """Counters and histograms of one server."""

    def __init__(self, pool: AsyncJudgePool) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_PoolCollector(pool))
        self._verdicts = Counter(
            "vtriune_verdicts", "Verdicts given.", ("verifier", "source", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "vtriune_request_seconds",
            "From the body read to the verdicts known.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._sources: set[str] = set()
        self._counters: dict[tuple[str, str, Status], Counter] = {}
        """What `labels` would look up every time."""

    def count(self, item: JudgeItem, verdict: Verdict) -> None:
        """Count a verdict."""
        key = item.spec.verifier, item.source, verdict.status
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counter(*key)
            if len(self._counters) < MAX_SOURCES * 10:
                self._counters[key] = counter
        counter.inc()

    def _counter(self, verifier: str, source: str, status: Status) -> Counter:
        known = source in self._sources
        if not known and len(self._sources) < MAX_SOURCES:
            self._sources.add(source)
            known = True
        verifier = verifier if verifier in registry.names() else "unknown"
        return self._verdicts.labels(verifier, source if known else "other", status.value)

    def timer(self, path: str) -> Callable[[float], None]:
        """Where the seconds of a request to `path` go."""
        return self._seconds.labels(path).observe

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _PoolCollector(Collector):
    """What the worker pool counts itself, read when asked."""

    def __init__(self, pool: AsyncJudgePool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("vtriune_queue_depth", "Answers waiting or being judged.", self._pool.depth)
        yield GaugeMetricFamily("vtriune_workers", "Living worker processes.", len(self._pool.pids()))
        counters = self._pool.counters()
        for name, help_text in (
            ("judged", "Answers handed to workers."),
            ("reused", "Answers that took the verdict of an equal one."),
            ("started", "Worker processes started."),
            ("heavy", "Answers that went on at low priority."),
        ):
            yield CounterMetricFamily(f"vtriune_pool_{name}", help_text, counters.pop(name))
        killed = CounterMetricFamily("vtriune_workers_killed", "Workers that ended, by reason.", labels=("reason",))
        for reason, count in counters.items():
            killed.add_metric([reason], count)
        yield killed
