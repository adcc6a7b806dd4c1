"""How often alerts are false, and how soon a real fall is told: simulated sources of several sizes and rewards.

    python benchmarks/alerts.py

A healthy source has a constant mean reward: prompts differ in how often they are solved (a Beta distribution, most are
solved nearly always or nearly never), answers are right or wrong. A sick one loses nine tenths of its reward at step
100. Drawn with a fixed seed; no time is measured. `no_spread` is no false alarm where hardly a group is ever solved.
"""

from __future__ import annotations

import argparse
from collections import Counter
from statistics import median

import numpy as np

from vtriune.monitor.alerts import Alert, Alerts

G = 8
PROMPTS = (4, 16, 57)
"""Of a source in a step: the demo's, a small run's, and 1,024 prompts of 18 sources."""
REWARDS = (0.05, 0.2, 0.5, 0.9)
FALL = 100


def told(rng: np.random.Generator, steps: int, prompts: int, reward: float, *, falls: bool) -> list[tuple[int, Alert]]:
    """The alerts that a source opens, each with the step that told it."""
    alerts, opened = Alerts(), []
    for step in range(1, steps + 1):
        mean = reward / 10 if falls and step >= FALL else reward
        solved = rng.beta(0.8 * mean, 0.8 * (1 - mean), prompts)
        right = rng.random((prompts, G)) < solved[:, None]
        figures = {
            "rollouts": prompts * G,
            "scored_groups": prompts,
            "reward": right.mean(),
            "zero_spread": np.mean(right.all(axis=1) | ~right.any(axis=1)),
            "truncated": (rng.random((prompts, G)) < 0.02).mean(),
            "entropy": abs(rng.normal(0.1, 0.03)),
        }
        for name, lengths in (("length_correct", right.sum()), ("length_incorrect", (~right).sum())):
            if lengths:
                figures[name] = rng.lognormal(5, 0.5, lengths).mean()
        changes = alerts.update(step, "train", {f"source/{name}": float(value) for name, value in figures.items()})
        opened += [(step, alert) for alert in changes if alert.until is None]
    return opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="Simulated runs of each kind.")
    parser.add_argument("--steps", type=int, default=500, help="Of a healthy one.")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    total: Counter[str] = Counter()
    print(f"{given.runs} healthy runs of {given.steps} steps and {given.runs} that fall at step {FALL}, each")
    for prompts in PROMPTS:
        for reward in REWARDS:
            false = Counter(
                alert.kind
                for _ in range(given.runs)
                for _, alert in told(rng, given.steps, prompts, reward, falls=False)
            )
            found = []
            for _ in range(given.runs):
                opened = told(rng, FALL + 60, prompts, reward, falls=True)
                found += [
                    (step - FALL, alert.since - FALL)
                    for step, alert in opened
                    if alert.kind == "reward_collapsed" and step >= FALL
                ][:1]
            delay = (
                f"after {median(d for d, _ in found):g} steps, begun {median(b for _, b in found):+g}" if found else ""
            )
            print(f"{prompts:3} prompts, reward {reward}: false {dict(false)}, told {len(found)}/{given.runs} {delay}")
            total += false
    print(f"false in all: {dict(total)}")


if __name__ == "__main__":
    main()
