r"""What is judged: prompts with G = 8 answers each, drawn with a fixed seed, and the items that poison a judge.

Kinds of load:
    math        the answers that the paper's sources mostly have: integers, decimals, fractions, letters, words, ...
    math24      24 kinds of answers in equal shares, from integers to sets, intervals and equations
    detection   5 gold boxes, about 5 answered ones in pixels, shaken, in another order, some missed or made up
    mix         math24 and detection in equal shares

Of a math prompt's answers about half are right, the others are drawn from 2 to 4 distinct wrong ones: they repeat as
in real rollouts. No two thinking texts and no two answered box lists are equal. Kinds take turns in random order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from vtriune.reward.judge import JudgeItem
from vtriune.types import ImageSize, Preset, Progress, RewardSpec

G = 8
SIZE = ImageSize((640, 480), (644, 476))
TOTAL_STEPS = 100
STEPS = (5, 20, 60)
"""As the released trainer counts, from 1: one in each stage of the threshold's schedule."""
DETECTION = {
    "det_verifier_normalized": True,
    "det_reward_ratio": {
        "iou_max_label_first": 1.0,
        "iou_max_iou_first": 0.0,
        "iou_completeness": 0.3,
        "map": 0.0,
        "map50": 0.0,
        "map75": 0.0,
    },
}
LABELS = ("person", "shiba dog", "traffic light", "cup")
THOUGHT = (
    "the image shows a triangle whose sides are equal so we add both angles and compare them with what is asked first "
    "then next to it there is another object on left right above below which looks like about half as large as one "
    "before counting again we see that length of base times height divided by two gives area now let me check this "
    "value against graph where axis starts at zero and each step means ten units therefore result must be smaller than"
)
WORDS = THOUGHT.split()

Draw = Callable[[random.Random], str]


def _nat(rng: random.Random, most: int = 99) -> int:
    return rng.randint(2, most)


TYPICAL: tuple[Draw, ...] = (
    lambda r: str(r.randint(0, 20)),
    lambda r: str(r.randint(-500, 500)),
    lambda r: f"{r.randint(1, 9999) / 100}",
    lambda r: rf"\frac{{{_nat(r, 9)}}}{{{_nat(r, 9)}}}",
    lambda r: rf"{_nat(r, 9)}\sqrt{{{_nat(r, 9)}}}",
    lambda r: rf"{r.randint(10, 170)}^\circ",
    lambda r: rf"{_nat(r, 9)}\pi",
    lambda r: r.choice(("red", "blue", "green", "triangle", "pentagon", "large")),
    lambda r: r.choice("ABCDE"),
    lambda r: rf"{_nat(r, 9)}x + {_nat(r, 9)}",
    lambda r: rf"{_nat(r)}\%",
)

