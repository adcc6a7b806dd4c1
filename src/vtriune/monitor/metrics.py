"""Figures per data source and per task of one step or one evaluation: section 3.3 of the paper, Source-Level Metric
Monitoring.

Pure functions over what was judged. Held-out scores and their errors are in evaluation.py; nothing is stored here
(store.py) and nothing drawn (table.py). What the figures mean is told in docs/monitoring.md, too.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from vtriune.monitor.reflection import WORDS, words_in
from vtriune.monitor.votes import most_voted
from vtriune.types import FinishReason, JudgedGroup, Status, UserError, Verdict

ALL = "all"
"""What stands in a figure's key in place of a source when it is taken over all of them."""
TASK = "task:"
"""Begins what stands there when it is taken over all sources of a task."""

FIGURES = {
    "rollouts": "number of answers",
    "groups": "number of prompts",
    "scored_groups": "number of prompts with a scored answer",
    "reward": "mean of R (eq. 8)",
    "reward_std": "population standard deviation of R",
    "reward_accuracy": "mean of the part a_acc R_acc of R",
    "reward_format": "mean of the part a_fmt R_fmt of R",
    "accuracy": "mean of R_acc",
    "format": "mean of R_fmt",
    "correct": "share that the verifier's own rule calls correct",
    "pass_<k>": "k = 1, 2, 4, ...: mean over groups of 1 - C(n - c, k) / C(n, k), c of n answers being correct",
    "best_of_n": "mean over groups of the best R_acc",
    "worst_of_n": "mean over groups of the worst R_acc",
    "majority_of_n": "share of groups whose most frequent answer is correct",
    "zero_spread": "share of the groups with a scored answer whose scored rewards are all equal",
    "zero_with_reason": "share of the scored zero rewards that carry a reason (`cpu limit`, ...)",
    "length": "mean length in tokens of all answers",
    "length_correct": "the same of the correct ones",
    "length_incorrect": "the same of the incorrect ones",
    "length_p10": "length that 10 % of all answers do not exceed, by nearest rank",
    "length_p50": "the same for 50 %",
    "length_p90": "the same for 90 %",
    "length_p99": "the same for 99 %",
    "truncated": "share of all answers cut at the token limit",
    "entropy": "mean over all tokens, in nats, of the entropy of the distribution that the token was drawn from",
    "reflection": "share of all answers with a reflection word",
    "reflection_correct": "`correct` among these",
    "reflection_<word>": "share of all answers with this word, if it occurs in the step; `_` for space and hyphen",
    "spurious_tokens": "number of placeholder tokens that had to be removed",
    "unscorable": "share of all answers that belong to a sample that can't be judged",
    "unscorable_count": "their number",
    "failed": "share of all answers that our side failed to judge",
    "failed_count": "their number",
    "score": "evaluation: 100 x mean R_acc of answers sampled at temperature 1, mean over prompts",
    "score_se": "standard error of `score`, clustered by prompt",
    "greedy": "evaluation: the same of greedy answers",
    "greedy_se": "standard error of `greedy`",
    "prompts": "evaluation: number of prompts with a score",
}
"""What each figure is. Only `scored` verdicts enter one that speaks of reward, accuracy, format or correctness. What a
verifier reports beside (`iou_50`, `map`, ...) is averaged under its own name over the scored answers that have it."""

Value = TypeVar("Value")
Figures = dict[str, float]


class Metric(Protocol):
    """Some figures of a source, gathered group by group. The order of groups and answers changes no bit of them."""

    def update(self, judged: JudgedGroup) -> None:
        """Take in a group."""

    def merge(self, other: Self) -> None:
        """Take in all that another one of the same kind has: the sources of a task, the tasks of a step."""

    def compute(self) -> Figures:
        """The figures so far; one without a value is absent, never NaN."""

    def reset(self) -> None:
        """Forget all groups."""


