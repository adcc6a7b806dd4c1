"""The row schema of Orsta-Data-47k as Hugging Face Features, and the one writer of such rows.

Reading lives in sources.py and does not ask for this exact schema: a released file, which lacks our own leaves, loads
unchanged. Validation lives there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from vtriune.types import UserError

ROW_GROUP = 128
"""Rows written at a time: bounds the memory of the writer and of whoever reads a row group."""


class PromptTurn(TypedDict):
    """One turn of `prompt`; `content` holds one `<image>` mark for every picture."""

    role: str
    content: str


class Picture(TypedDict):
    """An encoded picture (PNG, JPEG, ...), or the path of one relative to the data file."""

    bytes: bytes | None
    path: str | None


class DetRewardRatio(TypedDict, total=False):
    """How `official_code` blends its detection scores."""

    iou_max_label_first: float
    iou_max_iou_first: float
    iou_completeness: float
    map: float
    map50: float
    map75: float


class VerifierParm(TypedDict, total=False):
    """Parameters of the verifier. The released files hold the first two; the others are ours."""

    det_verifier_normalized: bool
    det_reward_ratio: DetRewardRatio
    gold_space: str
    """Box space of the gold boxes (`data.boxes.BoxSpace`)."""
    answer_space: str
    """Box space that the model answers in."""
    iou_threshold: list[list[float]]
    """Schedule of the training threshold, [[from progress, eps], ...]; a fixed one is [[0.0, eps]]."""
    eval_iou_threshold: float


class RewardModel(TypedDict):
    """How the row is rewarded. `ground_truth` is what the verifier sees, `answer` the same without dressing."""

    answer: str | None
    ground_truth: str
    accuracy_ratio: float
    format_ratio: float
    verifier: str
    verifier_parm: NotRequired[VerifierParm | None]


class ExtraInfo(TypedDict, total=False):
    """Where the row came from; nothing here changes training."""

    id: str | None
    image_path: str | None


class Row(TypedDict):
    """One row as written by the playground and the converters."""

    data_source: str
    images: list[Picture]
    prompt: list[PromptTurn]
    ability: str
    reward_model: RewardModel
    extra_info: NotRequired[ExtraInfo]


ROW_FEATURES = Features(
    {
        "data_source": Value("string"),
        "images": List(Image()),
        "prompt": List({"role": Value("string"), "content": Value("string")}),
        "ability": Value("string"),
        "reward_model": {
            "answer": Value("string"),
            "ground_truth": Value("string"),
            "accuracy_ratio": Value("float32"),
            "format_ratio": Value("float32"),
            "verifier": Value("string"),
            "verifier_parm": {
                "det_verifier_normalized": Value("bool"),
                "det_reward_ratio": {
                    "iou_max_label_first": Value("float64"),
                    "iou_max_iou_first": Value("float64"),
                    "iou_completeness": Value("float64"),
                    "map": Value("float64"),
                    "map50": Value("float64"),
                    "map75": Value("float64"),
                },
                "gold_space": Value("string"),
                "answer_space": Value("string"),
                "iou_threshold": List(List(Value("float64"))),
                "eval_iou_threshold": Value("float64"),
            },
        },
        "extra_info": {"id": Value("string"), "image_path": Value("string")},
    }
)
"""The released schema; the last four leaves of `verifier_parm` are ours. A leaf that does not apply is null."""


def write_rows(rows: Iterable[Row], path: Path) -> int:
    """Write `rows` as Parquet in the released schema, replacing `path` only when all are written; return their number.

    Raises:
        UserError: a row holds a field that the schema lacks, or a value of another type.
    """
    schema = ROW_FEATURES.arrow_schema
    unfinished = path.with_name(path.name + ".part")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    remaining, written = iter(rows), 0
    try:
        with pq.ParquetWriter(unfinished, schema) as writer:
            while group := list(islice(remaining, ROW_GROUP)):
                for number, row in enumerate(group, start=written):
                    # Arrow would drop such a field without a word.
                    if unknown := _unknown_field(row, schema):
                        raise UserError(f"{path} row {number}: the schema has no field {unknown}; rename or remove it")
                try:
                    table = pa.Table.from_pylist(group, schema=schema)
                except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
                    last = written + len(group) - 1
                    raise UserError(
                        f"{path} rows {written} to {last}: a value does not fit the schema: {error}"
                    ) from error
                writer.write_table(table)
                written += len(group)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def _unknown_field(value: object, fields: pa.Schema | pa.DataType) -> str | None:
    if isinstance(value, list) and pa.types.is_list(fields):
        return next((unknown for item in value if (unknown := _unknown_field(item, fields.value_type))), None)
    if not isinstance(value, Mapping) or not isinstance(fields, pa.Schema | pa.StructType):
        return None  # a leaf, or a value of the wrong type, which Arrow refuses by itself
    types = {field.name: field.type for field in fields}
    for name, child in value.items():
        if name not in types:
            return str(name)
        if unknown := _unknown_field(child, types[name]):
            return f"{name}.{unknown}"
    return None
