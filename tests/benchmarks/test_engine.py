"""The benchmark of the engine, our side of it: all of it runs, full answers are measured, figures add up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.engine import models, ours
from benchmarks.engine.work import Cell

ROOT = Path(__file__).parents[2]


def test_the_large_model_built_narrower_learns_from_a_vocabulary_beyond_its_tokenizer(tmp_path: Path) -> None:
    models.write_model(tmp_path, models.reduced(models.LARGE), torch.float32, "cpu")
    cell = Cell("ours", str(tmp_path), 140, prompts=2, group=3, new_tokens=5, steps=1, threads=1, checkpointing=True)
    found = ours.measure(cell)
    assert found.answer_tokens == (30, 30)
    # Hidden 256, three layers: attention 2 x (256 x 256) + 2 x (256 x 128) + biases, MLP 3 x (256 x 688), two norms.
    layer = 2 * 256 * 256 + 2 * 256 * 128 + (256 + 2 * 128) + 3 * 256 * 688 + 2 * 256
    tokens = 2 * found.prompt_tokens + 30
    assert found.flops == 6 * (3 * layer * tokens + 4096 * 256 * 30)


@pytest.mark.heavy
def test_our_side_measures_full_answers_whose_parts_add_up_to_the_step(tmp_path: Path) -> None:
    options = ["--systems", "ours", "--sides", "140", "--steps", "2", "--threads", "1"]
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
