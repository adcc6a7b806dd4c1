"""Which source is sick: alerts that begin and end, told from the figures of the training steps alone.

Pure: the same rows give the same alerts, however often a run is resumed. The figures are metrics.py's; how alerts are
stored is store.py's, how they are read runs.py's.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping
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
"""Growth of incorrect answers. Between two windows of a healthy source lengths differ by some per cent."""
ENTROPY = 0.05
"""Share of the highest entropy. Sharpening to a third or a tenth is what RL does; below that sampling is greedy, and
the answers to a prompt stop differing."""
LOST = 0.05
"""Share of answers without a verdict. A whole step without any is told at once; one bad row of a small source isn't."""
GRADIENT = 10.0
"""Times the median so far: what joint training of vision shows before detection collapses (paper, Fig. 7)."""
GRADIENT_STEPS = 20
"""Steps that a median needs first: warm-up has its own norms."""
SPREADLESS_GROUPS = 30
"""Groups of equal rewards: fewer can be chance where half of the groups have no spread."""

Kind = Literal[
    "reward_collapsed",
    "no_spread",
    "truncation_rising",
    "incorrect_longer",
    "entropy_to_zero",
    "failed",
    "unscorable",
    "gradient_norm",
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
    """Watches the rows of a run's training steps, in order.

    | kind | holds while | began |
    |---|---|---|
    | `reward_collapsed` | mean `reward` of the WINDOW < COLLAPSED x the best window's since `eps` last changed | the first step of the window below that |
    | `truncation_rising` | mean `truncated` of the window > the lowest window's + TRUNCATED | the first above that |
    | `incorrect_longer` | mean `length_incorrect` of the window > LONGER x the lowest window's | the first above that |
    | `entropy_to_zero` | mean `entropy` of the window < ENTROPY x the highest window's | the first below that |
    | `no_spread` | `zero_spread` was 1 in every step of the window, in SPREADLESS_GROUPS groups or more | the first of them |
    | `failed`, `unscorable` | mean share of the window, steps before the run counting as 0, > LOST | the first above that |
    | `gradient_norm` | some `grad_norm_<part>` > GRADIENT x its median over GRADIENT_STEPS earlier steps or more | that step |

    The first four must also lie beyond the noise: NOISE standard errors of the difference of two windows, by the mean
    square of the source's differences from step to step. Steps without the figure are not counted. A raised eps lowers
    the reward of the same answers, so that the best reward is looked for anew.

    What begins and ends there is the same whether a run is watched step by step or its rows are read again.
    """  # noqa: E501

    def __init__(self) -> None:
        self._watched: dict[str, list[_Watch]] = {}

    def update(self, step: int, metrics: Mapping[str, float]) -> list[Alert]:
        """Look at the figures of one training step. Returns the alerts that it opened and those that it closed."""
        # What a row can't hold says nothing, so that reading the rows again says the same.
        metrics = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        changes = []
        for source in (*sources_of(metrics), ALL):
            if source not in self._watched:
                rules = [_Gradient()] if source == ALL else _rules_of_a_source()
                self._watched[source] = [_Watch(source, rule) for rule in rules]
            for watch in self._watched[source]:
                if change := watch.update(step, metrics):
                    changes.append(change)
        return changes

    @property
    def open(self) -> list[Alert]:
        """Those that last, by source."""
        return [w.alert for source in sorted(self._watched) for w in self._watched[source] if w.alert]


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

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        """What the step says, given a source's figures by name; None if it says nothing."""


@dataclass(slots=True)
class _Watch:
    """One rule on one source: its alert begins with a finding and ends after CALM steps without one."""

    source: str
    rule: _Rule
    alert: Alert | None = None
    well: list[int] = field(default_factory=list)
    """Steps without a finding since the last one."""

    def update(self, step: int, metrics: Mapping[str, float]) -> Alert | None:
        finding = self.rule.look(step, lambda name: metrics.get(f"{self.source}/{name}"))
        if finding is None:
            return None
        if finding.began is None:
            self.well.append(step)
            if self.alert is None or len(self.well) < CALM:
                return None
            ended, self.alert = replace(self.alert, until=self.well[0]), None
            return ended
        opened = None
        if self.alert is None:
            # Steps that were well by the time they were looked at began nothing.
            began = max(finding.began, self.well[0]) if len(self.well) == CALM else finding.began
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
    """A figure at whose change the best window is forgotten."""
    ruler: float | None = None
    window: _Window = field(default_factory=_Window)
    best: float | None = None

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        value = figure(self.figure)
        if value is None:
            return None
        ruler = figure(self.anew) if self.anew else None
        if ruler != self.ruler:
            self.ruler, self.best = ruler, None
            self.window.values.clear()
        self.window.add(step, value)
        if not self.window.full:
            return _WELL
        now = self.window.mean
        if self.best is None or (now > self.best if self.falls else now < self.best):
            self.best = now
        limit = self.limit(self.best)
        if not self._beyond(now, limit) or abs(now - self.best) <= NOISE * self.window.error:
            return _WELL
        # There is such a step: a mean is not beyond a limit that none of its values is beyond.
        began = next(seen.step for seen in self.window.values if self._beyond(seen.value, limit))
        return _Finding(began, self.says.format(now=now, best=self.best))

    def _beyond(self, value: float, limit: float) -> bool:
        return value < limit if self.falls else value > limit


@dataclass(slots=True)
class _Lost:
    """Too many answers have no verdict."""

    kind: Literal["failed", "unscorable"]
    window: _Window = field(default_factory=_Window)

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        share = figure(self.kind)
        if share is None:
            return None
        self.window.add(step, share)
        mean = self.window.mean
        if mean <= LOST:
            return _WELL
        began = next(seen.step for seen in self.window.values if seen.value > LOST)
        what = "could not be judged, which is our side's doing" if self.kind == "failed" else "belong to broken samples"
        return _Finding(began, f"{share:.0%} of the answers {what}; {mean:.0%} over {WINDOW} steps")


@dataclass(slots=True)
class _NoSpread:
    """No group teaches anything."""

    kind: Kind = "no_spread"
    groups: deque[_Seen] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Numbers of groups of the last steps, all without spread."""

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        share, groups, reward = figure("zero_spread"), figure("groups"), figure("reward")
        if share is None or groups is None or reward is None:
            return None
        if share < 1:
            self.groups.clear()
            return _WELL
        self.groups.append(_Seen(step, groups))
        count = sum(seen.value for seen in self.groups)
        if len(self.groups) < WINDOW or count < SPREADLESS_GROUPS:
            return _WELL
        said = f"all {count:.0f} groups of {WINDOW} steps had equal rewards, {reward:.2f} on average in the last one"
        return _Finding(self.groups[0].step, said)


@dataclass(slots=True)
class _Gradient:
    """The gradient of a part of the model is far above what it was."""

    kind: Kind = "gradient_norm"
    parts: dict[str, list[float]] = field(default_factory=lambda: {"vision": [], "connector": [], "llm": []})
    """Norms so far, sorted."""

    def look(self, step: int, figure: _Figure) -> _Finding | None:
        worst = None
        for part, norms in self.parts.items():
            norm = figure(f"grad_norm_{part}")
            if norm is None:
                continue
            usual = median(norms) if len(norms) >= GRADIENT_STEPS else math.inf
            if worst is None or norm * worst[2] > worst[1] * usual:
                worst = part, norm, usual
            insort(norms, norm)
        if worst is None:
            return None
        part, norm, usual = worst
        if norm <= GRADIENT * usual:
            return _WELL
        return _Finding(step, f"gradient norm of {part} is {norm:.3g}, its median so far {usual:.3g}")


def _rules_of_a_source() -> list[_Rule]:
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
            "truncation_rising",
            "truncated",
            falls=False,
            limit=lambda best: best + TRUNCATED,
            says=f"{{now:.0%}} of the answers are cut at the token limit {steps}, once {{best:.0%}}",
        ),
        _Drift(
            "incorrect_longer",
            "length_incorrect",
            falls=False,
            limit=lambda best: LONGER * best,
            says=f"incorrect answers are {{now:.0f}} tokens long {steps}, once {{best:.0f}}",
        ),
        _Drift(
            "entropy_to_zero",
            "entropy",
            falls=True,
            limit=lambda best: ENTROPY * best,
            says=f"entropy {{now:.2g}} nats {steps}, once {{best:.2g}}",
        ),
        _NoSpread(),
        _Lost("failed"),
        _Lost("unscorable"),
    ]
