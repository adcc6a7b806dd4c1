"""The dashboard's endpoints of rollouts: a page of those that are sought, a group with its answers, a picture.

Finding is search.py's, what is drawn shapes.py's, pictures are pictures.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import APIRouter
from fastapi import Query as Parameters
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from vtriune.monitor.files import DamagedRun
from vtriune.monitor.rollouts import SCHEMA, Decoding, read_columns
from vtriune.monitor.runs import RowSplit, rollout_file
from vtriune.types import ImageSize, RewardSpec
from vtriune.watch.index import DECODINGS, Indexes, Snapshot
from vtriune.watch.pictures import picture
from vtriune.watch.replies import json
from vtriune.watch.root import NotFound, Root
from vtriune.watch.search import Query, TextSearch, find
from vtriune.watch.shapes import draw

SHOWN_CHARACTERS = 300
"""Of a response in a list."""
SHOWN_FAULTS = 10

_LISTED = (
    "step",
    "group",
    "answer",
    "decoding",
    "source",
    "task",
    "sample_id",
    "status",
    "reward",
    "accuracy",
    "correct",
    "tokens",
    "finish",
    "advantage",
    "response",
)
_OF_GROUP = (
    "sample_id",
    "source",
    "task",
    "prompt",
    "gold",
    "verifier",
    "preset",
    "accuracy_weight",
    "format_weight",
    "progress_step",
    "total_steps",
)
_OF_ANSWER = (
    "answer",
    "response",
    "status",
    "reward",
    "accuracy",
    "format",
    "correct",
    "reason",
    "advantage",
    "tokens",
    "finish",
    "entropy",
)
_NEEDED = (*_OF_GROUP, *_OF_ANSWER, "group", "decoding", "parameters", "report", "images")
_BATCH = 256
"""Rows of a file that are held at a time while those of a group are sought."""

_Number = Annotated[int, Field(ge=0, lt=2**31)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    run: Annotated[str, Field(max_length=1000)]
    split: RowSplit = "train"


class RolloutsAsked(_Asked, Query):
    """The query of /api/rollouts."""


class GroupAsked(_Asked):
    """The query of /api/group: which answers to one prompt."""

    step: _Number
    group: _Number
    decoding: Decoding = "sampled"


class PictureAsked(GroupAsked):
    """The query of /api/image: which picture of a group."""

    position: Annotated[int, Field(ge=0, lt=1000)] = 0


def rollout_routes(root: Root) -> APIRouter:
    """The endpoints /api/rollouts, /api/group and /api/image over the runs of `root`."""
    router = APIRouter()
    indexes, texts = Indexes(), TextSearch()

    @router.get("/api/rollouts")
    def rollouts(asked: Annotated[RolloutsAsked, Parameters()]) -> Response:
        folder = root.run(asked.run)
        snapshot = indexes.of(folder, asked.split).snapshot()
        found = find(snapshot, asked, texts.of(folder, asked.split, asked.text) if asked.text else {})
        return json(
            {
                "matching": found.matching,
                "rows": [{"split": asked.split} | row for row in _listed(snapshot, found.positions)],
                "next": found.next,
                "searched": {"rows": found.searched, "of": found.of},
                "damaged": snapshot.faults[:SHOWN_FAULTS],
            }
        )

    @router.get("/api/group")
    def group(asked: Annotated[GroupAsked, Parameters()]) -> Response:
        folder = root.run(asked.run)
        return json(_group(asked, *_rows_of(folder, asked)))

    @router.get("/api/image")
    def image(asked: Annotated[PictureAsked, Parameters()]) -> Response:
        folder = root.run(asked.run)
        row = _rows_of(folder, asked)[0][0]
        if asked.position >= len(row["images"]):
            raise NotFound(f"{row['sample_id']} has {len(row['images'])} pictures, and none {asked.position}")
        return Response(picture(folder, asked.split, row, asked.position), media_type="image/png")

    return router


def _listed(snapshot: Snapshot, positions: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of a page, from their files. Those whose file has been replaced since are left out."""
    rows = snapshot.rows[list(positions)]
    by_position: dict[int, dict[str, Any]] = {}
    for step in np.unique(rows["step"]).tolist():
        own = np.flatnonzero(rows["step"] == step)
        try:
            table = read_columns(snapshot.path(step), _LISTED)
        except DamagedRun:
            continue
        if len(table) <= rows["place"][own].max():
            continue
        # Slices, since `take` with places from here would import pandas.
        table = pa.concat_tables(table.slice(place, 1) for place in rows["place"][own].tolist())
        short = pc.utf8_slice_codeunits(table.column("response"), 0, SHOWN_CHARACTERS)
        table = table.set_column(table.column_names.index("response"), "response", short)
        for position, row in zip(own.tolist(), table.to_pylist(), strict=True):
            now = row["step"], row["group"], row["answer"], DECODINGS.index(row["decoding"])
            if now == tuple(rows[position][["step", "group", "answer", "decoding"]].tolist()):
                by_position[position] = row
    return [by_position[position] for position in range(len(positions)) if position in by_position]


