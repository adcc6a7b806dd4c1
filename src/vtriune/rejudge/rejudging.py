"""Judging a run's stored rollouts again: as the run did, which must agree to the last bit, or by changed settings, to
see what they would have done to rewards, groups and advantages. Nothing is written; table.py shows what came out.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from vtriune.grpo.advantages import Advantage, group_advantages
from vtriune.monitor.files import DamagedRun
from vtriune.monitor.metrics import ALL
from vtriune.monitor.rollouts import read_columns
from vtriune.monitor.runs import SPLITS, RowSplit, read_recipe, read_run_file, rollout_files
from vtriune.rejudge.changes import Change, apply, near, parameters_of
from vtriune.reward.config import RewardConfig
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import JudgePool
from vtriune.reward.wire import NOT_UNICODE
from vtriune.types import ImageSize, Progress, RewardSpec, Status, UserError, Verdict
from vtriune.verifiers import registry

SHOWN = 10
"""Verdicts that don't agree are listed up to so many; the others are only counted."""
FILES_AHEAD = 2
"""Files whose answers are judged while an earlier one is waited for: memory holds the texts of so many and one more."""

_COLUMNS = (
    *("step", "group", "answer", "decoding", "source", "response", "tokens"),
    *("status", "reward", "accuracy", "format", "correct", "reason", "report", "advantage"),
    *("verifier", "gold", "parameters", "preset", "accuracy_weight", "format_weight"),
    *("progress_step", "total_steps", "split", "images"),
)
_NO_UNICODE = "answer is no Unicode text"

Row = dict[str, Any]


def read_steps(text: str) -> tuple[float, float]:
    """(first, last) of `A..B`, `A..`, `..B` or `A`.

    Raises:
        UserError: it is not written so.

    >>> read_steps("3..7"), read_steps("3.."), read_steps("3")
    ((3.0, 7.0), (3.0, inf), (3.0, 3.0))
    """
    found = re.fullmatch(r"([0-9]{1,9})?(\.\.)?([0-9]{1,9})?", text)
    if not found or not text.strip(".") or (found[1] and found[3] and not found[2]):
        raise UserError(f'--steps "{text}": write it as A..B, A.., ..B or A, e.g. 100..140')
    first, last = float(found[1] or 0), float(found[3] or math.inf)
    if first > last:
        raise UserError(f'--steps "{text}": the first step is after the last; turn them round')
    return (first, last) if found[2] else (first, first)


class _Objective(BaseModel):
    advantage: Advantage = "grpo"


class _Recipe(BaseModel):
    """What of a run's recipe its verdicts and advantages follow from. (Recipe itself would import torch.)"""

    model_config = ConfigDict(extra="ignore")
    reward: RewardConfig = RewardConfig()
    objective: _Objective = _Objective()


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A stored verdict that the same settings do not give again."""

    where: str
    fields: dict[str, tuple[Any, Any]]
    """(stored, now) of each field that differs."""


@dataclass(slots=True)
class Side:
    """What verdicts of a source come to, before or after."""

    scored: int = 0
    rewards: float = 0.0
    groups: int = 0
    """Those with a scored answer."""
    zero_spread: int = 0
    """Those of them whose scored rewards are all equal."""

    def add(self, rewards: Sequence[float]) -> None:
        """Add a group's scored rewards."""
        self.scored += len(rewards)
        self.rewards += math.fsum(rewards)
        self.groups += bool(rewards)
        self.zero_spread += len(set(rewards)) == 1

    @property
    def mean_reward(self) -> float | None:
        """Over the scored answers."""
        return self.rewards / self.scored if self.scored else None

    @property
    def zero_spread_share(self) -> float | None:
        """Of the groups with a scored answer."""
        return self.zero_spread / self.groups if self.groups else None


