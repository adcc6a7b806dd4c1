"""The benchmark of the reward service: its baseline gives the released rewards, and all of it runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.reward_service import baseline, loads

from vtriune.reward.judge import judge_item
from vtriune.types import Status

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["math", "detection"])
def test_the_baseline_gives_the_rewards_of_official_code(kind: str) -> None:
    rewards = []
    for case in loads.load(kind, "test", 160):
        given = asyncio.run(baseline.judge(baseline.Payload(**case.released())))["rewards"]
        verdict = judge_item(case.item("official_code"))
        assert verdict.status is Status.SCORED
        assert [given[f"{part}_reward"] for part in ("final", "accuracy", "format")] == pytest.approx(
            [verdict.reward, verdict.accuracy, verdict.format], abs=1e-9
        )
        rewards.append(given["final_reward"])
    # The load tells servers apart only if right and wrong answers are among it.
    assert 0.1 < sum(reward > 0.2 for reward in rewards) / len(rewards) < 0.9


def test_a_load_is_the_same_for_every_server_and_repeats_math_answers_within_groups_only() -> None:
    cases = loads.load("mix", "a", 400)
    assert cases == loads.load("mix", "a", 480)[:400]
    assert len({case.response for case in cases}) == 400
    assert {case.response for case in loads.load("mix", "b", 400)}.isdisjoint(case.response for case in cases)
    for start in range(0, 400, loads.G):
        group = cases[start : start + loads.G]
        assert len({case.gold for case in group}) == 1
        assert len({case.response.partition("</think>")[2] for case in group if "</think>" in case.response}) <= (
            5 if group[0].verifier == "mathverify" else 8
        )


def test_no_poison_is_longer_than_what_the_judge_reads() -> None:
    poisons = loads.poisons()
    assert all(len(json.dumps(case.response)) < 450_000 and len(case.response) <= 400_000 for case in poisons.values())


@pytest.mark.heavy
def test_a_quick_run_prints_every_part_and_finds_all_rewards_equal() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "benchmarks.reward_service", "--quick"]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    for system, way in (
        ("baseline", "/judge, session"),
        ("baseline", "/judge, keep-alive"),
        ("vtriune", "/judge, session"),
        ("vtriune", "/judge, keep-alive"),
        ("vtriune", "/v1/judge, modern"),
        ("vtriune", "/v1/judge, official_code"),
    ):
        for kind in ("math", "math24", "detection", "mix"):
            (cell,) = [line for line in lines if line.startswith(kind + " ") and f"{system:9}{way} " in line]
            # Some requests were answered, all of them with 200.
            assert float(cell[48:57]) > 0 and cell.split()[-1] == "0"
    for part in ("Rewards of /judge like the baseline's", "Verdicts of /v1/judge equal to the embedded judge's"):
        (line,) = [line for line in lines if line.startswith(part)]
        alike, _, compared = line.rpartition(": ")[2].partition(" of ")
        assert alike == compared != "0", run.stdout
    assert sum(line.endswith((" met", " MISSED")) for line in lines) >= 11
