"""With trackio itself, its store a folder. It reads TRACKIO_DIR when it is imported, so it runs in other processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from vtriune.monitor.trackers.base import TrackedRun

pytest.importorskip("trackio", reason="pip install trackio")

SHOW = """
import sys
from pathlib import Path
import orjson
from vtriune.monitor.trackers.base import TrackedRun
from vtriune.monitor.trackers.trackio import Trackio
fields, rows = orjson.loads(sys.stdin.buffer.read())
run = TrackedRun(**fields | {"folder": Path(fields["folder"])})
tracker = Trackio(run)
for step, split, figures in rows:
    tracker.write(step, split, {name: float(value) for name, value in figures.items()})
tracker.close(finished=True)
"""
READ = """
import sys
import orjson
from trackio.sqlite_storage import SQLiteStorage
project, name = sys.argv[1:]
store = SQLiteStorage
found = store.get_runs(project), store.get_logs(project, name), store.get_run_config(project, name)
sys.stdout.buffer.write(orjson.dumps(found))
"""


def run_python(code: str, folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    environment = {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=stdin,
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def show(folder: Path, run: TrackedRun, rows: list[tuple[int, str, dict[str, str]]]) -> None:
    fields = asdict(run) | {"folder": str(run.folder)}
    run_python(SHOW, folder, stdin=orjson.dumps([fields, rows]))


def read(folder: Path, run: TrackedRun) -> tuple[list[str], list[dict[str, Any]], dict[str, Any]]:
    names, logs, config = orjson.loads(run_python(READ, folder, run.project, f"{run.name}-{run.id}"))
    return names, [{k: v for k, v in row.items() if k != "timestamp"} for row in logs], config


def test_trackio_shows_every_figure_and_the_recipe(tmp_path: Path, tracked: Callable[..., TrackedRun]) -> None:
    run = tracked()
    show(
        tmp_path / "trackio",
        run,
        [
            (1, "train", {"math/reward": "0.25", "org/coco/iou_50": "0.5"}),
            (2, "train", {"math/reward": "0.5"}),
            (2, "eval", {"math/score": "55.0"}),
        ],
    )
    names, rows, config = read(tmp_path / "trackio", run)
    assert names == ["demo-0123456789ab"]
    assert rows == [
        {"reward/math": 0.25, "iou_50/org/coco": 0.5, "step": 1},
        {"reward/math": 0.5, "step": 2},
        {"eval_score/math": 55.0, "step": 2},
    ]
    assert {key: config[key] for key in run.recipe} == run.recipe


def test_a_resumed_run_goes_on_with_the_same_run_of_trackio(tmp_path: Path, tracked: Callable[..., TrackedRun]) -> None:
    run = tracked()
    show(tmp_path / "trackio", run, [(1, "train", {"math/reward": "0.25"})])
    show(tmp_path / "trackio", replace(run, resumed_at=1), [(2, "train", {"math/reward": "0.5"})])
    names, rows, _ = read(tmp_path / "trackio", run)
    assert names == ["demo-0123456789ab"]
    assert [row["step"] for row in rows] == [1, 2]
