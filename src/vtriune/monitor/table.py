"""What the terminal shows: the before/after table, the line of a training step, the list of runs and a run's page.

Returns rich renderables and prints nothing. All text that comes from data or files is shown as text, never as markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vtriune.monitor.alerts import Alert
from vtriune.monitor.evaluation import (
    Estimate,
    Evaluation,
    Score,
    gain,
    mean_over_tasks,
    on_shared_prompts,
    sources_scored_in,
)
from vtriune.monitor.files import read_rows
from vtriune.monitor.metrics import ALL, TASK, sources_of
from vtriune.monitor.rollouts import read_evaluation
from vtriune.monitor.runs import RunState, find_runs, inspect, read_alerts, read_metrics, rollout_files
from vtriune.types import UserError

_COLUMNS = {
    "reward": "reward",
    "accuracy": "accuracy",
    "format": "format",
    "correct": "correct",
    "iou_50": "IoU 50",
    "map": "mAP",
    "length": "tokens",
    "entropy": "entropy",
    "truncated": "truncated",
    "reflection": "reflection",
    "zero_spread": "zero\nspread",
}
"""Figures of a run's page, of those that it has; all others are in metrics.jsonl."""

_STATE_STYLES = {
    RunState.FINISHED: "green",
    RunState.RUNNING: "cyan",
    RunState.STOPPED: "yellow",
    RunState.KILLED: "yellow",
    RunState.FAILED: "red",
    RunState.DAMAGED: "red",
}


def before_after_table(before: Evaluation, after: Evaluation) -> Table:
    """Held-out score of every source before and after training, and the mean over tasks.

    A source that one of the evaluations did not score at all is named below the table, and is not in the mean.
    """
    table = _table("task", "source")
    for name in ("n", "before", "after", "gain", "greedy\nbefore", "greedy\nafter"):
        table.add_column(name, justify="right")
    columns: dict[str, list[tuple[str, Estimate]]] = {name: [] for name in ("before", "after", "gain", "gb", "ga")}
    prompts = 0
    remarks = "\n".join(_remarks(before, after))
    before, after = on_shared_prompts(before, after)
    for source in sources_scored_in(before, after):
        a, b = before.sampled[source], after.sampled[source]
        estimates = {
            "before": a.estimate,
            "after": b.estimate,
            "gain": gain(a, b) or Estimate(b.estimate.value - a.estimate.value, None),
            "gb": before.greedy[source].estimate,
            "ga": after.greedy[source].estimate,
        }
        for name, estimate in estimates.items():
            columns[name].append((a.task, estimate))
        prompts += len(b.by_prompt)
        table.add_row(plain(a.task), plain(source), str(len(b.by_prompt)), *_score_cells(estimates))
    if columns["before"]:
        means = {name: mean_over_tasks(column) for name, column in columns.items()}
        table.add_section()
        table.add_row("mean over tasks", "", str(prompts), *_score_cells(means), style="bold")
    table.caption = Text(remarks, style="dim")
    table.caption_justify = "left"
    return table


def _score_cells(estimates: Mapping[str, Estimate]) -> list[Text]:
    cells = []
    for name, (value, error) in estimates.items():
        style = ("green" if value > 0 else "red") if name == "gain" else ""
        number = f"{value:+.1f}" if name == "gain" else f"{value:.1f}"
        cells.append(Text(number if error is None else f"{number} ±{error:.1f}", style=style))
    return cells


def _remarks(before: Evaluation, after: Evaluation) -> Iterable[str]:
    yield (
        "100 x mean accuracy on n held-out prompts: expected score of an answer sampled at temperature 1, and greedy.\n"
        "± one standard error, clustered by prompt; that of the gain is of the paired differences."
    )
    scores: list[Mapping[str, Score]] = [before.sampled, after.sampled, before.greedy, after.greedy]
    not_scored = sum(score.not_scored for column in scores for score in column.values())
    if not_scored:
        yield f"{not_scored} answers that could not be judged are left out."
    missing = {source for column in scores for source in column} - set(sources_scored_in(before, after))
    if missing:
        yield plain(f"Without a score in one of the evaluations: {', '.join(sorted(missing))}.").plain


