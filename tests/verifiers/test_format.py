"""R_fmt: eq. 4, the two variants of the released code, and the verifier that makes layout the accuracy."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vtriune.reward.judge import JudgeItem, validate
from vtriune.reward.pool import JudgePool
from vtriune.types import Progress, RewardSpec, Status, UserError
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import (
    Format,
    FormatParams,
    released_detection_score,
    released_tag_score,
    strictly_tagged,
    tag_score,
)

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


# --- the verifier -----------------------------------------------------------------------------------------------------

VERIFIER, CONTEXT = Format(), Context(preset="modern", split="train")
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
TREE = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}


def judge(response: str, **parameters: Any) -> Outcome:
    params = FormatParams.model_validate(parameters)
    return VERIFIER.judge(response, VERIFIER.parse_gold("", params, CONTEXT), params, CONTEXT)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n", "a"]), max_size=12).map("".join))
def test_the_kinds_tags_and_released_tags_are_the_scores_of_that_name(response: str) -> None:
    assert (judge(response).accuracy, judge(response).format) == (tag_score(response),) * 2
    released = judge(response, kind="released_tags")
    assert (released.accuracy, released.format) == (released_tag_score(response), tag_score(response))
    assert released.correct == (released.accuracy == 1)
    assert bool(released.reason) == (released.accuracy == 0)


@pytest.mark.parametrize(
    ("response", "strict"),
    [
        (WELL_FORMED, True),
        (f" \n{WELL_FORMED}\n", True),
        ("<think>1</think><answer>2</answer>", True),
        ("<think>a < b > c</think><answer>[]</answer>", True),
        ("<think> \n</think><answer>2</answer>", False),
        ("<think>1</think><answer> </answer>", False),
        ("So: <think>1</think><answer>2</answer>", False),
        ("<think>1</think> so <answer>2</answer>", False),
        ("<think>1</think><answer>2</answer>.", False),
        ("<answer>2</answer><think>1</think>", False),
        ("<think>1<answer>2</answer></think>", False),
        ("<think>1<answer></think>2</answer>", False),
        ("<think>1</answer></think><answer>2", False),
        ("<think>1</think><answer>2</answer><answer>2</answer>", False),
        ("<think>1</think><think>1</think><answer>2</answer>", False),
        ("<THINK>1</THINK><answer>2</answer>", False),
        ("2", False),
        ("", False),
    ],
)
def test_strict_is_one_thought_and_one_answer_and_nothing_else(response: str, strict: bool) -> None:
    outcome = judge(response, kind="strict")
    assert (outcome.accuracy, outcome.correct, bool(outcome.reason)) == (float(strict), strict, not strict)


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "a"]), max_size=9)


@given(PIECES | st.permutations(["<think>", "a", "</think>", "<answer>", "a", "</answer>"]))
def test_strict_is_what_a_plain_reading_of_the_pieces_says(pieces: list[str]) -> None:
    tags = [piece for piece in pieces if piece.startswith("<")]
    outside, inside = "", {"<think>": "", "<answer>": ""}
    last = ""
    for piece in pieces:
        if piece.startswith("<"):
            last = piece
        elif last in inside:
            inside[last] += piece
        else:
            outside += piece
    wanted = tags == ["<think>", "</think>", "<answer>", "</answer>"] and not outside.strip()
    assert strictly_tagged("".join(pieces)) == (wanted and all(part.strip() for part in inside.values()))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"colour": "red"}', ""),
        ('```json\n{"colour": "blue"}\n```', ""),
        ('```\n{"colour": "blue"}```', ""),
        ('{"colour": "red", "more": 1}', ""),
        ('{"colour": "green"}', "$.colour: 'green' is not one of ['red', 'blue']"),
        ("{}", "$: 'colour' is a required property"),
        ("[]", "$: [] is not of type 'object'"),
        ('{"colour": "red"} or {"colour": "blue"}', "the answer is no JSON: "),
        ("{'colour': 'red'}", "the answer is no JSON: "),
        ('{"colour": NaN}', "the answer is no JSON: "),
        ("", "the answer is no JSON: "),
        ("[" * 40 + "]" * 40, "the answer is JSON nested deeper than 32"),
        ("[" * 100_000, "the answer is no JSON: "),
        ("[" + "1," * 100_000, "the answer is JSON longer than 100000 characters"),
    ],
)
def test_an_answer_is_one_json_value_that_satisfies_the_schema(answer: str, reason: str) -> None:
    for response in (answer, f"<think>{{}}</think><answer>{answer}</answer>"):
        outcome = judge(response, kind="json_schema", schema=COLOUR)
        assert outcome.accuracy == float(not reason)
        assert outcome.reason.startswith(reason)
        assert bool(outcome.reason) == bool(reason)


def test_a_draft_in_the_thinking_is_not_the_answer() -> None:
    assert not judge('<think><answer>{"colour": "red"}</answer></think>red', kind="json_schema", schema=COLOUR).correct
    assert not judge('<think>{"colour": "red"}', kind="json_schema", schema=COLOUR).correct


def test_a_schema_may_be_text_and_refer_to_itself_within_bounds() -> None:
    assert judge('{"children": [{"children": []}]}', kind="json_schema", schema=TREE).correct
    assert not judge('{"children": [{"children": [1]}]}', kind="json_schema", schema=TREE).correct
    assert judge("null", kind="json_schema", schema='{"const": null}').correct
    deep = '{"children": [' * 15 + "]}" * 15
    assert judge(deep, kind="json_schema", schema=TREE).correct


@given(st.text(alphabet='{}[]",:colurde1.-e ntfas\\', max_size=40))
def test_no_answer_raises(answer: str) -> None:
    kinds = {"type": ["object", "array", "number"], "multipleOf": 0.1, "uniqueItems": True, "pattern": "^a"}
    assert judge(answer, kind="json_schema", schema=kinds).accuracy in (0, 1)


@pytest.mark.parametrize("answer", ["1e308", "123456789012345678901234567890", "[1, 1.0, true, [], {}]", '"\\u0000"'])
def test_odd_values_are_judged(answer: str) -> None:
    schema = {"multipleOf": 1e-300, "uniqueItems": True, "items": {"type": "integer", "maximum": 2**63}}
    assert judge(answer, kind="json_schema", schema=schema).accuracy in (0, 1)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objct"}, "verifier_parm.schema: $.type: 'objct' is not valid"),
        ({"pattern": "("}, "verifier_parm.schema: $.pattern: '(' is not a 'regex'"),
        ({"patternProperties": {"(": {}}}, "verifier_parm.schema: "),
        ({"required": "a"}, "verifier_parm.schema: $.required: 'a' is not of type 'array'"),
        ({"$ref": "http://169.254.169.254/latest"}, "reaches out of it"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "reaches out of it"),
        ({"allOf": [{"$dynamicRef": "other.json#x"}]}, "reaches out of it"),
        ({"$ref": "#/$defs/nothing"}, "define it under #/$defs"),
        ({"items": {"$ref": "#nothing"}}, "define it under #/$defs"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#"}}}, "refers to itself without end"),
        ({"$schema": 1}, "verifier_parm.schema: "),
        ({"$schema": "http://["}, "verifier_parm.schema: "),
        ({"pattern": "a{99999999999999999999}"}, "verifier_parm.schema: "),
    ],
)
def test_a_broken_schema_is_unscorable_before_any_answer(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(Unscorable) as caught:
        judge("1", kind="json_schema", schema=schema)
    assert message in str(caught.value)
    with pytest.raises(UserError):
        validate(RewardSpec("format", "", parameters={"kind": "json_schema", "schema": schema}))


def test_a_schema_that_only_some_answers_lead_astray_is_unscorable_then() -> None:
    schema = {"if": {"const": 7}, "then": {"$ref": "#/$defs/loop"}, "$defs": {"loop": {"$ref": "#/$defs/loop"}}}
    assert judge("6", kind="json_schema", schema=schema).correct
    with pytest.raises(Unscorable, match="without end"):
        judge("7", kind="json_schema", schema=schema)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a schema reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # Reached only through an embedded $id, which moves what `#` means.
    schema = {"properties": {"a": {"$id": "http://127.0.0.1:9/x", "$ref": "#/$defs/b"}}, "$defs": {"b": True}}
    with pytest.raises(Unscorable, match="schema"):
        judge('{"a": 1}', kind="json_schema", schema=schema)


@pytest.mark.parametrize(
    "parameters",
    [
        {"kind": "json_schema"},
        {"kind": "strict", "schema": {}},
        {"schema": {}},
        {"kind": "json_schema", "schema": [1]},
        {"kind": "json_schema", "schema": "{"},
        {"kind": "json_schema", "schema": {"a": {"a": "x" * 100_000}}},
        {"kind": "lax"},
        {"kind": "tags", "strict": True},
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FormatParams.model_validate(parameters)


def test_a_pattern_that_backtracks_costs_the_answer_its_score_and_its_neighbours_nothing() -> None:
    schema = {"type": "string", "pattern": "^(a+)+$"}
    spec = RewardSpec("format", "", parameters={"kind": "json_schema", "schema": schema})
    items = [JudgeItem(f'"{text}"', spec, Progress(0, 1, "train")) for text in ("aa", "a" * 64 + "!", "b")]
    with JudgePool(workers=1, cpu_limit=0.5) as pool:
        verdicts = pool.submit(items).result()
    assert [verdict.status for verdict in verdicts] == [Status.SCORED] * 3
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert verdicts[1].reason == "cpu limit"


@pytest.mark.parametrize("unit", ["<think>", "</think><answer>", "```", "{", '"', "a "])
@pytest.mark.parametrize("parameters", [{"kind": "strict"}, {"kind": "json_schema", "schema": COLOUR}])
def test_400000_characters_of_anything_are_judged(unit: str, parameters: dict[str, Any]) -> None:
    assert judge(unit * (400_000 // len(unit)), **parameters).accuracy == 0
