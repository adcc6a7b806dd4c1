"""What judging again has shown, for the terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vtriune.monitor.metrics import ALL
from vtriune.monitor.runs import RowSplit
from vtriune.monitor.table import plain
from vtriune.rejudge.rejudging import Disagreement, Effect, Rejudged

SHOWN_REASONS = 5


def agreement(result: Rejudged) -> RenderableType:
    """How many verdicts agree with the log, and the first that don't."""
    compared = result.agree + result.disagree
    style = "bold red" if result.disagree else "green" if compared else "yellow"
    lines = [Text(f"{result.agree:,} of {compared:,} verdicts agree with the log to the last bit", style)]
    if result.failed:
        lines.append(Text(f"{result.failed:,} more are stored as failed, and so have nothing to agree with", "yellow"))
    if result.new_figures:
        lines.append(plain(f"reported now and not in the log: {', '.join(sorted(result.new_figures))}", "dim"))
    for one in result.first:
        lines += _described(one)
    if result.disagree > len(result.first):
        lines.append(Text(f"... and {result.disagree - len(result.first):,} more"))
    return Group(*lines)


def _described(one: Disagreement) -> Iterable[Text]:
    yield plain(one.where, "bold")
    fields = dict(one.fields)
    for key, pair in _reported(*fields.pop("report", ({}, {}))):
        fields[f"report {key}"] = pair
    for name, (stored, now) in fields.items():
        yield plain(f"  {name}: {stored!r} in the log, {now!r} now")


def _reported(stored: dict[str, Any], now: dict[str, Any]) -> Iterable[tuple[str, tuple[Any, Any]]]:
    pairs = {key: (stored.get(key), now.get(key)) for key in sorted(stored | now)}
    return ((key, pair) for key, pair in pairs.items() if repr(pair[0]) != repr(pair[1]))


def effects(result: Rejudged) -> RenderableType:
    """What changed settings do to each source: a table for training, one for held-out evaluations."""
    parts: list[RenderableType] = []
    for split, title in (("train", "training"), ("eval", "held-out evaluations")):
        own = {source: effect for (of, source), effect in _in_order(result) if of == split}
        if own:
            parts.append(_table(own, title, advantages=split == "train"))
    if any(split == "train" for split, _ in result.effects):
        parts.append(Text("signs: of advantages of the answers that are scored both times", "dim"))
    failed = sum(effect.failed for (_, source), effect in result.effects.items() if source == ALL)
    if failed:
        parts.append(Text(f"{failed:,} answers are stored as failed, and so are on neither side", "yellow"))
    reasons: Counter[str] = Counter()
    for (_, source), effect in result.effects.items():
        reasons.update(effect.reasons if source == ALL else {})
    parts += [plain(f"{count:,} x {reason}", "yellow") for reason, count in reasons.most_common(SHOWN_REASONS)]
    return Group(*parts)


def _table(effects_by_source: dict[str, Effect], title: str, *, advantages: bool) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("source", overflow="fold")
    columns = ["answers", "reward\nbefore", "\nafter"]
    if advantages:
        columns += ["zero spread\nbefore", "\nafter", "signs\nchanged", "to zero", "from zero"]
    for name in (*columns, "became\nscored", "\nunscorable", "\nfailed"):
        table.add_column(name, justify="right")
    for source, effect in effects_by_source.items():
        before, after = effect.before, effect.after
        cells = [f"{effect.answers:,}", _number(before.mean_reward), _number(after.mean_reward)]
        if advantages:
            cells += [_percent(side.zero_spread_share) for side in (before, after)]
            twice = effect.scored_twice
            cells.append(_percent(effect.advantages["changed"] / twice if twice else None))
            cells += [f"{effect.advantages[name]:,}" for name in ("became_zero", "ceased_to_be_zero")]
        cells += [f"{effect.became[status]:,}" for status in ("scored", "unscorable", "failed")]
        table.add_row(plain(source), *cells)
    return table


def _in_order(result: Rejudged) -> list[tuple[tuple[RowSplit, str], Effect]]:
    """All sources together first, then by name; training before evaluations."""
    return sorted(result.effects.items(), key=lambda one: (one[0][0] != "train", one[0][1] != ALL, one[0][1]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def as_json(result: Rejudged, *, changed: bool) -> dict[str, Any]:
    """The same as plain values."""
    if not changed:
        return {
            "answers": result.answers,
            "agree": result.agree,
            "disagree": result.disagree,
            "stored_as_failed": result.failed,
            "new_figures": sorted(result.new_figures),
            "first": [{"where": one.where, "fields": one.fields} for one in result.first],
        }
    return {
        "answers": result.answers,
        "effects": [
            {
                "split": split,
                "source": source,
                "answers": effect.answers,
                "mean_reward": [effect.before.mean_reward, effect.after.mean_reward],
                "groups": [effect.before.groups, effect.after.groups],
                "zero_spread_groups": [effect.before.zero_spread, effect.after.zero_spread],
                "scored_twice": effect.scored_twice,
                "signs_changed": effect.advantages["changed"],
                "became_zero": effect.advantages["became_zero"],
                "ceased_to_be_zero": effect.advantages["ceased_to_be_zero"],
                "stored_as_failed": effect.failed,
                "became_scored": effect.became["scored"],
                "became_unscorable": effect.became["unscorable"],
                "became_failed": effect.became["failed"],
                "reasons": dict(effect.reasons.most_common(SHOWN_REASONS)),
            }
            for (split, source), effect in _in_order(result)
        ],
    }