def _rows_of(folder: Path, asked: GroupAsked) -> tuple[list[dict[str, Any]], int]:
    """The rows of a group, by answer, and the number of groups in its step.

    Raises:
        NotFound: there is no such group.
        DamagedRun: its file can't be read.
    """
    path = rollout_file(folder, asked.split, asked.step)
    missing = f"{asked.split} step {asked.step} has no"
    try:
        # A link could lead out of the run.
        if not path.is_file() or path.is_symlink():
            raise NotFound(f"{missing} stored rollouts")
        with pq.ParquetFile(path) as file:
            if strange := [name for name in _NEEDED if _type(file.schema_arrow, name) != SCHEMA.field(name).type]:
                raise ValueError(f"the column {strange[0]} is missing or of another type")
            table = file.read(columns=["decoding", "group"])
            columns = [table.column(name).to_pylist() for name in ("decoding", "group")]
            places = list(zip(*columns, strict=True))
            groups = {group for decoding, group in places if decoding == asked.decoding}
            own = [place for place, one in enumerate(places) if one == (asked.decoding, asked.group)]
            rows = list(_rows_at(file, own))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedRun(f"{path}: not readable as rollouts ({' '.join(str(error).split())})") from error
    if not rows:
        raise NotFound(f"{missing} group {asked.group} of {asked.decoding} answers")
    return sorted(rows, key=lambda row: row["answer"]), len(groups)


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None


def _rows_at(file: pq.ParquetFile, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    start, wanted = 0, set(places)
    for batch in file.iter_batches(_BATCH) if places else ():
        for place in sorted(wanted & set(range(start, start + len(batch)))):
            (row,) = batch.slice(place - start, 1).to_pylist()
            yield row | {"parameters": orjson.loads(row["parameters"]), "report": orjson.loads(row["report"])}
        start += len(batch)


def _group(asked: GroupAsked, rows: Sequence[Mapping[str, Any]], groups: int) -> dict[str, Any]:
    first = rows[0]
    spec = RewardSpec(first["verifier"], first["gold"], parameters=first["parameters"], preset=first["preset"])
    sizes = [ImageSize(tuple(one["original"]), tuple(one["resized"])) for one in first["images"]]
    drawing = draw(spec, sizes, [row["response"] for row in rows])
    place = asked.model_dump(include={"split", "step", "group", "decoding"})
    images = [
        {"url": "/api/image?" + urlencode({"run": asked.run, **place, "position": position}), **one}
        for position, one in enumerate(first["images"])
    ]
    answers = [
        {name: row[name] for name in (*_OF_ANSWER, "report")}
        | {"reasoning": _reasoning(row["response"]), "shapes": shapes}
        for row, shapes in zip(rows, drawing.answers, strict=True)
    ]
    return {
        **place,
        "groups": groups,
        **{name: first[name] for name in (*_OF_GROUP, "parameters")},
        "images": images,
        "gold_shapes": drawing.gold,
        "shapes_note": drawing.note,
        "answers": answers,
    }


def _reasoning(response: str) -> str:
    """What stands before the answer proper, without its tags: all that is not `verifiers.answers.final_text`.

    >>> _reasoning("<think>1 + 1</think>2"), _reasoning("<think>1 + 1, no"), _reasoning("2")
    ('1 + 1', '1 + 1, no', '')
    """
    before, closed, _ = response.rpartition("</think>")
    if not closed:
        before = response if "<think>" in response else ""
    return before.strip().removeprefix("<think>").strip()
