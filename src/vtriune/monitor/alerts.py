"""Which source is sick: alerts that begin and end, told from the figures of training steps and evaluations alone.

Pure: the same rows give the same alerts, however often a run is resumed. The figures are metrics.py's; how alerts are
stored is store.py's, how they are read runs.py's.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal, NamedTuple, Protocol, get_args

from vtriune.monitor.metrics import ALL, sources_of

WINDOW = 10
"""Steps whose mean is looked at. A source has a handful of prompts in a small run's step, and the paper's whole
training is 135 steps long: ten are enough prompts for a mean and still soon enough."""
CALM = 5
"""An alert ends when its condition did not hold for so many steps in a row: not at each swing about the limit."""
NOISE = 5.0
"""A drift must be so many times the standard error of the difference of two windows: the best window is the luckiest
of a whole run, and a run has hundreds of windows of dozens of sources."""
COLLAPSED = 0.5
"""Share of the best reward. With G answers a prompt a source that has lost half is no longer the one that was tuned."""
TRUNCATED = 0.1
"""Rise of the truncated share. A cut answer is judged wrong whatever it was going to say."""
LONGER = 1.5
"""Growth of incorrect answers beyond that of correct ones. Where reasoning is learned, both grow, and that is well."""
ENTROPY_GONE = 0.05
"""Share of the highest entropy. Sharpening to a third or a tenth is what RL does; below that sampling is greedy, and
the answers to a prompt stop differing."""
ENTROPY_GROWN = 3.0
"""Times the lowest entropy. A policy that is rewarded sharpens; one that flattens is losing what it could do."""
FELL = 3.0
"""Standard errors between a held-out score and the best before. They are those of independent prompts; the prompts are
the same each time, so that chance alone moves the difference less."""
RULER = 0.03
"""Change of a source's mean `eps` that asks for a new best reward: less than the least step of the paper's schedule,
0.04, and more than rounding or the mix of a step's rows, if they have thresholds of their own, moves it."""
LOST = 0.05
"""Share of answers without a verdict. A whole step without any is told at once; one bad row of a small source isn't."""
GRADIENT = 10.0
"""Times the median so far: what joint training of vision shows before detection collapses (paper, Fig. 7)."""
GRADIENT_STEPS = 20
"""Steps that a median needs first: warm-up has its own norms."""
SPREADLESS_GROUPS = 30
"""Groups with scored answers of equal rewards: fewer can be chance where half of the groups have no spread."""