@dataclass(slots=True)
class Effect:
    """What changed settings make of the stored answers of a source."""

    answers: int = 0
    before: Side = field(default_factory=Side)
    after: Side = field(default_factory=Side)
    scored_twice: int = 0
    """Answers that are scored on both sides; only these have an advantage on both."""
    advantages: Counter[str] = field(default_factory=Counter)
    """How many of them `changed` its sign (-, 0, +), and of these `became_zero` or `ceased_to_be_zero`."""
    became: Counter[str] = field(default_factory=Counter)
    """Verdicts that are `scored`, `unscorable` or `failed` now and were not."""
    failed: int = 0
    """Answers stored as failed: our own breakdown, which no setting undoes. They are on neither side."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why they are not scored now."""

    def add(self, rows: Sequence[Row], now: Sequence[Verdict], advantages: np.ndarray) -> None:
        """Add a group as stored, with its verdicts and advantages now."""
        self.answers += len(rows)
        self.failed += sum(row["status"] == Status.FAILED for row in rows)
        self.before.add([row["reward"] for row in rows if row["status"] == Status.SCORED])
        self.after.add([verdict.reward for verdict in now if verdict.reward is not None])
        twice = np.array(
            [row["status"] == verdict.status == Status.SCORED for row, verdict in zip(rows, now, strict=True)]
        )
        self.scored_twice += int(np.count_nonzero(twice))
        before, after = np.sign([row["advantage"] for row in rows])[twice], np.sign(advantages)[twice]
        for name, which in (
            ("changed", before != after),
            ("became_zero", (before != 0) & (after == 0)),
            ("ceased_to_be_zero", (before == 0) & (after != 0)),
        ):
            self.advantages[name] += int(np.count_nonzero(which))
        for row, verdict in zip(rows, now, strict=True):
            if verdict.status != row["status"]:
                self.became[verdict.status.value] += 1
                self.reasons.update([verdict.reason] if verdict.status != Status.SCORED else [])


@dataclass(slots=True)
class Rejudged:
    """What came out."""

    answers: int = 0
    agree: int = 0
    disagree: int = 0
    first: list[Disagreement] = field(default_factory=list)
    """The first SHOWN that disagree."""
    failed: int = 0
    """Stored as failed: they have no verdict to agree with."""
    new_figures: set[str] = field(default_factory=set)
    """Figures that verifiers report now, and did not when the run was made."""
    effects: dict[tuple[RowSplit, str], Effect] = field(default_factory=dict)
    """By split and source, and of all sources together as `all`."""


