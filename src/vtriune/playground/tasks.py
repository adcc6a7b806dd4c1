"""The eight task families of the playground: each draws a picture, asks about it and knows the answer.

A task draws from the random generator it is given and nothing else. Writing files is dataset.py's business.
Every task has question forms that the base model knows well (`common`) and forms that it has hardly met (`rare`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from vtriune.types import Split

SIDE = 112
"""Side of every picture in pixels: 8 x 8 patches of 14 px, 4 x 4 visual tokens."""
SNAP = 14
"""Objects lie on this grid, so that a model this small can name their corners."""

COLORS = {
    "red": (220, 30, 30),
    "green": (20, 160, 50),
    "blue": (30, 60, 220),
    "orange": (250, 150, 0),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
WORDS = ("cat", "dog", "sun", "map", "key", "box", "fox", "jug", "hen", "wig", "zip", "bed")

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Boxed:
    """One object of an answer: corners in pixels of the picture, and what it is."""

    bbox: Box
    label: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A picture, one question about it and the answer a teacher would write."""

    task: str
    form: str
    """Which question form was used; together with `task` it decides the data source."""
    question: str
    think: str
    answer: str | tuple[Boxed, ...]
    """The text inside \\boxed{}, or the boxes."""
    picture: Image.Image
    content: str
    """Everything that determines the picture: two problems of equal content show the same picture."""

    @property
    def response(self) -> str:
        """The teacher's answer in the paper's form."""
        if isinstance(self.answer, str):
            return f"<think>{self.think}</think>\\boxed{{{self.answer}}}"
        return f"<think>{self.think}</think><answer>{boxes_text(self.answer)}</answer>"


def boxes_text(boxes: tuple[Boxed, ...]) -> str:
    """The JSON list that Qwen2.5-VL writes for boxes."""
    items = (f'{{"bbox_2d": [{", ".join(map(str, box.bbox))}], "label": "{box.label}"}}' for box in boxes)
    return f"[{', '.join(items)}]"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    return picture, ImageDraw.Draw(picture)


