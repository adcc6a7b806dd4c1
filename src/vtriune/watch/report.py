"""`vtriune report`: a run as one HTML file for a colleague: the dashboard's page with its answers inside.

The answers are those of the server itself, asked in this process; the page as one file is onefile.py's. All that grows
with a run is bounded here: points of curves, examples, text and pictures.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import PIL.Image

from vtriune.monitor.files import DamagedRun, replacing, valid_text
from vtriune.monitor.rollouts import read_columns
from vtriune.monitor.runs import rollout_files
from vtriune.types import Status, UserError
from vtriune.watch.app import create_app
from vtriune.watch.onefile import one_file
from vtriune.watch.replies import encode

POINTS = 500_000
"""Points of all curves together."""
POINTS_OF_A_CURVE = range(20, 301)
CURVES = 6000
"""Beyond so many only the figures of the grid and the scores are drawn."""
AT_ONCE = 100
"""Curves asked for at a time."""
ROLLOUT_FILES = range(5, 51)
"""Newest rollout files that are looked into for examples: the first few, and more for sources that these lack."""
CHARACTERS = 3_000_000
"""Of all examples' answers together; each keeps its beginning."""
CHARACTERS_OF_AN_ANSWER = range(300, 8001)
PICTURES = 4_000_000
"""Bytes of all pictures together; those of further examples are left out."""
PICTURE_SIDE = 512
"""Pixels of a picture's longest side."""
SHAPES = 4_000_000
"""Bytes of all shapes on pictures together; those of further examples are left out."""
EXAMPLES = ("best", "worst", "most spread")
"""Groups of training."""
HELD_OUT = ("most gained", "most lost")
"""Held-out samples, by the accuracy of their greedy answers in the first evaluation and in the last."""
SCORES = ("score", "greedy")


@dataclass
class Report:
    """What is baked into the file."""

    run: str
    made: str
    answers: dict[str, Any] = field(default_factory=dict)
    """The server's replies, by path and parameters: see `key`."""
    images: dict[str, str] = field(default_factory=dict)
    """Pictures as data URIs, by the address that the server gives them."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Groups of training; and of the last evaluation, each with the same sample's of the first as `first`."""

    problems: list[str] = field(default_factory=list)
    """What can't be read in the run folder."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Where all groups of the examples are."""
        both = ((example, example.get("first")) for example in self.examples)
        return [one for pair in both for one in pair if one is not None]


class _Candidate(NamedTuple):
    """A group that may become an example."""

    step: int
    group: int
    rewards: list[float]
    """Of a held-out answer: its accuracy."""

    @property
    def mean(self) -> float:
        return math.fsum(self.rewards) / len(self.rewards)

    @property
    def spread(self) -> float:
        return math.fsum((reward - self.mean) ** 2 for reward in self.rewards)


def write_report(run: Path, out: Path) -> str:
    """Write the report of the run in `run` to `out`. Returns what was written, in a sentence.

    Raises:
        UserError: `run` holds no run or a damaged one, or `out` can't be written.
    """
    with ThreadPoolExecutor(1) as thread:  # of its own, since a notebook's thread runs an event loop already
        report = thread.submit(lambda: asyncio.run(_gather(run))).result()
    page = one_file(report, f"{report.run} · V-Triune")
    try:
        with replacing(out) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"{out}: can't be written ({error.strerror}); give another file to write") from error
    told = f"{out}: {len(page) / 1e6:.1f} MB, {len(report.groups)} example groups, {len(report.images)} pictures"
    if not report.problems:
        return told
    more = f" (and {len(report.problems) - 1} more)" if report.problems[1:] else ""
    return f"{told}; left out, because it can't be read: {report.problems[0]}{more}"


def key(path: str, parameters: Mapping[str, Any]) -> str:
    """How static/api.js looks an answer up.

    >>> key("/api/grid", {"run": "demo", "points": 60})
    '/api/grid\\nrun=demo'
    """
    return "\n".join([path, *sorted(f"{name}={value}" for name, value in parameters.items() if name != "points")])