def source_metrics(groups: Iterable[JudgedGroup], tasks: Collection[str] = ()) -> Figures:
    """Every figure as `<source>/<figure>`, as `all/<figure>`, and for those of `tasks` as `task:<task>/<figure>`.

    Groups of one answer have no pass@k, and nothing of n: nor have those with fewer than two scored answers.

    Raises:
        UserError: a data source has a name that stands for several sources.
        ValueError: a verifier reports a figure under one of the names of FIGURES, or with a `/` in its name.
    """
    cells: defaultdict[tuple[str, str], list[Metric]] = defaultdict(_metrics)
    for judged in groups:
        sample = judged.group.sample
        if sample.source == ALL or sample.source.startswith(TASK):
            raise UserError(f'data source "{sample.source}" has a name that stands for several: give it another name')
        for metric in cells[sample.source, sample.task]:
            metric.update(judged)
    places: defaultdict[str, list[Metric]] = defaultdict(_metrics, {ALL: _metrics()})
    for (source, task), metrics in cells.items():
        for place in (source, ALL, *([TASK + task] if task in tasks else [])):
            for metric, part in zip(places[place], metrics, strict=True):
                metric.merge(part)
    figures = {place: _computed(metrics) for place, metrics in places.items()}
    words = {name: 0.0 for name in figures[ALL] if name.startswith("reflection_") and name != "reflection_correct"}
    return {f"{place}/{name}": value for place, own in figures.items() for name, value in (words | own).items()}


def sources_of(metrics: Mapping[str, float]) -> list[str]:
    """The data sources that a row has figures of, sorted: those with a count of rollouts."""
    names = {key.removesuffix("/rollouts") for key in metrics if key.endswith("/rollouts")}
    return sorted(name for name in names if name != ALL and not name.startswith(TASK))


def _computed(metrics: Sequence[Metric]) -> Figures:
    figures: Figures = {}
    for metric in metrics:
        figures |= metric.compute()
    return figures


@dataclass
class Column(Generic[Value]):
    """One value per answer, or per group, and the figures of all values."""

    values_of: Callable[[JudgedGroup], Iterable[Value]]
    figures_of: Callable[[Sequence[Value]], Figures]
    """Not asked where there is no value."""

    def __post_init__(self) -> None:
        self.reset()

    def update(self, judged: JudgedGroup) -> None:
        """Take in a group."""
        self._values += self.values_of(judged)

    def merge(self, other: Column[Value]) -> None:
        """Take in another column's values."""
        self._values += other._values

    def compute(self) -> Figures:
        """The figures so far."""
        return self.figures_of(self._values) if self._values else {}

    def reset(self) -> None:
        """Forget all groups."""
        self._values: list[Value] = []


@dataclass
class Tally:
    """Whole numbers by name, and the figures of their sums."""

    numbers_of: Callable[[JudgedGroup], Mapping[str, int]]
    figures_of: Callable[[Counter[str]], Figures]

    def __post_init__(self) -> None:
        self.reset()

    def update(self, judged: JudgedGroup) -> None:
        """Take in a group."""
        self._sums.update(self.numbers_of(judged))

    def merge(self, other: Tally) -> None:
        """Add another tally's sums."""
        self._sums.update(other._sums)

    def compute(self) -> Figures:
        """The figures so far."""
        return self.figures_of(self._sums)

    def reset(self) -> None:
        """Forget all groups."""
        self._sums: Counter[str] = Counter()


class Reports:
    """What the verifiers measured. A value that is not finite says "undefined here" and is left out."""

    def __init__(self) -> None:
        self.reset()

    def update(self, judged: JudgedGroup) -> None:
        """Take in a group."""
        reports = [verdict.report for verdict in _scored(judged)]
        for name in dict.fromkeys(name for report in reports for name in report):
            self._columns[name] += [report[name] for report in reports if name in report]

    def merge(self, other: Reports) -> None:
        """Take in another one's values."""
        for name, values in other._columns.items():
            self._columns[name] += values

    def compute(self) -> Figures:
        """The figures so far."""
        figures = {}
        for name, values in self._columns.items():
            if name in FIGURES or name.startswith(("pass_", "reflection_")) or "/" in name:
                raise ValueError(
                    f'a verifier reports "{name}": this is a name of the monitor, or holds a "/"; rename it'
                )
            # A sum that is finite has finite values; looking at each is slower.
            finite = values if math.isfinite(sum(values)) else list(filter(math.isfinite, values))
            if finite:
                figures[name] = _mean(finite)
        return figures

    def reset(self) -> None:
        """Forget all groups."""
        self._columns: defaultdict[str, list[float]] = defaultdict(list)


