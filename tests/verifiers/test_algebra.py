r"""The shortcuts of algebra.py and the memory of mathverify.py change no verdict: each preset beside its plain twin.

A twin hands the whole response, lower-cased or not, to math-verify and knows no shortcut, scope or memory.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latex2sympy2_extended import NormalizationConfig
from sympy import srepr

from vtriune.types import Preset
from vtriune.verifiers import algebra, mathverify
from vtriune.verifiers.answers import boxed, final_text
from vtriune.verifiers.base import Context, Unscorable
from vtriune.verifiers.mathverify import MathVerify, MathVerifyParams
from vtriune.verifiers.plain_answers import settle, sprayed

PRESETS: tuple[Preset, ...] = ("paper", "official_code", "modern")
DRAWN = 600

QUICK_KINDS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: str(rng.randint(-9, 20)),
    lambda rng: str(rng.randint(-5000, 5000)),
    lambda rng: rng.choice(["007", "-0", "+5", "1,234", "12345678901234567890", "5.", ".5", "0.50", "-0.0", "00.1"]),
    lambda rng: f"{rng.randint(-999, 999) / 100}",
    lambda rng: f"{rng.choice(['0.333333', '0.3333333', '0.3334', '0.0000003', '0.0000001', '3.14159265'])}",
    lambda rng: rf"{rng.choice(['', '-'])}\frac{{{rng.randint(0, 9)}}}{{{rng.randint(1, 9)}}}",
    lambda rng: rf"{rng.choice(['-', ''])}\{rng.choice('dt')}frac{{{rng.randint(0, 9)}}}{{{rng.randint(0, 9)}}}",
    lambda rng: f"{rng.randint(1, 9)}/{rng.randint(1, 9)}",
    lambda rng: rng.choice([r"\frac12", r"\sqrt2", r"2\frac12", r"2\frac{1}{2}", r"\frac{1}{10^{19}}", "10^{-20}"]),
    lambda rng: rf"\sqrt{{{rng.randint(1, 50)}}}",
    lambda rng: rf"\frac{{{rng.randint(1, 3)}\pi}}{{{rng.randint(1, 3)}}}",
    lambda rng: rf"{rng.randint(1, 4)}\pi",
    lambda rng: f"{rng.randint(10, 90)}" + rng.choice([r"^\circ", r"^{\circ}", "°", " degrees", ""]),
    lambda rng: f"{rng.randint(1, 5)}" + rng.choice([r"\%", "%", " percent", "", r" \text{percent}"]),
    lambda rng: rng.choice(["red", "blue", "green", "meat", "team", "on", "no", "Paris", "sin", "infinity", "deer"]),
    lambda rng: rf"\text{{{rng.choice(['red', 'blue', 'Meat', 'team', 'blue car', 'yes'])}}}",
    lambda rng: rng.choice("ABCDEabcde"),
    lambda rng: rng.choice(["A.", "(A)", r"\text{A}", r"\mathrm{A}", r"\delta", r"\Delta", r"2\Delta", "Δ", "½", "√2"]),
    lambda rng: f"{rng.randint(1, 3)}x + {rng.randint(1, 3)}",
    lambda rng: rng.choice(
        ["x=4", "4=x", "x = 2+2", "y=4", "x=1,y=2", "A=B=C=D", "D", "3=4", "x>2", "2<x", "x \\ge 2"]
    ),
    lambda rng: rng.choice(["1, 2", "2, 1", r"\{1, 2\}", r"\{2,1\}", "1 and 2", "1 or 2", r"1 \text{ and } 2", "1;2"]),
    lambda rng: rng.choice([r"1.6 \times 10^{-19}", r"6.626 \times 10^{-34}", "3e8", r"3 \cdot 10^8", "300000000"]),
    lambda rng: rng.choice(
        ["2022", "2024-01-01", "2000+22", "1:2", "2:4", r"\$5", "5€", "2^{10}", "1024", "5!", "120"]
    ),
    lambda rng: rng.choice(
        ["{", "}", "$", r"\boxed{3}", "", " ", r"\frac{", "2^", r"\]", "\n4\n", "4 $ 5", "}4{", "ſ", "İ"]
    ),
)
SLOW_KINDS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: rf"{rng.randint(1, 6)}\sqrt{{{rng.randint(1, 12)}}}",
    lambda rng: rng.choice(["e", "E", "2.718281828459045", r"\pi", "3.141592653589793", "e^2", "i", "I", "1+i", "1-i"]),
    lambda rng: rng.choice(["x(x+1)", "x^2+x", "(x+1)^2", "x^2+2x+1", "2(x+1)", "2x+2", "xy", "yx", "-x", "x^{-1}"]),
    lambda rng: rng.choice(["[1,2]", "(1,2)", "[1,2)", r"(-\infty, 2)", r"(1,2) \cup (3,4)", r"\emptyset"]),
    lambda rng: f"{rng.randint(1, 3)}" + rng.choice([" kg", " m", r"\text{ m}", r"\,\mathrm{km}", " apples", " cm^2"]),
)
KINDS = QUICK_KINDS * 3 + SLOW_KINDS
"""math-verify takes 10 to 30 ms for one of the slow ones; intervals and sets are also in test_plain_sets.py."""

WRAPPERS = (
    r"<think>{noise}</think><answer>\boxed{{{a}}}</answer>",
    r"<think>{noise}</think>\n<answer>\n\boxed{{{a}}}\n</answer>",
    r"<think>{noise}</think> the answer is $\boxed{{{a}}}$.",
    r"{noise} so \(\boxed{{{a}}}\) holds",
    "{noise} thus\n\\[\n x = \\boxed{{{a}}}\n\\]\nas said",
    "{noise}\n\n$$ \\boxed{{{a}}} $$ percent",
    r"{noise} [\boxed{{{a}}}] it is",
    r"\boxed{{{b}}} no, {noise} \boxed{{{a}}}",
    r"\boxed{{{b}}} and \boxed{{{a}}}",
    r"$\boxed{{{b}}}$ or $\boxed{{{a}}}$ {noise}",
    r"{noise} \boxed{{\boxed{{{a}}}}}",
    r"{noise} \boxed{{{a}}} since {{{b}}} and so on (see [1])",
    r"{noise} \fbox{{{a}}}, \boxed {{{a}}}",
    r"\boxed{{{a}",
    r"{noise} The Final Answer is ${a}$. I hope",
    r"{noise} final answer: is \[{a}\] {noise}",
    r"<think>{noise}</think><answer>{a}</answer>",
    r"<think>{noise}</think><answer>${a}$</answer>",
    r"<think>\boxed{{{b}}} {noise}",
    r"{a}",
)
NOISE = (
    "",
    "adding both sides gives a sum",
    "it costs $5 and {7}",
    "$x = 3$ and \\(y\\)",
    "\\[ 1 + 1 \\] so",
    "the answer may be $2$",
    "cost \\$3\n\nlist [1] and\n[2] {open",
    "$$ a $$ b $$",
    "$$$ odd",
    "unclosed \\[ and \\( and $",
    "\\\\[2pt] x",
    "İ Σ ſ",
)


def configuration(lenient: bool) -> list[Any]:
    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=lenient, nits=False, boxed="all"
    )
    return [
        math_verify.LatexExtractionConfig(
            normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
        )
    ]


def parse(text: str, lenient: bool = False) -> list[Any]:
    parsed: list[Any] = math_verify.parse(
        text, extraction_config=configuration(lenient), extraction_mode="first_match", parsing_timeout=None
    )
    return parsed


def twin(response: str, gold: str, preset: Preset) -> bool | None:
    """The verdict without shortcuts; None if gold can't be judged."""
    content = boxed(gold)
    text = (gold if content is None else content).strip()
    source = gold.lower() if preset == "official_code" else gold
    if preset == "modern" and not mathverify._SENTENCE.search(gold):
        source = rf"\boxed{{{text}}}"
    expected = math_verify.parse(source, extraction_mode="first_match", parsing_timeout=None)
    if not expected and preset == "modern":
        expected = parse(rf"\boxed{{{text}}}", lenient=True)
    elif not expected:
        return None
    if preset == "official_code":
        return bool(math_verify.verify(expected, parse(response.lower()), timeout_seconds=None))
    answer = boxed(final_text(response))
    if answer is None:
        return None
    if preset == "modern":
        settled = False if sprayed(text, answer) else settle(text, answer)
        if settled is not None:
            return settled
    found = parse(rf"\boxed{{{answer}}}", lenient=preset == "modern")
    equal = bool(math_verify.verify(expected, found, timeout_seconds=None))
    return equal and not (preset == "modern" and algebra.only_tiny(expected, found))


