"""The final answer is found after the thinking, in the last tag and the last box, in linear time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.answers import boxed, final_text, tagged

LENGTH = 400_000
HOSTILE = [
    "<answer>",
    "</answer>",
    "<answer></answer>",
    "<think>",
    "</think>",
    "\\boxed{",
    "\\boxed{}",
    "\\boxed ",
    "\\boxed",
    "{",
    "}",
    "\\",
    "\\\\boxed{",
    "a",
    " ",
    "\n",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_400000_characters_of_anything_are_searched_in_linear_time(unit: str) -> None:
    text = unit * (LENGTH // len(unit))
    for search in (final_text, tagged, boxed):
        search(text)


@pytest.mark.parametrize(
    ("response", "final"),
    [
        ("<think>draft</think> answer", " answer"),
        ("<think>a</think> b <think>c</think> d", " d"),
        ("the template opened the thinking</think> answer", " answer"),
        ("no thinking at all", "no thinking at all"),
        ("<think>never ends \\boxed{4} <answer>4</answer>", ""),
    ],
)
def test_the_final_text_is_what_follows_the_thinking(response: str, final: str) -> None:
    assert final_text(response) == final


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>4</answer> no: <answer>5</answer> done", "5"),
        ("<answer>cut o", "cut o"),
        ("<answer><answer>4</answer></answer>", "4"),
        ("4</answer>", None),
        ("", None),
    ],
)
def test_the_last_answer_tag_counts_closed_or_cut_off(text: str, content: str | None) -> None:
    assert tagged(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{4}", "4"),
        (r"\boxed {4}", "4"),
        (r"\boxed{3} then \boxed{4}.", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{7}}", "7"),
        (r"so \\\boxed{4}", "4"),
        (r"} \boxed{4}", "4"),
        (r"{ \boxed{4}", "4"),
        (r"\boxed{3}, that is \boxed{4", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{4", None),
        ("boxed{4}", None),
        ("4", None),
    ],
)
def test_the_last_closed_box_counts_with_its_braces_balanced(text: str, content: str | None) -> None:
    assert boxed(text) == content


balanced = st.recursive(
    st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + "}{".join(parts) + "}"),
    max_leaves=6,
)


@given(st.text(max_size=40).filter(lambda text: "\\" not in text), balanced)
def test_whatever_is_put_into_a_box_comes_out_of_it(before: str, content: str) -> None:
    assert boxed(before + r"\boxed{" + content + "} and so on") == content


@given(st.text(st.sampled_from("{}\\boxed<>/answer think"), max_size=200))
def test_no_text_breaks_the_search(text: str) -> None:
    for search in (final_text, tagged, boxed):
        found = search(text)
        assert found is None or found in text
