"""A function as a verifier: typed parameters from its signature, and what it may return."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field

from vtriune.reward import judge
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import Progress, RewardSpec, Status, UserError, Verdict
from vtriune.verifiers import registry
from vtriune.verifiers.base import Outcome, Unscorable
from vtriune.verifiers.describe import schema
from vtriune.verifiers.function import FunctionVerifier

Options = Literal["strict", "lax"]


def concise(
    response: str,
    gold: str,
    *,
    limit: Annotated[int, Field(ge=1, description="Characters at most.")] = 20,
    mode: Options = "strict",
    words: tuple[str, ...] = (),
) -> float:
    """Short and right."""
    return float(gold in response and len(response) <= limit and all(word in response for word in words))


def use(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """Judge through the judge with this function as a verifier."""
    verifier = FunctionVerifier(function)
    judge._remembered.clear()  # it may have met another function of that name
    judge._params.cache_clear()
    monkeypatch.setitem(registry._PLACES, verifier.name, f"{__name__}:{verifier.name}")
    monkeypatch.setitem(registry._VERIFIERS, verifier.name, verifier)

    def run(response: str = "a", gold: str = "a", **parameters: Any) -> Verdict:
        spec = RewardSpec(verifier.name, gold, format_weight=1.0, parameters=parameters)
        return judge_item(JudgeItem(response, spec, Progress(0, 1, "train")))

    return run


def test_its_keyword_arguments_are_typed_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    run = use(concise, monkeypatch)
    assert run("it is 4", "4").accuracy == 1
    assert run("it is 4", "4", limit=3).accuracy == 0
    assert run("it is 4", "4", words=["it", "is"], mode="lax").correct
    for parameters, field in (
        ({"limit": 0}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"mode": "x"}, "mode"),
        ({"limits": 3}, "limits"),
    ):
        verdict = run("4", "4", **parameters)
        assert verdict.status is Status.UNSCORABLE
        assert f'verifier "concise": verifier_parm.{field}: ' in verdict.reason


def test_its_parameters_have_a_schema_and_its_docstring_is_the_verifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    use(concise, monkeypatch)
    assert schema("concise")["properties"]["limit"] == {
        "default": 20,
        "description": "Characters at most.",
        "minimum": 1,
        "title": "Limit",
        "type": "integer",
    }
    assert FunctionVerifier(concise).__doc__ == "Short and right."


def test_a_parameter_without_a_default_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(response: str, gold: str, *, level: int) -> float:
        return float(level > 3)

    run = use(needs, monkeypatch)
    assert "verifier_parm.level: Field required" in run().reason
    assert run(level=4).accuracy == 1


def test_a_default_that_its_hint_forbids_is_found_before_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(response: str, gold: str, *, limit: int = None) -> float:  # type: ignore[assignment]  # noqa: RUF013
        return 1.0

    assert use(forgetful, monkeypatch)().status is Status.UNSCORABLE


@pytest.mark.parametrize(
    ("worth", "accuracy"),
    [
        (0, 0),
        (1, 1),
        (0.5, 0.5),
        (True, 1),
        (False, 0),
        (Fraction(1, 4), 0.25),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1),
    ],
)
def test_a_number_or_a_bool_is_the_accuracy_and_tags_are_the_format(
    worth: Any, accuracy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(response: str, gold: str) -> Any:
        return worth

    verdict = use(judged, monkeypatch)("<think>.</think><answer>a</answer>")
    assert (verdict.status, verdict.accuracy, verdict.format) == (Status.SCORED, accuracy, 1.0)
    assert (verdict.reward, verdict.correct) == (accuracy + 1, accuracy == 1)


def test_an_outcome_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(response: str, gold: str) -> Outcome:
        return Outcome(0.0, 0.5, correct=True, report={"wit": 3.0}, reason="dull")

    verdict = use(judged, monkeypatch)()
    assert (verdict.accuracy, verdict.format, verdict.correct) == (0.0, 0.5, True)
    assert (verdict.report, verdict.reason) == ({"wit": 3.0}, "dull")


@pytest.mark.parametrize(
    "worth",
    [
        *(-0.001, 1.001, 99, math.nan, math.inf, -math.inf, None, "1", "0.5", b"1", [1.0], {}, 1j, object()),
        *(Outcome(*worth, correct=True) for worth in ((2.0, 0.0), (0.0, -1.0), (math.nan, 0.0))),
        Outcome(1.0, 1.0, correct=True, report={"a": math.inf}),
        Outcome(1.0, 1.0, correct=True, report={"a": "b"}),  # type: ignore[dict-item]
    ],
)
def test_whatever_is_no_worth_is_failed_and_never_a_reward(worth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(response: str, gold: str) -> Any:
        return worth

    verdict = use(judged, monkeypatch)()
    assert (verdict.status, verdict.reward) == (Status.FAILED, None)
    assert verdict.reason.startswith('verifier "judged": ')


def test_what_it_raises_is_failed_but_unscorable_stays_unscorable(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(response: str, gold: str) -> float:
        if not gold:
            raise Unscorable("gold is empty; write a number")
        return 1 / (len(gold) - 1)

    run = use(picky, monkeypatch)
    assert run(gold="ab").accuracy == 1
    assert (run(gold="").status, run(gold="").reason) == (Status.UNSCORABLE, "gold is empty; write a number")
    assert (run(gold="a").status, run(gold="a").reason) == (
        Status.FAILED,
        'verifier "picky": ZeroDivisionError: division by zero',
    )


def no_gold(response: str) -> float:
    return 1.0


def three(response: str, gold: str, limit: int) -> float:
    return 1.0


def spread(response: str, *gold: str) -> float:
    return 1.0


def swallow(response: str, gold: str, **rest: Any) -> float:
    return 1.0


def keyword(*, response: str, gold: str) -> float:
    return 1.0


async def later(response: str, gold: str) -> float:
    return 1.0


def hidden(response: str, gold: str, *, _limit: int = 3) -> float:
    return 1.0


def odd_hint(response: str, gold: str, *, limit: object = 3, other: Callable[..., threading.Lock] = print) -> float:  # type: ignore[name-defined]  # noqa: F821
    return 1.0


def untypeable(response: str, gold: str, *, limit: np.random.Generator | None = None) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_gold, r'verifier "no_gold": its signature must be \(response, gold, \*, parameter=\.\.\., \.\.\.\)'),
        (three, 'verifier "three": its signature must be'),
        (spread, 'verifier "spread": its signature must be'),
        (swallow, 'verifier "swallow": its signature must be'),
        (keyword, 'verifier "keyword": its signature must be'),
        (later, 'verifier "later": is async'),
        (hidden, 'verifier "hidden": a parameter can\'t begin with an underscore'),
        (odd_hint, 'verifier "odd_hint": a type hint can\'t be resolved .*threading'),
        (untypeable, 'verifier "untypeable": its parameters can\'t be checked .*type hints of JSON values'),
        (lambda response, gold: 1.0, "has no name of its own"),
        (functools.partial(concise, limit=3), "has no name of its own"),
        (max, 'verifier "max": its signature must be'),
    ],
)
def test_a_function_that_is_no_verifier_is_refused_with_what_to_change(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        FunctionVerifier(function)


def test_two_arguments_suffice_whatever_they_are_called() -> None:
    def plain(answer, reference, /):  # type: ignore[no-untyped-def]
        return answer == reference

    assert FunctionVerifier(plain).Params.model_fields == {}
