"""Runs to look at: real questions with real pictures, written answers, verdicts of the real judge, written by RunStore.

Only the model is missing: answers are right as often as `skill` says, which grows with the step.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL.Image import Image

from vtriune.data.sources import SourceConfig, load_samples
from vtriune.grpo.advantages import group_advantages
from vtriune.monitor.evaluation import Evaluation, evaluate_metrics, evaluation_figures, summarize
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.store import RunStore
from vtriune.recipe import load_recipe
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import JudgePool
from vtriune.types import FinishReason, Group, ImageSize, JudgedGroup, Progress, Rollout, Sample

ANSWERS = 4
"""G: answers to a prompt."""

RECIPE = """
base: {base}
steps: {steps}
model: {{path: model, freeze: [vision, connector]}}
data:
  train: [{{path: train}}]
  test: [{{path: test}}]
"""


@dataclass
class Writer:
    """One run that is written step by step; a context manager, as long as which it counts as running."""

    folder: Path
    playground: Path
    pool: JudgePool
    steps: int = 4
    seed: int = 0
    texts: Sequence[str] = ()
    """Answers that are given besides those of our own making, in turn."""
    evaluations: list[Evaluation] = field(default_factory=list)

    def __enter__(self) -> Self:
        recipe_file = self.folder.parent / f"{self.folder.name}.recipe.yaml"
        recipe_file.write_text(RECIPE.format(base=self.playground, steps=self.steps))
        recipe = load_recipe(recipe_file)
        self.recipe, self.rng = recipe, random.Random(self.seed)
        self.samples = {"train": self._samples(recipe.data.train), "test": self._samples(recipe.data.test)}
        self.store = RunStore.create(
            self.folder, recipe=recipe.model_dump(mode="json"), total_steps=self.steps, threads=1
        ).__enter__()
        recipe_file.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.__exit__(kind, error, trace)

    def step(self, step: int) -> None:
        """Write training step `step`, counted from 1."""
        progress = Progress(step - 1, self.steps, "train")
        groups = self._judged(self.samples["train"], progress, ANSWERS)
        self.store.write_rollouts(step, groups, progress)
        figures = source_metrics(groups) | {"all/grad_norm": 0.1 + step / 100}
        self.store.log(step, "train", figures, {"rollout_s": 1.5, "update_s": 0.5})

    def evaluate(self, step: int) -> None:
        """Write a held-out evaluation after `step` steps."""
        progress = Progress(step, self.steps, "test")
        sampled, greedy = (self._judged(self.samples["test"], progress, count) for count in (ANSWERS, 1))
        self.store.write_evaluation(step, sampled, greedy, progress)
        self.evaluations.append(Evaluation(evaluate_metrics(sampled), evaluate_metrics(greedy)))
        self.store.log(step, "eval", evaluation_figures(self.evaluations[-1]))

    def finish(self) -> None:
        """Write all that is missing to a finished run."""
        self.evaluate(0)
        for step in range(1, self.steps + 1):
            self.step(step)
        self.evaluate(self.steps)
        before, after = self.evaluations[0], self.evaluations[-1]
        self.store.finish(summarize(before, after, minutes=1.0, steps=self.steps, seed=0))

    def _samples(self, sources: Sequence[SourceConfig]) -> list[Sample]:
        return [
            sample
            for source in sources
            for sample in load_samples(
                source, preset="modern", base=self.recipe.base, check=lambda *_: lambda: None
            ).samples
        ]

    def _judged(self, samples: Sequence[Sample], progress: Progress, count: int) -> list[JudgedGroup]:
        groups = [self._group(sample, progress, count) for sample in samples]
        items = [
            JudgeItem(one.text, group.sample.reward, progress, group.image_sizes)
            for group in groups
            for one in group.rollouts
        ]
        verdicts = iter(self.pool.submit(items).result())
        judged = [(group, tuple(next(verdicts) for _ in group.rollouts)) for group in groups]
        return [
            JudgedGroup(group, given, group_advantages("grpo", given, group.sample.reward)) for group, given in judged
        ]

    def _group(self, sample: Sample, progress: Progress, count: int) -> Group:
        skill = 0.2 + 0.7 * progress.step / progress.total_steps
        texts = [self._answer(sample, skill) for _ in range(count)]
        if self.texts and count > 1:
            texts[1] = self.texts[self.rng.randrange(len(self.texts))]
        pictures: list[Image] = [reference.load() for reference in sample.images]
        sizes = tuple(ImageSize(one.size, one.size) for one in pictures)
        rollouts = tuple(
            Rollout(
                np.arange(len(text) // 4 + 1),
                np.zeros(len(text) // 4 + 1, np.float32),
                text,
                FinishReason.LENGTH if self.rng.random() < 0.1 else FinishReason.STOP,
                entropy=1 - skill,
            )
            for text in texts
        )
        return Group(sample, sample.messages[0].content, np.arange(9), sizes, rollouts)

    def _answer(self, sample: Sample, skill: float) -> str:
        gold = sample.reward.gold
        if self.rng.random() > skill:  # the last number is off by a few
            last = r"\d+(?!.*\d)"
            gold = re.sub(last, lambda found: str(int(found[0]) + self.rng.randint(1, 9)), gold, count=1, flags=re.S)
        if sample.reward.verifier != "detection":
            gold = f"<answer>{gold}</answer>"
        return f"<think>I look at the picture, then I count again.</think>\n{gold}"


@dataclass
class Watch:
    """`vtriune watch` in a process of its own."""

    process: subprocess.Popen[str]
    url: str


@contextmanager
def watching(runs: Path, port: int = 0) -> Iterator[Watch]:
    """Serve the folder `runs` by the real command."""
    command = [sys.executable, "-m", "vtriune.cli", "watch", str(runs), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url), url
        yield Watch(process, url)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
