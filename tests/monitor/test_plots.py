from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vtriune.local.parts import Place, gradient_figures
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.plots import MOST_SOURCES, draw, plot
from vtriune.monitor.runs import read_metrics
from vtriune.monitor.store import RunStore
from vtriune.types import JudgedGroup, Progress, UserError, Verdict
from vtriune.verifiers.registry import eps

Judged = Callable[..., JudgedGroup]
Scored = Callable[..., Verdict]

STEPS = 4
SCHEDULE = [[0.0, 0.85], [0.5, 0.95]]


def boxes(group: JudgedGroup, schedule: object = SCHEDULE) -> JudgedGroup:
    """The group as if its sample were one of detection."""
    spec = replace(group.group.sample.reward, verifier="detection", parameters={"iou_threshold": schedule})
    sample = replace(group.group.sample, reward=spec)
    return replace(group, group=replace(group.group, sample=sample))


def norms(step: int, parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What a learner tells of gradients: layer 0, 1, ... of each part has these norms, times the step."""
    places = {Place(part, layer): norm * step for part, list_ in parts.items() for layer, norm in enumerate(list_)}  # type: ignore[arg-type]
    return {name if "/" in name else f"all/{name}": value for name, value in gradient_figures(places).items()}


@pytest.fixture
def run(tmp_path: Path, judged: Judged, scored: Scored) -> Callable[..., Path]:
    """Writes a run of four steps with a text source, a detection source and a grounding source."""

    def write(
        name: str = "run",
        parts: Mapping[str, Sequence[float]] | None = None,
        sources: Sequence[str] = ("math", "coco", "rec"),
    ) -> Path:
        with RunStore.create(tmp_path / name, recipe={}, total_steps=STEPS, threads=1) as store:
            for step in range(1, STEPS + 1):
                share = step / STEPS
                found = {f"precision_{least}": share / 2 for least in (50, 75, 95, 99)} | {"iou_50": 0.9}
                texts = ["wait, so \\boxed{4}", "\\boxed{3}", "\\boxed{4}"]
                groups = [
                    judged(
                        [1.0, 0.0, share],
                        source="math",
                        texts=texts,
                        lengths=[5, 9, 4 + step],
                        cut=[False, True, False],
                    ),
                    boxes(judged([scored(share, report=found)], source="coco")),
                    boxes(judged([scored(0.5, report={"iou": 0.5, "iou_50": share})], source="rec"), schedule=0.7),
                ]
                groups = [group for group in groups if group.group.sample.source in sources]
                store.write_rollouts(step, groups, Progress(step - 1, STEPS, "train"))
                figures = source_metrics(groups) | norms(step, parts or {"vision": [6.0, 2.0, 1.0], "llm": [0.5, 0.5]})
                store.log(step, "train", figures)
        return tmp_path / name

    return write


def drawn(axis: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """What stands in an axis: x and y of each line by its label."""
    return {_label(line): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}  # type: ignore[arg-type]


def _label(line: Line2D) -> str:
    return str(line.get_label()) if not str(line.get_label()).startswith("_child") else ""


def stored(folder: Path, key: str) -> list[float]:
    return [row["metrics"][key] for row in read_metrics(folder)]


def test_fig6_draws_the_accuracy_reward_eps_and_the_shares_of_boxes_of_box_sources(run: Callable[..., Path]) -> None:
    folder = run()
    figure = draw("fig6", [folder], eps=eps)
    coco, rec, below, below_rec, eps_coco, eps_rec = figure.axes
    assert [axis.get_title() for axis in (coco, rec)] == ["coco", "rec"]
    assert drawn(coco) == {"run": ([1, 2, 3, 4], [0.25, 0.5, 0.75, 1.0])}
    assert drawn(rec) == {"run": ([1, 2, 3, 4], [0.5] * 4)}
    assert drawn(below) == {f"IoU 0.{least}": ([1, 2, 3, 4], [0.125, 0.25, 0.375, 0.5]) for least in (50, 75, 95, 99)}
    assert drawn(below_rec) == {"IoU 0.50": ([1, 2, 3, 4], [0.25, 0.5, 0.75, 1.0])}
    assert drawn(eps_coco)["eps"] == ([1, 2, 3, 4], [0.85, 0.85, 0.95, 0.95])
    assert drawn(eps_rec)["eps"] == ([1, 2, 3, 4], [0.7] * 4)


def test_fig6_lays_runs_with_other_schedules_over_each_other(run: Callable[..., Path]) -> None:
    figure = draw("fig6", [run("dynamic"), run("fixed")], sources=["coco"], eps=eps)
    assert drawn(figure.axes[0]) == {name: ([1, 2, 3, 4], [0.25, 0.5, 0.75, 1.0]) for name in ("dynamic", "fixed")}
    assert len(figure.axes[1].get_lines()) == 8


def test_fig6_shows_no_eps_where_the_rollouts_are_gone(run: Callable[..., Path]) -> None:
    folder = run()
    for path in folder.glob("rollouts/*"):
        path.unlink()
    assert len(draw("fig6", [folder], sources=["coco"], eps=eps).axes) == 2


def test_fig7b_draws_the_norm_of_the_whole_gradient_and_of_each_part(run: Callable[..., Path]) -> None:
    folder, other = run(), run("llm only", {"llm": [3.0, 4.0]})
    whole, parts = draw("fig7b", [folder]).axes
    assert drawn(whole)["run"][1] == pytest.approx([np.sqrt(41.5) * step for step in (1, 2, 3, 4)])
    assert drawn(parts)["vision"][1] == pytest.approx([np.sqrt(41) * step for step in (1, 2, 3, 4)])
    assert drawn(parts).keys() == {"vision", "llm"}
    whole, parts = draw("fig7b", [folder, other]).axes
    assert drawn(whole)["llm only"][1] == pytest.approx([5, 10, 15, 20])
    assert drawn(parts).keys() == {"vision, run", "llm, run", "llm, llm only"}


def test_fig7c_draws_layers_from_the_last_to_the_first_as_means_over_the_steps_or_at_single_ones(
    run: Callable[..., Path],
) -> None:
    folder = run()
    (axis,) = draw("fig7c", [folder]).axes
    assert drawn(axis) == {
        "vision: first / last 6": ([0, 1, 2], [15.0, 5.0, 2.5]),
        "llm: first / last 1": ([0, 1], [1.25, 1.25]),
    }
    left, right = axis.get_xlim()
    assert left > right
    (axis,) = draw("fig7c", [folder], steps=[1, 4]).axes
    assert drawn(axis)["vision, step 1: first / last 6"] == ([0, 1, 2], [6.0, 2.0, 1.0])
    assert drawn(axis)["vision, step 4: first / last 6"] == ([0, 1, 2], [24.0, 8.0, 4.0])


def test_fig13_draws_reward_lengths_reflection_and_truncation_of_every_source(run: Callable[..., Path]) -> None:
    folder = run()
    axes = np.array(draw("fig13", [folder]).axes).reshape(5, 3)
    assert [axis.get_title() for axis in axes[0]] == ["coco", "math", "rec"]
    reward, length, reflection, correct, truncated = axes[:, 1]
    steps = [1, 2, 3, 4]
    assert drawn(reward) == {"": (steps, stored(folder, "math/reward"))}
    assert drawn(length) == {
        "all": (steps, stored(folder, "math/length")),
        "correct": (steps, stored(folder, "math/length_correct")),
        "incorrect": (steps, stored(folder, "math/length_incorrect")),
    }
    assert drawn(reflection) == {"": (steps, [1 / 3] * 4)}
    assert drawn(correct) == {"": (steps, [1.0] * 4)}
    assert drawn(truncated) == {"": (steps, [1 / 3] * 4)}
    assert not axes[3, 0].get_lines()
    assert [text.get_text() for text in axes[3, 0].texts] == ["none in this run"]


def test_fig13_draws_the_chosen_sources_of_several_runs(run: Callable[..., Path]) -> None:
    a, b = run("a"), run("b", sources=["rec", "math"])
    axes = np.array(draw("fig13", [a, b], sources=["rec", "coco"]).axes).reshape(5, 2)
    assert [axis.get_title() for axis in axes[0]] == ["rec", "coco"]
    assert drawn(axes[0, 0]).keys() == {"a", "b"}
    assert drawn(axes[0, 1]).keys() == {"a"}
    assert drawn(axes[1, 0]).keys() == {"all, a", "incorrect, a", "all, b", "incorrect, b"}


@pytest.mark.parametrize("name", ["fig6", "fig7b", "fig7c", "fig13"])
def test_every_figure_becomes_a_picture_and_the_same_run_the_same_drawing(
    run: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder = run()
    for out in ("a.svg", "b.svg", "c.png"):
        plot(name, [folder], tmp_path / out, eps=eps)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    with PIL.Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 300


def test_names_are_shown_as_they_are_and_never_as_formulas_or_markup(
    tmp_path: Path, judged: Judged, scored: Scored
) -> None:
    names = [r"$\frac{1}{$", "<script>alert(1)</script>", "_hidden", "a/b"]
    with RunStore.create(tmp_path / "_$x^", recipe={}, total_steps=1, threads=1) as store:
        store.log(1, "train", source_metrics([judged([scored(1.0)], source=name) for name in names]))
    figure = draw("fig13", [tmp_path / "_$x^", tmp_path / "_$x^"])
    assert {axis.get_title() for axis in figure.axes} - {""} == set(names)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_$x^", "_$x^"]
    plot("fig13", [tmp_path / "_$x^"], tmp_path / "a.svg")
    drawing = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert not [element for element in drawing.iter() if element.tag.endswith("script")]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fig5", {}, "fig5: there is no such figure; take one of fig6, fig7b, fig7c, fig13"),
        ("fig6", {"sources": ["math"]}, "--source math: has no precision_50 or iou_50.*take one of coco, rec"),
        ("fig6", {"sources": ["cocoa"]}, 'has no such source; did you mean "coco"'),
        ("fig13", {"sources": ["ocr_books"]}, "has no such source; it has coco, math, rec"),
        ("fig7c", {"steps": [9]}, "--step 9: .* has no gradient norms of it; it has steps 1 to 4"),
        ("fig6", {"steps": [1]}, "--step: fig6 shows all steps"),
        ("fig7b", {"sources": ["coco"]}, "--source: gradients are of a whole step"),
    ],
)
def test_what_can_not_be_drawn_is_said_with_what_can(
    run: Callable[..., Path], name: str, arguments: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        draw(name, [run()], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fig6", "no source has precision_50 or iou_50, so there is nothing for fig6; it needs a run with detection"),
        ("fig7b", "has no figure all/grad_norm, so there is nothing for fig7b"),
        ("fig7c", "has no figure layer_<nn>/grad_norm_<part>, so there is nothing for fig7c"),
        ("fig13", "has no training step yet"),
    ],
)
def test_a_run_without_the_figures_is_told_which_are_missing(tmp_path: Path, name: str, message: str) -> None:
    with RunStore.create(tmp_path / "run", recipe={}, total_steps=1, threads=1):
        pass
    with pytest.raises(UserError, match=message):
        draw(name, [tmp_path / "run"])


def test_a_folder_without_a_run_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run; give a folder that vtriune train wrote"):
        draw("fig13", [tmp_path])


def test_more_sources_than_fit_want_a_choice(tmp_path: Path, judged: Judged) -> None:
    names = [f"source_{number:02d}" for number in range(MOST_SOURCES + 1)]
    with RunStore.create(tmp_path / "run", recipe={}, total_steps=1, threads=1) as store:
        store.log(1, "train", source_metrics([judged([1.0], source=name) for name in names]))
    with pytest.raises(
        UserError, match=rf"{len(names)} sources don't fit .* choose at most {MOST_SOURCES} by --source"
    ):
        draw("fig13", [tmp_path / "run"])
    assert len(draw("fig13", [tmp_path / "run"], sources=names[:MOST_SOURCES]).axes) == 5 * MOST_SOURCES


def test_a_file_that_can_not_be_written_is_named(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.bmp: is of no kind that can be drawn; end its name in \.svg, \.png"):
        plot("fig13", [run()], tmp_path / "a.bmp")
    with pytest.raises(UserError, match="can't be written"):
        plot("fig13", [tmp_path / "run"], tmp_path / "nowhere" / "a.svg")


def test_the_command_draws_a_run_and_its_help_tells_what_each_figure_shows(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run()

    def vtriune(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vtriune.cli", "plot", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = vtriune(str(folder), "fig6", "--source", "coco")
    assert (done.returncode, done.stdout.strip()) == (0, f"run-fig6.svg: fig6 of {folder}")
    assert (tmp_path / "run-fig6.svg").read_text().count("<!-- eps -->") == 1
    done = vtriune("--help")
    for name in ("fig6", "fig7b", "fig7c", "fig13"):
        assert f"{name}:" in done.stdout
    done = vtriune(str(folder), "fig9")
    assert done.returncode == 2
    assert "there is no such figure" in done.stderr