KINDS: tuple[Draw, ...] = (
    *TYPICAL,
    lambda r: f"{_nat(r)},{r.randint(100, 999)}",
    lambda r: rf"-\frac{{{_nat(r)}}}{{{_nat(r)}}}",
    lambda r: rf"\frac{{\sqrt{{{_nat(r)}}}}}{{{_nat(r, 9)}}}",
    lambda r: rf"{_nat(r)} \text{{ cm}}",
    lambda r: rf"{r.randint(1, 9)}.{_nat(r)} \times 10^{{{r.randint(-9, 9)}}}",
    lambda r: rf"({_nat(r)}, {_nat(r)})",
    lambda r: rf"\{{{_nat(r)}, {_nat(r)}, {_nat(r)}\}}",
    lambda r: rf"[{-_nat(r)}, {_nat(r)})",
    lambda r: rf"(-\infty, {-_nat(r)}) \cup ({_nat(r)}, \infty)",
    lambda r: rf"x = {_nat(r)}",
    lambda r: rf"\{{{_nat(r)}, {_nat(r)}, {_nat(r)}, {_nat(r)}, {_nat(r)}\}}",
    lambda r: rf"[{-_nat(r)}, 0] \cup [{_nat(r, 9)}, {r.randint(10, 99)}]",
    lambda r: rf"\text{{{r.choice(('blue square', 'red circle', 'green star', 'two dogs', 'left lane'))}}}",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One answer and all that either protocol says about it."""

    verifier: str
    response: str
    gold: str
    weights: tuple[float, float]
    parameters: dict[str, Any] = field(default_factory=dict)
    step: int = STEPS[-1]

    def item(self, preset: Preset) -> JudgeItem:
        """For the judge, whose steps count from 0."""
        spec = RewardSpec(self.verifier, self.gold, *self.weights, self.parameters, preset)
        return JudgeItem(self.response, spec, Progress(self.step - 1, TOTAL_STEPS, "train"), (SIZE,))

    def json(self, identity: str, preset: Preset) -> dict[str, Any]:
        """As an item of /v1/judge."""
        return {
            "id": identity,
            "response": self.response,
            "spec": {
                "verifier": self.verifier,
                "gold": self.gold,
                "accuracy_weight": self.weights[0],
                "format_weight": self.weights[1],
                "parameters": self.parameters,
                "preset": preset,
            },
            "progress": {"step": self.step - 1, "total_steps": TOTAL_STEPS, "split": "train"},
            "image_sizes": [{"original": SIZE.original, "resized": SIZE.resized}],
            "response_tokens": None,
        }

    def released(self) -> dict[str, Any]:
        """As the released trainer's payload for /judge."""
        told = {
            **self.parameters,
            "is_training": True,
            "step": self.step,
            "total_steps": TOTAL_STEPS,
            "image_grid_thw": [[1, SIZE.resized[1], SIZE.resized[0]]],
            "image_path": ["images/0001.jpg"],
        }
        return {
            "response": self.response,
            "answer": self.gold,
            "prompt": "Look at the picture and answer step by step. Put the final answer into the box. " * 2,
            "solution": self.gold,
            "data_source": "benchmark",
            "reward_verifier": self.verifier,
            "reward_verifier_parm": json.dumps(told),
            "accuracy_ratio": self.weights[0],
            "format_ratio": self.weights[1],
        }


def load(kind: str, seed: str, n: int) -> list[Case]:
    """The first `n` answers of a load, group after group."""
    return list(islice((case for group in groups(kind, seed) for case in group), n))


def groups(kind: str, seed: str) -> Iterator[list[Case]]:
    """Groups of G answers to one prompt each, without end. A longer load begins with the shorter one."""
    rng = random.Random(f"{kind} {seed}")
    draws: list[Draw] = []
    while True:
        if not draws:
            draws = list(TYPICAL if kind == "math" else KINDS)
            rng.shuffle(draws)
        if kind == "detection" or (kind == "mix" and rng.random() < 0.5):
            yield detection_group(rng)
        else:
            yield math_group(rng, draws.pop())


def math_group(rng: random.Random, draw: Draw) -> list[Case]:
    gold = draw(rng)
    wrong = [draw(rng) for _ in range(rng.randint(2, 4))]
    easy = rng.random()
    answers = [gold if rng.random() < easy else rng.choice(wrong) for _ in range(G)]
    step = rng.choice(STEPS)
    return [
        Case(
            "mathverify",
            responded(rng, rf"The answer is \boxed{{{answer}}}."),
            rf"\boxed{{{gold}}}",
            (1.0, 0.0),
            step=step,
        )
        for answer in answers
    ]


def detection_group(rng: random.Random) -> list[Case]:
    width, height = SIZE.resized
    labels = rng.sample(LABELS, rng.choice((1, 1, 1, 2)))
    boxes: list[tuple[list[int], str]] = []
    for _ in range(5):
        x, y = rng.randint(0, 600), rng.randint(0, 600)
        boxes.append(([x, y, x + rng.randint(60, 400), y + rng.randint(60, 400)], rng.choice(labels)))
    gold = f"<answer>\n{[{'bbox_2d': box, 'label': label} for box, label in boxes]}\n</answer>"
    step = rng.choice(STEPS)
    cases = []
    for _ in range(G):
        spread = rng.choice((0, 1, 3, 15, 60))
        answered = []
        for (x1, y1, x2, y2), label in rng.sample(boxes, len(boxes) - (rng.random() < 0.2)):
            pixels = [x1 * width / 1000, y1 * height / 1000, x2 * width / 1000, y2 * height / 1000]
            shaken = [max(0, round(side) + rng.randint(-spread, spread)) for side in pixels]
            named = label if rng.random() < 0.95 else rng.choice(LABELS)
            answered.append({"bbox_2d": shaken, "label": named})
        if rng.random() < 0.2:
            answered.append({"bbox_2d": [_nat(rng), _nat(rng), 300, 300], "label": rng.choice(LABELS)})
        cases.append(Case("detection", responded(rng, json.dumps(answered)), gold, (1.0, 0.1), DETECTION, step))
    return cases


def responded(rng: random.Random, answer: str) -> str:
    """Some 150 to 250 words of thinking that no other answer has, and the answer; now and then without its tags."""
    words = rng.choices(WORDS, k=rng.randint(150, 250))
    for _ in range(6):
        words[rng.randrange(len(words))] = f"{_nat(rng)} + {_nat(rng)} = {_nat(rng)}"
    thinking = " ".join(words)
    if rng.random() < 0.03:
        return f"{thinking}\n{answer}"
    return f"<think>\n{thinking}\n</think>\n<answer>\n{answer}\n</answer>"


def poisons() -> dict[str, Case]:
    """Answers and golds that take a judge seconds, memory or its stack; at most 400,000 characters each."""
    answers = {
        "9^9^9^9": "9^{9^{9^9}}",
        "((5!)!)!": "(((5!)!)!)",
        "2^(10^9)": "2^{10^9}",
        "1,000 nested braces": "{" * 1000 + "x" + "}" * 1000,
        "a sum of 2,000 terms": "+".join(f"x_{{{k}}}" for k in range(2000)),
        "390,000 digits": "7" * 390_000,
        "(x+y)^3000": "(x+y)^{3000}",
    }
    found = {
        name: Case(
            "mathverify", f"<think>\n.\n</think>\n<answer>\n\\boxed{{{answer}}}\n</answer>", r"\boxed{x+1}", (1.0, 0.0)
        )
        for name, answer in answers.items()
    }
    boxes = [{"bbox_2d": [k % 700, k % 600, k % 700 + 90, k % 600 + 90], "label": "cup"} for k in range(6000)]
    gold = "<answer>\n[{'bbox_2d': [10, 10, 90, 90], 'label': 'cup'}]\n</answer>"
    for name, answer in {
        "<answer> 50,000 times": "<answer>" * 50_000,
        "6,000 boxes": f"<think>\n.\n</think>\n<answer>\n{json.dumps(boxes)}\n</answer>",
        "200,000 brackets": f"<answer>\n{'[' * 200_000}\n</answer>",
    }.items():
        found[name] = Case("detection", answer, gold, (1.0, 0.1), DETECTION)
    found["gold 9^9^9^9"] = Case("mathverify", r"\boxed{2}", r"\boxed{9^{9^{9^9}}}", (1.0, 0.0))
    return found
