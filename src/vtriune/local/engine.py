"""The embedded engine's face: samples in, groups out; judged groups in, new weights out; save and load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from vtriune.grpo.objective import PAPER, ObjectiveConfig
from vtriune.local.checkpoint import OPTIMIZER_FILE, damaged
from vtriune.local.lora import WEIGHTS_FILE, load_adapters, save_adapters
from vtriune.local.model import TOGETHER, Encoded, ModelConfig, PictureCache, VisionLanguageModel
from vtriune.local.rollout import RolloutConfig, generate, remove_placeholders, uniforms
from vtriune.local.update import Learner, Lesson, UpdateConfig
from vtriune.types import Group, JudgedGroup, Sample, Status, UserError


class LocalEngine:
    """One model on one device. Everything random is drawn from (seed, step, sample), so there is no hidden state."""

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        update: UpdateConfig,
        seed: int,
        objective: ObjectiveConfig = PAPER,
    ) -> None:
        torch.manual_seed(seed)
        self.vlm = VisionLanguageModel(model)
        self.learner = Learner(self.vlm, update, rollout.temperature, objective)
        self.rollout = rollout
        self.seed = seed
        self._encoded: dict[str, Encoded] = {}
        self._pictures = PictureCache(model.picture_cache * 2**20)

    def encode(
        self, samples: Sequence[Sample], *, further: bool = False
    ) -> tuple[list[Sample], list[tuple[Sample, str]]]:
        """Decode each picture and run frozen vision, once.

        Returns the samples that can be asked, and the others with the reason.

        Only they can be asked and learned from after that, and with `further` those of the calls before, too.
        """
        good: list[Sample] = []
        bad: list[tuple[Sample, str]] = []
        if not further:
            self._encoded.clear()
        for start in range(0, len(samples), TOGETHER):
            some = samples[start : start + TOGETHER]
            for sample, pictures in zip(some, self.vlm.look(some, self._pictures), strict=True):
                try:
                    if isinstance(pictures, UserError):
                        raise pictures
                    self._encoded[sample.id] = self.vlm.encode(sample, self.rollout.max_new_tokens, pictures)
                    good.append(sample)
                except UserError as error:
                    bad.append((sample, str(error)))
        return good, bad

    def generate(self, samples: Sequence[Sample], step: int, group_size: int | None) -> Iterator[Group]:
        """Answers to encoded samples, a group as soon as it is finished.

        Args:
            samples: as returned by `encode`.
            step: training step; part of the seed.
            group_size: answers per prompt; None for one greedy answer.
        """
        length, size = self.rollout.max_new_tokens, group_size or 1
        # The longest go first, and prompts of similar length together, so that little is padded.
        ordered = sorted(samples, key=lambda sample: -len(self._encoded[sample.id].ids))
        prompts = [self._encoded[sample.id] for sample in ordered]

        def draws(number: int) -> np.ndarray:
            return uniforms(self.seed, step, ordered[number].id, size, length)

        answers = generate(
            self.vlm,
            prompts,
            None if group_size is None else draws,
            group=size,
            max_new_tokens=length,
            temperature=self.rollout.temperature,
            budget=self.rollout.cache_tokens,
        )
        for number, rollouts in answers:
            prompt = prompts[number]
            kept = tuple(remove_placeholders(rollout, self.vlm.placeholder_ids) for rollout in rollouts)
            yield Group(ordered[number], prompt.prompt, prompt.ids, prompt.pictures.sizes, kept)

    def update(self, judged: Sequence[JudgedGroup], step: int, total_steps: int) -> dict[str, float]:
        """Learn from the groups of one step; answers without a verdict are left out altogether.

        Lessons stand in the order in which the samples were encoded, where the sources take turns: sampling ordered
        them by length, which is nearly by task, and off-policy each optimizer step would see a few tasks only.
        """
        lessons: list[Lesson] = []
        place = {sample_id: k for k, sample_id in enumerate(self._encoded)}
        for one in sorted(judged, key=lambda one: place[one.group.sample.id]):
            kept = [k for k, verdict in enumerate(one.verdicts) if verdict.status is Status.SCORED]
            rollouts = [one.group.rollouts[k] for k in kept]
            if rollouts:
                lessons.append(
                    Lesson(
                        self._encoded[one.group.sample.id],
                        [rollout.token_ids for rollout in rollouts],
                        [rollout.logprobs for rollout in rollouts],
                        one.advantages[kept],
                        one.group.sample.id,
                    )
                )
        return self.learner.update(lessons, step, total_steps)

    def save(self, folder: Path) -> None:
        """Write an ordinary transformers folder, or one of peft with LoRA, plus the optimizer's state."""
        if self.vlm.lora:
            save_adapters(self.vlm.model, folder, self.vlm.path)
        else:
            self.vlm.save(folder)
        state = {"optimizer": self.learner.optimizer.state_dict(), "rng": torch.get_rng_state()}
        torch.save(state | {"skipped_in_a_row": self.learner.skipped_in_a_row}, folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> None:
        """Continue from a folder that `save` wrote. The optimizer's file is read without unpickling code.

        Raises:
            UserError: a file is damaged or missing.
        """
        file = folder / (WEIGHTS_FILE if self.vlm.lora else "model.safetensors")
        try:
            if self.vlm.lora:
                load_adapters(self.vlm.model, folder)
            else:
                model, report = AutoModelForImageTextToText.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True
                )
                if missing := sorted(report["missing_keys"]):  # transformers makes them up
                    raise ValueError(f"lacks {missing[0]}, {len(missing)} in all")
                self.vlm.model.load_state_dict(model.state_dict())
            file = folder / OPTIMIZER_FILE
            state = torch.load(file, map_location=self.vlm.device, weights_only=True)
            self.learner.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"].cpu())
            self.learner.skipped_in_a_row = state.get("skipped_in_a_row", 0)  # older checkpoints don't count them
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a damaged file leads transformers and torch to
            raise damaged(file, error) from error
