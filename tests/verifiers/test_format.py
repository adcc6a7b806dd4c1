"""R_fmt: eq. 4, and the two variants of the released code."""

from __future__ import annotations

import pytest

from vtriune.verifiers.format import released_detection_score, released_tag_score, tag_score

WELL_FORMED = "<think>\n1 + 1\n</think>\n\n<answer>\n2\n</answer>"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (WELL_FORMED, 1.0),
        ("<think>1</think><answer>2</answer>", 1.0),
        ("<think>1</think> 2", 0.5),
        ("<think>1</think><answer>2</answer><answer>3</answer>", 0.5),
        ("<think><think>1</think><answer>2</answer>", 0.75),
        ("2", 0.0),
        ("", 0.0),
    ],
)
def test_each_tag_that_occurs_exactly_once_is_worth_a_quarter(response: str, score: float) -> None:
    assert tag_score(response) == score


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (WELL_FORMED, 1.0),
        ("<think>1</think><answer>2</answer>", 0.0),
        ("<think>\n1</think>\n<answer>\n2</answer>", 0.5),
        ("<think>\n1\n</think>\n<answer>\n2\n</answer>\n<answer>\n3\n</answer>", 0.5),
    ],
)
def test_the_released_score_wants_line_breaks_around_the_tags(response: str, score: float) -> None:
    assert released_tag_score(response) == score


def test_the_released_detection_score_wants_both_tags_and_a_box() -> None:
    assert released_detection_score(WELL_FORMED, n_boxes=1) == 1.0
    assert released_detection_score(WELL_FORMED, n_boxes=0) == 0.0
    assert released_detection_score("<answer>2</answer>", n_boxes=1) == 0.0
    assert released_detection_score(WELL_FORMED + "\n</answer>", n_boxes=1) == 0.0


def test_the_released_detection_score_lets_a_second_opening_tag_pass_as_the_released_code_does() -> None:
    assert released_detection_score("\n<answer>\n" + WELL_FORMED, n_boxes=1) == 1.0
