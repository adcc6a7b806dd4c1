"""Figures to MLflow (3). Settings are MLflow's own: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN, ..."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import orjson
from mlflow.entities import Metric, Param

from vtriune.monitor.runs import RowSplit
from vtriune.monitor.trackers.base import TrackedRun, tags

_ID = "vtriune.id"
"""The tag by which a resumed run finds itself: MLflow gives runs ids of its own."""
METRICS, PARAMETERS = 1000, 100
"""How many MLflow takes at once."""
LONGEST_NAME, LONGEST_VALUE = 250, 6000
"""Characters that MLflow takes."""


class Mlflow:
    """One run of MLflow, in the experiment `project`, the recipe as its parameters; a resumed run goes on with it.
    Steps that are repeated after a checkpoint are shown twice, with equal figures.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(run.project).experiment_id
        earlier = self._client.search_runs([experiment], f"tags.`{_ID}` = '{run.id}'")
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, run_name=run.name, tags={_ID: run.id}).info.run_id
            parameters = [Param(safe_name(key), value[:LONGEST_VALUE]) for key, value in _flat(run.recipe)]
            for start in range(0, len(parameters), PARAMETERS):
                self._client.log_batch(self._id, params=parameters[start : start + PARAMETERS])

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Send the figures of a step."""
        now = time.time_ns() // 1_000_000
        shown = [Metric(safe_name(key), value, now, step) for key, value in tags(split, figures).items()]
        for start in range(0, len(shown), METRICS):
            self._client.log_batch(self._id, metrics=shown[start : start + METRICS])

    def close(self, *, finished: bool) -> None:
        """Say how the run ended; killed: before its last step."""
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


open_tracker = Mlflow


def safe_name(name: str) -> str:
    """`name` as MLflow takes it: `_` for what it refuses, and no part that is empty or only dots. One that had to be
    changed ends with a hash of what it was, so that two names stay two.

    >>> safe_name("reward/math"), safe_name("reward/org//coco,2017")
    ('reward/math', 'reward/org/_/coco_2017_81ba90a8')
    """
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    safe = "/".join(part if part.strip(".") else "_" for part in parts)
    if safe == name and len(name) <= LONGEST_NAME:
        return name
    mark = "_" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return safe[: LONGEST_NAME - len(mark)] + mark


def _flat(recipe: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    """A recipe as `section.key` and text; lists are JSON."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{section}{key}.")
        else:
            yield f"{section}{key}", orjson.dumps(value).decode() if isinstance(value, list) else str(value)
