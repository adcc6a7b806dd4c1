"""The benchmark of the engine, our side of it: all of it runs, full answers are measured, figures add up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", ["tiny", "reduced"])
def test_our_side_measures_full_answers_whose_parts_add_up_to_the_step(size: str, tmp_path: Path) -> None:
    options = ["--size", size, "--systems", "ours", "--sides", "140", "--steps", "2", "--threads", "1"]
    options += ["--prompts", "2", "--group", "3", "--new-tokens", "5", "--scaling", "2", "4"]
    options += ["--out", str(tmp_path / "engine.json"), "--figure", str(tmp_path / "scaling.svg")]
    command = [sys.executable, "-m", "benchmarks.engine", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    # 2 x 3 x 5: no random answer ended early.
    assert re.search(r"25 image tokens: prompts of \[\d+\], answers of \[30\]: same work", run.stdout), run.stdout
    report = json.loads((tmp_path / "engine.json").read_text())
    (result,) = report["results"]
    assert result["image_tokens"] == 25 < result["prompt_tokens"]
    for step in result["steps"]:
        assert min(step["sampling"], step["update"]) > 0 == step["logprobs"]
        assert 0.9 * step["step"] < step["sampling"] + step["update"] <= step["step"]
    assert len(result["steps"]) == 2
    assert 0 < result["loaded"] <= result["peak"]
    assert 0 < report["matrix_share"]["25"] < 1
    assert {name: list(curve) for name, curve in report["scaling"].items()} == {
        "prompts": ["2", "4"],
        "responses per prompt": ["2", "4"],
    }
    assert "<svg" in (tmp_path / "scaling.svg").read_text()
