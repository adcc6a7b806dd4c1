"""A cell of TRL: GRPOTrainer with the plain generation of transformers, its methods wrapped in clocks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from benchmarks.engine import work
from benchmarks.engine.data import QUESTION, pictures
from benchmarks.engine.work import Cell, Memory, Result
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    TrainerCallback,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class Processor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """Without the video processor, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step and of its parts, by wrapped methods and the trainer's own events."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.steps: list[dict[str, float]] = []
        self._spent: dict[str, float] = {}
        self._begun = self._left = 0.0

    def now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, trainer: Any, name: str, part: str, *, only: Callable[[], bool] = lambda: True) -> None:
        """Add up the time in a method whenever `only` holds."""
        inner = getattr(trainer, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not only():
                return inner(*args, **kwargs)
            start = self.now()
            result = inner(*args, **kwargs)
            self._left = self.now()
            self._spent[part] = self._spent.get(part, 0.0) + self._left - start
            return result

        setattr(trainer, name, timed)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begun = self.now()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Clipping and the optimizer's step lie between the last micro-batch and this."""
        self._spent["optimizer"] = self.now() - self._left

    def on_step_end(self, *_: Any, **__: Any) -> None:
        end, spent = self.now(), self._spent
        update = spent["training"] - spent["preparation"] + spent["optimizer"]
        parts = {"sampling": spent["sampling"], "logprobs": spent.get("logprobs", 0.0), "update": update}
        self.steps.append({"step": end - self._begun, **parts})
        self._begun, self._spent = end, {}


def measure(cell: Cell) -> Result:
    """Train the steps. By prompt: a prompt's answers are sampled and learned before the next prompt's, one
    optimizer step for all; otherwise all at once.
    """
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415 - not in the project's own environment

    torch.set_num_threads(cell.threads)
    memory = Memory(cell.device)
    tokenizer = AutoTokenizer.from_pretrained(cell.folder, padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(cell.folder, dtype=torch.float32, attn_implementation="sdpa")
    model.model.visual.requires_grad_(False)
    processor = Processor(
        Qwen2VLImageProcessorPil.from_pretrained(cell.folder), tokenizer, chat_template=tokenizer.chat_template
    )
    paths = pictures(Path(cell.folder), cell.side, cell.prompts * (1 + cell.steps))
    prompt = [{"role": "user", "content": QUESTION}]
    rows = datasets.Dataset.from_list([{"prompt": prompt, "image": str(path)} for path in paths])
    counts: list[int] = []
    prompt_tokens: list[int] = []

    def rewards(completions: list[list[dict[str, str]]], completion_ids: list[list[int]], **_: Any) -> list[float]:
        counts.append(sum(map(len, completion_ids)))
        return [work.reward(completion[0]["content"]) for completion in completions]

    by_prompt = cell.system == "trl by prompt"
    clock = Clock(cell.device)
    with tempfile.TemporaryDirectory() as out:
        trainer: Any = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=GRPOConfig(
                output_dir=out,
                use_cpu=cell.device == "cpu",
                bf16=cell.device == "cuda",
                per_device_train_batch_size=cell.group * (1 if by_prompt else cell.prompts),
                gradient_accumulation_steps=cell.prompts if by_prompt else 1,
                steps_per_generation=1,
                gradient_checkpointing=cell.checkpointing,
                num_generations=cell.group,
                max_completion_length=cell.new_tokens,
                temperature=work.TEMPERATURE,
                max_steps=1 + cell.steps,
                shuffle_dataset=False,
                beta=0.0,
                epsilon=work.EPSILON[0],
                epsilon_high=work.EPSILON[1],
                loss_type="dapo",
                learning_rate=work.LEARNING_RATE,
                lr_scheduler_type="constant",
                adam_beta1=work.BETAS[0],
                adam_beta2=work.BETAS[1],
                weight_decay=work.WEIGHT_DECAY,
                max_grad_norm=work.MAX_GRAD_NORM,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=rows.cast_column("image", datasets.Image()),
            processing_class=processor,
            callbacks=[clock],
        )
        tokenize = trainer._tokenize_prompts

        def tokenized(prompts: Any) -> Any:
            found = tokenize(prompts)
            prompt_tokens.append(len(found[0][0]))
            return found

        trainer._tokenize_prompts = tokenized
        clock.wrap(trainer, "_generate", "sampling")
        no_grad = "_get_per_token_logps_and_entropies"
        clock.wrap(trainer, no_grad, "logprobs", only=lambda: not torch.is_grad_enabled())
        clock.wrap(trainer, "_prepare_inputs", "preparation")
        clock.wrap(trainer, "training_step", "training")
        memory.mark_loaded()
        trainer.train()
    each = cell.prompts if by_prompt else 1
    per_step = [sum(counts[start : start + each]) for start in range(0, len(counts), each)]
    return Result(
        prompt_tokens=prompt_tokens[0],
        answer_tokens=(min(per_step), max(per_step)),
        steps=clock.steps[1:],
        loaded=memory.loaded,
        peak=memory.peak,
    )
