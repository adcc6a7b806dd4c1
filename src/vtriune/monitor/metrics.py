"""Figures per data source of one step: section 3.3 of the paper, Source-Level Metric Monitoring.

Pure functions over what was judged. Scores of a held-out evaluation are in evaluation.py; nothing is stored here
(store.py) and nothing drawn (table.py).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vtriune.monitor.reflection import reflects
from vtriune.types import FinishReason, JudgedGroup, Rollout, Status, UserError, Verdict

ALL = "all"
"""What stands in a figure's key in place of a source when it is taken over the whole step."""
TASK = "task:"
"""Begins what stands there when it is taken over all sources of a task."""


def sources_of(metrics: Mapping[str, float]) -> list[str]:
    """The data sources that a row has figures of, sorted: those with a count of rollouts."""
    names = {key.removesuffix("/rollouts") for key in metrics if key.endswith("/rollouts")}
    return sorted(name for name in names if name != ALL and not name.startswith(TASK))


class _Answer(NamedTuple):
    rollout: Rollout
    verdict: Verdict
    reflects: bool


def source_metrics(groups: Sequence[JudgedGroup]) -> dict[str, float]:
    """Every figure of a step as `<source>/<figure>`, and over all sources together as `all/<figure>`.

    Only `scored` verdicts enter a figure that speaks of reward, accuracy, format, correctness or a verifier's report.
    A figure without a value for a source (no scored answer, no incorrect one, ...) is absent, never NaN. The result
    does not depend on the order of groups or rollouts.

    - `reward`, `reward_std`: mean and population standard deviation of R (eq. 8);
    - `accuracy`, `format`: means of R_acc and R_fmt; `correct`: share that the verifier's own rule calls correct;
    - one mean per figure of `Verdict.report` (`iou_50`, `map`, ...), over the rollouts that have it;
    - `length`, `length_correct`, `length_incorrect`: mean response length in tokens, the first over all rollouts;
    - `entropy`: mean over all tokens, in nats, of the entropy of the distribution that the token was drawn from;
    - `truncated`: share of all rollouts cut at the token limit;
    - `reflection`: share of all rollouts with a reflection word; `reflection_correct`: `correct` among these;
    - `rollouts`, `groups`, `spurious_tokens`: counts;
    - `unscorable`, `failed`: shares of all rollouts, with `unscorable_count` and `failed_count`;
    - `zero_spread`: share of the groups with a scored answer whose scored rewards are all equal;
    - `zero_with_reason`: share of the scored zero rewards that carry a reason (`cpu limit`, ...).

    Raises:
        UserError: a data source is itself called `all`.
        ValueError: a verifier reports a figure under one of the names above, or with a `/` in its name.
    """
    by_source: defaultdict[str, list[JudgedGroup]] = defaultdict(list)
    for group in groups:
        by_source[group.group.sample.source].append(group)
    if ALL in by_source:
        raise UserError(f'data source "{ALL}" has the name that stands for all sources together: give it another name')
    answers = {source: [_answers(group) for group in members] for source, members in by_source.items()}
    figures = {
        f"{source}/{name}": value for source, members in answers.items() for name, value in _figures(members).items()
    }
    everything = [group for members in answers.values() for group in members]
    return figures | {f"{ALL}/{name}": value for name, value in _figures(everything).items()}


def _answers(judged: JudgedGroup) -> list[_Answer]:
    pairs = zip(judged.group.rollouts, judged.verdicts, strict=True)
    return [_Answer(rollout, verdict, reflects(rollout.text)) for rollout, verdict in pairs]


def _figures(groups: Sequence[Sequence[_Answer]]) -> dict[str, float]:
    answers = [answer for group in groups for answer in group]
    scored = [answer for answer in answers if answer.verdict.status is Status.SCORED]
    verdicts = [answer.verdict for answer in scored]
    rewards = [v.reward for v in verdicts if v.reward is not None]
    spreads = [_has_zero_spread(group) for group in groups]
    statuses = Counter(answer.verdict.status for answer in answers)
    means: dict[str, Iterable[float]] = {
        "reward": rewards,
        "accuracy": (v.accuracy for v in verdicts if v.accuracy is not None),
        "format": (v.format for v in verdicts if v.format is not None),
        "correct": (v.correct for v in verdicts if v.correct is not None),
        "length": (len(a.rollout.token_ids) for a in answers),
        "length_correct": (len(a.rollout.token_ids) for a in scored if a.verdict.correct is True),
        "length_incorrect": (len(a.rollout.token_ids) for a in scored if a.verdict.correct is False),
        "truncated": (a.rollout.finish is FinishReason.LENGTH for a in answers),
        "reflection": (a.reflects for a in answers),
        "reflection_correct": (a.verdict.correct for a in scored if a.reflects and a.verdict.correct is not None),
        "unscorable": (a.verdict.status is Status.UNSCORABLE for a in answers),
        "failed": (a.verdict.status is Status.FAILED for a in answers),
        "zero_spread": (spread for spread in spreads if spread is not None),
        "zero_with_reason": (bool(v.reason) for v in verdicts if v.reward == 0),
    }
    figures = {
        "rollouts": float(len(answers)),
        "groups": float(len(groups)),
        "spurious_tokens": float(sum(a.rollout.spurious_tokens for a in answers)),
        "unscorable_count": float(statuses[Status.UNSCORABLE]),
        "failed_count": float(statuses[Status.FAILED]),
    }
    figures |= {name: mean for name, values in means.items() if (mean := _mean(list(values))) is not None}
    if rewards:
        figures["reward_std"] = _deviation(rewards)
    tokens = sum(len(a.rollout.token_ids) for a in answers)
    if tokens:
        nats = math.fsum(a.rollout.entropy * len(a.rollout.token_ids) for a in answers if len(a.rollout.token_ids))
        figures["entropy"] = nats / tokens
    own_names = {*means, *figures, "reward_std", "entropy"}
    for name, values in _reported(verdicts).items():
        if name in own_names or "/" in name:
            raise ValueError(f'a verifier reports "{name}": this is a name of the monitor, or holds a "/"; rename it')
        figures[name] = math.fsum(values) / len(values)
    return figures


def _reported(verdicts: Sequence[Verdict]) -> dict[str, list[float]]:
    """The values of each reported figure; a value that is not finite says "undefined here" and is left out."""
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        for name, value in verdict.report.items():
            if math.isfinite(value):
                columns[name].append(value)
    return columns


def _has_zero_spread(group: Sequence[_Answer]) -> bool | None:
    """Whether all scored rewards of a group are equal, so that it teaches nothing; None where none is scored."""
    rewards = {a.verdict.reward for a in group if a.verdict.status is Status.SCORED}
    return len(rewards) == 1 if rewards else None


def _mean(values: Sequence[float]) -> float | None:
    # fsum is exact before its last rounding: the mean does not depend on the order of the values.
    return math.fsum(values) / len(values) if values else None


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