Kind = Literal[
    "reward_collapsed",
    "evaluation_fell",
    "gradient_norm",
    "entropy_to_zero",
    "entropy_rising",
    "incorrect_longer",
    "truncation_rising",
    "no_spread",
    "failed",
    "unscorable",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Alert:
    """Something is wrong with a source; `all` where it is the step's as a whole."""

    source: str
    kind: Kind
    since: int
    """The first step that showed it, which is earlier than the step that made sure of it."""
    message: str
    """The figures, in a sentence."""
    until: int | None = None
    """The first step that did not show it any more; None while it lasts."""


class Alerts:
    """Watches the rows of a run, in order.

    | kind | holds while | began |
    |---|---|---|
    | `reward_collapsed` | mean `reward` of the WINDOW < COLLAPSED x the best window's since `eps` last changed by more than RULER | after the window's last step that is not below that |
    | `entropy_to_zero` | mean `entropy` of the window < ENTROPY_GONE x the highest window's | the same |
    | `entropy_rising` | mean `entropy` of the window > ENTROPY_GROWN x the lowest window's | after the last not above that |
    | `incorrect_longer` | mean `length_incorrect` of the window > LONGER x the lowest window's x the growth of `length_correct` since, if it grew | the same |
    | `truncation_rising` | mean `truncated` of the window > the lowest window's + TRUNCATED | the same |
    | `evaluation_fell` | held-out `score` < the best before by more than FELL standard errors of the difference | that step |
    | `no_spread` | `zero_spread` was 1 in every step of the window, in SPREADLESS_GROUPS `scored_groups` or more | the first of them |
    | `failed`, `unscorable` | mean share of the window, steps before the run counting as 0, > LOST | the first above that |
    | `gradient_norm` | some `grad_norm_<part>`, or `grad_norm` in a step without these, > GRADIENT x its median over GRADIENT_STEPS earlier steps or more | that step |

    The first five must also lie beyond the noise: NOISE standard errors of the difference of two windows, by the mean
    square of the source's differences from step to step. Steps without the figure are not counted. A raised eps lowers
    the reward of the same answers, so that the best reward is looked for anew; while an alert lasts it is not, since then
    the collapsed reward would be the best. All end after CALM steps that are well,
    `evaluation_fell` with the first such evaluation.

    The paper's four signs of instability (section 4) are a degraded evaluation, spikes of gradient norms, large
    fluctuations of entropy, and abrupt growth of answers, above all of incorrect ones.
    """  # noqa: E501

    def __init__(self) -> None:
        self._watched: dict[tuple[str, str], list[_Watch]] = {}

    def update(self, step: int, split: Literal["train", "eval"], metrics: Mapping[str, float]) -> list[Alert]:
        """Look at the figures of a row. Returns the alerts that it opened and those that it closed."""
        # What a row can't hold says nothing, so that reading the rows again says the same.
        metrics = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        changes = []
        for source in (*sources_of(metrics), ALL):
            if (source, split) not in self._watched:
                self._watched[source, split] = [_Watch(source, rule) for rule in _rules(source, split)]
            for watch in self._watched[source, split]:
                if change := watch.update(step, metrics):
                    changes.append(change)
        return changes

    def figures(self, split: Literal["train", "eval"], changes: Iterable[Alert]) -> dict[str, float]:
        """For trackers, which know figures only: `<source>/<kind>/alert` is 1 in each row of `split` while an alert
        lasts, and 0 in the one that ended it. `changes`: what `update` returned of the row.
        """
        ended = {f"{alert.source}/{alert.kind}/alert": 0.0 for alert in changes if alert.until is not None}
        watches = (watch for (_, of), own in self._watched.items() if of == split for watch in own)
        return ended | {f"{one.source}/{one.rule.kind}/alert": 1.0 for one in watches if one.alert}

    @property
    def open(self) -> list[Alert]:
        """Those that last, by source."""
        return [watch.alert for key in sorted(self._watched) for watch in self._watched[key] if watch.alert]


class _Finding(NamedTuple):
    """What a rule says of a step at which it could look."""

    began: int | None
    """The first step that shows what is wrong; None: nothing is."""
    message: str = ""


_WELL = _Finding(None)
_Figure = Callable[[str], float | None]


class _Rule(Protocol):
    @property
    def kind(self) -> Kind: ...
    @property
    def calm(self) -> int: ...

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        """What the step says, given a source's figures by name; None if it says nothing."""


@dataclass(slots=True)
class _Watch:
    """One rule on one source: its alert begins with a finding and ends after `calm` steps without one."""

    source: str
    rule: _Rule
    alert: Alert | None = None
    well: list[int] = field(default_factory=list)
    """Steps without a finding since the last one, while an alert lasts."""
    over: int = 0
    """Until when the last alert lasted."""

    def update(self, step: int, metrics: Mapping[str, float]) -> Alert | None:
        finding = self.rule.look(step, lambda name: metrics.get(f"{self.source}/{name}"))
        if finding is None:
            return None
        if finding.began is None:
            if self.alert is None:
                return None
            self.well.append(step)
            if len(self.well) < self.rule.calm:
                return None
            self.over = self.well[0]
            ended, self.alert = replace(self.alert, until=self.over), None
            return ended
        opened = None
        if self.alert is None:
            began = max(finding.began, self.over)  # a window can reach back into the last alert
            self.alert = opened = Alert(self.source, self.rule.kind, began, finding.message)
        self.well.clear()
        return opened


class _Seen(NamedTuple):
    step: int
    value: float


@dataclass(slots=True)
class _Window:
    """The last WINDOW values of a figure, and how much it differs from one step to the next."""

    values: deque[_Seen] = field(default_factory=lambda: deque(maxlen=WINDOW))
    squares: float = 0.0
    count: int = 0

    def add(self, step: int, value: float) -> None:
        if self.values:
            self.squares += (value - self.values[-1].value) ** 2
            self.count += 1
        self.values.append(_Seen(step, value))

    @property
    def full(self) -> bool:
        return len(self.values) == WINDOW

    @property
    def mean(self) -> float:
        """Of a full window, or of one that had zeros before it."""
        return math.fsum(value for _, value in self.values) / WINDOW

    @property
    def error(self) -> float:
        """Standard error of the difference of two windows' means. Successive differences hold no trend."""
        return math.sqrt(self.squares / self.count / WINDOW)


@dataclass(slots=True)
class _Drift:
    """The mean of a window fell below, or rose above, a limit that follows from the best window so far."""

    kind: Kind
    figure: str
    falls: bool
    limit: Callable[[float], float]
    says: str
    """The message, with {now} and {best}."""
    anew: str = ""
    """A figure at whose change the best window is forgotten, unless an alert lasts."""
    beside: str = ""
    """A figure whose growth since the best window raises the limit."""
    calm: int = CALM
    well: int = CALM
    """Steps without a finding since the last one: an alert lasts while these are fewer than CALM."""
    ruler: float | None = None
    """The figure `anew` when the best window was last forgotten."""
    window: _Window = field(default_factory=_Window)
    other: _Window = field(default_factory=_Window)
    best: tuple[float, float] | None = None
    """Means of the best window, and of the other figure then; 0 where it has none."""

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        value, ruler, other = figure(self.figure), figure(self.anew), figure(self.beside)
        if value is None:
            return None
        if self.ruler is None:
            self.ruler = ruler
        elif ruler is not None and abs(ruler - self.ruler) > RULER and self.well >= CALM:
            self.ruler, self.best = ruler, None
            self.window.values.clear()
        self.window.add(step, value)
        if other is not None:
            self.other.add(step, other)
        if not self.window.full:
            return None
        now, beside = self.window.mean, self.other.mean if self.other.full else 0.0
        if self.best is None or (now > self.best[0] if self.falls else now < self.best[0]):
            self.best = now, beside
        best, before = self.best
        limit = self.limit(best) * max(1.0, beside / before if before else 1.0)
        if not self._beyond(now, limit) or abs(now - best) <= NOISE * self.window.error:
            self.well += 1
            return _WELL
        self.well, began = 0, step
        for seen in reversed(self.window.values):
            if not self._beyond(seen.value, limit):
                break
            began = seen.step
        return _Finding(began, self.says.format(now=now, best=best))

    def _beyond(self, value: float, limit: float) -> bool:
        return value < limit if self.falls else value > limit


@dataclass(slots=True)
class _Lost:
    """Too many answers have no verdict."""

    kind: Literal["failed", "unscorable"]
    calm: int = CALM
    window: _Window = field(default_factory=_Window)

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        share = figure(self.kind)
        if share is None:
            return None
        self.window.add(step, share)
        mean = self.window.mean
        if mean <= LOST:
            return _WELL
        began = next((seen.step for seen in self.window.values if seen.value > LOST), step)
        what = "could not be judged, which is our side's doing" if self.kind == "failed" else "belong to broken samples"
        told, seen = f"{share:.0%} of the answers {what}", [one.value for one in self.window.values]
        if len(seen) > 1:
            told += f"; {math.fsum(seen) / len(seen):.0%} over {len(seen)} steps"
        return _Finding(began, told)


@dataclass(slots=True)
class _NoSpread:
    """No group teaches anything."""

    kind: Kind = "no_spread"
    calm: int = CALM
    groups: deque[_Seen] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Numbers of groups with a scored answer of the last steps, all without spread."""

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        share, groups, reward = figure("zero_spread"), figure("scored_groups"), figure("reward")
        if share is None or groups is None or reward is None:
            return None
        if share < 1:
            self.groups.clear()
            return _WELL
        self.groups.append(_Seen(step, groups))
        count = sum(seen.value for seen in self.groups)
        if len(self.groups) < WINDOW or count < SPREADLESS_GROUPS:
            return None  # neither well nor long enough
        said = f"no group of {count:.0f} in {WINDOW} steps had rewards that differ, {reward:.3g} on average at last"
        return _Finding(self.groups[0].step, said)


@dataclass(slots=True)
class _Gradient:
    """The gradient of a part of the model, or of all of it where parts are not told, is far above what it was."""

    kind: Kind = "gradient_norm"
    calm: int = CALM
    norms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Norms so far, sorted, by part; by "" of all parts."""

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        told = {f" of {part}": figure(f"grad_norm_{part}") for part in ("vision", "connector", "llm")}
        if not any(norm is not None for norm in told.values()):
            told = {"": figure("grad_norm")}
        found: _Finding | None = None
        for part, norm in told.items():
            if norm is None:
                continue
            norms = self.norms[part]
            found = found or _WELL
            if len(norms) >= GRADIENT_STEPS and norm > GRADIENT * median(norms) and found is _WELL:
                found = _Finding(step, f"gradient norm{part} {norm:.3g}, its median so far {median(norms):.3g}")
            insort(norms, norm)
        return found


@dataclass(slots=True)
class _Fell:
    """A held-out score is worse than it was."""

    kind: Kind = "evaluation_fell"
    calm: int = 1
    best: tuple[float, float] | None = None
    """The best score, and its standard error."""

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        score, error = figure("score"), figure("score_se")
        if score is None or error is None:
            return None
        if self.best is None or score > self.best[0]:
            self.best = score, error
        best, its_error = self.best
        if best - score <= FELL * math.hypot(error, its_error):
            return _WELL
        return _Finding(step, f"held-out score {score:.1f} \u00b1 {error:.1f}, once {best:.1f} \u00b1 {its_error:.1f}")


def _rules(source: str, split: str) -> list[_Rule]:
    if split == "eval":
        return [_Fell()]
    if source == ALL:
        return [_Gradient()]
    steps = f"over {WINDOW} steps"
    return [
        _Drift(
            "reward_collapsed",
            "reward",
            falls=True,
            limit=lambda best: COLLAPSED * best,
            says=f"mean reward {{now:.3g}} {steps}, once {{best:.3g}}",
            anew="eps",
        ),
        _Drift(
            "entropy_to_zero",
            "entropy",
            falls=True,
            limit=lambda best: ENTROPY_GONE * best,
            says=f"entropy {{now:.2g}} nats {steps}, once {{best:.2g}}",
        ),
        _Drift(
            "entropy_rising",
            "entropy",
            falls=False,
            limit=lambda best: ENTROPY_GROWN * best,
            says=f"entropy {{now:.2g}} nats {steps}, once {{best:.2g}}",
        ),
        _Drift(
            "incorrect_longer",
            "length_incorrect",
            falls=False,
            limit=lambda best: LONGER * best,
            says=f"incorrect answers are {{now:.0f}} tokens long {steps}, once {{best:.0f}}",
            beside="length_correct",
        ),
        _Drift(
            "truncation_rising",
            "truncated",
            falls=False,
            limit=lambda best: best + TRUNCATED,
            says=f"{{now:.0%}} of the answers are cut at the token limit {steps}, once {{best:.0%}}",
        ),
        _NoSpread(),
        _Lost("failed"),
        _Lost("unscorable"),
    ]