def step_line(
    step: int,
    total_steps: int,
    metrics: Mapping[str, float],
    seconds_left: float,
    seconds_waited: float = 0,
    alerts: Iterable[Alert] = (),
) -> Text:
    """One line for one training step: mean reward, time left, and the reward of every source.

    Waiting for rewards shows from a tenth of a second on; sources with one of the open `alerts` have a `!`.

    A first part that all names of sources share, up to the first `_`, is left out.
    """
    line = Text().append(f"{step:>{len(str(total_steps))}}/{total_steps}", "bold")
    line.append("  reward ").append(_number(metrics.get(f"{ALL}/reward")), "bold")
    line.append(f"  {timedelta(seconds=round(seconds_left))} left", "dim")
    if seconds_waited >= 0.1:
        line.append(f"  waited {seconds_waited:.1f} s for rewards", "yellow")
    for figure in ("failed", "unscorable"):
        if count := metrics.get(f"{ALL}/{figure}_count"):
            line.append(f"  {count:.0f} {figure}", "red")
    ill = {alert.source for alert in alerts}
    sources = sources_of(metrics)
    heads = {source.partition("_")[0] + "_" for source in sources}
    shared = heads.pop() if len(heads) == 1 and len(sources) > 1 else ""
    for source in sources:
        line.append("  ").append_text(plain(source.removeprefix(shared)))
        line.append(f" {_number(metrics.get(f'{source}/reward'))}", "cyan")
        if source in ill:
            line.append("!", "bold yellow")
    return line


def evaluation_line(step: int, total_steps: int, figures: Mapping[str, float]) -> Text:
    """One line for a held-out evaluation after `step` steps: mean over tasks, sampled and greedy, each 0..100."""
    line = Text().append(f"{step:>{len(str(total_steps))}}/{total_steps}", "bold")
    line.append(f"  evaluated {figures.get(f'{ALL}/prompts', 0):.0f} held-out prompts")
    for name, figure in (("sampled", "score"), ("greedy", "greedy")):
        error = figures.get(f"{ALL}/{figure}_se")
        line.append(f"  {name} ").append(_number(figures.get(f"{ALL}/{figure}"), 1), "bold cyan")
        line.append("" if error is None else f" ±{error:.1f}")
    return line


def alert_line(alert: Alert) -> Text:
    """One line for an alert that began, or ended."""
    if alert.until is None:
        return plain(f"! {alert.source}: {alert.kind} since step {alert.since}: {alert.message}", "yellow")
    return plain(f"  {alert.source}: {alert.kind}, begun at step {alert.since}, is over since {alert.until}", "green")


def runs_table(root: Path) -> Table:
    """All runs at or below `root`, the latest first; a damaged one is shown as such."""
    table = _table("run")
    for name in ("started", "step", "status", "mean reward", "minutes"):
        table.add_column(name, justify="left" if name == "status" else "right")
    infos = [inspect(folder, None if folder == root else str(folder.relative_to(root))) for folder in find_runs(root)]
    infos.sort(key=lambda info: (info.started.timestamp() if info.started else 0, info.name), reverse=True)
    for info in infos:
        status = Text(info.state, style=_STATE_STYLES[info.state])
        if info.problem:
            status.append(": ").append_text(plain(info.problem))
        if info.state is RunState.DAMAGED:
            table.add_row(plain(info.name), "", "", status, "", "")
            continue
        table.add_row(
            plain(info.name),
            f"{info.started.astimezone():%Y-%m-%d %H:%M}" if info.started else "",
            f"{info.step}/{info.total_steps}",
            status,
            _number(info.reward),
            f"{info.minutes:.1f}",
        )
    if not infos:
        table.caption = Text(f"no runs in {root}")
    return table


