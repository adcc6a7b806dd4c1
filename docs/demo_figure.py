"""Draws the README's picture from a finished demo run.

    python docs/demo_figure.py runs/demo docs/demo.png

Left: held-out score per task before and after. Right: what each task earned on the way. Below: answers on pictures.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import typer
from matplotlib.patches import Rectangle
from PIL import Image

from vtriune.monitor.runs import read_metrics, read_recipe
from vtriune.verifiers.box_text import read_boxes

COLORS = [f"C{number}" for number in range(10)]
PICTURES = 6


def per_task(figures: dict[str, float], name: str, tasks: dict[str, list[str]]) -> dict[str, float]:
    """Mean over a task's sources of one figure, where the row has it."""
    means = {}
    for task, sources in tasks.items():
        values = [figures[f"{source}/{name}"] for source in sources if f"{source}/{name}" in figures]
        if values:
            means[task] = float(np.mean(values))
    return means


def smoothed(steps: list[int], values: list[float], width: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over `width` logged steps."""
    kernel = np.ones(min(width, len(values))) / min(width, len(values))
    return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a finished demo run.")],
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
) -> None:
    """Draw the picture of a demo run."""
    summary = json.loads((run / "summary.json").read_text())
    tasks: dict[str, list[str]] = {}
    for source, entry in summary["sources"].items():
        tasks.setdefault(entry["task"], []).append(source)
    figure = plt.figure(figsize=(11, 6.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1)).flat  # type: ignore[union-attr]
    left, right = top.subplots(1, 2)

    for place, sources in enumerate(tasks.values()):
        before, after = (np.mean([summary["sources"][s][when] for s in sources]) for when in ("before", "after"))
        left.plot([before, after], [place, place], color=COLORS[place], linewidth=3, alpha=0.5)
        left.plot(before, place, "o", color="white", markeredgecolor=COLORS[place], markersize=9, markeredgewidth=2)
        left.plot(after, place, "o", color=COLORS[place], markersize=10)
    left.set(
        yticks=range(len(tasks)), yticklabels=list(tasks), xlim=(0, 100), xlabel="held-out score, before and after"
    )
    left.invert_yaxis()
    left.set_title(
        f"mean {summary['mean_before']:.1f} to {summary['mean_after']:.1f} in {summary['minutes']:.0f} minutes"
    )

    curves: dict[str, tuple[list[int], list[float]]] = {task: ([], []) for task in tasks}
    for line in read_metrics(run):
        if line["split"] == "train":
            for task, value in per_task(line["metrics"], "accuracy", tasks).items():
                curves[task][0].append(line["step"])
                curves[task][1].append(value)
    for color, (task, (steps, values)) in zip(COLORS, curves.items(), strict=False):
        right.plot(*smoothed(steps, values), color=color, label=task)
    right.set(xlabel="training step", ylabel="accuracy reward (running mean)", ylim=(0, 1))
    right.legend(fontsize=8, ncols=2, loc="lower right")

    rows = pq.read_table(run / "rollouts" / f"eval-{summary['steps']:06d}.parquet").to_pylist()
    rows = [row for row in rows if row["decoding"] == "greedy"]
    for axis, (task, row) in zip(
        bottom.subplots(1, PICTURES),
        _examples(rows, ("detection", "grounding", "chart", "puzzle", "math", "ocr")),
        strict=True,
    ):
        axis.imshow(_picture(run, row))
        axis.set(xticks=[], yticks=[])
        question = row["prompt"].split("<|vision_end|>")[-1].split("<|im_end|>")[0]
        answer = row["response"].partition("</think>")[2]
        if task in ("detection", "grounding"):
            answer = "boxes drawn"
            for box in read_boxes(row["response"].partition("<answer>")[2]).boxes:
                corner, width, height = (box.x1, box.y1), box.x2 - box.x1, box.y2 - box.y1
                axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="magenta", linewidth=2))
        axis.set_title(question, fontsize=7)
        axis.set_xlabel(answer, fontsize=8)
    figure.savefig(out, dpi=110)


def _examples(rows: list[dict[str, Any]], tasks: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """The first correct answer of each task: the picture shows what was learned, the table how much."""
    return [(task, next(row for row in rows if row["task"] == task and row["correct"])) for task in tasks]


def _picture(run: Path, row: dict[str, Any]) -> Image.Image:
    """The picture of a rollout, found by its sample's file and row."""
    file, _, number = row["sample_id"].rpartition("#")
    base = Path(read_recipe(run)["base"])
    images = pq.read_table(base / file, columns=["images"])["images"][int(number)].as_py()
    return Image.open(io.BytesIO(images[0]["bytes"]))


if __name__ == "__main__":
    typer.run(main)
