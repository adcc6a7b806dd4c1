"""A cell of our own engine: LocalEngine, as `vtriune train` drives it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.engine import work
from benchmarks.engine.data import QUESTION, pictures
from benchmarks.engine.work import Cell, Memory, Result

from vtriune.data.images import FilePicture
from vtriune.grpo.advantages import advantages
from vtriune.local.engine import LocalEngine
from vtriune.local.model import ModelConfig
from vtriune.local.rollout import RolloutConfig
from vtriune.local.update import UpdateConfig
from vtriune.types import Group, JudgedGroup, Message, RewardSpec, Sample, Status, Verdict


def measure(cell: Cell) -> Result:
    """Run the steps, each on pictures that have not been seen before."""
    torch.set_num_threads(cell.threads)
    memory = Memory(cell.device)
    engine = load(cell)
    memory.mark_loaded()
    paths = pictures(Path(cell.folder), cell.side, cell.prompts * (1 + cell.steps))
    steps, counts, prompt_tokens = [], [], 0
    for step in range(1 + cell.steps):
        files = paths[step * cell.prompts : (step + 1) * cell.prompts]
        times, groups = run_step(engine, [_sample(path) for path in files], step, cell.group)
        steps.append(times)
        counts.append(sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts))
        prompt_tokens = len(groups[0].prompt_ids)
    return Result(
        prompt_tokens=prompt_tokens,
        answer_tokens=(min(counts), max(counts)),
        steps=steps[1:],
        loaded=memory.loaded,
        peak=memory.peak,
        flops=update_flops(engine, prompt_tokens * cell.prompts, counts[-1]),
    )


def load(cell: Cell) -> LocalEngine:
    """The engine with the settings that both systems share."""
    return LocalEngine(
        ModelConfig(
            path=cell.folder,
            device="cuda" if cell.device == "cuda" else "cpu",
            dtype="bfloat16" if cell.device == "cuda" else "float32",
            freeze=["vision", "connector"],
        ),
        RolloutConfig(
            prompts_per_step=cell.prompts,
            responses_per_prompt=cell.group,
            max_new_tokens=cell.new_tokens,
            temperature=work.TEMPERATURE,
        ),
        UpdateConfig(
            learning_rate=work.LEARNING_RATE,
            warmup_ratio=0.0,
            weight_decay=work.WEIGHT_DECAY,
            betas=work.BETAS,
            max_grad_norm=work.MAX_GRAD_NORM,
            epsilon_low=work.EPSILON[0],
            epsilon_high=work.EPSILON[1],
            tokens_per_batch=cell.tokens_per_batch,
            gradient_checkpointing=cell.checkpointing,
        ),
        seed=0,
    )


def run_step(engine: LocalEngine, samples: list[Sample], step: int, size: int) -> tuple[dict[str, float], list[Group]]:
    """Seconds of a step and of its parts. Reading the pictures belongs to sampling, as it does with TRL."""
    start = _now(engine)
    good, bad = engine.encode(samples)
    if bad:
        raise RuntimeError(bad[0][1])
    groups = list(engine.generate(good, step, size))
    sampled = _now(engine)
    judged = list(_judge(groups))
    begun = _now(engine)
    figures = engine.update(judged, step, 1000)
    end = _now(engine)
    if figures["skipped_updates"]:
        raise RuntimeError(f"the update was skipped: {figures}")
    times = {"step": end - start, "sampling": sampled - start, "logprobs": 0.0, "update": end - begun}
    return times, groups


def update_flops(engine: LocalEngine, prompt_tokens: int, answer_tokens: int) -> float:
    """6 x parameters x tokens of an update: each prompt once, the head for answers only, no attention scores."""
    layers: Any = engine.vlm.language_model.layers
    body: int = sum(parameter.numel() for parameter in layers.parameters())
    head: int = engine.vlm.model.lm_head.weight.numel()
    return 6.0 * (body * (prompt_tokens + answer_tokens) + head * answer_tokens)


def _now(engine: LocalEngine) -> float:
    if engine.vlm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _sample(path: Path) -> Sample:
    message = Message("user", f"<image>{QUESTION}")
    return Sample(path.stem, "random", "puzzle", (message,), (FilePicture(path, path.name),), RewardSpec("none", ""))


def _judge(groups: Iterable[Group]) -> Iterable[JudgedGroup]:
    for group in groups:
        rewards = [work.reward(rollout.text) for rollout in group.rollouts]
        verdicts = tuple(Verdict(Status.SCORED, reward=reward) for reward in rewards)
        yield JudgedGroup(group, verdicts, advantages(rewards))