def _metrics() -> list[Metric]:
    """All metrics of a source, empty."""

    def mean(name: str, values_of: Callable[[JudgedGroup], Iterable[float]]) -> Column[float]:
        return Column(values_of, lambda values: {name: _mean(values)})

    metrics: list[Column[Any] | Tally | Reports] = [
        Tally(_numbers, _shares),
        Column(_rewards, lambda values: {"reward": _mean(values), "reward_std": _deviation(values)}),
        mean("reward_accuracy", lambda judged: _weighed(_accuracies(judged), _weights(judged)[0])),
        mean("reward_format", lambda judged: _weighed(_formats(judged), _weights(judged)[1])),
        mean("accuracy", _accuracies),
        mean("format", _formats),
        mean("correct", _correct),
        Column(_of_group, _pass_at_k),
        mean("best_of_n", lambda judged: _of_n(judged, max)),
        mean("worst_of_n", lambda judged: _of_n(judged, min)),
        mean("majority_of_n", _majority),
        mean("zero_spread", _zero_spread),
        mean("zero_with_reason", lambda judged: [bool(v.reason) for v in _scored(judged) if v.reward == 0]),
        Column(_lengths, lambda values: {"length": _mean(values), **_percentiles(values)}),
        mean("length_correct", lambda judged: _lengths(judged, correct=True)),
        mean("length_incorrect", lambda judged: _lengths(judged, correct=False)),
        Column(_nats_and_tokens, _entropy),
        Tally(_reflecting, _reflection),
        Reports(),
    ]
    return list(metrics)


def _numbers(judged: JudgedGroup) -> dict[str, int]:
    statuses = [verdict.status for verdict in judged.verdicts]
    finishes = [rollout.finish for rollout in judged.group.rollouts]
    return {
        "groups": 1,
        "scored_groups": int(Status.SCORED in statuses),
        "rollouts": len(statuses),
        "unscorable_count": statuses.count(Status.UNSCORABLE),
        "failed_count": statuses.count(Status.FAILED),
        "spurious_tokens": sum(rollout.spurious_tokens for rollout in judged.group.rollouts),
        "truncated": finishes.count(FinishReason.LENGTH),
    }


def _shares(sums: Counter[str]) -> Figures:
    counts = ("groups", "scored_groups", "rollouts", "unscorable_count", "failed_count", "spurious_tokens")
    figures = {name: float(sums[name]) for name in counts}
    if rollouts := sums["rollouts"]:
        figures["unscorable"] = sums["unscorable_count"] / rollouts
        figures["failed"] = sums["failed_count"] / rollouts
        figures["truncated"] = sums["truncated"] / rollouts
    return figures


def _scored(judged: JudgedGroup) -> list[Verdict]:
    return [verdict for verdict in judged.verdicts if verdict.status is Status.SCORED]


def _rewards(judged: JudgedGroup) -> list[float]:
    return [verdict.reward for verdict in _scored(judged) if verdict.reward is not None]


def _accuracies(judged: JudgedGroup) -> list[float]:
    return [verdict.accuracy for verdict in _scored(judged) if verdict.accuracy is not None]


def _formats(judged: JudgedGroup) -> list[float]:
    return [verdict.format for verdict in _scored(judged) if verdict.format is not None]


def _correct(judged: JudgedGroup) -> list[bool]:
    return [verdict.correct for verdict in _scored(judged) if verdict.correct is not None]


def _weights(judged: JudgedGroup) -> tuple[float, float]:
    """a_acc and a_fmt of eq. 8, as the preset takes them."""
    spec = judged.group.sample.reward
    total = spec.accuracy_weight + spec.format_weight if spec.preset == "official_code" else 1.0
    return spec.accuracy_weight / total, spec.format_weight / total


def _weighed(values: Sequence[float], weight: float) -> list[float]:
    return [weight * value for value in values]


def _lengths(judged: JudgedGroup, correct: bool | None = None) -> list[int]:
    """In tokens, of all answers or of the scored ones that are (not) correct."""
    pairs = zip(judged.group.rollouts, judged.verdicts, strict=True)
    if correct is None:
        return [len(rollout.token_ids) for rollout, _ in pairs]
    return [
        len(rollout.token_ids)
        for rollout, verdict in pairs
        if verdict.correct is correct and verdict.status is Status.SCORED
    ]