async def _gather(run: Path) -> Report:
    # The run itself is the server's root, so that nothing beside it is looked at; there it is called ".".
    transport = httpx.ASGITransport(create_app(run))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

        async def get(path: str, parameters: Mapping[str, Any]) -> httpx.Response:
            reply = await client.get(path, params={"run": ".", **parameters})
            if reply.is_error:
                raise UserError(f"{run}: {reply.json()['error']}")
            return reply

        name = valid_text(run.resolve().name)
        report = Report(name, f"{datetime.now():%Y-%m-%d %H:%M}")

        def bake(path: str, parameters: Mapping[str, Any], answer: Any) -> None:
            report.answers[key(path, {"run": name, **parameters})] = answer

        grid = (await get("/api/grid", {"points": 60})).json()
        while grid["read"]["bytes"] < grid["read"]["of"]:  # a big file without history.bin is read in the background
            await asyncio.sleep(0.1)
            grid = (await get("/api/grid", {"points": 60})).json()
        grid["run"]["name"] = name
        report.answers[key("/api/runs", {})] = {"root": "this report", "runs": [grid["run"]]}

        sources = [row["source"] for row in grid["sources"]]
        places = [*sources, *grid["tasks"]]
        figures = {source: (await get("/api/figures", {"source": source})).json() for source in places}
        if sum(len(names) for splits in figures.values() for names in splits.values()) > CURVES:
            shown = {"train": set(grid["figures"]), "eval": set(SCORES)}
            figures = {
                source: {split: [one for one in names if one in shown[split]] for split, names in splits.items()}
                for source, splits in figures.items()
            }
        curves = sum(len(names) for splits in figures.values() for names in splits.values())
        points = _within(POINTS // max(1, curves), POINTS_OF_A_CURVE)
        for source, splits in figures.items():
            bake("/api/figures", {"source": source}, splits)
            for split, names in splits.items():
                for first in range(0, len(names), AT_ONCE):
                    some = names[first : first + AT_ONCE]
                    asked = {"source": source, "figure": some, "split": split, "points": points}
                    for series in (await get("/api/series", asked)).json()["series"]:
                        place = {"source": source, "figure": series["figure"], "split": split}
                        bake("/api/series", place, {"series": [_plain(series) | {"run": name}]})

        trained, problems = _examples(run, sources)
        held_out, more = _held_out(run, sources)
        report.examples = trained + held_out
        report.problems = grid["problems"] = list(dict.fromkeys([*grid["problems"], *problems, *more]))
        bake("/api/grid", {}, _short(grid))
        groups, urls = [], dict[tuple[str, str], list[str]]()
        for example in report.groups:
            place = {name: example[name] for name in ("split", "decoding", "step", "group")}
            group = (await get("/api/group", place)).json()
            # A sample that is shown twice has its pictures in the file once.
            known = urls.setdefault((group["split"], group["sample_id"]), [image["url"] for image in group["images"]])
            for image, url in zip(group["images"], known, strict=False):
                image["url"] = url
            groups.append(group)
            bake("/api/group", place, group)
        _cut(groups)
        _leave_shapes_out(groups)
        room = PICTURES
        for image in (image for group in groups for image in group["images"]):
            if image["url"] in report.images:
                continue
            reply = await client.get(image["url"])
            if reply.is_success and room > 0:  # the page says where a picture is missing
                report.images[image["url"]] = small = _data_uri(reply.content)
                room -= len(small)
    return report


def _plain(series: dict[str, Any]) -> dict[str, Any]:
    """A curve without a band where the band has no width, its numbers to six digits."""
    banded = series["low"] != series["mean"] or series["high"] != series["mean"]
    parts = ("low", "high", "mean") if banded else ("mean",)
    names = ("source", "figure", "split", "steps")
    return {name: series[name] for name in names} | {part: _short(series[part]) for part in parts}


def _short(value: Any) -> Any:
    """JSON's values with numbers to six digits, as many as float32 has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_short(one) for one in value]
    return {name: _short(one) for name, one in value.items()} if isinstance(value, dict) else value


def _within(value: int, bounds: range) -> int:
    return max(bounds.start, min(bounds.stop - 1, value))


def _examples(run: Path, sources: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Of every source, of the newest training steps: the best group, the worst and the one of most spread.

    And what is said of files that can't be read.
    """
    problems: list[str] = []
    candidates: defaultdict[str, list[_Candidate]] = defaultdict(list)
    files = list(rollout_files(run, "train").values())[::-1][: ROLLOUT_FILES.stop - 1]
    wanted = set(sources) - {"all"}
    for number, path in enumerate(files):
        if number >= ROLLOUT_FILES.start and candidates.keys() >= wanted:
            break
        try:
            for source, candidate in _groups(path):
                candidates[source].append(candidate)
        except DamagedRun as fault:
            problems.append(valid_text(str(fault)))
    examples = [
        {
            "source": source, "why": why, "split": "train", "decoding": "sampled", "step": one.step, "group": one.group,
            "mean": one.mean, "low": min(one.rewards), "high": max(one.rewards),
        }
        for source in sources
        for why, one in _chosen(candidates[source])
    ]  # fmt: skip
    return examples, problems


def _groups(path: Path) -> list[tuple[str, _Candidate]]:
    """The groups of a rollout file with a scored answer, each with its source. Raises DamagedRun."""
    rows = read_columns(path, ["step", "group", "source", "status", "reward"]).to_pylist()
    groups: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        if row["status"] == Status.SCORED and row["reward"] is not None:
            groups.setdefault((row["source"], row["step"], row["group"]), []).append(row["reward"])
    return [(source, _Candidate(step, group, rewards)) for (source, step, group), rewards in groups.items()]


def _chosen(candidates: Sequence[_Candidate]) -> list[tuple[str, _Candidate]]:
    """Three different groups as far as there are as many; the newer where two are alike."""
    orders: list[Callable[[_Candidate], float]] = [lambda one: one.mean, lambda one: -one.mean, lambda one: one.spread]
    chosen: list[tuple[str, _Candidate]] = []
    for why, order in zip(EXAMPLES, orders, strict=True):
        left = [one for one in candidates if one not in [taken for _, taken in chosen]]
        if left:
            chosen.append((why, max(left, key=lambda one: (order(one), one.step, -one.group))))
    return chosen


def _held_out(run: Path, sources: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Of every source the held-out sample that gained most from the first to the last evaluation, and the one that lost
    most, with both of its groups; and what is said of files that can't be read. Nothing while there are no two.
    """
    stored = list(rollout_files(run, "eval").values())
    if len(stored) < 2:
        return [], []
    try:
        first, last = _greedy(stored[0]), _greedy(stored[-1])
    except DamagedRun as fault:
        return [], [valid_text(str(fault))]
    examples = []
    for source in sources:
        before, after = first.get(source, {}), last.get(source, {})
        gains = {sample: after[sample].mean - before[sample].mean for sample in sorted(before.keys() & after.keys())}
        for why, sign in zip(HELD_OUT, (1, -1), strict=True):
            if gains:
                sample = max(gains, key=lambda one: sign * gains[one])
                del gains[sample]
                there = [
                    {"split": "eval", "decoding": "greedy", "step": one.step, "group": one.group, "mean": one.mean}
                    for one in (before[sample], after[sample])
                ]
                examples.append({"source": source, "why": why, **there[1], "first": there[0]})
    return examples, []


def _greedy(path: Path) -> dict[str, dict[str, _Candidate]]:
    """The scored greedy answers of an evaluation by source and sample, with their accuracies. Raises DamagedRun."""
    names = ["step", "group", "source", "sample_id", "decoding", "status", "accuracy"]
    found: defaultdict[str, dict[str, _Candidate]] = defaultdict(dict)
    for row in read_columns(path, names).to_pylist():
        if row["decoding"] == "greedy" and row["status"] == Status.SCORED and row["accuracy"] is not None:
            found[row["source"]][row["sample_id"]] = _Candidate(row["step"], row["group"], [row["accuracy"]])
    return found


def _leave_shapes_out(groups: Iterable[dict[str, Any]]) -> None:
    """Shapes with numbers to six digits, as far as all together stay within SHAPES."""
    room = SHAPES
    for group in groups:
        shapes = {"gold": group["gold_shapes"], "answers": [answer["shapes"] for answer in group["answers"]]}
        short = _short(shapes)
        room -= len(encode(short))
        if room < 0:
            short = {"gold": [], "answers": [[] for _ in group["answers"]]}
            group["shapes_note"] = "the shapes were left out of the report"
        group["gold_shapes"] = short["gold"]
        for answer, own in zip(group["answers"], short["answers"], strict=True):
            answer["shapes"] = own


def _cut(groups: Sequence[dict[str, Any]]) -> None:
    """Shorten what was written, all alike, so that all together stays within CHARACTERS."""
    answers = [answer for group in groups for answer in group["answers"]]
    most = _within(CHARACTERS // max(1, len(answers)), CHARACTERS_OF_AN_ANSWER)
    for group in groups:
        for name in ("prompt", "gold"):
            group[name] = _beginning(group[name], most)
    for answer in answers:
        response, reasoning = answer["response"], answer["reasoning"]
        at = response.find(reasoning) + len(reasoning) if reasoning else 0
        answer["reasoning"] = _beginning(reasoning, most)
        answer["response"] = response[: at - len(reasoning)] + answer["reasoning"] + _beginning(response[at:], most)


def _beginning(text: str, most: int) -> str:
    return (
        text
        if len(text) <= most
        else f"{text[:most]}\n… {len(text) - most} more characters were left out of the report"
    )


def _data_uri(png: bytes) -> str:
    """A picture of the server's, made smaller where it is large."""
    kind, data = "png", png
    with PIL.Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        if max(picture.size) > PICTURE_SIDE:
            small = picture.convert("RGB")
            small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80)
            kind, data = "jpeg", out.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
