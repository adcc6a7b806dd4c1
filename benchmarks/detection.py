"""Microseconds per response of the detection verifier: 5 predicted x 5 gold boxes, reward, format and full report.

    .venv/bin/python benchmarks/detection.py

Prints the best of several rounds over 200 different responses, and how much of it is reading the text. No pass or
fail: the target is 150 us (the released reward server takes 2,400 us in process).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from vtriune.types import Preset
from vtriune.verifiers.answers import final_text, tagged
from vtriune.verifiers.base import Context
from vtriune.verifiers.box_text import Box, read_boxes
from vtriune.verifiers.detection import Detection, DetectionParams
from vtriune.verifiers.released_detection import DetRewardRatio

ROUNDS = 15
LABELS = ("shiba dog", "person", "traffic light")


def make_case(rng: random.Random, spread: int) -> tuple[str, str]:
    """Gold and a response whose five boxes lie within `spread` thousandths of gold's, in another order."""
    boxes: list[tuple[list[int], str]] = []
    for _ in range(5):
        x, y = rng.randrange(0, 700), rng.randrange(0, 700)
        boxes.append(([x, y, x + rng.randrange(50, 300), y + rng.randrange(50, 300)], rng.choice(LABELS)))
    gold = [{"bbox_2d": box, "label": label} for box, label in boxes]
    answer = [
        {"bbox_2d": [corner + rng.randint(-spread, spread) for corner in box], "label": label}
        for box, label in rng.sample(boxes, 5)
    ]
    thinking = "The picture shows several objects; I look at each in turn. " * 8
    return (
        f"<answer>\n{gold}\n</answer>",
        f"<think>\n{thinking}\n</think>\n\n<answer>\n{answer}\n</answer>",
    )


def best(work: Callable[[], None], n: int) -> float:
    """Microseconds per item of the fastest round."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) / n * 1e6


def main() -> None:
    rng = random.Random(0)
    verifier = Detection()
    params = DetectionParams(det_reward_ratio=DetRewardRatio(iou_max_label_first=1.0, iou_completeness=0.3))
    presets: tuple[Preset, ...] = ("modern", "paper", "official_code")
    for spread in (5, 25):
        cases = [make_case(rng, spread) for _ in range(200)]

        def read(cases: list[tuple[str, str]] = cases) -> None:
            for _, response in cases:
                read_boxes(tagged(final_text(response)) or "")

        print(f"boxes within {spread} thousandths: reading {best(read, len(cases)):5.1f} us")
        for preset in presets:
            context = Context(preset=preset, split="train", threshold=0.95)
            parsed = [(response, verifier.parse_gold(gold, params, context)) for gold, response in cases]

            def judge(parsed: list[tuple[str, list[Box]]] = parsed, context: Context = context) -> None:
                for response, gold in parsed:
                    verifier.judge(response, gold, params, context)

            print(f"  {preset:13} reading, reward and report {best(judge, len(cases)):5.1f} us a response")


if __name__ == "__main__":
    main()