class Rejudging:
    """A run, and how its rollouts are to be judged again.

    Args:
        run: the run folder.
        changes: what is changed; nothing: the verdicts are compared with the stored ones.
        steps: only steps (first, last) of the run folder.
        source: only this source.
        load: verifiers of the user's own, as `module:attribute`. Those that the run's recipe names must be among them:
            the folder may come from somebody else, and importing a module runs it.
        tell: is told what will be imported and who will be asked, a line each, before it happens.

    Raises:
        UserError: no run, no such rollouts, a change that applies to none of them, code that `load` does not name.
        DamagedRun: a file cannot be read.
    """

    def __init__(
        self,
        run: Path,
        changes: Sequence[Change] = (),
        *,
        steps: tuple[float, float] | None = None,
        source: str | None = None,
        load: Sequence[str] = (),
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        read_run_file(run)
        try:
            self._recipe = _Recipe.model_validate(read_recipe(run))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise DamagedRun(f"{run / 'recipe.yaml'}: {where}: {fault['msg']}") from error
        self._load = list(load)
        if unnamed := [own for own in self._recipe.reward.load if own not in load]:
            flags = " ".join(f"--load {shlex.quote(own)}" for own in unnamed)
            raise UserError(
                f"{run / 'recipe.yaml'}: reward.load names code to import, which is not done because a run folder says "
                f"so; if you trust it, add {flags}"
            )
        for line in self._opens():
            tell(line)
        for own in self._load:
            registry.register(own)
        self._run, self._changes, self._source = run, changes, source
        low, high = steps or (0, math.inf)
        self._files: list[tuple[RowSplit, Path]] = [
            (split, path) for split in SPLITS for step, path in rollout_files(run, split).items() if low <= step <= high
        ]
        self._sound: set[tuple[str, bytes]] = set()
        counts: Counter[tuple[str, str]] = Counter()
        for _, path in self._files:
            columns = read_columns(path, ["source", "verifier"]).columns
            counts.update(zip(*(column.to_pylist() for column in columns), strict=True))
        self._check(list(counts))
        self.total = sum(count for (of, _), count in counts.items() if source in (None, of))
        """Answers to judge."""

    def _check(self, stored: Sequence[tuple[str, str]]) -> None:
        """Does every change concern something? `stored`: (source, verifier)."""
        if not stored:
            raise UserError(f"{self._run}: holds no rollouts of these steps; choose others, or leave --steps out")
        sources = sorted({source for source, _ in stored})
        for named in (self._source, *(change.source for change in self._changes)):
            if named is not None and named not in sources:
                raise UserError(f'{self._run}: there is no source "{named}" in its rollouts; {near(named, sources)}')
        for change in self._changes:
            if change.key == ("verifier",):
                registry.get(str(change.value))  # raises where there is none such
            if self._source not in (None, change.source) and change.source is not None:
                raise UserError(f'--set "{change.text}": only source "{self._source}" is judged again')
            if change.key[0] == "verifier_parm":
                verifiers = {
                    apply(self._changes, source, RewardSpec(verifier, "")).verifier
                    for source, verifier in stored
                    if source in (change.source or source, self._source)
                }
                known = sorted({name for verifier in verifiers for name in parameters_of(verifier)})
                if change.key[1] not in known:
                    raise UserError(
                        f'--set "{change.text}": no parameter "{change.key[1]}" of {", ".join(sorted(verifiers))}; '
                        + near(change.key[1], known)
                    )

    def _opens(self) -> Iterator[str]:
        settings = self._recipe.reward
        for own in self._load:
            yield f"imports {own}"
        for name, url in settings.remotes.items():
            yield f'asks {url} about answers of the verifier remote, service "{name}"'
        for url in settings.servers:
            yield f"does not ask {url}, which judged in the run: this machine does"

    def open_judge(self) -> JudgePool:
        """Judge processes as the run's recipe has them, as many as there are processors at least."""
        settings = self._recipe.reward
        workers = max(settings.workers, os.cpu_count() or 1)
        return JudgePool(workers, settings.cpu_limit, load=self._load, remotes=settings.remotes)

    def run(self, judge: JudgePool, advance: Callable[[int], None] = lambda count: None) -> Rejudged:
        """Judge all, file by file; `advance` is told how many answers are done.

        Raises:
            UserError: a changed parameter has a value that the verifier does not take.
            DamagedRun: a file cannot be read.
        """
        result = Rejudged()
        pending: deque[tuple[_Batch, Future[list[Verdict]]]] = deque()

        def finish(all_but: int) -> None:
            while len(pending) > all_but:
                batch, future = pending.popleft()
                self._note(result, batch, future.result())
                result.answers += len(batch.rows)
                advance(len(batch.rows))

        for split, path in self._files:
            batch = self._batch(split, path)
            pending.append((batch, judge.submit(batch.items())))
            finish(FILES_AHEAD)
        finish(0)
        return result

    def _batch(self, split: RowSplit, path: Path) -> _Batch:
        columns = (column.to_pylist() for column in read_columns(path, _COLUMNS).columns)
        rows = [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
        rows = [row for row in rows if self._source in (None, row["source"])]
        try:
            for row in rows:
                row["parameters"], row["report"] = orjson.loads(row["parameters"]), orjson.loads(row["report"])
        except (orjson.JSONDecodeError, TypeError) as error:
            raise DamagedRun(f"{path}: parameters or report are no JSON ({error})") from error
        return _Batch(split, path, rows, [self._spec(row) for row in rows])

    def _spec(self, row: Row) -> RewardSpec:
        """How the answer is rewarded now."""
        weights = row["accuracy_weight"], row["format_weight"]
        stored = RewardSpec(row["verifier"], row["gold"], *weights, row["parameters"], row["preset"])
        spec = apply(self._changes, row["source"], stored)
        if (spec.verifier, spec.parameters) != (stored.verifier, stored.parameters):
            # A wrong value is the user's mistake now, not a sample that can't be judged.
            key = spec.verifier, orjson.dumps(spec.parameters, option=orjson.OPT_SORT_KEYS)
            if key not in self._sound:
                try:
                    registry.parse_params(spec.verifier, spec.parameters)
                except UserError as error:
                    raise UserError(f'--set: source "{row["source"]}": {error}; correct the value') from error
                self._sound.add(key)
        return spec

    def _note(self, result: Rejudged, batch: _Batch, verdicts: Sequence[Verdict]) -> None:
        if not self._changes:
            for row, verdict in zip(batch.rows, verdicts, strict=True):
                _compare(result, batch.path, row, verdict)
            return
        # Evaluations have no choice of advantages: session.py takes the default.
        advantage = self._recipe.objective.advantage if batch.split == "train" else "grpo"
        triples = zip(batch.rows, batch.specs, verdicts, strict=True)
        for _, group in groupby(triples, key=lambda one: (one[0]["decoding"], one[0]["group"])):
            rows, specs, judged = zip(*group, strict=True)
            # What broke then stays broken, or the others of its group would change their advantages by it.
            now = [
                Verdict(Status.FAILED, reason=row["reason"]) if row["status"] == Status.FAILED else verdict
                for row, verdict in zip(rows, judged, strict=True)
            ]
            advantages = group_advantages(advantage, now, specs[0])
            for source in (ALL, rows[0]["source"]):
                result.effects.setdefault((batch.split, source), Effect()).add(rows, now, advantages)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A file's rows, and how each is rewarded now."""

    split: RowSplit
    path: Path
    rows: list[Row]
    specs: list[RewardSpec]

    def items(self) -> list[JudgeItem]:
        return [_item(row, spec) for row, spec in zip(self.rows, self.specs, strict=True)]


def _item(row: Row, spec: RewardSpec) -> JudgeItem:
    sizes = tuple(ImageSize(tuple(one["original"]), tuple(one["resized"])) for one in row["images"])
    progress = Progress(row["progress_step"], row["total_steps"], row["split"])
    # A lone surrogate can't be stored; which one it was makes no difference.
    response = NOT_UNICODE if (row["reason"] or "").startswith(_NO_UNICODE) else row["response"]
    return JudgeItem(response, spec, progress, sizes, row["tokens"], row["source"])


def _compare(result: Rejudged, path: Path, row: Row, verdict: Verdict) -> None:
    if row["status"] == Status.FAILED:
        result.failed += 1
        return
    stored = _figures(row)
    now = _figures({name: getattr(verdict, name) for name in stored})
    if verdict.status == row["status"]:
        new = now["report"].keys() - stored["report"].keys()
        result.new_figures |= new
        now["report"] = {name: value for name, value in now["report"].items() if name not in new}
    # repr tells apart what == does not: -0.0 from 0.0.
    fields = {name: (stored[name], now[name]) for name in stored if repr(stored[name]) != repr(now[name])}
    result.agree += not fields
    result.disagree += bool(fields)
    if fields and len(result.first) < SHOWN:
        where = f"{path.name} group {row['group']} answer {row['answer']} ({row['decoding']}, {row['source']})"
        result.first.append(Disagreement(where, fields))


def _figures(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict's fields, each of the type that it has in the log."""
    numbers = {name: _float(verdict[name]) for name in ("reward", "accuracy", "format")}
    report = {name: _float(value) for name, value in sorted(verdict["report"].items())}
    texts = {name: str(verdict[name]) for name in ("status", "reason")}
    return {**texts, **numbers, "correct": verdict["correct"], "report": report}


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
