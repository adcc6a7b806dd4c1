"""With MLflow itself, its store a SQLite file."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtriune.monitor.trackers.base import TrackedRun

mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny sqlalchemy alembic")
pytest.importorskip("sqlalchemy", reason="pip install sqlalchemy alembic")
from vtriune.monitor.trackers.mlflow import LONGEST_NAME, METRICS, Mlflow, safe_name  # noqa: E402


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"  # making one takes seconds: one for all tests


@pytest.fixture
def store(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    mlflow.set_tracking_uri(database)
    return database


def curve(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run_id, name)]


def runs(project: str) -> list[object]:
    client = mlflow.MlflowClient()
    found: list[object] = list(client.search_runs([client.get_experiment_by_name(project).experiment_id]))
    return found


def test_mlflow_shows_every_figure_the_recipe_and_how_the_run_ended(
    store: str, tracked: Callable[..., TrackedRun]
) -> None:
    run = replace(tracked(), project="figures", recipe={**tracked().recipe, "notes": {"long": "x" * 9000}})
    tracker = Mlflow(run)
    many = {f"source_{i}/reward": i / 7 for i in range(METRICS + 5)}
    tracker.write(1, "train", {"math/reward": 0.25, "a,b//c/reward": 0.5, "optim/norm": math.inf} | many)
    tracker.write(2, "train", {"math/reward": 0.5})
    tracker.write(2, "eval", {"math/score": 55.0})
    tracker.close(finished=False)
    (shown,) = runs("figures")
    assert (shown.info.run_name, shown.info.status) == ("demo", "KILLED")  # type: ignore[attr-defined]
    run_id = shown.info.run_id  # type: ignore[attr-defined]
    assert curve(run_id, "reward/math") == [(1, 0.25), (2, 0.5)]
    assert curve(run_id, "eval_score/math") == [(2, 55.0)]
    assert curve(run_id, safe_name("reward/a,b//c")) == [(1, 0.5)]
    assert curve(run_id, f"reward/source_{METRICS + 4}") == [(1, (METRICS + 4) / 7)]
    parameters = shown.data.params  # type: ignore[attr-defined]
    assert parameters["steps"] == "4"
    assert parameters["model.dtype"] == "float32"
    assert parameters["data.train"] == '[{"path":"a","weight":2.0}]'
    assert parameters["notes.long"] == "x" * 6000


def test_a_resumed_run_goes_on_with_the_same_run_of_mlflow(store: str, tracked: Callable[..., TrackedRun]) -> None:
    run = replace(tracked(), project="resumed")
    for number, step in ((None, 1), (1, 2)):
        tracker = Mlflow(replace(run, resumed_at=number))
        (shown,) = runs("resumed")
        assert shown.info.status == "RUNNING"  # type: ignore[attr-defined]
        tracker.write(step, "train", {"math/reward": step / 4})
        tracker.close(finished=True)
    (shown,) = runs("resumed")
    assert shown.info.status == "FINISHED"  # type: ignore[attr-defined]
    assert curve(shown.info.run_id, "reward/math") == [(1, 0.25), (2, 0.5)]  # type: ignore[attr-defined]
    Mlflow(replace(run, id="another00000")).close(finished=True)
    assert len(runs("resumed")) == 2


@given(names=st.lists(st.text(",;_a/.é", min_size=1, max_size=300), min_size=2, max_size=2, unique=True))
@example(names=["reward/a,b", "reward/a;b"])
@example(names=["reward/" + "x" * LONGEST_NAME + "1", "reward/" + "x" * LONGEST_NAME + "2"])
@example(names=["/" * LONGEST_NAME, "/" * LONGEST_NAME + "a"])
def test_two_names_never_become_one(names: list[str]) -> None:
    one, other = map(safe_name, names)
    assert one != other
    assert max(len(one), len(other)) <= LONGEST_NAME


@given(name=st.text(min_size=1, max_size=300))
def test_mlflow_takes_every_name(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(safe_name(name))
    assert len(safe_name(name)) <= LONGEST_NAME
