from __future__ import annotations

import asyncio
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vtriune.data.schema import write_rows
from vtriune.integrations.verl.settings import KEY, Settings
from vtriune.playground.dataset import rows
from vtriune.recipe import Recipe
from vtriune.types import RewardSpec

if find_spec("verl") is None:
    pytest.skip("verl isn't installed here: make test-verl", allow_module_level=True)

from vtriune.integrations.verl.dataset import SampleRows, as_row, decode_spec, encode_spec

STEPS, PROMPTS = 3, 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """verl's section `data`, of a recipe with two tasks."""
    folder = tmp_path_factory.mktemp("rows")
    for split, count in (("train", 6), ("test", 2)):
        for task in ("math", "grounding"):
            write_rows(
                rows(task, task, rare=False, split=split, count=count, seed=0),  # type: ignore[arg-type]
                folder / split / f"{task}.parquet",
            )
    fields = {
        "base": folder,
        "steps": STEPS,
        "model": {"path": "model"},
        "data": {"train": [{"path": "train"}], "test": [{"path": "test"}]},
        "reward": {"workers": 1},
        "rollout": {"prompts_per_step": PROMPTS},
    }
    return {KEY: Settings(Recipe.model_validate(fields), folder / "run").encode()}


def dataset(config: dict[str, Any], split: str) -> SampleRows:
    return SampleRows(split, tokenizer=None, config=config)


def test_a_run_has_a_row_for_every_prompt_of_every_step_and_the_tests_their_samples(config: dict[str, Any]) -> None:
    train, test = dataset(config, "train"), dataset(config, "test")
    assert len(train) == STEPS * PROMPTS
    assert len(test) == 4
    drawn = [train[k]["extra_info"]["id"] for k in range(len(train))]
    assert len(set(drawn)) == 12  # 12 rows in all: each comes once before any comes again
    assert {test[k]["extra_info"]["split"] for k in range(len(test))} == {"test"}


def test_the_prompt_pool_varies_training_prompts_and_no_test_prompt(config: dict[str, Any]) -> None:
    train, test = dataset(config, "train"), dataset(config, "test")

    def instructions(of: SampleRows) -> set[str]:
        samples = [of.sample(k) for k in range(len(of))]
        return {one.messages[-1].content.split("\n\n")[-1] for one in samples if one.source == "math"}

    assert len(instructions(train)) > 1
    assert len(instructions(test)) == 1


def test_a_row_holds_references_and_its_pictures_are_decoded_when_they_are_asked_for(config: dict[str, Any]) -> None:
    row = dataset(config, "train")[0]
    assert len(pickle.dumps(row)) < 4096
    pictures, videos, audio = asyncio.run(SampleRows.process_multi_modal_info(row["raw_prompt"], 14, config))
    assert pictures is not None
    assert [picture.size for picture in pictures] == [(112, 112)]
    assert (videos, audio) == (None, None)


def test_a_prompt_without_pictures_is_text_and_has_none(config: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    assert asyncio.run(SampleRows.process_multi_modal_info(messages, 14, config)) == (None, None, None)


def test_a_row_carries_its_reward_and_how_many_answers_it_wants(config: dict[str, Any]) -> None:
    of = dataset(config, "test")
    sample = of.sample(0)
    row = as_row(sample, 0, "test", "greedy", 1)
    assert decode_spec(row["reward_model"]["spec"]) == sample.reward
    assert row["__rollout_n__"] == 1
    assert row["extra_info"]["decoding"] == "greedy"
    spec = RewardSpec("detection", "é[]", 1.0, 0.25, {"iou_threshold": [[0.0, 0.5]]}, "paper")
    assert decode_spec(encode_spec(spec)) == spec


def test_whoever_starts_verl_without_us_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="start the run with `vtriune train`"):
        dataset({}, "train")
