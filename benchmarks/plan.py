"""`vtriune plan` beside what the local engine really takes: peak memory of an update and of sampling, on a CPU.

    PYTHONPATH=src python -m benchmarks.plan

Each case is a process of its own with a random Qwen2.5-VL of 13 million parameters in float32 and prompts of text. What
counts is the growth of its resident memory from before the model is loaded to the peak, which includes what the
allocator keeps, so the two agree to a factor only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from vtriune.plan import make_plan
from vtriune.plan_formulas import Load, Machines
from vtriune.shapes import read_shape

PROMPT, GROUP, ANSWER = 200, 8, 96
SIZES: dict[str, Any] = {
    "text_config": {
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1056,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]},
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 384,
        "fullatt_block_indexes": [0],
    },
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured, and with which keys of the recipe."""

    what: str
    """training or sampling"""
    checkpointing: bool = False
    prompts: int = 3
    """In one micro-batch, or sampled at a time."""

    def recipe(self, model: str) -> dict[str, Any]:
        """As a file would say it."""
        tokens = self.prompts * (PROMPT + GROUP * ANSWER)
        return {
            "base": "/",
            "steps": 2,
            "model": {"path": model, "device": "cpu"},
            "data": {"train": [{"path": "train"}], "test": [{"path": "test"}]},
            "rollout": {
                "prompts_per_step": self.prompts,
                "responses_per_prompt": GROUP,
                "max_new_tokens": ANSWER,
                "cache_tokens": tokens,
            },
            "update": {"tokens_per_batch": tokens, "gradient_checkpointing": self.checkpointing},
        }


CASES = (
    Case("training"),
    Case("training", checkpointing=True),
    Case("training", prompts=5),
    Case("sampling", prompts=16),
)


def measure(case: Case) -> tuple[float, float]:
    """Bytes on paper, and bytes that a process took."""
    with tempfile.TemporaryDirectory() as folder:
        # Blocks from 256 KiB on go back to the system as soon as they are freed.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18), "OMP_NUM_THREADS": "1"}
        given = orjson.dumps(asdict(case) | {"folder": folder}).decode()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan", given],
            env=environment,
            cwd=Path(__file__).parents[1],
            check=True,
            capture_output=True,
        )
        found = orjson.loads(done.stdout.splitlines()[-1])
    return found["planned"], found["taken"]


def _run(case: Case, folder: Path) -> tuple[float, float]:
    import numpy as np  # noqa: PLC0415 - here and below: only the measured process needs them
    import torch  # noqa: PLC0415
    from benchmarks.engine.models import write_model  # noqa: PLC0415

    from vtriune.local.model import VisionLanguageModel  # noqa: PLC0415
    from vtriune.local.rollout import generate  # noqa: PLC0415
    from vtriune.local.update import Learner, Lesson  # noqa: PLC0415
    from vtriune.recipe import Recipe  # noqa: PLC0415
    from vtriune.types import Message, RewardSpec, Sample  # noqa: PLC0415

    if os.fork() == 0:  # in a process of its own: writing the model is not to be measured
        write_model(folder, SIZES, torch.float32, "cpu")
        os._exit(0)
    os.wait()
    recipe = Recipe.model_validate(case.recipe(str(folder)))
    # What is imported late and made once by torch is no part of what is measured.
    torch.nn.Linear(8, 8)(torch.ones(1, 8)).sum().backward()
    before = _memory("VmRSS")
    vlm = VisionLanguageModel(recipe.model)
    learner = Learner(vlm, recipe.update, 1.0)
    text = "What is the value of the expression " * 100
    sample = Sample("row", "text", "math", (Message("user", text),), (), RewardSpec("mathverify", "4"))
    whole = vlm.encode(sample)
    prompt = type(whole)(whole.prompt, whole.ids[:PROMPT])
    random = np.random.default_rng(0)
    lessons = [
        Lesson(
            prompt,
            [random.integers(0, 400, ANSWER) for _ in range(GROUP)],
            [np.full(ANSWER, -9.0, dtype=np.float32) for _ in range(GROUP)],
            np.linspace(-1, 1, GROUP, dtype=np.float32),
        )
        for _ in range(case.prompts)
    ]
    # One group first, so that AdamW's moments are there, as in all steps but the first of a run.
    learner.update(lessons[:1], 0, 2)
    if case.what == "training":
        learner.update(lessons, 1, 2)
    else:
        answers = generate(
            vlm,
            [prompt] * case.prompts,
            lambda number: random.random((GROUP, ANSWER)),
            group=GROUP,
            max_new_tokens=ANSWER,
            budget=recipe.rollout.cache_tokens,
        )
        assert sum(1 for _ in answers) == case.prompts
    taken = _memory("VmHWM") - before
    plan = make_plan(recipe, read_shape(folder / "config.json"), Machines(), Load(PROMPT, 0))
    return plan.training_total if case.what == "training" else plan.sampling_total, taken


def _memory(name: str) -> int:
    """Bytes of this process; getrusage's peak is also that of whoever started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Print all cases, or measure the one given."""
    if len(sys.argv) > 1:
        given = orjson.loads(sys.argv[1])
        folder = Path(given.pop("folder"))
        planned, taken = _run(Case(**given), folder)
        print(orjson.dumps({"planned": planned, "taken": taken}).decode())
        return
    print(f"{'':10}{'checkpointing':15}{'prompts':9}{'on paper':>12}{'taken':>12}{'ratio':>8}")
    for case in CASES:
        planned, taken = measure(case)
        mib = f"{planned / 2**20:8.0f} MiB{taken / 2**20:8.0f} MiB{planned / taken:8.2f}"
        print(f"{case.what:10}{case.checkpointing!s:15}{case.prompts:<9}{mib}", flush=True)


if __name__ == "__main__":
    main()