def draw(rng: random.Random) -> tuple[str, str]:
    """A response and gold, of one kind and equal more often than not."""
    kind = rng.choice(KINDS)
    gold = kind(rng)
    a, b = (gold if rng.random() < 0.4 else (kind if rng.random() < 0.8 else rng.choice(KINDS))(rng) for _ in "ab")
    # A box is what most responses hold; the other half is drawn from all layouts.
    wrapper = WRAPPERS[0] if rng.random() < 0.4 else rng.choice(WRAPPERS)
    response = wrapper.format(a=a, b=b, noise=rng.choice(NOISE))
    return response, rng.choice([gold, rf"\boxed{{{gold}}}", f"${gold}$"])


@pytest.mark.parametrize("preset", PRESETS)
def test_verdicts_are_those_of_the_plain_twin_on_hit_and_miss(preset: Preset) -> None:
    rng, verifier, params = random.Random(preset), MathVerify(), MathVerifyParams()
    context = Context(preset=preset, split="train")
    judged: Counter[bool] = Counter()
    while judged.total() < DRAWN:
        response, gold = draw(rng)
        expected = twin(response, gold, preset) if gold.strip() else None
        if expected is None:
            continue
        try:
            parsed = verifier.parse_gold(gold, params, context)
        except Unscorable:
            continue
        verdicts = [verifier.judge(response, parsed, params, context).correct for _ in range(2)]
        assert verdicts == [expected, expected], (response, gold)
        judged[expected] += 1
    assert min(judged.values()) > DRAWN // 5


@given(
    st.lists(
        st.sampled_from(
            [
                *"${}[]()\\ \n,.4x%",
                "$$",
                r"\boxed{",
                r"\[",
                r"\]",
                r"\(",
                r"\)",
                "answer",
                " is ",
                "and",
                "or",
                r"\frac{1}{2}",
                r"\fbox{",
                r"\text{",
                "final answer",
            ]
        ),
        max_size=25,
    ).map("".join)
)
@settings(max_examples=500, deadline=None)
def test_math_verify_reads_from_its_scope_what_it_reads_from_the_whole(text: str) -> None:
    whole, part = parse(text), algebra.parse_answer(algebra.scope(text))
    assert [repr(found) for found in part] == [repr(found) for found in whole]


@given(st.from_regex(algebra._PLAIN_BOX, fullmatch=True))
@settings(deadline=None)
def test_a_plain_number_is_read_as_math_verify_reads_it(text: str) -> None:
    assert [srepr(found) for found in algebra.parse_answer(text)] == [srepr(found) for found in parse(text)]
