"""The eight tasks: gold that the real judge accepts, boxes that match the drawn pixels, pictures kept apart."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vtriune.data.schema import write_rows
from vtriune.data.sources import SourceConfig, load_samples
from vtriune.playground.dataset import to_row
from vtriune.playground.tasks import SHAPES, SIDE, TASKS, Boxed, Problem, draw_problem, split_of
from vtriune.reward.judge import JudgeItem, judge_item, validate
from vtriune.types import ImageSize, Preset, Progress, Status

FORMS = [(task, form) for task, family in TASKS.items() for form in (*family.common, *family.rare)]
SIZES = (ImageSize((SIDE, SIDE), (SIDE, SIDE)),)
PRESETS: tuple[Preset, ...] = ("modern", "paper", "official_code")


def problems(task: str, form: str, count: int, seed: int = 0) -> list[Problem]:
    rng = random.Random(f"{seed}/{task}/{form}")
    return [TASKS[task].draw(rng, form) for _ in range(count)]


def pixels(problem: Problem) -> np.ndarray:
    return np.asarray(problem.picture)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around all set pixels, right and bottom exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def boxes(problem: Problem) -> tuple[Boxed, ...]:
    assert not isinstance(problem.answer, str)
    return problem.answer


def test_the_eight_families_are_there_each_with_common_and_rare_forms() -> None:
    assert set(TASKS) == {"math", "puzzle", "science", "chart", "detection", "grounding", "counting", "ocr"}
    for family in TASKS.values():
        assert family.common
        assert family.rare
        assert not set(family.common) & set(family.rare)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rare", [False, True])
def test_a_task_draws_every_form_that_it_declares_and_no_other(task: str, rare: bool) -> None:
    rng = random.Random(0)
    drawn = [draw_problem(rng, task, rare=rare, split="train") for _ in range(60)]
    assert {problem.form for problem in drawn} == set(TASKS[task].rare if rare else TASKS[task].common)
    assert {problem.task for problem in drawn} == {task}
    assert {problem.picture.size for problem in drawn} == {(SIDE, SIDE)}
    assert {problem.picture.mode for problem in drawn} == {"RGB"}


@pytest.mark.parametrize("task", TASKS)
def test_every_form_asks_in_words_of_its_own(task: str) -> None:
    asked = [{problem.question for problem in problems(task, form, 200)} for name, form in FORMS if name == task]
    assert sum(map(len, asked)) == len(set().union(*asked))


@pytest.mark.parametrize(("task", "form"), FORMS)
def test_the_same_random_numbers_draw_the_same_problem(task: str, form: str) -> None:
    for one, other in zip(problems(task, form, 5), problems(task, form, 5), strict=True):
        assert (one.question, one.response, one.content) == (other.question, other.response, other.content)
        assert pixels(one).tobytes() == pixels(other).tobytes()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_teachers_own_answer_scores_full_marks_in_every_task_and_form(tmp_path: Path, preset: Preset) -> None:
    drawn = [problem for task, form in FORMS for problem in problems(task, form, 8)]
    write_rows([to_row(problem, problem.task) for problem in drawn], tmp_path / "rows.parquet")
    config = SourceConfig(path="rows.parquet")
    samples = load_samples(
        config, preset=preset, base=tmp_path, check=lambda *reward: partial(validate, *reward)
    ).samples
    for step in (0, 99):  # the strictest threshold of the schedule included
        progress = Progress(step, 100, "train")
        for problem, sample in zip(drawn, samples, strict=True):
            verdict = judge_item(JudgeItem(problem.response, sample.reward, progress, SIZES))
            assert verdict.status is Status.SCORED, verdict.reason
            assert verdict.accuracy == pytest.approx(1, abs=1e-9), problem.response
            assert verdict.correct
            if isinstance(problem.answer, tuple) and preset != "official_code":  # which wants line breaks
                assert verdict.format == 1


@pytest.mark.parametrize(("task", "form"), FORMS)
def test_the_answer_to_another_question_does_not_score(tmp_path: Path, task: str, form: str) -> None:
    drawn = problems(task, form, 40)
    write_rows([to_row(problem, problem.task) for problem in drawn], tmp_path / "rows.parquet")
    samples = load_samples(
        SourceConfig(path="rows.parquet"),
        preset="modern",
        base=tmp_path,
        check=lambda *reward: partial(validate, *reward),
    ).samples
    for problem, other, sample in zip(drawn[1:], drawn, samples, strict=False):
        if problem.answer != other.answer:
            verdict = judge_item(JudgeItem(problem.response, sample.reward, Progress(99, 100, "train"), SIZES))
            assert verdict.accuracy is not None
            assert verdict.accuracy < 1


@pytest.mark.parametrize("task", ["grounding", "detection"])
def test_boxes_lie_in_the_picture_and_do_not_overlap(task: str) -> None:
    for name, form in FORMS:
        if name != task:
            continue
        for problem in problems(task, form, 200):
            for k, box in enumerate(boxes(problem)):
                x1, y1, x2, y2 = box.bbox
                assert 0 <= x1 < x2 <= SIDE
                assert 0 <= y1 < y2 <= SIDE
                for other in boxes(problem)[:k]:
                    a1, b1, a2, b2 = other.bbox
                    assert x1 >= a2 or a1 >= x2 or y1 >= b2 or b1 >= y2


@pytest.mark.parametrize("task", ["grounding", "detection"])
def test_an_object_reaches_all_four_sides_of_its_box(task: str) -> None:
    seen = set()
    for problem in problems(task, TASKS[task].common[0], 200):
        for box in boxes(problem):
            x1, y1, x2, y2 = box.bbox
            crop = pixels(problem)[y1:y2, x1:x2]
            drawn = (crop != 255).any(-1)
            assert extent(drawn) == (0, 0, x2 - x1, y2 - y1)
            assert len(np.unique(crop[drawn], axis=0)) == 1
            shape = box.label.split()[-1]
            seen.add(shape)
            # A square fills its box, an ellipse pi/4 of it, a triangle half.
            assert drawn.mean() == pytest.approx({"square": 1.0, "circle": np.pi / 4, "triangle": 0.5}[shape], abs=0.06)
    assert seen == set(SHAPES)


def test_the_box_of_a_lone_object_is_the_extent_of_all_that_is_drawn() -> None:
    alone = 0
    for problem in problems("detection", "detect", 300):
        drawn = (pixels(problem) != 255).any(-1)
        (box, *others) = boxes(problem)
        x1, y1, x2, y2 = box.bbox
        if not others and drawn.sum() == drawn[y1:y2, x1:x2].sum():
            assert extent(drawn) == box.bbox
            alone += 1
    assert alone > 50


def test_boxes_of_a_detection_are_listed_from_top_to_bottom() -> None:
    for problem in problems("detection", "detect", 200):
        order = [(box.bbox[1], box.bbox[0]) for box in boxes(problem)]
        assert order == sorted(order)


@pytest.mark.parametrize("task", TASKS)
def test_training_and_held_out_pictures_never_meet_pixel_for_pixel(task: str) -> None:
    rng = random.Random(5)
    train = {pixels(draw_problem(rng, task, rare=k % 2 == 0, split="train")).tobytes() for k in range(600)}
    test = {pixels(draw_problem(rng, task, rare=k % 2 == 0, split="test")).tobytes() for k in range(150)}
    assert len(test) > 20
    assert not train & test


@pytest.mark.parametrize("task", TASKS)
def test_contents_tell_pictures_apart(task: str) -> None:
    """Two problems show the same picture exactly if their contents are equal."""
    rng = random.Random(6)
    drawn = [draw_problem(rng, task, rare=k % 2 == 0, split="train") for k in range(600)]
    pairs = {(problem.content, pixels(problem).tobytes()) for problem in drawn}
    assert len(pairs) == len({content for content, _ in pairs}) == len({picture for _, picture in pairs})


def test_a_tenth_of_all_contents_is_held_out() -> None:
    held_out = sum(split_of(f"content {k}") == "test" for k in range(10_000))
    assert held_out == pytest.approx(1000, abs=120)
