"""What is drawn is what was judged: shapes against the verifiers' own figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from vtriune.data.boxes import BoxSpace, from_relative
from vtriune.reward.judge import MAX_CHARACTERS, JudgeItem, judge_item
from vtriune.types import ImageSize, Progress, RewardSpec, Status
from vtriune.watch.outlines import MAX_CORNERS
from vtriune.watch.shapes import MAX_SHAPES, OUTSIDE, Drawing, Shape, draw

SIZE = ImageSize((640, 480), (644, 476))
TEST = Progress(0, 1, "test")

Sides = st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(sorted)
Corners = st.tuples(Sides, Sides).map(lambda sides: tuple(side[end] / 40 for end in (0, 1) for side in sides))


def drawn(verifier: str, gold: str, answer: str, **parameters: Any) -> Drawing:
    return draw(RewardSpec(verifier, gold, parameters=parameters), [SIZE], [answer])


def written(shares: tuple[float, ...], space: BoxSpace) -> list[float]:
    own: list[float] = from_relative(np.array([shares]), space, SIZE)[0].tolist()
    return own


def listed(*boxes: tuple[tuple[float, ...], str], space: BoxSpace) -> str:
    return orjson.dumps([{"bbox_2d": written(box, space), "label": label} for box, label in boxes]).decode()


@given(Corners, Corners, st.sampled_from(BoxSpace), st.sampled_from(BoxSpace))
def test_a_box_is_drawn_where_it_was_judged_whatever_the_spaces(
    gold: tuple[float, ...], answer: tuple[float, ...], gold_space: BoxSpace, answer_space: BoxSpace
) -> None:
    parameters = {"gold_space": gold_space, "answer_space": answer_space}
    texts = str(written(gold, gold_space)), f"<think>?</think>{written(answer, answer_space)}"
    drawing = drawn("grounding", *texts, **parameters)
    spec = RewardSpec("grounding", texts[0], parameters=parameters)
    verdict = judge_item(JudgeItem(texts[1], spec, TEST, (SIZE,)))
    ((wanted,), ((found,),)) = drawing.gold, drawing.answers
    assert wanted.xy == pytest.approx(gold)
    assert found.xy == pytest.approx(answer)
    assert found.iou == verdict.report["iou"]  # to the last bit
    assert drawing.note == ""


@given(
    st.lists(st.tuples(Corners, st.sampled_from("ab")), min_size=1, max_size=4),
    st.lists(st.tuples(Corners, st.sampled_from("ABc")), max_size=4),
    st.sampled_from(["paper", "modern"]),
)
def test_every_box_of_a_detection_has_its_best_overlap_with_gold_of_its_label(
    gold: list[tuple[tuple[float, ...], str]], answer: list[tuple[tuple[float, ...], str]], preset: Any
) -> None:
    space = BoxSpace.RELATIVE_1000
    spec = RewardSpec("detection", listed(*gold, space=space), preset=preset)
    drawing = draw(spec, [SIZE], [listed(*answer, space=space)])
    assert [(shape.kind, shape.label) for shape in drawing.gold] == [("box", label) for _, label in gold]
    assert [shape.label for shape in drawing.answers[0]] == [label.lower() for _, label in answer]
    for shape, (corners, label) in zip(drawing.answers[0], answer, strict=True):
        best = 0.0
        for other, name in gold:
            if name == label.lower():
                one = RewardSpec("grounding", str(written(other, space)))
                verdict = judge_item(JudgeItem(str(written(corners, space)), one, TEST, (SIZE,)))
                best = max(best, verdict.report["iou"])
        assert shape.iou == best


def test_official_detections_are_drawn_as_the_released_code_reads_them() -> None:
    gold = "<answer>[{'bbox_2d': [0, 0, 500, 500], 'label': 'cat'}]</answer>"
    parameters = {"det_reward_ratio": {"map": 1.0}}
    draft = "<think><answer>[{'bbox_2d': [0, 0, 500, 1000], 'label': 'Cat'}]</answer></think><answer>[]</answer>"
    drawing = draw(RewardSpec("detection", gold, parameters=parameters, preset="official_code"), [SIZE], [draft])
    assert drawing.answers == [[Shape("box", "cat", (0, 0, 0.5, 1), 0.5)]]  # the first answer, a draft


def test_points_are_drawn_with_their_targets_and_the_circle_that_counts() -> None:
    drawing = drawn("pointing", '{"point_2d": [500, 250], "radius": 100}', '<point x="100" y="200">')
    point, circle = drawing.gold
    assert (point.kind, point.xy) == ("point", (0.5, 0.25))
    assert circle.kind == "polygon"
    distances = [math.hypot(x - 0.5, y - 0.25) for x, y in zip(circle.xy[::2], circle.xy[1::2], strict=True)]
    assert distances == pytest.approx([0.1] * len(distances))
    assert drawing.answers == [[Shape("point", "", (0.1, 0.2))]]
    assert drawn("pointing", "[100, 100, 200, 150]", "(120, 150)").gold == [Shape("box", "", (0.1, 0.1, 0.2, 0.15))]


Mask = tuple[int, int, int, int]
"""A rectangle in pixels of a picture of 64 x 48: left, top, right, bottom."""
Masks = st.tuples(st.integers(0, 31), st.integers(0, 23), st.integers(32, 64), st.integers(24, 48))


def polygon(mask: Mask) -> str:
    left, top, right, bottom = mask
    return str([[left, top, right, top, right, bottom, left, bottom]])


def run_lengths(mask: Mask) -> str:
    left, top, right, bottom = mask
    covered = np.zeros((48, 64), np.uint8, order="F")
    covered[top:bottom, left:right] = 1
    return str({"size": [48, 64], "counts": coco.encode(covered)["counts"].decode()}).replace("'", '"')


@given(Masks, Masks, st.sampled_from([polygon, run_lengths]), st.sampled_from([polygon, run_lengths]))
def test_masks_are_drawn_as_they_were_judged_however_they_are_written(
    gold: Mask, answer: Mask, write_gold: Callable[[Mask], str], write: Callable[[Mask], str]
) -> None:
    spec = RewardSpec("mask", write_gold(gold), parameters={"answer_space": "absolute_original"})
    size = ImageSize((64, 48), (64, 48))
    drawing = draw(spec, [size], [f"<answer>{write(answer)}</answer>"])
    verdict = judge_item(JudgeItem(f"<answer>{write(answer)}</answer>", spec, TEST, (size,)))
    ((wanted,), ((found,),)) = drawing.gold, drawing.answers
    for shape, (left, top, right, bottom) in ((wanted, gold), (found, answer)):
        assert (shape.kind, shape.xy) == ("mask", (left / 64, top / 48, right / 64, bottom / 48))
        assert {shape.rings[0][place : place + 2] for place in range(0, 8, 2)} == {
            (x / 64, y / 48) for x in (left, right) for y in (top, bottom)
        }
    assert (wanted.iou, found.iou) == (None, verdict.report["iou"])  # to the last bit
    assert drawing.note == ""


def test_a_mask_has_as_many_outlines_as_parts_and_holes_and_none_is_drawn_of_what_covers_nothing() -> None:
    gold = "[[0, 0, 320, 0, 320, 480, 0, 480], [400, 0, 500, 0, 500, 100, 400, 100]]"
    hole = f"{{'size': [480, 640], 'counts': [0, 48100{', 280, 200' * 99}, 280, 211300]}}"
    drawing = drawn("mask", gold, f"<answer>{hole}</answer>")
    assert [len(shape.rings) for shape in (*drawing.gold, *drawing.answers[0])] == [2, 2]
    for nothing in ("no mask at all", "[[7, 7, 7, 7, 7, 7]]", "{'size': [480, 640], 'counts': [307200]}"):
        assert drawn("mask", gold, nothing).answers == [[]]


def test_of_a_composite_the_first_part_with_shapes_is_drawn() -> None:
    parts = [
        {"verifier": "format"},
        {"verifier": "composite", "parameters": {"parts": [{"verifier": "grounding"}]}, "name": "inner"},
        {"verifier": "pointing", "gold": "(1, 1)", "parameters": {"radius": 3}},
    ]
    drawing = drawn("composite", "[0, 0, 500, 500]", "[0, 0, 250, 500]", parts=parts)
    assert drawing.gold == [Shape("box", "", (0, 0, 0.5, 0.5))]
    assert drawing.answers == [[Shape("box", "", (0, 0, 0.25, 0.5), 0.5)]]
    text = [{"verifier": "format"}, {"verifier": "mathverify"}]
    note = drawn("composite", "4", "4", parts=text).note
    assert note == "format: format judges no places in a picture; mathverify: mathverify judges no places in a picture"


@pytest.mark.parametrize(
    ("spec", "sizes", "note"),
    [
        (RewardSpec("mathverify", "4"), [SIZE], "mathverify judges no places in a picture"),
        (RewardSpec("detecton", "[]"), [SIZE], 'verifier "detecton" is not registered; did you mean "detection"?'),
        (RewardSpec("grounding", "[1, 2, 3, 4]"), [], "the sample has no picture"),
        (RewardSpec("grounding", "none"), [SIZE], "gold 'none' holds 0 boxes; write one as [x1, y1, x2, y2]"),
        (
            RewardSpec("grounding", "[1, 2, 3, 4]", parameters={"vlaue": 1}),
            [SIZE],
            'verifier "grounding": verifier_parm',
        ),
        (
            RewardSpec("grounding", "[1, 2, 3, 4]", parameters={"gold_space": "absolute_resized"}),
            [ImageSize((0, 0), (0, 0))],
            "boxes in absolute_resized need a picture with an area",
        ),
        (RewardSpec("mask", "no"), [SIZE], "gold 'no': no mask found"),
        (RewardSpec("detection", "x" * (MAX_CHARACTERS + 1)), [SIZE], "ground_truth is longer than"),
    ],
)
def test_what_cannot_be_drawn_says_why(spec: RewardSpec, sizes: list[ImageSize], note: str) -> None:
    drawing = draw(spec, sizes, ["[0, 0, 1, 1]", ""])
    assert drawing.gold == []
    assert drawing.note.startswith(note)
    assert len(drawing.answers) == 2


def test_shapes_and_corners_are_bounded_and_the_note_says_so() -> None:
    boxes = ", ".join(f'{{"bbox_2d": [{n}, 0, {n + 1}, 9], "label": "a"}}' for n in range(900))
    drawing = drawn("detection", f"[{boxes}]", f"[{boxes}]")
    assert (len(drawing.gold), len(drawing.answers[0])) == (MAX_SHAPES, MAX_SHAPES)
    assert drawing.note == f"the first {MAX_SHAPES} of 900 shapes are drawn"
    assert all(shape.iou == 1 for shape in drawing.answers[0])
    combs = [f"{n}, 0, {n}, 400, {n + 1}, 400, {n + 1}, 0" for n in range(0, 200, 2)]
    comb = f"[[{', '.join(combs)}]]"
    mask = drawn("mask", comb, comb, answer_space="absolute_original")
    for shape in (*mask.gold, *mask.answers[0]):
        assert 0 < sum(map(len, shape.rings)) <= 2 * MAX_CORNERS
    ((far,),) = drawn("grounding", "[0, 0, 1, 1]", "[-1e99, 0, 1e99, 1]").answers
    assert list(far.xy) == [-OUTSIDE, 0, 1 + OUTSIDE, 0.001]
    assert drawn("grounding", "[0, 0, 1, 1]", " " * MAX_CHARACTERS + "[0, 0, 1, 1]").answers == [[]]


@pytest.mark.parametrize(
    ("verifier", "piece"),
    list(
        product(
            ["detection", "grounding", "pointing", "mask"],
            ["[", "{", '{"bbox_2d": [', "[[0,0],", "<points ", "(1,", "<answer>", '"', "\\"],
        )
    ),
)
def test_hostile_answers_draw_something_finite_or_nothing(verifier: str, piece: str) -> None:
    gold = {"pointing": "[0, 0, 9, 9]", "mask": "[[0, 0, 9, 0, 9, 9]]"}.get(
        verifier, '{"bbox_2d": [0, 0, 9, 9], "label": "a"}'
    )
    answer = piece * (MAX_CHARACTERS // len(piece))
    drawing = drawn(verifier, gold, answer)
    spec = RewardSpec(verifier, gold)
    assert judge_item(JudgeItem(answer, spec, TEST, (SIZE,))).status is Status.SCORED
    for shape in drawing.answers[0]:
        assert all(map(math.isfinite, (*shape.xy, *(number for ring in shape.rings for number in ring))))
