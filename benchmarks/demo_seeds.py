"""Reads the summaries of demo runs and prints how each stands against the demo's promises.

    for seed in 0 1 2; do vtriune train recipes/demo.yaml seed=$seed --out runs/demo-$seed; done
    python benchmarks/demo_seeds.py runs/demo-0 runs/demo-1 runs/demo-2

The promises: at most 10 minutes on two cores, the mean held-out score rises by at least 10 points, no task falls by
more than 3, every task starts between 15 and 75. Leaves with 1 if one is missed.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Annotated

import typer

from vtriune.monitor.evaluation import Summary


def task_scores(summary: Summary) -> dict[str, tuple[float, float]]:
    """Score before and after of every task: the mean over its sources."""
    sources = summary["sources"].values()
    tasks = sorted({entry["task"] for entry in sources})
    return {
        task: (
            statistics.fmean(entry["before"] for entry in sources if entry["task"] == task),
            statistics.fmean(entry["after"] for entry in sources if entry["task"] == task),
        )
        for task in tasks
    }


def main(runs: Annotated[list[Path], typer.Argument(help="Folders of finished demo runs.")]) -> None:
    """Print one line per run and, at the end, what was missed."""
    missed = []
    for run in runs:
        summary: Summary = json.loads((run / "summary.json").read_text())
        tasks = task_scores(summary)
        gain = summary["mean_after"] - summary["mean_before"]
        worst_change, worst = min((after - before, task) for task, (before, after) in tasks.items())
        low, high = min(before for before, _ in tasks.values()), max(before for before, _ in tasks.values())
        greedy = statistics.fmean(
            entry["greedy_after"] - entry["greedy_before"] for entry in summary["sources"].values()
        )
        print(
            f"seed {summary['seed']}: mean {summary['mean_before']:.1f} -> {summary['mean_after']:.1f} ({gain:+.1f}), "
            f"greedy {greedy:+.1f}, least gain {worst_change:+.1f} ({worst}), before RL {low:.1f}..{high:.1f} a task, "
            f"{summary['minutes']:.1f} minutes"
        )
        promises = {
            "mean rises by 10": gain >= 10,
            "no task falls by more than 3": worst_change >= -3,
            "15 to 75 before": low >= 15 and high <= 75,
            "10 minutes": summary["minutes"] <= 10,
            "greedy rises": greedy > 0,
        }
        missed += [f"{run}: {promise}" for promise, kept in promises.items() if not kept]
    for line in missed:
        print("missed:", line)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
