"""The rollouts of a step as a Parquet table: what was asked and answered, what it was worth, and why.

Which file holds which step is in store.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from vtriune.monitor.evaluation import Evaluation, GradedAnswer, score_answers
from vtriune.monitor.files import DamagedRun, replacing, valid_text
from vtriune.types import JudgedGroup, Progress, Status

Decoding = Literal["sampled", "greedy"]

_SIZE = pa.list_(pa.int32(), 2)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),  # of the run folder, see store.py
        ("group", pa.int32()),  # position in the step; the G answers to a prompt share it
        ("answer", pa.int32()),  # position in the group
        ("decoding", pa.string()),  # `sampled` or `greedy`
        ("source", pa.string()),
        ("task", pa.string()),
        ("sample_id", pa.string()),
        ("prompt", pa.string()),  # as the model saw it
        ("response", pa.string()),
        ("tokens", pa.int32()),  # of the response
        ("finish", pa.string()),  # FinishReason
        ("entropy", pa.float64()),  # mean over the tokens, nats
        ("spurious_tokens", pa.int32()),
        # the verdict
        ("status", pa.string()),  # Status
        ("reward", pa.float64()),
        ("accuracy", pa.float64()),
        ("format", pa.float64()),
        ("correct", pa.bool_()),
        ("reason", pa.string()),
        ("report", pa.string()),  # JSON object; null for a figure that is not finite
        ("advantage", pa.float64()),
        # all that the verdict follows from, beside the response
        ("verifier", pa.string()),
        ("gold", pa.string()),
        ("parameters", pa.string()),  # JSON object
        ("preset", pa.string()),
        ("accuracy_weight", pa.float64()),
        ("format_weight", pa.float64()),
        ("progress_step", pa.int64()),  # Progress: what schedules saw
        ("total_steps", pa.int64()),
        ("split", pa.string()),
        ("images", pa.list_(pa.struct([("where", pa.string()), ("original", _SIZE), ("resized", _SIZE)]))),
    ]
)
"""One row for every rollout. Sizes are (width, height) in pixels."""


def write_rollouts(
    path: Path, step: int, progress: Progress, groups_by_decoding: dict[Decoding, Sequence[JudgedGroup]]
) -> None:
    """Write all rollouts of a step to `path`, whole or not at all.

    A response with a lone surrogate, which no file can hold as UTF-8, is stored with `?` in its place.
    """
    rows = [
        row
        for decoding, groups in groups_by_decoding.items()
        for position, judged in enumerate(groups)
        for row in _rows(judged, {"step": step, "group": position, "decoding": decoding}, progress)
    ]
    columns = {field.name: _column([row[field.name] for row in rows], field.type) for field in SCHEMA}
    with replacing(path) as file:
        pq.write_table(pa.table(columns, schema=SCHEMA), file, compression="zstd")


def read_evaluation(path: Path) -> Evaluation:
    """The scores of a stored evaluation, as they were when it was written.

    Raises:
        DamagedRun: the file is missing, or is not a rollout file.
    """
    table = read_columns(path, ["decoding", "source", "task", "sample_id", "status", "accuracy"])
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return Evaluation(sampled=_scores(rows, "sampled"), greedy=_scores(rows, "greedy"))


def read_columns(path: Path, columns: Sequence[str]) -> Any:
    """Columns of a rollout file, as a pyarrow Table.

    Raises:
        DamagedRun: the file is missing, or is not a rollout file.
    """
    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas: a second and 50 MiB
            return file.read(columns=list(columns)).select(columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DamagedRun(f"{path}: not readable as rollouts ({error})") from error


def _scores(rows: Iterable[tuple[Any, ...]], decoding: Decoding) -> dict[str, Any]:
    return score_answers(
        GradedAnswer(source, task, sample, accuracy if status == Status.SCORED else None)
        for decoded, source, task, sample, status, accuracy in rows
        if decoded == decoding
    )


def _rows(judged: JudgedGroup, place: dict[str, Any], progress: Progress) -> Iterable[dict[str, Any]]:
    group, spec = judged.group, judged.group.sample.reward
    shared = place | {
        "source": group.sample.source,
        "task": group.sample.task,
        "sample_id": group.sample.id,
        "prompt": group.prompt,
        "verifier": spec.verifier,
        "gold": spec.gold,
        "parameters": _json(dict(spec.parameters)),
        "preset": spec.preset,
        "accuracy_weight": spec.accuracy_weight,
        "format_weight": spec.format_weight,
        "progress_step": progress.step,
        "total_steps": progress.total_steps,
        "split": progress.split,
        "images": [
            {"where": valid_text(image.where), "original": size.original, "resized": size.resized}
            for image, size in zip(group.sample.images, group.image_sizes, strict=True)
        ],
    }
    answers = zip(group.rollouts, judged.verdicts, judged.advantages.tolist(), strict=True)
    for position, (rollout, verdict, advantage) in enumerate(answers):
        yield shared | {
            "answer": position,
            "response": rollout.text,
            "tokens": len(rollout.token_ids),
            "finish": rollout.finish,
            "entropy": rollout.entropy,
            "spurious_tokens": rollout.spurious_tokens,
            "status": verdict.status,
            "reward": verdict.reward,
            "accuracy": verdict.accuracy,
            "format": verdict.format,
            "correct": verdict.correct,
            "reason": verdict.reason,
            "report": _json(dict(verdict.report)),
            "advantage": advantage,
        }


def _json(value: dict[str, Any]) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()


def _column(values: list[Any], kind: Any) -> Any:
    return pa.array([valid_text(value) for value in values] if kind == pa.string() else values, type=kind)
