"""The paper's figures that are about monitoring, drawn from run folders. What the figures mean is in metrics.py.

Compared with the figures and captions of arXiv 2505.18129v2 itself; `_fig6` and the others tell what they add. The
paper doesn't say how its norms are summed (7b), nor whether a layer's are averaged as norms or as squares (7c). Here
the whole is one norm over all parameters, and 7c is the mean of norms. Needs matplotlib; no window is opened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import orjson
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vtriune.monitor.metrics import sources_of
from vtriune.monitor.rollouts import read_columns
from vtriune.monitor.runs import check_run, read_metrics, rollout_files
from vtriune.types import Preset, Progress, UserError

FigureName = Literal["fig6", "fig7b", "fig7c", "fig13"]
Eps = Callable[[str, Mapping[str, Any], Preset, Progress], float | None]
"""From verifier, its parameters, preset and progress to the eps that it judges with: `verifiers.registry.eps`."""

MOST_SOURCES = 24
"""Columns of a figure."""
_IOU = ("50", "75", "95", "99")
_PARTS = ("vision", "connector", "llm")
_LINES = ("-", "--", ":", "-.")
"""Of the first run, the second, ..."""
_SUFFIXES = (".svg", ".png")


@dataclass(frozen=True, slots=True)
class _Curve:
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Run:
    """The training figures of a run, by key."""

    folder: Path
    name: str
    curves: Mapping[str, _Curve]
    sources: Sequence[str]


def plot(
    name: str,
    folders: Sequence[Path],
    out: Path,
    *,
    sources: Sequence[str] = (),
    steps: Sequence[int] = (),
    eps: Eps = lambda *_: None,
) -> None:
    """Draw a figure of the first run, the others beside it, into `out`.

    Raises:
        UserError: there is no such figure, or the runs lack what it shows; `out` has an unknown suffix or can't be
            written.
        DamagedRun: a run can't be read.
    """
    if out.suffix not in _SUFFIXES:
        raise UserError(f"{out}: is of no kind that can be drawn; end its name in {', '.join(_SUFFIXES)}")
    figure = draw(name, folders, sources=sources, steps=steps, eps=eps)
    try:
        with _style():
            figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
    except OSError as error:
        raise UserError(f"{out}: can't be written ({error.strerror}); choose another file") from error


def draw(
    name: str,
    folders: Sequence[Path],
    *,
    sources: Sequence[str] = (),
    steps: Sequence[int] = (),
    eps: Eps = lambda *_: None,
) -> Figure:
    """The figure of `plot`, for those who go on with it."""
    if name not in get_args(FigureName):
        raise UserError(f"{name}: there is no such figure; take one of {', '.join(get_args(FigureName))}")
    if steps and name != "fig7c":
        raise UserError(f"--step: {name} shows all steps; leave it out")
    if sources and name in ("fig7b", "fig7c"):
        raise UserError(f"--source: gradients are of a whole step, so {name} has no sources; leave it out")
    runs = [_read(folder) for folder in folders]
    with _style():
        match name:
            case "fig6":
                return _fig6(runs, sources, eps)
            case "fig7b":
                return _fig7b(runs)
            case "fig7c":
                return _fig7c(runs, steps)
            case _:
                return _fig13(runs, sources)


def _fig6(runs: Sequence[_Run], wanted: Sequence[str], eps: Eps) -> Figure:
    """Accuracy reward of box sources under Dynamic IoU and, if given, other schedules, as in the paper. Added: eps, and
    what the paper logs beside it (3.3): the share of answered boxes that reach each IoU (of answers, where one is one
    box, as in grounding).
    """

    def box_figures(source: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for least in _IOU:
            for kind in ("precision", "iou"):
                if f"{source}/{kind}_{least}" in runs[0].curves:
                    found.setdefault(least, f"{source}/{kind}_{least}")
        return found

    boxes = [source for source in runs[0].sources if box_figures(source)]
    if not boxes:
        raise UserError(
            f"{runs[0].folder}: no source has precision_50 or iou_50, so there is nothing for fig6; it needs a run "
            "with detection or grounding"
        )
    columns = _chosen(runs[0], boxes, wanted, "precision_50 or iou_50, as detection and grounding have")
    figure, axes = _grid(2, columns)
    for column, source in enumerate(columns):
        above, below = axes[0][column], axes[1][column]
        for number, run in enumerate(runs):
            _line(above, run.curves.get(f"{source}/accuracy"), run.name, color=f"C{number}", run=number)
        schedule = _eps(runs[0], source, eps)
        if schedule.steps:
            right = above.twinx()
            right.step(schedule.steps, schedule.values, where="mid", color="grey", linestyle=":", label="eps")
            right.set_ylim(0, 1.05)
            right.set_ylabel("eps", color="grey")
        for color, (least, key) in enumerate(box_figures(source).items()):
            for number, run in enumerate(runs):
                label = "" if number else f"IoU 0.{least}"  # lines of the other runs are broken as above
                _line(below, run.curves.get(key), label, color=f"C{color}", run=number)
        above.set_title(source)
        below.set_ylim(-0.02, 1.02)
        below.set_xlabel("step")
    _label(axes, ["accuracy reward", "share of boxes"])
    return figure


def _fig7b(runs: Sequence[_Run]) -> Figure:
    """Norm of the whole gradient, in the paper of runs that train vision tower, language model or both. Added: that of
    each part.
    """
    if "all/grad_norm" not in runs[0].curves:
        raise UserError(
            f"{runs[0].folder}: has no figure all/grad_norm, so there is nothing for fig7b: no step learned"
        )
    figure, axes = _grid(1, ["norm of the gradient", "of each part"])
    whole, parts = axes[0]
    for number, run in enumerate(runs):
        _line(whole, run.curves.get("all/grad_norm"), run.name, color=f"C{number}")
        for color, part in enumerate(_PARTS):
            label = part if len(runs) == 1 else f"{part}, {run.name}"
            _line(parts, run.curves.get(f"all/grad_norm_{part}"), label, color=f"C{color}", run=number)
    for axis in (whole, parts):
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
    _label(axes, ["norm"])
    return figure


def _fig7c(runs: Sequence[_Run], steps: Sequence[int]) -> Figure:
    """Norm of each layer's gradient, mean over the steps, from the last layer to the first, as in the paper. Added:
    single steps, and the ratio of the first layer's to the last one's.
    """
    figure, axes = _grid(1, [run.name for run in runs])
    for axis, run in zip(axes[0], runs, strict=True):
        layers = {part: _layers(run, part) for part in _PARTS}
        if not any(layers.values()):
            raise UserError(
                f"{run.folder}: has no figure layer_<nn>/grad_norm_<part>, so there is nothing for fig7c; runs of "
                "earlier versions lack them"
            )
        for color, (part, curves) in enumerate(layers.items()):
            for shade, step in enumerate(steps or (None,)):
                norms = {layer: _at(run, curve, step) for layer, curve in curves.items()}
                if norms:
                    last, first = max(norms), min(norms)
                    ratio = f"{norms[first] / norms[last]:.2g}" if norms[last] else "-"
                    when = "" if step is None else f", step {step}"
                    axis.plot(
                        list(norms),
                        list(norms.values()),
                        marker="o",
                        markersize=3,
                        color=f"C{color}",
                        linestyle=_LINES[shade % len(_LINES)],
                        label=f"{part}{when}: first / last {ratio}",
                    )
        axis.invert_xaxis()
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("layer")
    _label(axes, ["norm of the gradient"])
    return figure


_ROWS: dict[str, dict[str, str]] = {
    "reward": {"reward": ""},
    "response length": {"length": "all", "length_correct": "correct", "length_incorrect": "incorrect"},
    "reflection ratio": {"reflection": ""},
    "correct among\nreflecting": {"reflection_correct": ""},
    "truncated": {"truncated": ""},
}


def _fig13(runs: Sequence[_Run], wanted: Sequence[str]) -> Figure:
    """Response length, reflection ratio and correct ratio among reflecting answers of each source, as in the paper.
    Added: reward, length of correct and incorrect answers, truncation.
    """
    if not runs[0].sources:
        raise UserError(f"{runs[0].folder}: has no training step yet, so there is nothing for fig13")
    columns = _chosen(runs[0], runs[0].sources, wanted, "training figures")
    figure, axes = _grid(len(_ROWS), columns)
    for column, source in enumerate(columns):
        axes[0][column].set_title(source)
        axes[-1][column].set_xlabel("step")
        for row, lines in enumerate(_ROWS.values()):
            for number, run in enumerate(runs):
                for place, (name, label) in enumerate(lines.items()):
                    said = ", ".join(part for part in (label, run.name if len(runs) > 1 else "") if part)
                    color = f"C{place if len(lines) > 1 else number}"
                    _line(axes[row][column], run.curves.get(f"{source}/{name}"), said, color=color, run=number)
        for row in (2, 3, 4):  # shares
            axes[row][column].set_ylim(bottom=0)
    _label(axes, list(_ROWS))
    return figure


def _style() -> AbstractContextManager[None]:
    """Names are not formulas; the same run gives the same file."""
    return rc_context({"text.parse_math": False, "svg.hashsalt": "vtriune"})


def _read(folder: Path) -> _Run:
    check_run(folder)
    curves: defaultdict[str, _Curve] = defaultdict(_Curve)
    sources: set[str] = set()
    for row in read_metrics(folder):
        if row["split"] == "train":
            sources.update(sources_of(row["metrics"]))
            for key, value in row["metrics"].items():
                curves[key].steps.append(row["step"])
                curves[key].values.append(value)
    return _Run(folder, folder.resolve().name, dict(curves), sorted(sources))


def _chosen(run: _Run, drawable: Sequence[str], wanted: Sequence[str], what: str) -> Sequence[str]:
    """The sources to draw: those that are asked for, or all that can be."""
    for source in wanted:
        if source not in drawable:
            if source in run.sources:
                raise UserError(f"--source {source}: has no {what}; take one of {', '.join(drawable)}")
            near = get_close_matches(source, run.sources, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"it has {', '.join(run.sources)}"
            raise UserError(f"--source {source}: {run.folder} has no such source; {hint}")
    chosen = wanted or drawable
    if len(chosen) > MOST_SOURCES:
        raise UserError(
            f"{run.folder}: {len(chosen)} sources don't fit into one figure; choose at most {MOST_SOURCES} by --source"
        )
    return chosen


def _eps(run: _Run, source: str, eps: Eps) -> _Curve:
    """eps of a source over training, by the parameters of its rows in the latest stored step that has any (their mean,
    should they differ).
    """
    for path in reversed(rollout_files(run.folder, "train").values()):
        table = read_columns(path, ["source", "verifier", "parameters", "preset", "total_steps"])
        rows = {tuple(row.values()) for row in table.to_pylist() if row["source"] == source}
        if rows:
            break
    else:
        return _Curve()
    steps = run.curves[f"{source}/accuracy"].steps if f"{source}/accuracy" in run.curves else []
    found = _Curve()
    for step in steps:
        values = [
            value
            for _, verifier, parameters, preset, total in rows
            if (value := eps(verifier, orjson.loads(parameters), preset, Progress(step - 1, total, "train")))
            is not None
        ]
        if values:
            found.steps.append(step)
            found.values.append(sum(values) / len(values))
    return found


def _layers(run: _Run, part: str) -> dict[int, _Curve]:
    """Gradient norms of a part by layer, from the first on."""
    found = {}
    for key, curve in run.curves.items():
        layer, _, figure = key.partition("/")
        if figure == f"grad_norm_{part}" and layer.startswith("layer_"):
            found[int(layer.removeprefix("layer_"))] = curve
    return dict(sorted(found.items()))


def _at(run: _Run, curve: _Curve, step: int | None) -> float:
    if step is None:
        return sum(curve.values) / len(curve.values)
    if step not in curve.steps:
        raise UserError(f"--step {step}: {run.folder} has no gradient norms of it; it has {_range(curve.steps)}")
    return curve.values[curve.steps.index(step)]


def _range(steps: Sequence[int]) -> str:
    return f"steps {steps[0]} to {steps[-1]}"


def _grid(rows: int, columns: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows of axes, each as wide as there are columns, which are their titles."""
    figure = Figure(figsize=(max(4.5, 3.2 * len(columns)), 1.0 + 2.2 * rows), layout="constrained")
    axes = [list(row) for row in figure.subplots(rows, len(columns), sharex="col", squeeze=False)]
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title)
    for axis in (axis for row in axes for axis in row):
        axis.grid(alpha=0.3)
    return figure, axes


def _line(axis: Axes, curve: _Curve | None, label: str, *, color: str, run: int = 0) -> None:
    if curve is not None:
        marker = "o" if len(curve.steps) == 1 else None  # one point has no line
        label = f" {label}" if label.startswith("_") else label  # which matplotlib would keep out of the legend
        style = _LINES[run % len(_LINES)]
        axis.plot(curve.steps, curve.values, label=label, color=color, linestyle=style, marker=marker, linewidth=1.2)


def _label(axes: Iterable[Sequence[Axes]], labels: Sequence[str]) -> None:
    """Name the rows, say where nothing is drawn, and add legends where lines have names."""
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label)
        for axis in row:
            if not axis.get_lines():
                axis.text(0.5, 0.5, "none in this run", transform=axis.transAxes, ha="center", color="grey")
            elif axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7)
