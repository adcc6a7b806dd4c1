"""What a verdict costs: 150 prompts x 8 answers, embedded and through the pool, in ms per answer.

    python benchmarks/judge.py [--preset modern]

The load is drawn with a fixed seed: gold of the kinds that the paper's sources have, answers of some 150 words that
are right about half the time, groups handed over one by one as a trainer does. Figures on a shared machine are worth
their ratios; CPU time is the steadier one.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import get_args

from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.reward.pool import JudgePool
from vtriune.types import ImageSize, Preset, Progress, RewardSpec, Verdict

G = 8
PROGRESS = Progress(0, 100, "train")
SIZES = (ImageSize((640, 480), (644, 476)),)
RATIOS = {"det_reward_ratio": {"iou_max_label_first": 1.0, "iou_completeness": 0.3}}
THOUGHT = (
    "the image shows a triangle whose sides are equal, so we add both angles and compare them with what is asked. "
)

MATH_KINDS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: str(rng.randint(0, 20)),
    lambda rng: str(rng.randint(-500, 500)),
    lambda rng: f"{rng.randint(1, 999) / 100}",
    lambda rng: rf"\frac{{{rng.randint(1, 9)}}}{{{rng.randint(2, 9)}}}",
    lambda rng: rf"{rng.randint(2, 9)}\sqrt{{{rng.randint(2, 9)}}}",
    lambda rng: rf"{rng.randint(10, 170)}^\circ",
    lambda rng: rf"{rng.randint(2, 9)}\pi",
    lambda rng: rng.choice(["red", "blue", "green", "triangle", "pentagon", "large"]),
    lambda rng: rng.choice("ABCD"),
    lambda rng: f"{rng.randint(1, 9)}x + {rng.randint(1, 9)}",
    lambda rng: rf"{rng.randint(1, 99)}\%",
)


def math_group(rng: random.Random, preset: Preset) -> list[JudgeItem]:
    kind = rng.choice(MATH_KINDS)
    gold = kind(rng)
    spec = RewardSpec("mathverify", rf"\boxed{{{gold}}}", 1.0, 0.1, preset=preset)
    answers = [gold if rng.random() < 0.5 else kind(rng) for _ in range(G)]
    return [JudgeItem(f"{thoughts(rng)}\n<answer>\n\\boxed{{{a}}}\n</answer>", spec, PROGRESS, SIZES) for a in answers]


def detection_group(rng: random.Random, preset: Preset) -> list[JudgeItem]:
    boxes = [(rng.randint(0, 500), rng.randint(0, 500), rng.randint(50, 450), rng.randint(50, 450)) for _ in range(5)]
    labels = [rng.choice(["cat", "dog", "traffic light"]) for _ in boxes]

    def written(noise: int) -> str:
        shaken = [[max(0, side + rng.randint(-noise, noise)) for side in box] for box in boxes]
        listed = [
            {"bbox_2d": [x, y, x + w, y + h], "label": label}
            for (x, y, w, h), label in zip(shaken, labels, strict=True)
        ]
        return f"<answer>\n{listed}\n</answer>"

    parameters = RATIOS if preset == "official_code" else {}
    spec = RewardSpec("detection", written(0), 1.0, 0.1, parameters, preset)
    return [JudgeItem(f"{thoughts(rng)}\n{written(rng.choice([0, 5, 40]))}", spec, PROGRESS, SIZES) for _ in range(G)]


def load(seed: str, n_math: int, preset: Preset) -> list[list[JudgeItem]]:
    """150 groups of G answers, `n_math` of them math, the others detection."""
    rng = random.Random(seed)
    groups = [math_group(rng, preset) for _ in range(n_math)]
    groups += [detection_group(rng, preset) for _ in range(150 - n_math)]
    rng.shuffle(groups)
    return groups


def thoughts(rng: random.Random) -> str:
    """Some 150 words that no other answer has: in real rollouts hardly two answers are equal."""
    return f"<think>\n{THOUGHT * 7}{rng.random()}\n</think>"


def embedded(groups: Sequence[Sequence[JudgeItem]]) -> list[Verdict]:
    return [judge_item(item) for group in groups for item in group]


def through(pool: JudgePool, groups: Sequence[Sequence[JudgeItem]]) -> list[Verdict]:
    futures: list[Future[list[Verdict]]] = [pool.submit(group) for group in groups]
    return [verdict for future in futures for verdict in future.result()]


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time so far of this process and the processes `pids`."""
    total = time.process_time()
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=get_args(Preset), default="modern")
    preset: Preset = parser.parse_args().preset
    print(f"preset {preset}, 150 prompts x {G} answers, ms per answer: CPU time of all processes / wall-clock time")
    print(f"{'':12}{'embedded':>16}{'pool of 1':>16}{'pool of 2':>16}")
    for name, n_math in (("math", 150), ("detection", 0), ("mix", 100)):
        # A first load that is not timed: sympy's imports and the tables that its grammar builds as it meets it.
        before, groups = load(f"{name} before", n_math, preset), load(name, n_math, preset)
        embedded(before)
        per_answer = 1000 / (len(groups) * G)
        cpu, wall = time.process_time(), time.perf_counter()
        verdicts = embedded(groups)
        figures = [((time.process_time() - cpu) * per_answer, (time.perf_counter() - wall) * per_answer)]
        for workers in (1, 2):
            with JudgePool(workers) as pool:
                while pool.counters()["started"] < workers:
                    time.sleep(0.01)
                through(pool, before)
                pids = pool.pids()
                cpu, wall = cpu_seconds(pids), time.perf_counter()
                if through(pool, groups) != verdicts:
                    raise SystemExit("pool and embedded judge disagree")
                figures.append(((cpu_seconds(pids) - cpu) * per_answer, (time.perf_counter() - wall) * per_answer))
        cells = "".join(f"{f'{cpu:.2f} / {wall:.2f}':>16}" for cpu, wall in figures)
        print(f"{name:12}{cells}", flush=True)


if __name__ == "__main__":
    main()
