"""`vtriune report`: one file that shows in a browser what the dashboard shows, without a server or a network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect
from tests.monitor.conftest import judged
from tests.watch.conftest import HOSTILE
from tests.watch.worlds import ANSWERS, Writer, watching

from vtriune.monitor.store import RunStore
from vtriune.reward.pool import JudgePool
from vtriune.types import Progress, UserError
from vtriune.watch import onefile, report
from vtriune.watch.onefile import one_file
from vtriune.watch.report import write_report

Vtriune = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def written(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "first.html"
    write_report(world / "runs" / "first", out)
    return out


@pytest.fixture
def offline(page: Page) -> Page:
    page.context.set_offline(True)
    return page


def tables(page: Page) -> dict[str, str]:
    """What the tables of a run's page say, cell by cell."""
    expect(page.locator("table.evaluation tbody tr")).to_have_count(16)
    return {name: page.locator(f"table.{name}").inner_text() for name in ("grid", "evaluation")}


def test_the_report_has_the_tables_and_curves_of_the_dashboard(offline: Page, world: Path, written: Path) -> None:
    page = offline
    page.goto(written.as_uri())
    in_report = tables(page)
    page.goto(f"{written.as_uri()}#/source/first/detection")
    curve = page.locator("figure[data-figure=reward]")
    expect(curve.locator("canvas")).to_be_visible()
    told = curve.locator(".readout").inner_text(), curve.locator(".plot").get_attribute("aria-label")
    figures = page.locator("figure[data-figure]").count()
    drawn = page.evaluate("document.querySelector('figure[data-figure=reward] canvas').toDataURL()")
    page.context.set_offline(False)
    with watching(world / "runs") as served:
        page.goto(f"{served.url}/#/run/first")
        assert tables(page) == in_report
        page.goto(f"{served.url}/#/source/first/detection")
        expect(curve.locator("canvas")).to_be_visible()
        label = curve.locator(".plot").get_attribute("aria-label") or ""
        assert (curve.locator(".readout").inner_text(), label.replace(", Enter opens the rollouts", "")) == told
        assert page.locator("figure[data-figure]").count() == figures
        assert page.evaluate("document.querySelector('figure[data-figure=reward] canvas').toDataURL()") == drawn


def test_every_source_has_examples_with_their_pictures_and_answers(offline: Page, written: Path) -> None:
    page = offline
    page.goto(f"{written.as_uri()}#/rollouts/first")
    rows = page.locator("table.rollouts tbody tr")
    expect(rows).to_have_count(3 * 16 + 16)  # held out there is one sample of each
    for why in ("best", "worst", "most spread"):
        page.goto(f"{written.as_uri()}#/source/first/detection")
        page.get_by_role("link", name=why).click()
        expect(page.locator("article")).to_have_count(ANSWERS)
        expect(page.locator(".picture img")).to_be_visible()
        expect(page.locator(".picture img")).to_have_js_property("naturalWidth", 112)
        assert page.locator(".picture g.gold rect").count() > 0
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    expect(page.locator("table.runs tbody tr")).to_have_count(1)


def test_the_examples_are_the_best_the_worst_and_the_most_spread(world: Path) -> None:
    for example in report._examples(world / "runs" / "first", ["math"])[0]:
        others = [one for path in sorted((world / "runs/first/rollouts").glob("step*")) for one in report._groups(path)]
        means = {one.step: one.mean for source, one in others if source == "math"}
        if example["why"] == "best":
            assert example["mean"] == max(means.values())
        if example["why"] == "worst":
            assert example["mean"] == min(means.values())


def test_held_out_samples_have_their_first_and_last_answer(offline: Page, world: Path, written: Path) -> None:
    page, run = offline, world / "runs" / "first"
    stored = [pq.read_table(run / "rollouts" / f"eval-{step:06d}.parquet").to_pylist() for step in (0, 4)]
    before, after = (
        next(row for row in rows if (row["decoding"], row["source"]) == ("greedy", "counting")) for rows in stored
    )
    assert before["sample_id"] == after["sample_id"]
    page.goto(f"{written.as_uri()}#/source/first/counting")
    row = page.locator("table.heldout tbody tr")
    expect(row).to_have_count(1)
    for answer, steps in ((before, 0), (after, 4)):
        expect(row).to_contain_text(re.compile(rf"{answer['accuracy']:g}(\.\d*)? after {steps} steps"))
    row.get_by_role("link", name="after 0 steps").click()
    for answer, other in ((before, "the same sample after 4 steps"), (after, "the same sample after 0 steps")):
        expect(page.locator("article")).to_have_count(1)
        expect(page.locator("article pre").last).to_have_text(answer["response"].partition("</think>")[2].strip())
        expect(page.locator(".picture img")).to_have_js_property("naturalWidth", 112)
        page.get_by_role("link", name=other).click()


def test_of_a_source_the_samples_that_gained_and_lost_most_are_shown(tmp_path: Path) -> None:
    first, last = {"a": 0.0, "b": 1.0, "c": 0.5, "gone": 0.0}, {"a": 0.75, "b": 0.5, "c": 0.5, "new": 1.0}
    with RunStore.create(tmp_path, recipe={}, total_steps=2, threads=1) as store:
        for step, values in ((0, first), (1, dict.fromkeys(first, 0.25)), (2, last)):
            greedy = [judged([values[name]], sample_id=name) for name in sorted(values)]
            store.write_evaluation(step, [], greedy, Progress(step, 2, "test"))
    (gained, lost), problems = report._held_out(tmp_path, ["math"])
    assert problems == []
    assert (gained["why"], gained["first"]["mean"], gained["mean"]) == ("most gained", 0.0, 0.75)
    assert (lost["why"], lost["first"]["mean"], lost["mean"]) == ("most lost", 1.0, 0.5)
    assert [(one["step"], one["group"]) for one in (lost["first"], lost)] == [(0, 1), (2, 1)]


