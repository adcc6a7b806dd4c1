"""Scores of a held-out evaluation: per source, over tasks, before and after training, each with its standard error.

Pure functions over what was judged. The figures of a training step are in metrics.py.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

from vtriune.monitor.metrics import ALL
from vtriune.types import JudgedGroup, Status


class Estimate(NamedTuple):
    """A mean and the standard error of it; None where a single prompt tells nothing about the error."""

    value: float
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """What a source scored in a held-out evaluation, 0..100."""

    task: str
    by_prompt: Mapping[str, float]
    """For every sample id with a scored answer: 100 x the mean accuracy of its scored answers."""
    not_scored: int
    """Answers left out because they were `unscorable` or `failed`."""

    @property
    def estimate(self) -> Estimate:
        """Mean over prompts, with its standard error clustered by prompt: the answers to one prompt are no
        independent draws of the source, the prompts are.
        """
        return _estimate(list(self.by_prompt.values()))


class GradedAnswer(NamedTuple):
    """The part of an evaluated answer that its score depends on."""

    source: str
    task: str
    sample_id: str
    accuracy: float | None
    """R_acc; None unless scored."""


def evaluate_metrics(groups: Iterable[JudgedGroup]) -> dict[str, Score]:
    """Score per source of a held-out evaluation: of G sampled answers a prompt, or of one greedy answer a prompt.

    With G answers sampled at temperature 1 this estimates the expected accuracy of one such answer. A source without
    any scored answer is absent.
    """
    return score_answers(
        GradedAnswer(
            judged.group.sample.source,
            judged.group.sample.task,
            judged.group.sample.id,
            verdict.accuracy if verdict.status is Status.SCORED else None,
        )
        for judged in groups
        for verdict in judged.verdicts
    )


def score_answers(answers: Iterable[GradedAnswer]) -> dict[str, Score]:
    """Same as `evaluate_metrics`, from answers read back from a run folder. A source with samples of several tasks
    counts for the most frequent of them.
    """
    tasks: defaultdict[str, Counter[str]] = defaultdict(Counter)
    accuracies: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    not_scored: Counter[str] = Counter()
    for answer in answers:
        tasks[answer.source][answer.task] += 1
        if answer.accuracy is None:
            not_scored[answer.source] += 1
        else:
            accuracies[answer.source][answer.sample_id].append(answer.accuracy)
    return {
        source: Score(
            task=min(tasks[source], key=lambda task: (-tasks[source][task], task)),
            by_prompt={sample: 100 * math.fsum(values) / len(values) for sample, values in prompts.items()},
            not_scored=not_scored[source],
        )
        for source, prompts in accuracies.items()
    }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One held-out evaluation: scores per source of answers sampled at temperature 1, and of greedy ones."""

    sampled: Mapping[str, Score]
    greedy: Mapping[str, Score]


