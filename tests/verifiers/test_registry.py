"""The registry finds verifiers, checks their parameters and stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vtriune.types import UserError
from vtriune.verifiers import registry
from vtriune.verifiers.base import GatedParams
from vtriune.verifiers.detection import DetectionParams
from vtriune.verifiers.registry import get, names, parse_params, register


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


# --- own verifiers ----------------------------------------------------------------------------------------------------

FUNCTION = "def concise(response: str, gold: str, *, limit: int = 20) -> float:\n    return float(gold in response)\n"
CLASS = """
from pydantic import BaseModel, ConfigDict
from vtriune.verifiers.base import Outcome
class Params(BaseModel):
    model_config = ConfigDict({config})
class Own:
    name = {name}
    Params = Params
    def parse_gold(self, gold, params, context): return gold
    def judge(self, response, gold, params, context): return Outcome(1.0, 1.0, correct=True)
instance = Own()
"""
SOUND = 'extra="forbid", frozen=True'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose modules can be registered, all of it forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(registry, "_PLACES", dict(registry._PLACES))
    monkeypatch.setattr(registry, "_VERIFIERS", dict(registry._VERIFIERS))
    for module in ("my_rewards", "other_rewards"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def write(folder: Path, text: str, module: str = "my_rewards") -> None:
    (folder / f"{module}.py").write_text(text)
    sys.modules.pop(module, None)


def test_an_own_function_class_or_instance_is_found_in_the_current_folder(folder: Path) -> None:
    write(folder, FUNCTION + CLASS.format(config=SOUND, name='"own"'))
    assert register("my_rewards:concise") == "concise"
    assert register("my_rewards:Own") == "own"
    assert {"concise", "own"} <= set(names())
    assert parse_params("concise", {"limit": 3}).model_dump() == {"limit": 3}
    assert get("own").name == "own"
    write(folder, CLASS.format(config=SOUND, name='"third"'), "other_rewards")
    assert register("other_rewards:instance") == "third"
    assert sys.path[-1] == str(folder)


def test_the_same_place_may_be_registered_again(folder: Path) -> None:
    write(folder, FUNCTION)
    assert [register("my_rewards:concise") for _ in range(2)] == ["concise"] * 2


def test_a_name_that_is_taken_is_refused_and_changes_nothing(folder: Path) -> None:
    write(folder, FUNCTION + FUNCTION.replace("concise", "detection"))
    write(folder, FUNCTION, "other_rewards")
    register("my_rewards:concise")
    before = names()
    for place, name in (("my_rewards:detection", "detection"), ("other_rewards:concise", "concise")):
        with pytest.raises(UserError, match=f'verifier "{place}": the name "{name}" is taken; rename it'):
            register(place)
    assert names() == before
    assert type(get("detection")).__name__ == "Detection"


@pytest.mark.parametrize("place", ["", ":", "my_rewards", "my_rewards:", ":concise", "my_rewards.concise"])
def test_a_place_is_a_module_and_a_name_in_it(place: str) -> None:
    with pytest.raises(UserError, match="write it as module:function"):
        register(place)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (
            FUNCTION,
            "my_reward:concise",
            r"my_reward can't be imported \(ModuleNotFoundError.*is it in the current folder",
        ),
        (FUNCTION, "my_rewards.inner:concise", r"can't be imported \(ModuleNotFoundError"),
        (FUNCTION, ".my_rewards:concise", "can't be imported"),
        (FUNCTION, "my_rewards:precise", r'my_rewards\.py has no "precise"'),
        (FUNCTION, "my_rewards:concise.limit", r'my_rewards\.py has no "concise\.limit"'),
        (
            "import nothing_of_that_name",
            "my_rewards:f",
            r"\(ModuleNotFoundError: No module named 'nothing_of_that_name'\)",
        ),
        ("def f(:", "my_rewards:f", r"can't be imported \(SyntaxError"),
        ("1 / 0", "my_rewards:f", r"can't be imported \(ZeroDivisionError: division by zero\)"),
        ("import sys; sys.exit(3)", "my_rewards:f", r"can't be imported \(SystemExit: 3\)"),
        ("f = 3", "my_rewards:f", "is neither a function nor a verifier"),
        ("f = None", "my_rewards:f", "is neither a function nor a verifier"),
        ("class F:\n    name = 'f'", "my_rewards:F", "is neither a function nor a verifier"),
        ("class F:\n    def __init__(self, n): pass", "my_rewards:F", r"can't be made without arguments \(TypeError"),
        ("class F:\n    def __init__(self): 1 / 0", "my_rewards:F", r"can't be made without arguments \(ZeroDivision"),
        ("def f(response): return 1", "my_rewards:f", r"its signature must be \(response, gold, \*, parameter="),
        ("f = lambda response, gold: 1", "my_rewards:f", "has no name of its own"),
        (CLASS.format(config=SOUND, name='""'), "my_rewards:Own", "its `name` must be what rows call it, got ''"),
        (CLASS.format(config=SOUND, name="3"), "my_rewards:Own", "its `name` must be what rows call it, got 3"),
        (CLASS.format(config="", name='"own"'), "my_rewards:Own", 'ConfigDict\\(extra="forbid", frozen=True\\)'),
        (CLASS.format(config='extra="forbid"', name='"own"'), "my_rewards:Own", "Params must be a pydantic model"),
    ],
)
def test_what_cannot_be_registered_is_refused_with_its_fault(folder: Path, text: str, place: str, message: str) -> None:
    write(folder, text)
    before = names()
    with pytest.raises(UserError, match=message):
        register(place)
    assert names() == before


def test_a_file_of_the_current_folder_takes_nothing_from_the_standard_library(folder: Path) -> None:
    (folder / "colorsys.py").write_text("raise RuntimeError('shadowed')")
    write(folder, "import colorsys\n" + FUNCTION)
    sys.modules.pop("colorsys", None)
    assert register("my_rewards:concise") == "concise"