def run_page(folder: Path) -> RenderableType:
    """How a run stands, the latest figures of every source, what was set aside, and the gain so far.

    Raises:
        UserError: `folder` holds no run, or its rows cannot be read.
    """
    info = inspect(folder)
    if info.state is RunState.DAMAGED:
        raise UserError(info.problem)
    head = Text.assemble(
        (plain(info.name).plain, "bold"),
        "  ",
        (info.state, _STATE_STYLES[info.state]),
        f"  step {info.step}/{info.total_steps}  {info.minutes:.1f} minutes",
    )
    if info.problem:
        head.append("\n").append_text(plain(info.problem))
    alerts = [alert_line(alert) for alert in read_alerts(folder) if alert.until is None]
    return Group(head, _latest_table(folder), *alerts, *_quarantined(folder), *_evaluations(folder))


def _latest_table(folder: Path) -> RenderableType:
    latest: dict[str, tuple[int, Mapping[str, float]]] = {}
    lost: Counter[tuple[str, str]] = Counter()
    for row in read_metrics(folder):
        if row["split"] == "train":
            metrics = row["metrics"]
            for source in (*sources_of(metrics), ALL):
                latest[source] = (row["step"], metrics)
                for name in ("unscorable", "failed"):
                    lost[source, name] += round(metrics.get(f"{source}/{name}_count", 0))
    if not latest:
        return Text("no training step yet")
    sources = [*sorted(latest.keys() - {ALL}), ALL]
    shown = [name for name in _COLUMNS if any(f"{source}/{name}" in latest[source][1] for source in sources)]
    table = _table("source")
    for title in ("step", "rollouts", *(_COLUMNS[name] for name in shown), "unscorable", "failed"):
        table.add_column(title, justify="right")
    for source in sources:
        step, figures = latest[source]
        if source == ALL:
            table.add_section()
        table.add_row(
            plain(source),
            str(step),
            _number(figures.get(f"{source}/rollouts"), digits=0),
            *(_number(figures.get(f"{source}/{name}"), digits=0 if name == "length" else 2) for name in shown),
            str(lost[source, "unscorable"]),
            str(lost[source, "failed"]),
        )
    table.caption = Text("the latest step of each source; unscorable and failed: answers of the whole run", "dim")
    table.caption_justify = "left"
    rest = _figures_of_the_step(latest[ALL][1], sources)
    return Group(table, plain(rest)) if rest else table


def _figures_of_the_step(metrics: Mapping[str, float], sources: Sequence[str]) -> str:
    """The figures that only the step as a whole has: gradient norms, clip fraction, ... Those of single layers, which
    are many, are for TensorBoard.
    """
    layers = {key for key in metrics if key.startswith("layer_") and "/grad_norm_" in key}
    keys = {key: key.rpartition("/") for key in metrics.keys() - layers if not key.startswith(TASK)}
    per_source = {figure for source, _, figure in keys.values() if source in sources and source != ALL}
    rest = [key for key, (source, _, figure) in keys.items() if source not in sources or figure not in per_source]
    return "  ".join(f"{key} {metrics[key]:.4g}" for key in sorted(rest))


def _quarantined(folder: Path) -> Iterable[Text]:
    counts = Counter(str(row.get("sample")).rpartition("#")[0] for row in read_rows(folder / "quarantine.jsonl"))
    if counts:
        listed = ", ".join(f"{source} {count}" for source, count in sorted(counts.items()))
        yield plain(f"rows set aside (quarantine.jsonl): {listed}")


def _evaluations(folder: Path) -> Iterable[RenderableType]:
    files = list(rollout_files(folder, "eval").items())
    if len(files) > 1:
        (first, before), (last, after) = files[0], files[-1]
        yield Text(f"\nheld out, at step {first} and at step {last}")
        yield before_after_table(read_evaluation(before), read_evaluation(after))


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def plain(text: str, style: str = "") -> Text:
    """One line of `text` as it is, but for control characters, by which a name could steer the terminal."""
    return Text("".join(char if char.isprintable() else "\ufffd" for char in text), style)