def _zero_spread(judged: JudgedGroup) -> list[bool]:
    """Whether all scored rewards are equal, so that the group teaches nothing."""
    rewards = _rewards(judged)
    return [min(rewards) == max(rewards)] if rewards else []


def _of_group(judged: JudgedGroup) -> list[tuple[int, int]]:
    """(n, c): scored answers, and correct ones, of a group of two or more."""
    correct = _correct(judged)
    return [(len(correct), sum(correct))] if len(correct) > 1 else []


def _pass_at_k(groups: Sequence[tuple[int, int]]) -> Figures:
    """The unbiased estimator of Chen et al., arXiv 2107.03374, over the groups of k answers or more.

    >>> _pass_at_k([(4, 1), (4, 0)])
    {'pass_1': 0.125, 'pass_2': 0.25, 'pass_4': 0.5}
    """
    figures, k = {}, 1
    while enough := [group for group in groups if group[0] >= k]:
        figures[f"pass_{k}"] = _mean([1 - math.comb(n - c, k) / math.comb(n, k) for n, c in enough])
        k *= 2
    return figures


def _of_n(judged: JudgedGroup, choose: Callable[[Iterable[float]], float]) -> list[float]:
    accuracies = _accuracies(judged)
    return [choose(accuracies)] if len(accuracies) > 1 else []


def _majority(judged: JudgedGroup) -> list[float]:
    """Whether the most frequent answer is correct; where several are, the share of these that is."""
    correct = _correct(judged)
    if len(correct) < 2 or all(correct) or not any(correct):  # whoever wins
        return [correct[0]] if len(correct) > 1 else []
    pairs = zip(judged.group.rollouts, judged.verdicts, strict=True)
    texts = [one.text for one, v in pairs if v.status is Status.SCORED and v.correct is not None]
    winners = most_voted(texts)
    return [sum(correct[winner] for winner in winners) / len(winners)]


def _nats_and_tokens(judged: JudgedGroup) -> list[float]:
    """Of each answer in turn; an answer without tokens has no entropy."""
    pairs = [(rollout.entropy, len(rollout.token_ids)) for rollout in judged.group.rollouts]
    return [value for entropy, tokens in pairs if tokens for value in (entropy * tokens, tokens)]


def _entropy(values: Sequence[float]) -> Figures:
    return {"entropy": math.fsum(values[::2]) / math.fsum(values[1::2])}


def _reflecting(judged: JudgedGroup) -> Counter[str]:
    """How many answers there are, hold each word, hold any, and of these are correct or not."""
    numbers = Counter({"answers": len(judged.verdicts)})
    for rollout, verdict in zip(judged.group.rollouts, judged.verdicts, strict=True):
        if words := words_in(rollout.text):
            numbers.update(words)
            numbers["any"] += 1
            if verdict.status is Status.SCORED and verdict.correct is not None:
                numbers["correct" if verdict.correct else "incorrect"] += 1
    return numbers


def _reflection(sums: Counter[str]) -> Figures:
    answers, judged = sums["answers"], sums["correct"] + sums["incorrect"]
    figures = {f"reflection_{word.translate(_AS_NAME)}": sums[word] / answers for word in WORDS if sums[word]}
    if answers:
        figures["reflection"] = sums["any"] / answers
    if judged:
        figures["reflection_correct"] = sums["correct"] / judged
    return figures


_AS_NAME = str.maketrans(" -", "__")


def _percentiles(lengths: Sequence[float]) -> Figures:
    """By nearest rank: always a length that occurs.

    >>> _percentiles([30, 10, 20])
    {'length_p10': 10, 'length_p50': 20, 'length_p90': 30, 'length_p99': 30}
    """
    ranked = sorted(lengths)
    return {f"length_p{share}": ranked[-(-share * len(ranked) // 100) - 1] for share in (10, 50, 90, 99)}


def _mean(values: Sequence[float]) -> float:
    # fsum is exact before its last rounding: the mean does not depend on the order of the values.
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
