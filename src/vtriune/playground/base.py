"""Trains the tiny base VLM of the demo from scratch: tokenizer, configuration, supervised training, model card.

    python -m vtriune.playground.base OUT_FOLDER

The result is an ordinary transformers folder of a Qwen2.5-VL with 1.6 M parameters. The supervised data has the two
weaknesses that reinforcement learning is to mend: rare question forms are rare, and the last steps come from a teacher
whose answers are partly wrong. Held-out pictures (tasks.split_of) are never drawn.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtriune.local.engine import LocalEngine
from vtriune.playground.dataset import write_playground
from vtriune.playground.tasks import SIDE, TASKS, Problem, draw_problem
from vtriune.recipe import Recipe
from vtriune.reward.pool import JudgePool
from vtriune.session import evaluate, load_data
from vtriune.types import Progress

IMAGE_TOKENS = 16
"""A picture of 112 px: 8 x 8 patches, merged two by two."""
IMAGE_MEAN, IMAGE_STD = 0.92, 0.25
"""Of the playground's mostly white pictures. With CLIP's own numbers the tower learns several times slower."""
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokenizer of Qwen2: digits stand alone."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the playground's own sentences, so that any text can be written with it."""
    rng = random.Random(seed)
    problems = [draw_problem(rng, task, rare=k % 2 == 0, split="train") for task in TASKS for k in range(400)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"user\n{p.question}\nassistant\n{p.response}" for p in problems], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of ordinary structure with random weights."""
    token = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            # A small theta keeps the coarse positions of a 4 x 4 grid apart; grounding hardly learns without it.
            "rope_parameters": {"rope_type": "default", "rope_theta": 15.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": token["<|endoftext|>"],
            "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [2],
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token["<|im_end|>"]
    model.generation_config.pad_token_id = token["<|endoftext|>"]
    return model


class LinearPatches(nn.Module):
    """The patch embedding's Conv3d as the matrix product that it is: 2.4 times faster on a CPU, same weights."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight = conv.weight

    def forward(self, patches: Tensor) -> Tensor:
        """(N, 3, 2, 14, 14) -> (N, hidden)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1))


def patches(problems: list[Problem]) -> Tensor:
    """What Qwen2VLImageProcessorPil makes of the pictures, for a whole batch: (B * 64, 1176) float32."""
    pixels = np.stack([np.asarray(problem.picture, dtype=np.float32) for problem in problems])
    pixels = (pixels / np.float32(255) - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
    grid = SIDE // 28
    cells = pixels.reshape(len(problems), grid, 2, 14, grid, 2, 14, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    frames = np.repeat(np.expand_dims(cells, 6), 2, axis=6)
    return torch.from_numpy(frames.reshape(len(problems) * 64, 3 * 2 * 14 * 14))


def batch(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Right-padded inputs of a supervised step; `labels` holds the teacher's answer, -100 elsewhere."""
    rows, answers = [], []
    for problem in problems:
        image = "<|image_pad|>" * IMAGE_TOKENS
        prompt = (
            f"<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{problem.question}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        rows.append(tokenizer.encode(prompt, add_special_tokens=False))
        answers.append(tokenizer.encode(problem.response + "<|im_end|>", add_special_tokens=False))
    length = max(len(row) + len(answer) for row, answer in zip(rows, answers, strict=True))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for k, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        ids[k, : len(row) + len(answer)] = torch.tensor(row + answer)
        labels[k, len(row) : len(row) + len(answer)] = torch.tensor(answer)
        mask[k, : len(row) + len(answer)] = 1
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "pixel_values": patches(problems),
        "image_grid_thw": torch.tensor([[1, 8, 8]] * len(rows)),
        "mm_token_type_ids": (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
    }


TASK_WEIGHTS = {
    "math": 2.0,
    "puzzle": 1.5,
    "science": 0.7,
    "chart": 1.0,
    "counting": 1.0,
    "ocr": 1.7,
    "grounding": 4.0,
    "detection": 1.5,
}
"""Shares of the supervised data: what is hard at this size is shown more often."""
BATCH = 64


def draw(rng: random.Random, noise: float) -> Problem:
    """A training problem; with probability `noise` its answer is that of another problem of the same form."""
    (task,) = rng.choices(list(TASK_WEIGHTS), list(TASK_WEIGHTS.values()))
    rare = rng.random() < RARE_SHARE
    problem = draw_problem(rng, task, rare=rare, split="train")
    if rng.random() < noise:
        other = draw_problem(rng, task, rare=rare, split="train")
        problem = replace(problem, think=other.think, answer=other.answer)
    return problem


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of supervised training."""

    steps: int
    rates: float
    """Scale of all learning rates."""
    noise: float
    """Share of answers that are those of another problem."""


STAGES = (Stage(steps=1400, rates=1.0, noise=0.0), Stage(steps=160, rates=0.25, noise=0.12))
RARE_SHARE = 0.05
"""Share of the rare question forms in supervised training; in the demo it is a half."""


def supervised(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    rng: random.Random,
) -> None:
    """Next-token training on freshly drawn answers: Muon on matrices, AdamW on the rest, cosine to zero."""
    patch_embed = model.model.visual.patch_embed
    conv = patch_embed.proj
    patch_embed.proj = LinearPatches(conv)
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim != 2 and p is not conv.weight]
    optimizers = (
        torch.optim.Muon(matrices, lr=0.02 * stage.rates, weight_decay=0.0),
        torch.optim.AdamW(
            [
                {"params": [*others, embedding], "lr": 2e-3 * stage.rates},
                {"params": [conv.weight], "lr": 5e-4 * stage.rates},
            ],
            weight_decay=0.0,
        ),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        )
        for optimizer in optimizers
    ]
    for _ in track(range(stage.steps), description=f"Training with {stage.noise:.0%} wrong answers"):
        problems = [draw(rng, stage.noise) for _ in range(BATCH)]
        # Answers with boxes are three times as long as the others: apart, little is padded.
        parts = [[p for p in problems if isinstance(p.answer, str) is short] for short in (True, False)]
        batches = [batch(part, tokenizer) for part in parts if part]
        tokens = sum(int((one["labels"] != -100).sum()) for one in batches)
        for one in batches:
            labels = one.pop("labels")[:, 1:]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = model.model(**one).last_hidden_state[:, :-1]
                logits = model.lm_head(hidden[labels != -100])
            loss = F.cross_entropy(logits.float(), labels[labels != -100], reduction="sum") / tokens
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    patch_embed.proj = conv


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, tokenizer and image processor as an ordinary transformers folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
        image_mean=[IMAGE_MEAN] * 3,
        image_std=[IMAGE_STD] * 3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
    ).save_pretrained(folder)


CARD = """# The base model of the demo

A Qwen2.5-VL of {parameters:,} parameters, trained from scratch on the playground's eight tasks.

    python -m vtriune.playground.base {folder} --seed {seed}

took {minutes:.0f} minutes on {threads} CPU threads. Training: {stages}. Rare question forms made up {rare:.0%} of it;
pictures of the held-out split were never drawn.

The weakness is deliberate. Reinforcement learning in the demo has two things to do: concentrate a policy that learned
from partly wrong answers (greedy decoding already hides most of that), and learn question forms that this model has
hardly met (which shows in the greedy score too).

{prompts} held-out prompts per source; `score` is 100 x the mean accuracy of {answers} answers at temperature 1:

| task | source | score | greedy |
|---|---|---|---|
{rows}
"""


def write_card(folder: Path, *, seed: int, minutes: float, prompts: int = 128, answers: int = 8) -> None:
    """Score the model on held-out problems, by the way that the demo takes, and write README.md beside the weights."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        write_playground(data, seed=seed, train=2, test=2 * prompts)
        recipe = Recipe.model_validate(
            {
                "base": data,
                "steps": 1,
                "model": {"path": str(folder.resolve())},
                "data": {"train": [{"path": "train"}], "test": [{"path": "test"}], "prompt_pool": False},
                "rollout": {"max_new_tokens": 96},
                "evaluation": {"responses_per_prompt": answers},
            }
        )
        with JudgePool() as judge:
            test = load_data(recipe, judge).test
            engine = LocalEngine(recipe.model, recipe.rollout, recipe.update, seed)
            judged, _ = evaluate(
                recipe, engine, judge, test, progress=Progress(0, 1, "test"), advance=lambda count: None
            )
    scores = judged.scores
    rows = [
        f"| {score.task} | {source} | {score.estimate.value:.1f} | {scores.greedy[source].estimate.value:.1f} |"
        for source, score in sorted(scores.sampled.items())
    ]
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in engine.vlm.model.parameters()),
        folder=folder.name,
        seed=seed,
        minutes=minutes,
        threads=torch.get_num_threads(),
        stages=", then ".join(f"{one.steps} steps with {one.noise:.0%} wrong answers" for one in STAGES),
        rare=RARE_SHARE,
        prompts=prompts,
        answers=answers,
        rows="\n".join(rows),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write the model, an ordinary transformers folder.")],
    seed: Annotated[int, typer.Option(help="Of the random weights and of the problems.")] = 0,
) -> None:
    """Train the demo's base model from scratch, about 30 minutes on two cores, and write its model card."""
    began = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer)
    for number, stage in enumerate(STAGES):
        supervised(model, tokenizer, stage, random.Random(f"{seed}/{number}"))
    save(model, tokenizer, folder)
    write_card(folder, seed=seed, minutes=(time.monotonic() - began) / 60)


if __name__ == "__main__":
    typer.run(main)
