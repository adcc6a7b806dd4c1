"""The registry finds verifiers, checks their parameters and stays light."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from vtriune.types import UserError
from vtriune.verifiers.base import GatedParams
from vtriune.verifiers.detection import DetectionParams
from vtriune.verifiers.registry import get, names, parse_params


def test_every_name_leads_to_the_verifier_of_that_name() -> None:
    assert [get(name).name for name in names()] == list(names())


def test_a_misspelt_verifier_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r'verifier "detecton" is not registered; did you mean "detection"\?'):
        get("detecton")
    with pytest.raises(UserError, match='"x" is not registered; there are: composite, counting, detection, '):
        parse_params("x", {})


def test_the_released_parameters_are_read_as_they_stand() -> None:
    ratio = {"iou_max_label_first": 1.0, "iou_max_iou_first": 0.0, "iou_completeness": 0.3, "map": 0.0}
    params = parse_params("detection", {"det_verifier_normalized": True, "det_reward_ratio": ratio})
    assert isinstance(params, DetectionParams)
    assert (params.answered_in, params.gold_space) == ("absolute_resized", "relative_1000")
    assert (params.det_reward_ratio.iou_completeness, params.det_reward_ratio.map75) == (0.3, 0.0)


def test_the_default_schedule_is_the_papers_dynamic_iou() -> None:
    assert GatedParams().iou_threshold == ((0.0, 0.85), (0.10, 0.95), (0.25, 0.99))
    assert GatedParams().eval_iou_threshold == 0.5


@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("mathverify", {"strict": True}, "verifier_parm.strict"),
        ("detection", {"gold_space": "pixels"}, "verifier_parm.gold_space"),
        ("detection", {"det_reward_ratio": {"map": 2.0}}, "verifier_parm.det_reward_ratio.map"),
        ("detection", {"det_reward_ratio": {"mAP": 1.0}}, "verifier_parm.det_reward_ratio.mAP"),
        ("detection", {"det_reward_ratio": {"map": float("nan")}}, "verifier_parm.det_reward_ratio.map"),
        ("detection", {"iou_threshold": 1.5}, "verifier_parm.iou_threshold"),
        ("detection", {"iou_threshold": []}, "verifier_parm.iou_threshold"),
        ("detection", {"iou_threshold": [[0.1, 0.5]]}, "verifier_parm.iou_threshold"),
        ("detection", {"iou_threshold": [[0, 0.5], [0.5, 0.9], [0.5, 0.95]]}, "verifier_parm.iou_threshold"),
        ("detection", {"eval_iou_threshold": [[0, 0.5]]}, "verifier_parm.eval_iou_threshold"),
    ],
)
def test_an_invalid_parameter_is_refused_by_the_name_of_its_field(
    name: str, parameters: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError, match=field):
        parse_params(name, parameters)


def test_equal_parameters_are_equal_keys() -> None:
    schedule = {"iou_threshold": [[0, 0.5], [0.5, 0.9]]}
    assert len({parse_params("detection", schedule), parse_params("detection", schedule)}) == 1


def test_importing_the_registry_starts_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'sympy', 'math_verify', 'scipy', 'datasets', 'pyarrow'}"
    code = f"import sys, vtriune.verifiers.registry; print(sorted({heavy} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
