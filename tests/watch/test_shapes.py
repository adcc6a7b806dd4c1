"""What is drawn is what was judged: shapes against the verifiers' own figures."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.data.boxes import BoxSpace, from_relative
from vtriune.reward.judge import MAX_CHARACTERS, JudgeItem, judge_item
from vtriune.types import ImageSize, Progress, RewardSpec, Status
from vtriune.watch.shapes import MAX_CORNERS, MAX_SHAPES, OUTSIDE, Drawing, Shape, draw

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


def test_polygons_are_drawn_and_run_lengths_are_not_and_say_so() -> None:
    polygon, relative = "[[0, 0, 320, 0, 320, 480]]", "[[0, 0, 500, 0, 500, 1000], [0, 0, 1, 0, 1, 1]]"
    drawing = drawn("mask", polygon, f"<answer>{relative}</answer>")
    assert drawing.gold == [Shape("polygon", "", (0, 0, 0.5, 0, 0.5, 1))]
    assert [shape.xy for shape in drawing.answers[0]] == [(0, 0, 0.5, 0, 0.5, 1), (0, 0, 0.001, 0, 0.001, 0.001)]
    assert drawing.note == ""
    rle = '{"size": [480, 640], "counts": [0, 4800, 302400]}'
    drawing = drawn("mask", rle, relative)
    assert (drawing.gold, len(drawing.answers[0])) == ([], 2)
    assert drawing.note == "masks as run lengths (RLE) are not drawn"
    assert drawn("mask", polygon, "no mask at all").answers == [[]]


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
        (RewardSpec("mask", "no"), [SIZE], ""),
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
    outline = ", ".join(f"{n % 640}, {n % 480}" for n in range(9 * MAX_CORNERS))
    mask = drawn("mask", f"[[{outline}]]", f"[[{outline}]]")
    assert len(mask.gold[0].xy) <= 2 * MAX_CORNERS
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
    assert all(map(math.isfinite, (number for shape in drawing.answers[0] for number in shape.xy)))