def test_shapes_have_their_room_and_what_is_left_out_is_said(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Page
) -> None:
    monkeypatch.setattr(report, "SHAPES", 1)
    write_report(world / "runs" / "first", tmp_path / "small.html")
    offline.goto(f"{(tmp_path / 'small.html').as_uri()}#/source/first/detection")
    offline.get_by_role("link", name="best").click()
    expect(offline.get_by_text("the shapes were left out of the report")).to_be_visible()
    assert offline.locator(".picture g").count() == 0


@pytest.mark.parametrize("text", HOSTILE[:2], ids=["markup", "direction"])
def test_hostile_answers_in_a_report_are_text(
    offline: Page, world: Path, judge: JudgePool, tmp_path: Path, text: str
) -> None:
    page, run = offline, tmp_path / "<b>&amp; evil"
    with Writer(run, world / "playground", judge, steps=1, texts=[text]) as writer:
        writer.step(1)
    write_report(run, tmp_path / "evil.html")
    page.goto((tmp_path / "evil.html").as_uri())
    expect(page.locator("h1")).to_have_text(run.name)
    expect(page).to_have_title(f"{run.name} · V-Triune")
    page.get_by_role("link", name="Examples").click()
    page.get_by_role("link", name="best").first.click()
    shown = page.get_by_label("Answer 2", exact=True).last
    assert shown.evaluate("node => node.textContent") == text
    assert page.evaluate("window.ran") is None
    assert page.locator("main script").count() == 0


def test_long_answers_keep_their_beginning_and_pictures_their_room(
    world: Path, judge: JudgePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Page
) -> None:
    monkeypatch.setattr(report, "CHARACTERS", 0)
    monkeypatch.setattr(report, "PICTURES", 1)
    said = write_report(world / "runs" / "first", tmp_path / "small.html")
    assert said.endswith(" 80 example groups, 1 pictures")
    assert "a" * 301 not in (tmp_path / "small.html").read_text()
    offline.goto(f"{(tmp_path / 'small.html').as_uri()}#/source/first/science")
    offline.get_by_role("link", name="best").click()
    expect(offline.get_by_text("The picture was left out of the report.")).to_be_visible()


def test_curves_of_a_large_run_are_few_and_thin(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(world / "runs" / "first", tmp_path / "whole.html")
    monkeypatch.setattr(report, "CURVES", 100)
    monkeypatch.setattr(report, "POINTS_OF_A_CURVE", range(2, 3))
    write_report(world / "runs" / "first", tmp_path / "thin.html")
    whole, thin = ((tmp_path / f"{name}.html").read_text() for name in ("whole", "thin"))
    assert "precision_75" in whole
    assert '"figure":"precision_75"' not in thin
    steps = [len(found.split(",")) for found in re.findall(r'"steps":\[([\d,]*)\]', thin)]
    assert max(steps) == 2


def test_the_policy_of_a_report_lets_nothing_run_but_its_own_scripts(offline: Page, tmp_path: Path) -> None:
    baked = {"run": "x", "made": "now", "answers": {}, "images": {}, "examples": []}
    text = one_file(baked, "x").decode().replace("<body>", "<body><script>window.ran = 1</script>")
    assert "/static/" not in text.partition("<script>")[0]
    (tmp_path / "changed.html").write_text(text)
    refused: list[str] = []
    page = offline.context.new_page()
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "changed.html").as_uri())
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text("not part of the report")
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in one for one in refused)


def test_a_module_that_cannot_be_bundled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(onefile.STATIC, tmp_path / "static")
    (tmp_path / "static" / "keys.js").write_text("export default 1;\n")
    monkeypatch.setattr(onefile, "STATIC", tmp_path / "static")
    with pytest.raises(ValueError, match=r"keys.js: 'export default 1;'"):
        one_file({}, "x")


def test_a_damaged_rollout_file_is_named_and_the_others_give_examples(
    offline: Page, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "runs" / "first", tmp_path / "hurt")
    path = max((tmp_path / "hurt" / "rollouts").glob("step-*.parquet"))
    path.write_bytes(b"PAR1")
    told = write_report(tmp_path / "hurt", tmp_path / "hurt.html")
    assert " 80 example groups" in told
    assert re.search(rf"; left out, because it can't be read: .*{path.name}", told)
    offline.goto((tmp_path / "hurt.html").as_uri())
    expect(offline.get_by_role("alert").filter(has_text=path.name)).to_contain_text("not readable as rollouts")


def test_a_run_without_a_step_has_a_report_too(offline: Page, tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "new", recipe={}, total_steps=3, threads=1):
        pass
    write_report(tmp_path / "new", tmp_path / "new.html")
    offline.goto((tmp_path / "new.html").as_uri())
    expect(offline.get_by_text("No training step yet")).to_be_visible()


def test_the_command_writes_the_file_and_says_what_is_in_it(vtriune: Vtriune, world: Path, tmp_path: Path) -> None:
    done = vtriune("report", world / "runs" / "first", cwd=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"first-report\.html: \d\.\d MB, 80 example groups, 32 pictures\n", done.stdout)
    assert (tmp_path / "first-report.html").stat().st_size < 4e6
    assert "no such folder" in vtriune("report", tmp_path / "none").stderr
    assert vtriune("report", tmp_path / "none").returncode == 2


@pytest.mark.parametrize("name", ["broken", "."])
def test_what_holds_no_run_in_order_is_named(world: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=re.escape(str(world / "runs" / name))):
        write_report(world / "runs" / name, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
