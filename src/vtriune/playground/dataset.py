"""Writes the playground's problems as Parquet files in the schema of Orsta-Data-47k.

    python -m vtriune.playground.dataset OUT_FOLDER [--seed 0] [--train 1500] [--test 256]

Two data sources per task: `math` asks in forms that the base model knows well, `math_rare` in forms that it has hardly
met. A picture is in the training or in the test files, never in both.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from vtriune.data.schema import DetRewardRatio, Row, write_rows
from vtriune.playground.tasks import TASKS, Problem, boxes_text, draw_problem
from vtriune.types import Split

DET_REWARD_RATIO: DetRewardRatio = {"iou_max_label_first": 1.0, "iou_completeness": 0.3}
"""As in the released detection rows."""


def source_of(task: str, *, rare: bool) -> str:
    """Name of the data source of a task's common or rare question forms."""
    return f"{task}_rare" if rare else task


def to_row(problem: Problem, source: str) -> Row:
    """A problem in the released schema. Boxes are pixels of the picture, for gold as for the model's answers."""
    picture = io.BytesIO()
    problem.picture.save(picture, "PNG")
    row: Row = {
        "data_source": source,
        "images": [{"bytes": picture.getvalue(), "path": None}],
        "prompt": [{"role": "user", "content": f"<image>{problem.question}"}],
        "ability": problem.task,
        "reward_model": {
            "answer": problem.answer if isinstance(problem.answer, str) else None,
            "ground_truth": f"\\boxed{{{problem.answer}}}",
            "accuracy_ratio": 1.0,
            "format_ratio": 0.0,
            "verifier": "mathverify",
        },
    }
    if not isinstance(problem.answer, str):
        row["reward_model"] |= {
            "ground_truth": f"<answer>\n{boxes_text(problem.answer)}\n</answer>",
            "format_ratio": 0.1,
            "verifier": "detection",
            "verifier_parm": {
                "det_verifier_normalized": True,
                "det_reward_ratio": DET_REWARD_RATIO,
                "gold_space": "absolute_original",
                "answer_space": "absolute_resized",
                "eval_iou_threshold": 0.0,  # the held-out score of boxes is their mean IoU
            },
        }
    return row


def rows(task: str, source: str, *, rare: bool, split: Split, count: int, seed: int) -> Iterator[Row]:
    """`count` rows of one data source, no picture and question twice."""
    digest = hashlib.blake2b(f"{seed}/{source}/{split}".encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(digest))
    drawn: set[tuple[str, str]] = set()
    while len(drawn) < count:
        problem = draw_problem(rng, task, rare=rare, split=split)
        if (problem.content, problem.question) not in drawn:
            drawn.add((problem.content, problem.question))
            yield to_row(problem, source)


def write_playground(folder: Path, *, seed: int, train: int, test: int) -> None:
    """Write `train` and `test` rows per task, half of them in rare question forms."""
    jobs = [(task, rare, split) for task in TASKS for rare in (False, True) for split in ("train", "test")]
    for task, rare, split in track(jobs, description="Drawing the playground"):
        source = source_of(task, rare=rare)
        count = (train if split == "train" else test) // 2
        path = folder / split / f"{split}_{task}_{source}_{count}.parquet"
        write_rows(rows(task, source, rare=rare, split=split, count=count, seed=seed), path)  # type: ignore[arg-type]


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write train/ and test/.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other problems.")] = 0,
    train: Annotated[int, typer.Option(help="Training rows per task.", min=2)] = 1500,
    test: Annotated[int, typer.Option(help="Held-out rows per task.", min=2)] = 256,
) -> None:
    """Draw the eight-task playground and write it as Parquet in the released schema."""
    write_playground(folder, seed=seed, train=train, test=test)


if __name__ == "__main__":
    typer.run(main)
