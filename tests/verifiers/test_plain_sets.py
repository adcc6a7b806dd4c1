"""Plain sets and the like are read and compared as math-verify does, expression for expression."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sympy import srepr

from vtriune.verifiers import plain_sets
from vtriune.verifiers.algebra import _math_verify, _parse_answer


class Drawn:
    """Texts of each kind, many of them with something odd."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kinds: tuple[Callable[[], str], ...] = (
            lambda: rf"\{{{self.numbers()}\}}",
            self.interval,
            lambda: f"({self.numbers()})",
            lambda: f"[{self.numbers()}]",
            lambda: self.rng.choice((r" \cup ", r"\cup ")).join(
                self.interval() for _ in range(self.rng.choice((2, 2, 3)))
            ),
            lambda: f"{self.rng.choice('abcmnpqrstxyz')}{self.rng.choice((' = ', '='))}{self.number()}",
        )

    def number(self) -> int:
        return self.rng.choice(
            (0, self.rng.randint(-3, 3), self.rng.randint(-99, 99), self.rng.randint(-(10**9), 10**9))
        )

    def numbers(self) -> str:
        comma = self.rng.choice((", ", ","))
        return comma.join(str(self.number()) for _ in range(self.rng.randint(1, 5)))

    def interval(self) -> str:
        start = self.rng.choice((str(self.number()), str(self.number()), r"-\infty"))
        end = self.rng.choice((str(self.number()), str(self.number()), r"\infty"))
        return f"{self.rng.choice('([')}{start}, {end}{self.rng.choice(')]')}"

    def text(self) -> str:
        return self.rng.choice(self.kinds)()


def readable(drawn: Drawn, count: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    while len(found) < count:
        text = drawn.text()
        expression = plain_sets.read(text)
        if expression is not None:
            found.append((text, expression))
    return found


def test_what_is_read_is_what_math_verify_reads_of_answers_and_of_gold() -> None:
    for text, expression in readable(Drawn(5), 120):
        boxed = rf"\boxed{{{text}}}"
        gold = _math_verify().parse(boxed, extraction_mode="first_match", parsing_timeout=None)
        for parsed in (_parse_answer(boxed, False), _parse_answer(boxed, True), gold):
            assert (srepr(parsed[0]), type(parsed[0]), parsed[1]) == (srepr(expression), type(expression), text)
            assert getattr(parsed[0], "_unsorted_args", None) == getattr(expression, "_unsorted_args", None)


def test_what_is_settled_is_what_math_verify_says() -> None:
    drawn = Drawn(6)
    expressions = [expression for _, expression in readable(drawn, 300)]
    pairs = [(drawn.rng.choice(expressions), drawn.rng.choice(expressions)) for _ in range(600)]
    pairs += [(one, one) for one in expressions[:50]]
    settled = [(gold, answer, plain_sets.same(gold, answer)) for gold, answer in pairs]
    told = [(gold, answer, verdict) for gold, answer, verdict in settled if verdict is not None]
    assert len(told) > 150
    assert {verdict for _, _, verdict in told} == {True, False}
    for gold, answer, verdict in told:
        assert verdict == _math_verify().verify([gold, "g"], [answer, "a"], timeout_seconds=None), (gold, answer)


@pytest.mark.parametrize(
    "text",
    ["", "3", "[5, 3)", "[3, 3]", "(3)", r"[-\infty, 3)", r"\{\}", r"\{1, x\}", "(007, 8)", "(1.5, 2)", "i = 3",
     "e = 2", r"(1, 2) \cup (3, 4) \cup (5, 6)", r"\{١, 2\}", "x = 3 = 3", r"(1, 2) \cap (1, 3)", "x + 4", "(1, 2]]"],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_math_verify(text: str) -> None:
    assert plain_sets.read(text) is None


@given(st.text(max_size=30))
def test_any_text_is_read_or_left(text: str) -> None:
    plain_sets.read(text)
