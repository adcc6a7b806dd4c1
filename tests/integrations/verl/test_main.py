from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import vtriune
from vtriune.data.schema import write_rows
from vtriune.playground.dataset import rows
from vtriune.recipe import Recipe
from vtriune.types import Split, UserError

if find_spec("verl") is None:
    pytest.skip("verl isn't installed here: make test-verl", allow_module_level=True)

import ray

from vtriune.integrations.verl.main import check_machines, train
from vtriune.integrations.verl.reasons import LONGEST, reason_of

MODEL = Path(vtriune.__file__).parent / "playground" / "base_model"


def recipe(folder: Path, **sections: Any) -> Recipe:
    fields = {
        "base": folder,
        "steps": 2,
        "engine": "verl",
        "model": {"path": str(MODEL)},
        "data": {"train": [{"path": "nowhere.parquet"}], "test": [{"path": "nowhere.parquet"}]},
        "rollout": {"prompts_per_step": 4},
        "verl": {"rollout": "trtllm", "gpus_per_node": 1},
    }
    return Recipe.model_validate(fields | sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"path": "/no/model"}}, r"model\.path: /no/model is not a transformers folder"),
        ({"verl": {"rollout": "trtllm", "gpus_per_node": 32}}, r"verl\.gpus_per_node: 32 GPUs .* set RAY_ADDRESS=auto"),
        (
            {"verl": {"rollout": "vlm"}},
            r"verl\.rollout: verl has no sampling engine vlm; take one of sglang, trtllm, vllm",
        ),
        ({"verl": {"rollout": "trtllm", "nodes": 2}}, r"verl\.nodes: 2 machines .* set RAY_ADDRESS=auto"),
    ],
)
def test_what_is_missing_is_said_before_ray_starts(
    sections: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=message):
        train(recipe(tmp_path, **sections), tmp_path / "run", Console(file=io.StringIO()))
    assert not ray.is_initialized()


def test_missing_data_is_said_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # so that nobody asks for GPUs of this machine
    with pytest.raises(UserError, match=r"nowhere\.parquet: no Parquet .* correct the path"):
        train(recipe(tmp_path), tmp_path / "run", Console(file=io.StringIO()))
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        write_rows(rows("math", "math", rare=False, split=split, count=1, seed=0), tmp_path / f"{split}.parquet")
    data = {split: [{"path": f"{split}.parquet"}] for split in splits}
    with pytest.raises(UserError, match=r"RAY_ADDRESS: Ray can't be used .* start it \(docs/cluster\.md\)"):
        train(recipe(tmp_path, data=data), tmp_path / "run", Console(file=io.StringIO()))


def test_a_run_without_a_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(recipe(tmp_path), tmp_path / "run", Console(file=io.StringIO()), resume=True)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="it is installed here")
def test_a_sampling_engine_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"verl\.rollout: vllm is not installed here; pip install 'verl\[vllm\]==0\.9\.1'"
    ):
        check_machines(recipe(tmp_path, verl={"rollout": "vllm"}), None)


def test_verl_is_not_started_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.device: verl has no CPU platform of its own; use engine=local"):
        check_machines(recipe(tmp_path, model={"path": str(MODEL), "device": "cpu"}), None)


def test_another_clusters_machines_are_not_judged_by_this_one(tmp_path: Path) -> None:
    check_machines(recipe(tmp_path, verl={"rollout": "trtllm", "nodes": 100}), "10.0.0.1:6379")


def test_a_reason_is_the_innermost_error_in_one_line() -> None:
    cause: Exception = ValueError("too\nlong " + "x" * 1000)
    for worker in ("inner", "outer"):
        cause = ray.exceptions.RayTaskError(worker, "a traceback", cause).as_instanceof_cause()
    reason = reason_of(cause)
    assert reason.startswith("ValueError: too long xxx")
    assert reason.endswith(" ...")
    assert len(reason) < LONGEST + 30
    assert reason_of(ray.exceptions.RayTaskError("f", "a traceback", UserError("mend it"))) == "mend it"
