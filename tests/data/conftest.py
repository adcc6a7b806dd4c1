"""Rows and pictures that the tests of data share."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import PIL.Image
import pytest

from vtriune.data.schema import Row, write_rows
from vtriune.data.sources import Loaded, SourceConfig, load_samples
from vtriune.reward.judge import validate


def png(color: Any = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def math_row(question: str = "How many?", answer: str = "4", pictures: int = 1) -> Row:
    return {
        "data_source": "mm_math",
        "images": [{"bytes": png((number, 0, 0)), "path": None} for number in range(pictures)],
        "prompt": [{"role": "user", "content": "<image>" * pictures + question}],
        "ability": "math",
        "reward_model": {
            "answer": answer,
            "ground_truth": rf"\boxed{{{answer}}}" if answer else "",
            "accuracy_ratio": 1.0,
            "format_ratio": 0.0,
            "verifier": "mathverify",
        },
    }


def box_row(gold: str = "[{'bbox_2d': [484, 227, 818, 998], 'label': 'shiba dog'}]") -> Row:
    row = math_row("Where is the dog?")
    row["data_source"], row["ability"] = "v3det_train", "detection"
    row["reward_model"] = {
        "answer": None,
        "ground_truth": f"<answer>\n{gold}\n</answer>",
        "accuracy_ratio": 1.0,
        "format_ratio": 0.1,
        "verifier": "detection",
        "verifier_parm": {"det_verifier_normalized": True, "det_reward_ratio": {"iou_max_label_first": 1.0}},
    }
    return row


@pytest.fixture(name="png")
def png_fixture() -> Callable[..., bytes]:
    return png


@pytest.fixture(name="math_row")
def math_row_fixture() -> Callable[..., Row]:
    return math_row


@pytest.fixture(name="box_row")
def box_row_fixture() -> Callable[..., Row]:
    return box_row


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Row, name: str = "train.parquet") -> Path:
        write_rows(rows, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write dicts as JSON lines and bytes as they are."""

    def write(*lines: dict[str, Any] | bytes, name: str = "train.jsonl") -> Path:
        raw = [line if isinstance(line, bytes) else orjson.dumps(line) for line in lines]
        (tmp_path / name).write_bytes(b"\n".join(raw) + b"\n")
        return tmp_path / name

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Loaded]:
    """Load a path below tmp_path as a recipe there would, with the project's own reward check."""

    def from_path(path: str | Path = "train.parquet", **settings: Any) -> Loaded:
        config = SourceConfig.model_validate({"path": str(path), **settings})
        return load_samples(config, preset="paper", base=tmp_path, check=lambda *reward: partial(validate, *reward))

    return from_path
