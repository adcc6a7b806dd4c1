import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from vtriune.monitor.alerts import Alert
from vtriune.monitor.evaluation import Evaluation, Summary, evaluate_metrics, evaluation_figures
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.store import RunStore
from vtriune.monitor.table import alert_line, before_after_table, evaluation_line, run_page, runs_table, step_line
from vtriune.types import JudgedGroup, Progress, Status, UserError, Verdict

Judged = Callable[..., JudgedGroup]

FAILED = Verdict(Status.FAILED, reason="worker died")
SUMMARY: Summary = {"sources": {}, "mean_before": 20.0, "mean_after": 31.0, "minutes": 1.0, "steps": 4, "seed": 3}


def shown(renderable: RenderableType, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(text: str, word: str) -> list[str]:
    """The line that holds `word`, as its columns."""
    line = next(line for line in text.splitlines() if word in line)
    return [cell.strip() for cell in line.strip().split("  ") if cell]


def groups_of(judged: Judged, source: str, task: str, rewards: list[list[float | Verdict]]) -> list[JudgedGroup]:
    return [judged(r, source=source, task=task, sample_id=f"{source}#{i}") for i, r in enumerate(rewards)]


@pytest.fixture
def before(judged: Judged) -> Evaluation:
    sampled = [
        *groups_of(judged, "play_math", "math", [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]),
        *groups_of(judged, "play_ocr", "ocr", [[1.0, 1.0], [1.0, 0.0]]),
    ]
    return Evaluation(evaluate_metrics(sampled), evaluate_metrics(sampled))


@pytest.fixture
def after(judged: Judged) -> Evaluation:
    sampled = [
        *groups_of(judged, "play_math", "math", [[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]),
        *groups_of(judged, "play_ocr", "ocr", [[1.0, 1.0], [0.0, 0.0]]),
    ]
    return Evaluation(evaluate_metrics(sampled), evaluate_metrics(sampled))


def test_the_table_tells_every_source_and_the_mean_over_tasks(before: Evaluation, after: Evaluation) -> None:
    text = shown(before_after_table(before, after))
    assert cells(text, "play_math") == [
        "math",
        "play_math",
        "3",
        "16.7 ±16.7",
        "66.7 ±16.7",
        "+50.0 ±28.9",
        "16.7 ±16.7",
        "66.7 ±16.7",
    ]
    assert cells(text, "play_ocr")[4:6] == ["50.0 ±50.0", "-25.0 ±25.0"]
    assert cells(text, "mean over tasks")[:4] == [
        "mean over tasks",
        "5",
        "45.8 ±15.0",
        "58.3 ±26.4",
    ]
    assert "could not be judged" not in text


def test_what_is_missing_from_the_table_is_said_below_it(judged: Judged, before: Evaluation) -> None:
    half = Evaluation(evaluate_metrics(groups_of(judged, "play_math", "math", [[1.0, FAILED]])), before.greedy)
    text = shown(before_after_table(before, half))
    assert "1 answers that could not be judged are left out." in text
    assert "Without a score in one of the evaluations: play_ocr." in text
    assert cells(text, "play_math")[1] == "play_math"
    assert "mean over tasks" not in shown(before_after_table(before, Evaluation({}, {})))


def test_a_step_is_one_line_with_every_source(judged: Judged) -> None:
    groups = [judged([1.0, 0.5, FAILED], source="play_math"), judged([0.25], source="play_ocr")]
    line = shown(step_line(7, 120, source_metrics(groups), seconds_left=75.4))
    assert line.rstrip("\n") == "  7/120  reward 0.58  0:01:15 left  1 failed  math 0.75  ocr 0.25"
    assert "play_math 0.75" in shown(step_line(7, 120, source_metrics(groups[:1]), seconds_left=75.4))


def test_an_evaluation_is_one_line_with_its_mean_over_tasks(before: Evaluation) -> None:
    line = shown(evaluation_line(20, 140, evaluation_figures(before)))
    assert line == " 20/140  evaluated 5 held-out prompts  sampled 45.8 ±15.0  greedy 45.8 ±15.0\n"
    assert shown(evaluation_line(0, 9, {})) == "0/9  evaluated 0 held-out prompts  sampled -  greedy -\n"


def test_a_source_with_an_open_alert_is_marked_in_the_line_of_a_step(judged: Judged) -> None:
    groups = [judged([1.0], source="play_math"), judged([0.25], source="play_ocr")]
    line = shown(step_line(7, 9, source_metrics(groups), 1, alerts=[Alert("play_ocr", "no_spread", 3, "all equal")]))
    assert line.rstrip("\n").endswith("math 1.00  ocr 0.25!")


def test_an_alert_is_one_line_when_it_begins_and_one_when_it_ends() -> None:
    alert = Alert("play_ocr", "no_spread", 3, "all 40 groups of 10 steps had equal rewards")
    assert shown(alert_line(alert)) == (
        "! play_ocr: no_spread since step 3: all 40 groups of 10 steps had equal rewards\n"
    )
    assert shown(alert_line(replace(alert, until=9))) == ("  play_ocr: no_spread, begun at step 3, is over since 9\n")


def train(folder: Path, judged: Judged, *, finish: bool = True) -> None:
    with RunStore.create(folder, recipe={}, total_steps=9, threads=1) as store:
        evaluation = groups_of(judged, "play_math", "math", [[0.0, 1.0], [0.0, 0.0]])
        store.write_evaluation(0, evaluation, evaluation, Progress(0, 9, "test"))
        store.log(1, "train", source_metrics([judged([1.0, 0.0], source="rare"), judged([1.0], source="play_math")]))
        store.quarantine(2, evaluation[0].group.sample.id, "the picture is corrupt")
        figures = source_metrics([judged([1.0, 0.0, 0.0, FAILED], source="play_math")], {"math"})
        store.log(2, "train", {**figures, "all/grad_norm_llm": 0.125, "optim/clip_fraction": 0.5})
        store.write_evaluation(2, evaluation, evaluation, Progress(2, 9, "test"))
        over, lasts = Alert("rare", "failed", 1, "a crash"), Alert("play_math", "failed", 2, "25 % of the answers")
        for alert in (over, lasts, replace(over, until=2)):
            store.alert(2, alert)
        if finish:
            store.finish(SUMMARY)


def test_a_list_of_runs_tells_how_each_stands(tmp_path: Path, judged: Judged) -> None:
    train(tmp_path / "done", judged)
    train(tmp_path / "sweep" / "interrupted", judged, finish=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    with RunStore.create(tmp_path / "alive", recipe={}, total_steps=5, threads=1):
        text = shown(runs_table(tmp_path))
    done = cells(text, "done")
    assert (done[2:4], done[4]) == (["2/9", "finished"], "0.33")
    assert float(done[5]) >= 0  # minutes
    assert "stopped" in cells(text, "sweep/interrupted")[3]
    assert cells(text, "alive")[2:5] == ["0/5", "running", "-"]
    assert "damaged" in cells(text, "broken")[1]
    assert "run.json" in text


def test_a_run_folder_given_as_the_root_is_listed_by_its_own_name(tmp_path: Path, judged: Judged) -> None:
    train(tmp_path / "done", judged)
    assert cells(shown(runs_table(tmp_path / "done")), "finished")[0] == "done"


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    assert "no runs in" in shown(runs_table(tmp_path))
    assert "no runs in" in shown(runs_table(tmp_path / "nowhere"))


def test_a_runs_page_tells_the_latest_figures_of_every_source(tmp_path: Path, judged: Judged) -> None:
    train(tmp_path / "demo", judged)
    text = shown(run_page(tmp_path / "demo"))
    assert "demo  finished  step 2/9" in text
    assert cells(text, "rare ")[:4] == ["rare", "1", "2", "0.50"]
    math = cells(text, "play_math ")
    assert math[:4] == ["play_math", "2", "4", "0.33"]
    assert math[-2:] == ["0", "1"]
    assert "all/grad_norm_llm 0.125  optim/clip_fraction 0.5" in text
    assert "! play_math: failed since step 2: 25 % of the answers" in text
    assert "a crash" not in text  # it is over
    assert "task:" not in text
    assert "rows set aside (quarantine.jsonl): play_math 1" in text
    assert "held out, at step 0 and at step 2" in text
    assert "mean over tasks" in text


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, recipe={}, total_steps=9, threads=1):
        assert "no training step yet" in shown(run_page(tmp_path))


def test_a_damaged_run_has_no_page_but_a_reason(tmp_path: Path, judged: Judged) -> None:
    train(tmp_path, judged)
    (tmp_path / "metrics.jsonl").write_bytes(b"{\n{\n{\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        run_page(tmp_path)


def test_names_that_carry_markup_or_control_characters_are_shown_as_text(tmp_path: Path, judged: Judged) -> None:
    source = "[bold]x[/bold]\x1b[31m\n"
    sampled = evaluate_metrics([judged([1.0], source=source, task="\x07[/]")])
    with RunStore.create(tmp_path, recipe={}, total_steps=9, threads=1) as store:
        store.log(1, "train", source_metrics([judged([1.0], source=source)]))
        store.quarantine(1, f"{source}#1", "\x1b[31m")
        store.alert(1, Alert(source, "failed", 1, "\x1b[31m"))
    texts = [
        shown(before_after_table(Evaluation(sampled, sampled), Evaluation(sampled, sampled))),
        shown(step_line(1, 9, source_metrics([judged([1.0], source=source)]), seconds_left=1)),
        shown(run_page(tmp_path)),
    ]
    for text in texts:
        assert "[bold]x[/bold]\ufffd[31m\ufffd" in text
        assert "\x1b" not in text
