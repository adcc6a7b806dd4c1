"""docs/own_verifier.md: its code is run as it stands there, by the command and by the judge's workers' own function."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtriune.verifiers import registry

Vtriune = Callable[..., subprocess.CompletedProcess[str]]

PAGE = Path(__file__).parents[2] / "docs" / "own_verifier.md"
BLOCKS: dict[str, list[str]] = {}
for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
    BLOCKS.setdefault(language, []).append(block)

JUDGE = """
import json, sys
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import Progress, RewardSpec
from vtriune.verifiers.registry import register
for place in ("my_rewards:concise", "my_rewards:Clock"):
    register(place)
for verifier, response, gold, parameters in json.load(sys.stdin):
    verdict = judge_item(JudgeItem(response, RewardSpec(verifier, gold, parameters=parameters), Progress(0, 1, "test")))
    print(json.dumps([verdict.status, verdict.accuracy, verdict.correct, dict(verdict.report), verdict.reason]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_rewards.py").write_text("\n\n".join(BLOCKS["python"]))
    return tmp_path


def judge(folder: Path, *questions: tuple[str, str, str, dict[str, Any]]) -> list[list[Any]]:
    command = [sys.executable, "-P", "-c", JUDGE]
    run = subprocess.run(
        command, input=json.dumps(questions), capture_output=True, encoding="utf-8", cwd=folder, check=True
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_each_of_the_two_takes_under_30_lines_of_code() -> None:
    assert len(BLOCKS["python"]) == 2
    for block in BLOCKS["python"]:
        *_, body = block.partition("\n\n\n")
        assert len([line for line in body.splitlines() if line.strip()]) < 30


def test_the_function_judges_as_the_page_says(folder: Path) -> None:
    verdicts = judge(
        folder,
        ("concise", "It is a red fox.", "fox", {}),
        ("concise", "fox" * 10, "Fox", {"limit": 15}),
        ("concise", "", "fox", {}),
        ("concise", "fox", "fox", {"limit": 0}),
        ("concise", "fox", "fox", {"limits": 9}),
    )
    assert [verdict[:3] for verdict in verdicts] == [
        ["scored", 1.0, True],
        ["scored", 0.5, False],
        ["scored", 0.0, False],
        ["unscorable", None, None],
        ["unscorable", None, None],
    ]


def test_the_class_judges_as_the_page_says(folder: Path) -> None:
    verdicts = judge(
        folder,
        ("clock", "<think>half?</think><answer>14:33</answer>", "14:30", {}),
        ("clock", "<answer>14:36</answer>", "14:30", {}),
        ("clock", "<answer>14:36</answer>", "14:30", {"tolerance": 10}),
        ("clock", "23:50", "0:20", {}),
        ("clock", "half past two", "14:30", {}),
        ("clock", "1²:00", "14:30", {}),
        ("clock", "14:30", "half past two", {}),
    )
    assert [verdict[:4] for verdict in verdicts] == [
        ["scored", 0.95, True, {"minutes": 3}],
        ["scored", 0.9, False, {"minutes": 6}],
        ["scored", 0.9, True, {"minutes": 6}],
        ["scored", 0.5, False, {"minutes": 30}],
        ["scored", 0.0, False, {"minutes": 720}],
        ["scored", 0.0, False, {"minutes": 720}],
        ["unscorable", None, None, {}],
    ]
    assert [verdict[4] for verdict in verdicts[4:]] == [
        "no time found",
        "no time found",
        "gold 'half past two' is no time; write it as 14:30",
    ]


def test_the_command_shows_both_with_their_parameters(folder: Path, vtriune: Vtriune) -> None:
    shown = vtriune("verifiers", "concise", "--load", "my_rewards:concise", cwd=folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(
        text in shown.stdout for text in ("Gold's words are in", "limit", "integer >= 1", "200", "Characters that")
    )
    shown = vtriune("verifiers", "clock", "--load", "my_rewards:Clock", cwd=folder)
    assert all(
        text in shown.stdout for text in ("Is the time read off", "tolerance", "integer", "Minutes within which")
    )


def test_every_row_recipe_and_request_of_the_page_is_well_formed(folder: Path) -> None:
    import yaml

    row, request = (json.loads(block) for block in BLOCKS["json"])
    spec = row["reward_model"]
    assert judge(folder, (spec["verifier"], "14:38", spec["ground_truth"], spec["verifier_parm"]))[0][2] is True
    assert request.keys() == {"response", "ground_truth", "parameters", "split", "preset"}
    (recipe,) = BLOCKS["yaml"]
    assert yaml.safe_load(recipe) == {"reward": {"load": ["my_rewards:concise", "my_rewards:Clock"]}}


def test_the_names_of_the_page_are_free() -> None:
    assert not {"concise", "clock"} & set(registry._PLACES)
