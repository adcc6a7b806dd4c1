"""The tiny base model's making: fast paths that equal the ordinary ones, and prompts that equal the engine's."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtriune.data.schema import write_rows
from vtriune.data.sources import SourceConfig, load_samples
from vtriune.local.model import ModelConfig, VisionLanguageModel
from vtriune.playground import base
from vtriune.playground.dataset import to_row
from vtriune.playground.tasks import TASKS, Problem, draw_problem, split_of
from vtriune.reward.judge import validate

MEGABYTE = 1e6


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return base.build_tokenizer(0)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    """Two of every task, one in a rare form."""
    rng = random.Random(11)
    return [draw_problem(rng, task, rare=rare, split="train") for task in TASKS for rare in (False, True)]


@pytest.fixture(scope="module")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, saved as the trained one is."""
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    base.save(base.build_model(tokenizer), tokenizer, path)
    return path


def test_patches_are_those_of_the_image_processor(problems: list[Problem], folder: Path) -> None:
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    expected = processor(images=[problem.picture for problem in problems], return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, 8, 8]] * len(problems)
    torch.testing.assert_close(base.patches(problems), expected["pixel_values"], atol=1e-6, rtol=0)


def test_the_linear_patch_embedding_equals_the_convolution(problems: list[Problem]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 32, kernel_size=(2, 14, 14), stride=(2, 14, 14), bias=False).double()
    patches = base.patches(problems[:3]).double().view(-1, 3, 2, 14, 14)
    expected, found = conv(patches).flatten(1), base.LinearPatches(conv)(patches)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), conv.weight)
    (gradient,) = torch.autograd.grad(found.square().sum(), conv.weight)  # one weight, the convolution's own
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-9, rtol=1e-9)


def test_any_text_survives_the_tokenizer_and_digits_stand_alone(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> None:
    texts = [problem.response for problem in problems] + ["Grüße, 你好 🙂\n\n\t<unknown>", "  two  spaces "]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer.encode("1234", add_special_tokens=False)) == 4
    for name in base.SPECIAL:
        assert tokenizer.encode(name, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(name)]


def test_supervised_prompts_are_token_for_token_what_the_engine_asks(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], folder: Path, tmp_path: Path
) -> None:
    write_rows([to_row(problem, problem.task) for problem in problems], tmp_path / "rows.parquet")
    samples = load_samples(
        SourceConfig(path="rows.parquet"),
        preset="modern",
        base=tmp_path,
        check=lambda *reward: partial(validate, *reward),
    ).samples
    vlm = VisionLanguageModel(ModelConfig(path=str(folder), device="cpu", plain=True))
    batch = base.batch(problems, tokenizer)
    for k, (sample, problem) in enumerate(zip(samples, problems, strict=True)):
        encoded = vlm.encode(sample)
        asked = (batch["labels"][k] == -100) & batch["attention_mask"][k].bool()
        assert batch["input_ids"][k][asked].tolist() == encoded.ids.tolist()
        assert encoded.pictures.pixel_values is not None
        pixels = batch["pixel_values"][64 * k : 64 * (k + 1)]
        torch.testing.assert_close(pixels, encoded.pictures.pixel_values, atol=1e-6, rtol=0)
        assert encoded.pictures.sizes[0].original == encoded.pictures.sizes[0].resized
        taught = batch["labels"][k][batch["labels"][k] != -100]
        assert tokenizer.decode(taught) == problem.response + "<|im_end|>"
        assert int(taught[-1]) in vlm.eos_ids
        # Answers begin where prompts end, and both fill the row but for padding.
        assert batch["labels"][k].ne(-100).int().argmax() == len(encoded.ids)


def test_only_picture_placeholders_are_marked_as_pictures(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> None:
    batch = base.batch(problems, tokenizer)
    assert (batch["mm_token_type_ids"].sum(1) == base.IMAGE_TOKENS).all()
    marked = batch["input_ids"][batch["mm_token_type_ids"] == 1]
    assert set(marked.tolist()) == {tokenizer.convert_tokens_to_ids("<|image_pad|>")}


def test_the_saved_model_fits_the_repository(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10 * MEGABYTE


def test_held_out_pictures_are_never_taught_and_rare_forms_rarely() -> None:
    rng = random.Random(0)
    drawn = [base.draw(rng, 0.0) for _ in range(1500)]
    assert {split_of(problem.content) for problem in drawn} == {"train"}
    assert {problem.task for problem in drawn} == set(TASKS)
    rare = [problem.form in TASKS[problem.task].rare for problem in drawn]
    assert np.mean(rare) == pytest.approx(base.RARE_SHARE, abs=0.02)


def test_a_wrong_teacher_gives_the_answer_to_another_problem() -> None:
    right = [base.draw(random.Random(seed), 0.0) for seed in range(100)]
    wrong = [base.draw(random.Random(seed), 1.0) for seed in range(100)]
    for one, other in zip(right, wrong, strict=True):
        assert (one.question, one.content) == (other.question, other.content)
    assert np.mean([one.answer != other.answer for one, other in zip(right, wrong, strict=True)]) > 0.5


def test_supervised_training_lowers_the_loss_and_leaves_an_ordinary_model(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "BATCH", 8)
    torch.manual_seed(0)
    model = base.build_model(tokenizer)
    batch = base.batch(problems, tokenizer)

    def loss() -> float:
        with torch.no_grad():
            return float(model(**batch).loss)

    before = loss()
    base.supervised(model, tokenizer, base.Stage(steps=8, rates=1.0, noise=0.0), random.Random(0))
    assert loss() < 0.97 * before
    assert isinstance(model.model.visual.patch_embed.proj, nn.Conv3d)
