"""What the figures and alerts of a step cost: 8,192 rollouts of 16 sources and 8 tasks, in ms, against a limit.

    python benchmarks/metrics.py

A step of the paper's size: 1,024 prompts x 8 answers of some 300 tokens, half the sources judged by detection with its
whole report, one answer in five with a reflection word. Drawn with a fixed seed. The limit is 1 % of a step of 30 s.
Times are CPU time, the best of several runs: the machine may be shared.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import numpy as np

from vtriune.monitor.alerts import Alerts
from vtriune.monitor.metrics import source_metrics
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import (
    FinishReason,
    Group,
    ImageSize,
    JudgedGroup,
    Message,
    Progress,
    RewardSpec,
    Rollout,
    Sample,
)

LIMIT_MS = 300
G = 8
TASKS = ("math", "puzzle", "science", "chart", "counting", "ocr", "detection", "grounding")
SIZES = (ImageSize((640, 480), (644, 476)),)
SENTENCE = "so the left side of this triangle is longer than its base and we add both angles to compare them with it"
WORDS = SENTENCE.split(" ")
"""Words of a token or a little more."""
REFLECTIONS = ("wait", "let me verify", "check again", "re-check", "yet")


def thoughts(rng: random.Random, tokens: int) -> str:
    words = rng.choices(WORDS, k=tokens)
    if rng.random() < 0.2:
        words[rng.randrange(tokens)] = rng.choice(REFLECTIONS)
    return f"<think>{' '.join(words)}</think>"


def group(rng: random.Random, source: int, number: int) -> JudgedGroup:
    """A group with the verdicts of the real verifiers."""
    boxes = source % 2 == 1
    right = f'[{{"bbox_2d": [10, 10, {rng.randint(100, 900)}, 900], "label": "cat"}}]' if boxes else r"\boxed{4}"
    wrong = right.replace("900]", "800]") if boxes else r"\boxed{5}"
    spec = RewardSpec("detection" if boxes else "mathverify", right, 1.0, 0.1, {"iou_threshold": 0.5} if boxes else {})
    rollouts, verdicts = [], []
    for _ in range(G):
        tokens = rng.randint(200, 400)
        text = f"{thoughts(rng, tokens)}<answer>{rng.choice((right, wrong))}</answer>"
        finish = FinishReason.LENGTH if rng.random() < 0.02 else FinishReason.STOP
        rollouts.append(Rollout(np.arange(tokens), np.zeros(tokens, np.float32), text, finish, entropy=0.3))
        verdicts.append(judge_item(JudgeItem(text, spec, Progress(0, 100, "train"), SIZES)))
    sample = Sample(f"{number}", f"source_{source}", TASKS[source // 2], (Message("user", "?"),), (), spec)
    return JudgedGroup(Group(sample, "?", np.arange(9), SIZES, tuple(rollouts)), tuple(verdicts), np.zeros(G))


def best_ms(call: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--sources", type=int, default=16)
    parser.add_argument("--runs", type=int, default=9)
    given = parser.parse_args()
    rng = random.Random(0)
    groups = [group(rng, number % given.sources, number) for number in range(given.prompts)]
    figures = source_metrics(groups, TASKS)
    alerts = Alerts()
    for step in range(30):
        alerts.update(step, "train", figures)
    metrics_ms = best_ms(lambda: source_metrics(groups, TASKS), given.runs)
    alerts_ms = best_ms(lambda: alerts.update(30, "train", figures), given.runs)
    share = (metrics_ms + alerts_ms) / LIMIT_MS
    print(f"{given.prompts * G} rollouts, {given.sources} sources, {len(figures)} figures")
    print(f"figures {metrics_ms:.1f} ms, alerts {alerts_ms:.2f} ms: {share:.2f} of the limit of {LIMIT_MS} ms")


if __name__ == "__main__":
    main()
