from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import vtriune
from vtriune.integrations.verl.settings import KEY, Settings
from vtriune.recipe import Recipe
from vtriune.types import RewardSpec, Split, Status, Verdict

if find_spec("verl") is None:
    pytest.skip("verl isn't installed here: make test-verl", allow_module_level=True)

from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto

from vtriune.integrations.verl.dataset import encode_spec
from vtriune.integrations.verl.reward import (
    JudgeRewardManager,
    decode_verdict,
    encode_verdict,
    progress_of,
)

MODEL = Path(vtriune.__file__).parent / "playground" / "base_model"
HERE = Path(__file__).parent
"""Where the judge's processes find `support`."""
STEPS = 10
BOXES = RewardSpec(
    "detection",
    '<answer>[{"bbox_2d": [0, 0, 10, 10], "label": "box"}]</answer>',
    parameters={
        "gold_space": "absolute_original",
        "answer_space": "absolute_resized",
        "iou_threshold": [[0.0, 0.4], [0.5, 0.9]],
        "eval_iou_threshold": 0.0,
    },
)
HALF = '<answer>[{"bbox_2d": [0, 0, 10, 5], "label": "box"}]</answer>'
"""IoU 0.5 with gold."""


@pytest.fixture(scope="module")
def manager() -> Iterator[JudgeRewardManager]:
    fields = {
        "base": MODEL,
        "steps": STEPS,
        "model": {"path": str(MODEL)},
        "data": {"train": [{"path": "a"}], "test": [{"path": "b"}]},
        "reward": {"workers": 1, "load": ["support.verifiers:unreliable"]},
    }
    settings = Settings(Recipe.model_validate(fields), MODEL)
    config = OmegaConf.create({"data": {KEY: settings.encode()}})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(vtriune.__file__).parents[1]), str(HERE)]))
        made = JudgeRewardManager(config, AutoTokenizer.from_pretrained(MODEL), None)
        yield made
        made._judge.close()


def judged(
    manager: JudgeRewardManager, response: str, spec: RewardSpec, *, step: int = 1, split: Split = "train"
) -> dict[str, Any]:
    """What the manager makes of an answer that it is given as verl does: padded ids, a row's columns."""
    ids = [*manager.tokenizer.encode(response, add_special_tokens=False), manager.tokenizer.eos_token_id]
    responses = torch.tensor([[*ids, 0, 0]])
    mask = torch.tensor([[1, 1, 1, *[1] * len(ids), 0, 0]])
    tensors = {"prompts": torch.ones(1, 3, dtype=torch.long), "responses": responses, "attention_mask": mask}
    columns: dict[str, Any] = {
        "extra_info": {"split": split},
        "global_steps": step,
        "tool_extra_fields": {"image_sizes": [[[100, 100], [100, 100]]]},
        "reward_model": {"spec": encode_spec(spec)},
        "data_source": "boxes",
    }
    data = DataProto(
        batch=TensorDict(tensors, batch_size=1),
        non_tensor_batch={name: np.array([value], dtype=object) for name, value in columns.items()},
    )
    result: dict[str, Any] = asyncio.run(manager.run_single(data))
    return result


def test_the_threshold_follows_the_step_in_training_and_is_fixed_in_tests(manager: JudgeRewardManager) -> None:
    assert judged(manager, HALF, BOXES, step=1)["reward_score"] == pytest.approx(0.5)
    assert judged(manager, HALF, BOXES, step=5)["reward_score"] == pytest.approx(0.5)
    assert judged(manager, HALF, BOXES, step=6)["reward_score"] == 0.0
    assert judged(manager, HALF, BOXES, step=STEPS, split="test")["reward_score"] == pytest.approx(0.5)


def test_an_answer_whose_verifier_breaks_is_failed_and_not_scored_0(manager: JudgeRewardManager) -> None:
    verdicts = [judged(manager, "x" * n, RewardSpec("unreliable", "4")) for n in range(1, 9)]
    kinds = {one["reward_extra_info"]["status"] for one in verdicts}
    assert kinds == {"scored", "failed"}
    for one in verdicts:
        verdict = decode_verdict(one["reward_extra_info"])
        assert (verdict.reward is None) == (verdict.status is Status.FAILED)
        assert verdict.status is Status.SCORED or "broken on purpose" in verdict.reason


def test_gold_that_can_not_be_read_is_unscorable(manager: JudgeRewardManager) -> None:
    spec = RewardSpec("detection", "no boxes", parameters=BOXES.parameters)
    assert judged(manager, HALF, spec)["reward_extra_info"]["status"] == "unscorable"


def test_every_row_has_the_same_keys_and_a_verdict_survives_the_way() -> None:
    scored = Verdict(Status.SCORED, 0.5, 0.5, 1.0, False, {"iou_50": 1.0}, "half")
    failed = Verdict(Status.FAILED, reason="broken")
    assert encode_verdict(scored).keys() == encode_verdict(failed).keys()
    assert [decode_verdict(encode_verdict(one)) for one in (scored, failed)] == [scored, failed]


def test_verl_counts_the_step_under_way_from_1_and_evaluates_after_it() -> None:
    assert progress_of(1, STEPS, "train").step == 0
    assert progress_of(STEPS, STEPS, "test").step == STEPS