def on_shared_prompts(before: Evaluation, after: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Both evaluations on the prompts that were scored both times, so that before and after can be compared: one in
    the middle of a run may have asked fewer.
    """

    def shared(a: Mapping[str, Score], b: Mapping[str, Score]) -> dict[str, Score]:
        return {
            source: replace(score, by_prompt={p: v for p, v in score.by_prompt.items() if p in b[source].by_prompt})
            for source, score in a.items()
            if source in b and score.by_prompt.keys() & b[source].by_prompt.keys()
        }

    return (
        Evaluation(shared(before.sampled, after.sampled), shared(before.greedy, after.greedy)),
        Evaluation(shared(after.sampled, before.sampled), shared(after.greedy, before.greedy)),
    )


def is_better(before: Evaluation, after: Evaluation) -> bool:
    """Whether the mean over tasks of the sampled scores rose, on the prompts that both asked."""
    means = [
        mean_over_tasks((score.task, score.estimate) for score in one.sampled.values()).value if one.sampled else 0.0
        for one in on_shared_prompts(before, after)
    ]
    return means[1] > means[0]


def gain(before: Score, after: Score) -> Estimate | None:
    """Mean change of a source's score over the prompts scored both times, with the standard error of the paired
    difference (clustered by prompt); None if no prompt was scored both times.
    """
    shared = before.by_prompt.keys() & after.by_prompt.keys()
    return _estimate([after.by_prompt[p] - before.by_prompt[p] for p in shared]) if shared else None


def mean_over_tasks(estimates: Iterable[tuple[str, Estimate]]) -> Estimate:
    """Mean over tasks of the mean over each task's sources, from (task, estimate of a source) pairs.

    Sources are independent samples of prompts, so the standard errors add in squares; None where one is unknown.

    Raises:
        ValueError: there is no estimate at all.
    """
    by_task: defaultdict[str, list[Estimate]] = defaultdict(list)
    for task, estimate in estimates:
        by_task[task].append(estimate)
    if not by_task:
        raise ValueError("no source has a score, so there is no mean over tasks")
    value = math.fsum(math.fsum(e.value for e in members) / len(members) for members in by_task.values()) / len(by_task)
    variance = 0.0
    for members in by_task.values():
        for estimate in members:
            if estimate.standard_error is None:
                return Estimate(value, None)
            variance += (estimate.standard_error / len(members) / len(by_task)) ** 2
    return Estimate(value, math.sqrt(variance))


def evaluation_figures(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation as figures of a metrics row: `<source>/score`, `<source>/greedy`, each with `..._se` where there
    is a standard error, `<source>/prompts`; under `all/` the mean over tasks and the number of all prompts.
    """
    figures: dict[str, float] = {}
    for name, scores in (("score", evaluation.sampled), ("greedy", evaluation.greedy)):
        estimates = {source: score.estimate for source, score in scores.items()}
        if estimates:
            estimates[ALL] = mean_over_tasks((scores[source].task, e) for source, e in estimates.items())
        for source, (value, error) in estimates.items():
            figures[f"{source}/{name}"] = value
            if error is not None:
                figures[f"{source}/{name}_se"] = error
    prompts = {source: float(len(score.by_prompt)) for source, score in evaluation.sampled.items()}
    figures |= {f"{source}/prompts": count for source, count in prompts.items()}
    return figures | {f"{ALL}/prompts": math.fsum(prompts.values())}


class SourceSummary(TypedDict):
    """One source in `summary.json`; scores are 0..100."""

    task: str
    before: float
    after: float
    greedy_before: float
    greedy_after: float


class Summary(TypedDict):
    """`summary.json`: what a finished run reached, held out, at temperature 1 and greedy."""

    sources: dict[str, SourceSummary]
    mean_before: float
    """Mean over tasks of the mean over each task's sources."""
    mean_after: float
    minutes: float
    steps: int
    seed: int


def summarize(before: Evaluation, after: Evaluation, *, minutes: float, steps: int, seed: int) -> Summary:
    """The summary of a run from its first and its last evaluation, over the sources scored in both.

    Raises:
        ValueError: no source was scored in both.
    """
    before, after = on_shared_prompts(before, after)
    sources: dict[str, SourceSummary] = {
        source: {
            "task": before.sampled[source].task,
            "before": before.sampled[source].estimate.value,
            "after": after.sampled[source].estimate.value,
            "greedy_before": before.greedy[source].estimate.value,
            "greedy_after": after.greedy[source].estimate.value,
        }
        for source in sources_scored_in(before, after)
    }
    rows = sources.values()
    return {
        "sources": sources,
        "mean_before": mean_over_tasks((row["task"], Estimate(row["before"], None)) for row in rows).value,
        "mean_after": mean_over_tasks((row["task"], Estimate(row["after"], None)) for row in rows).value,
        "minutes": minutes,
        "steps": steps,
        "seed": seed,
    }


def sources_scored_in(before: Evaluation, after: Evaluation) -> list[str]:
    """The sources that both evaluations scored, sampled and greedy, sorted by task and name."""
    shared = before.sampled.keys() & before.greedy.keys() & after.sampled.keys() & after.greedy.keys()
    return sorted(shared, key=lambda source: (before.sampled[source].task, source))


def _estimate(values: Sequence[float]) -> Estimate:
    # fsum is exact before its last rounding: the result does not depend on the order of the prompts.
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))
