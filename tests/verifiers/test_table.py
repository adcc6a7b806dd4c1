"""The table verifier: TEDS by hand and against the untrimmed distance of apted, HTML and Markdown, hostile answers."""

from __future__ import annotations

from typing import Literal

import pytest
from apted import APTED, Config
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from vtriune.verifiers import table_tree
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.table import MAX_GOLD_NODES, TableParams, TableVerifier
from vtriune.verifiers.table_tree import Node, distance, read_table, without_text

VERIFIER, CONTEXT = TableVerifier(), Context(preset="modern", split="train")
Rows = list[list[str]]
some_rows = st.lists(st.lists(st.sampled_from(["a", "ab", "cd", ""]), min_size=1, max_size=3), min_size=1, max_size=4)


def html(rows: Rows, *, grouped: bool = False) -> str:
    written = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    if grouped:
        written = ["<thead>", written[0], "</thead><tbody>", *written[1:], "</tbody>"]
    return f"<table>{''.join(written)}</table>"


def markdown(rows: Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def judge(response: str, gold: str, value: Literal["teds", "teds_structure"] = "teds") -> Outcome:
    params = TableParams(value=value)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, CONTEXT), params, CONTEXT)


def tree(text: str) -> Node:
    found = read_table(text)
    assert found is not None
    return found


class PaperCosts(Config):  # type: ignore[misc]
    """The costs of arXiv 1911.10683, 5, written down once more."""

    valuecls = float

    def rename(self, node1: Node, node2: Node) -> float:
        if node1.label != node2.label:
            return 1.0
        return Levenshtein.distance(node1.text, node2.text) / max(len(node1.text), len(node2.text), 1)


TWO = [["a", "b"], ["c", "dd"]]  # 6 nodes without the table itself


@pytest.mark.parametrize(
    ("answer", "teds", "structure"),
    [
        (html(TWO), 1.0, 1.0),
        (html([["a", "b"], ["c", "dx"]]), 1 - 0.5 / 6, 1.0),  # half of a cell's text
        (html([["a", "b"], ["c", "x"]]), 1 - 1 / 6, 1.0),  # d of 2 / max(1, 2) = 1
        (html([["a", "b"]]), 1 - 3 / 6, 1 - 3 / 6),  # a row and its two cells are missing
        (html([*TWO, ["e", "f"]]), 1 - 3 / 9, 1 - 3 / 9),
        (html([["a"], ["c"]]), 1 - 2 / 6, 1 - 2 / 6),
        (html(TWO).replace("<td>dd", "<td colspan='2'>dd"), 1 - 1 / 6, 1 - 1 / 6),
        (html([["c", "dd"], ["a", "b"]]), 1 - 4 / 6, 1.0),  # rows swapped: all four cells differ
        ("no table", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("<table></table>", 0.0, 0.0),
    ],
)
def test_teds_is_as_computed_by_hand(answer: str, teds: float, structure: float) -> None:
    outcome = judge(answer, html(TWO))
    assert outcome.accuracy == pytest.approx(teds)
    assert judge(answer, html(TWO), "teds_structure").accuracy == pytest.approx(structure)
    assert outcome.correct == (teds == 1)
    assert list(outcome.report) == ["teds", "teds_structure", "n_pred", "n_gold"]


def test_html_and_markdown_are_the_same_table() -> None:
    for gold in (html(TWO), html(TWO, grouped=True), markdown(TWO)):
        assert judge(f"Here it is:\n\n{markdown(TWO)}\n\nDone.", gold).correct
        assert judge(f"<think>{html([['x']])}</think><answer>{html(TWO, grouped=True)}</answer>", gold).correct
    # Groups of rows count where gold in HTML has them: two more nodes to insert, of eight.
    assert judge(html(TWO), html(TWO, grouped=True)).accuracy == pytest.approx(1 - 2 / 8)


def test_header_cells_emphasis_and_white_space_change_nothing() -> None:
    answer = (
        "<TABLE><tr><th> <b>a</b></th><th>b\n</th></tr><tr><td>c<!-- x --></td><td rowspan='x'>dd</td></tr></TABLE>"
    )
    assert judge(answer, html(TWO)).correct
    assert tree("|a\\|b|c|\n|:-|-:|\n|1|2|").children[0].children[0].children[0].text == "a|b"


@given(some_rows, some_rows, st.booleans(), st.booleans())
@settings(deadline=None)
def test_leaving_out_what_is_equal_changes_no_distance(a: Rows, b: Rows, grouped_a: bool, grouped_b: bool) -> None:
    one, other = tree(html(a, grouped=grouped_a)), tree(html(b, grouped=grouped_b))
    for x, y in ((one, other), (without_text(one), without_text(other))):
        assert distance(x, y) == pytest.approx(APTED(x, y, PaperCosts()).compute_edit_distance())


@given(some_rows, some_rows, st.booleans(), st.booleans())
@settings(deadline=None)
def test_the_top_down_distance_is_never_too_small(a: Rows, b: Rows, grouped_a: bool, grouped_b: bool) -> None:
    one, other = tree(html(a, grouped=grouped_a)), tree(html(b, grouped=grouped_b))
    with pytest.MonkeyPatch.context() as patch:
        exact = distance(one, other)
        patch.setattr(table_tree, "EXACT_PAIRS", 0)
        assert distance(one, other) >= exact - 1e-9


@given(some_rows, some_rows)
@settings(deadline=None)
def test_teds_is_symmetric_within_0_and_1_and_1_for_itself(a: Rows, b: Rows) -> None:
    assert judge(html(a), html(b)).accuracy == pytest.approx(judge(html(b), html(a)).accuracy)
    assert 0 <= judge(html(a), html(b)).accuracy <= 1
    assert judge(html(a), html(a)).correct


def test_large_tables_are_compared_and_far_larger_ones_are_0_with_that_reason() -> None:
    gold = [[f"{row}.{column}" for column in range(10)] for row in range(20)]
    changed = [[f"x{cell}" for cell in row] for row in gold]
    # Cells `0.0` .. `9.9` cost 1/4, `10.0` .. `19.9` 1/5, in 220 nodes.
    assert judge(html(changed), html(gold)).accuracy == pytest.approx(1 - (100 / 4 + 100 / 5) / 220)
    outcome = judge(html(gold * 10), html(gold))
    assert (outcome.accuracy, outcome.reason) == (0.0, "the answer's table is far larger than gold")
    assert judge(html(gold * 5), html(gold)).accuracy == pytest.approx(1 / 5)


@pytest.mark.parametrize("gold", ["", "red", "<table></table>", html([["a"]] * MAX_GOLD_NODES), html([["a" * 20_001]])])
def test_gold_without_a_table_or_with_too_large_a_one_is_unscorable(gold: str) -> None:
    with pytest.raises(Unscorable, match="gold"):
        judge(html(TWO), gold)


@pytest.mark.parametrize(
    "answer",
    [
        "<table>" * 50_000,
        "<table><tr><td>" + "<b>" * 100_000,
        "<table><tr><td>" * 25_000,
        "<table><tr>" + "<td>" * 90_000,
        "<table><tr><td colspan='" + "9" * 300_000 + "'>x",
        "<?xml version='1.0' encoding='x'?><!DOCTYPE t [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><table><tr><td>&e;",
        "\x00<table>\x00<tr><td>\uffff",
        "a|b\n-|-\n" + "a|b\n" * 90_000,
        "|a|\n|" + "-" * 200_000 + " " * 190_000 + "x",
    ],
)
def test_hostile_tables_get_a_low_score_and_no_exception(answer: str) -> None:
    assert judge(answer, html(TWO)).accuracy < 0.5
