"""The picture of a stored rollout, found again: stored is only where it came from.

What a request names is a rollout. Which files may be opened is the recipe's to say, and decoding is data/images.py's.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vtriune.data.sources import SourceConfig, find_sample
from vtriune.monitor.files import DamagedRun
from vtriune.monitor.runs import RowSplit, read_recipe
from vtriune.types import Sample, UserError

MAX_SIDE = 1600
"""Pixels of the longest side; a larger picture is shown smaller."""


_one_at_a_time = threading.Lock()
"""A picture of the largest size that is read takes 300 MB while it is decoded."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore")
    train: list[SourceConfig]
    test: list[SourceConfig]


class _Recipe(BaseModel):
    """What of a recipe says where the pictures are."""

    model_config = ConfigDict(extra="ignore")
    base: Path
    data: _Data


def picture(run: Path, split: RowSplit, row: Mapping[str, Any], position: int) -> bytes:
    """Picture `position` of a stored rollout as PNG, read from the data file that its run's recipe names.

    Args:
        run: the run folder.
        split: `eval` looks at the held-out sources.
        row: the rollout, as stored.
        position: from 0, below the number of its images.

    Raises:
        DamagedRun: the recipe or the data file is gone or damaged, or the data has changed since.
    """
    size = tuple(row["images"][position]["original"])
    stream = io.BytesIO()
    with _one_at_a_time:
        try:
            image = _sample(run, split, row).images[position].load()
        except DamagedRun:
            raise
        except (UserError, OSError) as error:
            raise DamagedRun(f"the picture can't be read again: {error}") from error
        if image.size != size:
            raise _changed(row["sample_id"], f"its picture is {image.size}, and was {size}")
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _sample(run: Path, split: RowSplit, row: Mapping[str, Any]) -> Sample:
    try:
        recipe = _Recipe.model_validate(read_recipe(run))
    except ValidationError as error:
        raise DamagedRun(f"{run / 'recipe.yaml'}: {error.errors()[0]['msg']} ({error.errors()[0]['loc']})") from error
    sample_id, different = row["sample_id"], ""
    for config in recipe.data.train if split == "train" else recipe.data.test:
        sample = find_sample(config, preset=row["preset"], base=recipe.base, sample_id=sample_id)
        if sample is None:
            continue
        if sample.reward.gold == row["gold"] and len(sample.images) == len(row["images"]):
            return sample
        different = "it has other gold or another number of pictures"
    if different:
        raise _changed(sample_id, different)
    raise DamagedRun(f"no data file that this run's recipe names has the row {sample_id}; it was moved or removed")


def _changed(sample_id: str, how: str) -> DamagedRun:
    return DamagedRun(f"{sample_id} is no longer the row that was asked: {how}; put the data file of the run back")