def _shape(draw: ImageDraw.ImageDraw, shape: str, color: str, box: Box) -> None:
    x1, y1, x2, y2 = box
    if shape == "circle":
        draw.ellipse((x1, y1, x2 - 1, y2 - 1), fill=COLORS[color])
    elif shape == "square":
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLORS[color])
    else:
        draw.polygon([(x1, y2 - 1), (x2 - 1, y2 - 1), ((x1 + x2) // 2, y1)], fill=COLORS[color])


def _write(draw: ImageDraw.ImageDraw, text: str, size: int, x: int, y: int, color: str) -> None:
    draw.text((x, y), text, font=_font(size), fill=COLORS[color])


def _math(rng: random.Random, form: str) -> Problem:
    """A sum or a difference in the picture, or a digit in the picture and the rest in the question."""
    color = rng.choice(list(COLORS))
    x, y = rng.randrange(2, 22), rng.randrange(20, 50)
    a, b = rng.randrange(0, 10), rng.randrange(0, 10)
    plus = rng.random() < 0.5
    a, b = (a, b) if plus or a >= b else (b, a)
    sign = "+" if plus else "-"
    picture, draw = _canvas()
    if form in ("expression", "result"):
        shown = f"{a}{sign}{b}"
        question = {
            "expression": "What is the value of the expression?",
            "result": "Work out this and give the result.",
        }
        text = question[form]
    else:
        shown = f"{a}"
        if form == "shown":
            text = f"Add {b} to the number shown." if plus else f"Take {b} from the number shown."
        else:
            text = f"What is the shown number plus {b}?" if plus else f"What is the shown number minus {b}?"
    _write(draw, shown, 44, x if len(shown) > 1 else x + 20, y, color)
    value = a + b if plus else a - b
    return Problem("math", form, text, f"{a}{sign}{b}={value}", str(value), picture, f"{shown} {color} {x} {y}")


def _puzzle(rng: random.Random, form: str) -> Problem:
    """Complete a pattern: a colour in a grid of two by two, or the next number of a series."""
    picture, draw = _canvas()
    if form in ("grid", "tile"):
        a, b = rng.sample(list(COLORS), 2)
        columns = rng.random() < 0.5
        shape = rng.choice(SHAPES)
        inset, dx, dy = rng.randrange(5, 13), rng.randrange(-4, 5), rng.randrange(-4, 5)
        cells = [(0, 0, a), (1, 0, a), (0, 1, b)] if columns else [(0, 0, a), (1, 0, b), (0, 1, a)]
        for i, j, color in cells:
            x, y = 56 * i + dx, 56 * j + dy
            _shape(draw, shape, color, (x + inset, y + inset, x + 56 - inset, y + 56 - inset))
        _write(draw, "?", 40, 74, 60, "black")
        text = "Which color is missing?" if form == "grid" else "What paint does the last tile need?"
        content = f"grid {a} {b} {columns} {shape} {inset} {dx} {dy}"
        return Problem("puzzle", form, text, f"{a} {b} {'row' if columns else 'column'}", b, picture, content)
    start, step = rng.randrange(0, 4), rng.randrange(1, 3)
    if rng.random() < 0.5:
        start, step = start + 3 * step, -step
    terms = [start + k * step for k in range(3)]
    color = rng.choice(list(COLORS))
    y = rng.randrange(25, 60)
    x = rng.randrange(0, 6)
    for k, term in enumerate(terms):
        _write(draw, str(term), 26, x + 30 * k, y, color)
    _write(draw, "?", 26, x + 90, y, "black")
    value = start + 3 * step
    text = "Which number comes next?" if form == "series" else "How does the row of numbers go on?"
    think = " ".join(map(str, terms))
    return Problem("puzzle", form, text, think, str(value), picture, f"series {terms} {color} {x} {y}")


def _science(rng: random.Random, form: str) -> Problem:
    """Read a thermometer, or add the voltages of the batteries in a row."""
    picture, draw = _canvas()
    if form in ("thermometer", "warm"):
        level = rng.randrange(1, 10)
        x = rng.randrange(4, 84)
        color = rng.choice(list(COLORS))
        top, bottom = 4, rng.randrange(100, 110)
        draw.rectangle((x, top, x + 24, bottom), outline=COLORS["black"], width=2)
        draw.rectangle((x + 3, bottom - 10 * level, x + 21, bottom - 2), fill=COLORS[color])
        text = "What temperature does the thermometer show?" if form == "thermometer" else "How warm is it, in degrees?"
        return Problem(
            "science", form, text, f"level {level}", str(10 * level), picture, f"heat {level} {x} {bottom} {color}"
        )
    count, volts = rng.randrange(1, 5), rng.choice((1, 2, 3))
    color = rng.choice(list(COLORS))
    x, y = rng.randrange(0, 4), rng.randrange(10, 70)
    for k in range(count):
        left = x + 28 * k
        draw.rectangle((left, y, left + 19, y + 27), fill=COLORS[color])
        draw.rectangle((left + 20, y + 9, left + 23, y + 18), fill=COLORS["black"])
    value = count * volts
    if form == "volts":
        text = f"Each battery gives {volts} volts. What is the total voltage?"
    else:
        text = f"One cell has {volts} volts. How many volts do all cells give?"
    return Problem(
        "science", form, text, f"{count}*{volts}={value}", str(value), picture, f"cells {count} {color} {x} {y}"
    )


def _chart(rng: random.Random, form: str) -> Problem:
    """Read one bar of a bar chart, named by its colour, or the tallest one."""
    picture, draw = _canvas()
    n = rng.choice((2, 3))
    colors = rng.sample(list(COLORS), n)
    heights = [rng.randrange(1, 8) for _ in range(n)]
    while len(set(heights)) < n:
        heights = [rng.randrange(1, 8) for _ in range(n)]
    width, inset = 112 // n, rng.randrange(3, 9)
    for k, (color, height) in enumerate(zip(colors, heights, strict=True)):
        draw.rectangle((k * width + inset, SIDE - 14 * height, (k + 1) * width - inset, SIDE), fill=COLORS[color])
    content = f"bars {list(zip(colors, heights, strict=True))} {inset}"
    if form in ("bar", "column"):
        k = rng.randrange(n)
        color = colors[k]
        text = f"What is the value of the {color} bar?" if form == "bar" else f"How high does the {color} column reach?"
    else:
        k = heights.index(max(heights))
        color = colors[k]
        text = "What is the largest value?" if form == "largest" else "How high is the tallest column?"
    return Problem("chart", form, text, f"{color} {heights[k]}", str(heights[k]), picture, content)


def _scatter(rng: random.Random, count: int, sides: tuple[int, ...]) -> list[Box]:
    """Boxes on the snap grid that don't overlap; they may share an edge."""
    boxes: list[Box] = []
    while len(boxes) < count:
        boxes.clear()
        for _ in range(40):
            w, h = rng.choice(sides), rng.choice(sides)
            x, y = SNAP * rng.randrange((SIDE - w) // SNAP + 1), SNAP * rng.randrange((SIDE - h) // SNAP + 1)
            if all(x >= b[2] or b[0] >= x + w or y >= b[3] or b[1] >= y + h for b in boxes):
                boxes.append((x, y, x + w, y + h))
            if len(boxes) == count:
                break
    return boxes


def _counting(rng: random.Random, form: str) -> Problem:
    """Count all objects, or those of one kind."""
    picture, draw = _canvas()
    count = rng.randrange(1, 7)
    cells = rng.sample(range(9), count)
    color = rng.choice(list(COLORS))
    kinds = [rng.choice(("circle", "square")) for _ in cells]
    for cell, kind in zip(cells, kinds, strict=True):
        x, y = 38 * (cell % 3) + 3, 38 * (cell // 3) + 3
        _shape(draw, kind, color, (x, y, x + 30, y + 30))
    content = f"count {sorted(zip(cells, kinds, strict=True))} {color}"
    if form in ("all", "things"):
        text = "How many objects are there?" if form == "all" else "Count the things in the picture."
        return Problem("counting", form, text, f"{count} objects", str(count), picture, content)
    kind = rng.choice(kinds)
    value = kinds.count(kind)
    text = f"How many {kind}s are there?" if form == "kind" else f"Give the number of {kind}s in the picture."
    return Problem("counting", form, text, f"{value} {kind}", str(value), picture, content)


def _ocr(rng: random.Random, form: str) -> Problem:
    """Read a number or a word."""
    picture, draw = _canvas()
    color = rng.choice(list(COLORS))
    if form in ("number", "digits"):
        value = str(rng.randrange(10, 1000))
        text = "Read the number." if form == "number" else "Which digits can you see?"
    else:
        value = rng.choice(WORDS)
        text = "Read the word." if form == "word" else "What is written here?"
    x, y = rng.randrange(2, 14), rng.randrange(10, 60)
    _write(draw, value, 44, x, y, color)
    return Problem("ocr", form, text, " ".join(value), value, picture, f"read {value} {color} {x} {y}")


def _objects(rng: random.Random, low: int, high: int) -> tuple[Image.Image, list[tuple[str, str, Box]], str]:
    picture, draw = _canvas()
    boxes = _scatter(rng, rng.randrange(low, high + 1), (28, 42))
    objects = [(rng.choice(list(COLORS)), rng.choice(SHAPES), box) for box in boxes]
    for color, shape, box in objects:
        _shape(draw, shape, color, box)
    return picture, objects, f"objects {sorted(objects)}"


def _grounding(rng: random.Random, form: str) -> Problem:
    """Give the box of the one object that a phrase names."""
    picture, objects, content = _objects(rng, 2, 3)
    while len({(color, shape) for color, shape, _ in objects}) < len(objects):
        picture, objects, content = _objects(rng, 2, 3)
    color, shape, box = rng.choice(objects)
    text = f"Where is the {color} {shape}?" if form == "where" else f"Draw a frame around the {color} {shape}."
    label = f"{color} {shape}"
    return Problem("grounding", form, text, label, (Boxed(box, label),), picture, content)


def _detection(rng: random.Random, form: str) -> Problem:
    """Give the boxes of all objects of one shape, from top to bottom."""
    picture, objects, content = _objects(rng, 1, 3)
    shape = rng.choice(objects)[1]
    boxes = sorted((box for _, kind, box in objects if kind == shape), key=lambda box: (box[1], box[0]))
    text = f"Detect every {shape}." if form == "detect" else f"Mark all {shape}s with frames."
    answer = tuple(Boxed(box, shape) for box in boxes)
    return Problem("detection", form, text, f"{len(boxes)} {shape}", answer, picture, content)


@dataclass(frozen=True, slots=True)
class Task:
    """One family: how to draw it, and its question forms."""

    draw: Callable[[random.Random, str], Problem]
    common: tuple[str, ...]
    """Forms that the base model knows well."""
    rare: tuple[str, ...]
    """Forms that the base model has hardly met: the same skills, asked in other words."""


TASKS: dict[str, Task] = {
    "math": Task(_math, ("expression", "shown"), ("result", "plus")),
    "puzzle": Task(_puzzle, ("grid", "series"), ("tile", "row")),
    "science": Task(_science, ("thermometer", "volts"), ("warm", "cells")),
    "chart": Task(_chart, ("bar", "largest"), ("column", "tallest")),
    "counting": Task(_counting, ("all", "kind"), ("things", "number")),
    "ocr": Task(_ocr, ("number", "word"), ("digits", "written")),
    "grounding": Task(_grounding, ("where",), ("frame",)),
    "detection": Task(_detection, ("detect",), ("mark",)),
}


def split_of(content: str) -> Split:
    """Which split a picture belongs to, by its content alone: no held-out picture can occur in training.

    A tenth of all pictures is held out.
    """
    return "test" if hashlib.blake2b(content.encode(), digest_size=2).digest()[0] % 10 == 0 else "train"


def draw_problem(rng: random.Random, task: str, *, rare: bool, split: Split) -> Problem:
    """One problem of a task in a common or a rare question form, with a picture of the split."""
    forms = TASKS[task].rare if rare else TASKS[task].common
    while True:
        problem = TASKS[task].draw(rng, rng.choice(forms))
        if split_of(problem.content) == split:
            return problem
