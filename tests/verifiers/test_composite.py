"""Compositions: the arithmetic, the rules of correctness, the report, and faults that name their part."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.reward.judge import JudgeItem, judge_item, validate
from vtriune.types import Progress, RewardSpec, Status, UserError, Verdict
from vtriune.verifiers import registry
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.composite import Composite, CompositeParams
from vtriune.verifiers.function import FunctionVerifier

VERIFIER = Composite()
CONTEXT = Context(preset="modern", split="train")
BOX = "[{'bbox_2d': [0, 0, 100, 100], 'label': 'cat'}]"
CLOSE_BOX = "<answer>[{'bbox_2d': [0, 0, 90, 100], 'label': 'cat'}]</answer>"
MATH = {"verifier": "mathverify"}
TAGS = {"verifier": "format"}


def graded(response: str, gold: str, *, right: bool = False) -> Outcome:
    """As good as the answer says, and right if the parameters say so."""
    worth = float(json.loads(response)[gold])
    return Outcome(worth, 1.0, correct=right, report={"doubled": 2 * worth}, reason="" if worth else f"no {gold}")


def broken(response: str, gold: str) -> float:
    """It has a fault of its own."""
    raise RuntimeError("the shelf fell down")


@pytest.fixture(autouse=True)
def own_verifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (graded, broken):
        monkeypatch.setitem(registry._PLACES, function.__name__, f"{__name__}:{function.__name__}")
        monkeypatch.setitem(registry._VERIFIERS, function.__name__, FunctionVerifier(function))


def judge(response: str, gold: str = "", context: Context = CONTEXT, **parameters: Any) -> Outcome:
    params = registry.parse_params("composite", parameters)
    assert isinstance(params, CompositeParams)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, context), params, context)


def verdict(response: str, gold: str, **parameters: Any) -> Verdict:
    spec = RewardSpec("composite", gold, parameters=parameters)
    return judge_item(JudgeItem(response, spec, Progress(0, 100, "train")))


Graded = tuple[float, bool, float]
"""Accuracy, correctness and weight of a part."""
GRADES = st.lists(
    st.tuples(st.floats(0, 1), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=2, max_size=8
).filter(lambda grades: any(weight for _, _, weight in grades[1:]))


def combined(grades: list[Graded], combine: str) -> Outcome:
    parts = [
        {"verifier": "graded", "name": f"p{k}", "gold": str(k), "weight": weight, "parameters": {"right": right}}
        for k, (_, right, weight) in enumerate(grades)
    ]
    response = json.dumps({str(k): accuracy for k, (accuracy, _, _) in enumerate(grades)})
    return judge(response, parts=parts, combine=combine)


@given(GRADES)
def test_the_four_ways_to_combine_are_the_formulas_of_the_docstring(grades: list[Graded]) -> None:
    accuracies = [accuracy for accuracy, _, _ in grades]

    def mean(some: list[Graded]) -> float:
        return sum(weight * accuracy for accuracy, _, weight in some) / sum(weight for _, _, weight in some)

    weighted, gated = combined(grades, "weighted"), combined(grades, "gated")
    assert weighted.accuracy == pytest.approx(mean(grades))
    assert weighted.correct == all(right for _, right, weight in grades if weight)
    assert gated.accuracy == pytest.approx(mean(grades[1:]) if grades[0][1] else 0)
    assert gated.correct == grades[0][1]
    least, most = combined(grades, "min"), combined(grades, "max")
    assert (least.accuracy, most.accuracy) == (min(accuracies), max(accuracies))
    assert least.correct == all(right for _, right, _ in grades)
    assert most.correct == any(right for _, right, _ in grades)
    for outcome in (weighted, gated, least, most):
        assert 0 <= outcome.accuracy <= 1
        assert bool(outcome.accuracy) or bool(outcome.reason)
        for k, (accuracy, right, _) in enumerate(grades):
            ours = {key: value for key, value in outcome.report.items() if key.startswith(f"p{k}.")}
            assert ours == {f"p{k}.accuracy": accuracy, f"p{k}.correct": right, f"p{k}.doubled": 2 * accuracy}
        assert len(outcome.report) == 3 * len(grades)


def test_parts_share_the_samples_gold_unless_they_have_their_own() -> None:
    both: dict[str, Any] = {"parts": [MATH, {**MATH, "name": "second", "gold": "5"}]}
    outcome = judge(r"<answer>\boxed{4}</answer>", "4", **both)
    assert (outcome.accuracy, outcome.correct, outcome.format) == (0.5, False, 0.5)
    assert outcome.report["mathverify.accuracy"] == 1
    assert outcome.report["second.accuracy"] == 0


def test_a_wrong_answer_earns_nothing_behind_a_gate_and_says_why() -> None:
    gate: dict[str, Any] = {"parts": [MATH, TAGS], "combine": "gated"}
    right, wrong = (judge(rf"<think>.</think><answer>\boxed{{{n}}}</answer>", "4", **gate) for n in (4, 5))
    assert (right.accuracy, right.correct) == (1.0, True)
    assert (wrong.accuracy, wrong.correct, wrong.report["format.accuracy"]) == (0.0, False, 1.0)
    assert wrong.reason == "mathverify is not correct; mathverify: not equivalent to gold"


@pytest.mark.parametrize(("step", "accuracy"), [(0, 0.9), (10, 0.0)])
def test_each_part_has_the_eps_of_its_own_schedule(step: int, accuracy: float) -> None:
    fixed = {"verifier": "detection", "name": "loose", "parameters": {"iou_threshold": 0.5}}
    spec = RewardSpec("composite", BOX, parameters={"parts": [{"verifier": "detection"}, fixed]})
    judged = judge_item(JudgeItem(CLOSE_BOX, spec, Progress(step, 100, "train")))
    assert judged.report["detection.accuracy"] == pytest.approx(accuracy)
    assert judged.report["loose.accuracy"] == pytest.approx(0.9)
    assert judged.report["detection.iou_50"] == pytest.approx(0.9)


def test_composites_nest_three_deep_and_no_deeper() -> None:
    def nested(levels: int) -> dict[str, Any]:
        part = MATH if levels == 1 else {"verifier": "composite", "name": "inner", "parameters": nested(levels - 1)}
        return {"parts": [part]}

    outcome = judge(r"\boxed{4}", "4", **nested(3))
    assert outcome.accuracy == 1
    assert outcome.report["inner.inner.mathverify.accuracy"] == 1
    with pytest.raises(Unscorable, match='part "inner": part "inner": part "inner": composites stand 3 deep at most'):
        judge(r"\boxed{4}", "4", **nested(4))


def test_parameters_as_json_text_are_no_way_around_the_bound() -> None:
    parameters: dict[str, Any] = {"parts": [MATH]}
    for _ in range(6):
        parameters = {"parts": [{"verifier": "composite", "parameters": json.dumps(parameters)}]}
    assert verdict("4", "4", **parameters).status is Status.UNSCORABLE
    deep = {"verifier": "composite", "parameters": {"a": json.loads("[" * 200 + "]" * 200)}}
    assert verdict("4", "4", parts=[deep]).status is Status.UNSCORABLE


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "verifier_parm.parts: Field required"),
        ({"parts": []}, "verifier_parm.parts: Tuple should have at least 1 item"),
        ({"parts": [{**MATH, "name": str(k)} for k in range(9)]}, "at most 8 items"),
        ({"parts": [MATH, MATH]}, 'two parts are called "mathverify"; give them a `name`'),
        ({"parts": [MATH], "combine": "gated"}, "gated needs a part after the first of weight > 0"),
        ({"parts": [MATH, {**TAGS, "weight": 0}], "combine": "gated"}, "gated needs a part after the first"),
        ({"parts": [{**MATH, "weight": 0}]}, "weighted needs a part of weight > 0"),
        ({"parts": [{**MATH, "weight": -1}]}, "verifier_parm.parts.0.weight"),
        ({"parts": [{**MATH, "wieght": 1}]}, "verifier_parm.parts.0.wieght"),
        ({"parts": [{**MATH, "name": "a.b"}]}, "verifier_parm.parts.0.name"),
        ({"parts": [MATH], "combine": "mean"}, "verifier_parm.combine"),
        ({"parts": [{"verifier": "mathverfy", "name": "m"}]}, 'part "m": verifier "mathverfy" is not registered; did'),
        ({"parts": [{**MATH, "parameters": {"x": 1}}]}, 'part "mathverify": verifier "mathverify": verifier_parm.x'),
        ({"parts": [{**MATH, "gold": ""}]}, 'part "mathverify": gold is empty'),
        (
            {"parts": [TAGS | {"parameters": {"kind": "json_schema", "schema": {"$ref": "http://a"}}}]},
            'part "format": ',
        ),
        ({"parts": [{"verifier": "remote", "parameters": {"service": "x"}}]}, 'part "remote": service "x" is not conf'),
    ],
)
def test_what_is_wrong_with_a_part_is_said_before_training(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(RewardSpec("composite", "4", parameters=parameters))
    assert message in str(caught.value)


def test_a_part_that_cannot_judge_the_context_makes_the_whole_unscorable_by_name() -> None:
    brief = {"kind": "soft_overlong", "max_tokens": 9, "buffer_tokens": 3}
    judged = verdict("4", "4", parts=[MATH, {"verifier": "shaping", "name": "brief", "parameters": brief}])
    assert judged.status is Status.UNSCORABLE
    assert judged.reason.startswith('part "brief": soft_overlong needs the answer')


def test_a_part_of_ours_that_breaks_is_failed_by_name_and_no_0() -> None:
    judged = verdict("4", "4", parts=[MATH, {"verifier": "broken"}])
    assert (judged.status, judged.reward) == (Status.FAILED, None)
    assert 'part "broken": RuntimeError: the shelf fell down' in judged.reason


def test_an_accuracy_that_is_no_number_cannot_hide_behind_min() -> None:
    for combine in ("min", "max", "weighted"):
        parts = [{"verifier": "graded", "gold": "0"}, {"verifier": "graded", "name": "b", "gold": "1"}]
        assert verdict('{"0": NaN, "1": 0.5}', "", parts=parts, combine=combine).status is Status.FAILED
