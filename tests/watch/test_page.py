"""The dashboard's page in a real browser, before the real server: what people see, and what the keys do."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Locator, Page, expect
from tests.watch.conftest import HOSTILE
from tests.watch.worlds import ANSWERS, Watch, Writer, watching

from vtriune.data.schema import write_rows
from vtriune.monitor.evaluation import gain, on_shared_prompts
from vtriune.monitor.rollouts import read_evaluation
from vtriune.monitor.runs import read_metrics
from vtriune.monitor.store import RunStore
from vtriune.playground.dataset import to_row
from vtriune.playground.tasks import draw_problem
from vtriune.reward.pool import JudgePool
from vtriune.types import Split

expect.set_options(timeout=120_000)


@pytest.fixture(scope="module")
def watch(world: Path) -> Iterator[Watch]:
    with watching(world / "runs") as served:
        yield served


def rollouts(run: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run / "rollouts" / f"{name}.parquet").to_pylist()
    return rows


def cells(row: Locator) -> list[str]:
    return [" ".join(cell.split()) for cell in row.locator("th, td").all_inner_texts()]


def sideways(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


def test_the_list_names_every_run_how_far_it_came_and_what_damaged_it(page: Page, watch: Watch) -> None:
    page.goto(watch.url)
    rows = page.locator("table.runs tbody tr")
    expect(rows).to_have_count(3)
    first = cells(rows.filter(has_text="first"))
    assert first[1:4] == ["first", "✓ finished", "4 / 4"]
    broken = rows.filter(has_text="broken")
    expect(broken).to_contain_text("! damaged")
    expect(broken).to_contain_text("run.json")
    assert broken.get_by_role("checkbox").count() == 0
    page.get_by_placeholder("filter by name").fill("SEC")
    expect(rows.filter(visible=True)).to_have_count(1)


def test_an_empty_folder_says_how_to_start_and_shows_the_first_run_by_itself(
    page: Page, world: Path, judge: JudgePool, tmp_path: Path
) -> None:
    with watching(tmp_path) as served:
        page.goto(served.url)
        expect(page.get_by_role("heading", name=f"No runs in {tmp_path} yet")).to_be_visible()
        expect(page.get_by_text("make demo")).to_be_visible()
        with Writer(tmp_path / "new one", world / "playground", judge) as writer:
            row = page.locator("table.runs tbody tr")
            expect(row).to_contain_text("▶ running")
            row.get_by_role("link", name="new one").click()
            expect(page.get_by_text("No training step yet")).to_be_visible()
            writer.step(1)
            expect(page.locator("table.grid tbody tr")).to_have_count(17)


def test_the_grid_shows_every_source_with_the_figures_of_its_last_step(page: Page, world: Path, watch: Watch) -> None:
    page.goto(f"{watch.url}/#/run/first")
    rows = page.locator("table.grid tbody tr")
    expect(rows).to_have_count(17)
    last = [row["metrics"] for row in read_metrics(world / "runs" / "first") if row["split"] == "train"][-1]
    heads = page.locator("table.grid thead th").all_inner_texts()
    for row in rows.all():
        source = row.get_attribute("data-key")
        for figure in ("reward", "accuracy", "correct", "truncated"):
            said = re.match(r"[\d.]+", cells(row)[heads.index(figure)])
            assert said
            assert float(said.group()) == pytest.approx(last[f"{source}/{figure}"], abs=0.005)
    # colour is never the only sign: every coloured curve has its arrow, and says its first and last value
    for cell in page.locator("td[data-figure=reward]").all():
        assert re.search("[↗↘→]$", cell.inner_text().strip())
        assert re.fullmatch(r"reward: [\d.]+ → [\d.]+", cell.locator("svg").get_attribute("aria-label") or "")
    page.get_by_placeholder("filter by source or task").fill("counting")
    expect(rows.filter(visible=True)).to_have_count(2)
    assert sideways(page) == 0


def test_the_held_out_table_is_that_of_the_terminal(page: Page, world: Path, watch: Watch) -> None:
    folder = world / "runs" / "first" / "rollouts"
    before, after = on_shared_prompts(*(read_evaluation(folder / f"eval-{step:06d}.parquet") for step in (0, 4)))
    page.goto(f"{watch.url}/#/run/first")
    rows = page.locator("table.evaluation tbody tr")
    expect(rows).to_have_count(16)
    for row in rows.all():
        task, source, prompts, *scores = (cell.split(" ±")[0] for cell in cells(row))
        then, now = before.sampled[source], after.sampled[source]
        change = gain(then, now)
        assert change
        assert (task, int(prompts)) == (then.task, len(then.by_prompt))
        expected = [f"{then.estimate.value:.1f}", f"{now.estimate.value:.1f}", "", f"{change.value:+.1f}"]
        assert [score.replace("−", "-") for score in scores[:4]] in (expected, [*expected[:3], "0.0"])


def test_a_damaged_run_says_what_is_wrong_with_it(page: Page, watch: Watch) -> None:
    page.goto(f"{watch.url}/#/run/broken")
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text("run.json")
    page.goto(f"{watch.url}/#/run/nowhere")
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text('no run "nowhere"')
    for nothing in ("%zz/%", "constructor", "run/first/source/math", "source/first"):
        page.goto(f"{watch.url}/#/run/first")
        expect(page.locator("table.grid")).to_be_visible()
        page.goto(f"{watch.url}/#/{nothing}")
        expect(page.get_by_role("heading", name="No such page")).to_be_visible()


def test_alerts_stand_beside_their_source_and_in_words(page: Page, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "runs" / "first", tmp_path / "sick")
    alert = {"step": 3, "since": 2, "until": None, "source": "math", "kind": "reward_collapsed", "message": "half <b>"}
    over = {"step": 2, "since": 1, "source": "ocr", "kind": "failed", "message": "5 failed"}
    gone = alert | {"since": 1, "step": 1, "source": "left", "kind": "unscorable", "message": "gone"}
    lines = [alert, over | {"until": None}, over | {"until": 3}, gone]
    (tmp_path / "sick" / "alerts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with watching(tmp_path) as served:
        page.goto(f"{served.url}/#/run/sick")
        row = page.locator("tr[data-key=math]").first
        expect(row.locator(".alert")).to_have_text("▲ 1")
        expect(row.locator(".alert")).to_have_attribute("title", "step 2 on: half <b>")
        expect(row.locator("td[data-figure=reward] path.mark")).to_have_count(1)
        expect(row.locator("td[data-figure=length] path.mark")).to_have_count(0)
        listed = page.locator(".alerts li")
        expect(listed).to_have_count(3)
        expect(listed.first).to_have_text("step 2 math half <b>")
        expect(listed.filter(has_text="gone")).to_have_text("step 1 left gone")
        expect(listed.filter(has_text="ocr")).to_have_text(re.compile("step 1–3 ocr 5 failed over"))
        listed.first.get_by_role("link").click()
        expect(page.locator("ul.alerts")).to_contain_text("step 2: half <b>")
        page.goto(served.url)
        expect(page.locator("table.runs tbody tr")).to_contain_text("▲")


def test_a_growing_run_is_followed_without_losing_scroll_focus_or_folds(
    page: Page, world: Path, judge: JudgePool, tmp_path: Path
) -> None:
    with watching(tmp_path) as served, Writer(tmp_path / "run", world / "playground", judge) as writer:
        writer.evaluate(0)
        writer.step(1)
        (tmp_path / "run" / "alerts.jsonl").write_text(
            '{"step": 1, "since": 1, "until": 1, "source": "ocr", "kind": "failed", "message": "broke"}\n'
        )
        page.set_viewport_size({"width": 1280, "height": 400})
        page.goto(f"{served.url}/#/run/run")
        link = page.locator("tr[data-key=ocr] a.item")
        link.focus()
        page.locator("summary").click()
        link.focus()
        page.evaluate("window.scrollTo(0, 90); document.querySelector('.scroll').scrollTop = 70")
        place = page.evaluate("[scrollY, document.querySelector('.scroll').scrollTop]")
        writer.step(2)
        expect(page.get_by_text("2 / 4")).to_be_visible()
        assert page.evaluate("[scrollY, document.querySelector('.scroll').scrollTop]") == place
        expect(link).to_be_focused()
        expect(page.locator("details")).to_have_attribute("open", "")

        page.goto(f"{served.url}/#/source/run/math")
        plot = page.locator("figure[data-figure=reward] .plot")
        rewards = [row["metrics"]["math/reward"] for row in read_metrics(tmp_path / "run") if row["split"] == "train"]
        expect(plot).to_have_attribute("aria-label", re.compile(rf"→ {said(rewards[-1])}\."))
        plot.focus()
        writer.step(3)
        rewards = [row["metrics"]["math/length"] for row in read_metrics(tmp_path / "run") if row["split"] == "train"]
        expect(page.locator("figure[data-figure=length] .plot")).to_have_attribute(
            "aria-label", re.compile(rf"→ {re.escape(said(rewards[-1]))}\.")
        )
        expect(plot).to_be_focused()

        page.goto(f"{served.url}/#/rollouts/run?source=math")
        expect(page.get_by_text(f"{3 * ANSWERS} match")).to_be_visible()
        page.locator("tr[data-key='train/sampled/3/8/2'] a, tbody a").first.focus()
        focused = page.evaluate("document.activeElement.closest('tr').dataset.key")
        writer.step(4)
        expect(page.get_by_text(f"{4 * ANSWERS} match")).to_be_visible()
        assert page.evaluate("document.activeElement.closest('tr').dataset.key") == focused


def said(value: float) -> str:
    """A number as the page writes it."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if value else "0"


def test_runs_are_compared_in_one_figure_smoothed_and_on_a_log_scale(page: Page, watch: Watch) -> None:
    page.goto(watch.url)
    compare = page.get_by_role("button", name="Compare curves")
    expect(compare).to_be_disabled()
    for name in ("first", "second"):
        page.get_by_role("checkbox", name=f"Compare {name}").check()
    compare.click()
    expect(page.locator(".legend bdi")).to_have_text(["second", "first"])
    reward = page.locator("figure[data-figure=reward]")
    expect(reward.locator(".readout span")).to_have_count(2)
    expect(reward.locator(".plot")).to_have_attribute("aria-label", re.compile(r"second: .* → .*, first: .* → .*"))
    drawn = "document.querySelector('figure[data-figure=reward] canvas').toDataURL()"
    expect(reward.locator("canvas")).to_be_visible()
    pictures = [page.evaluate(drawn)]
    page.get_by_label("smoothing").fill("0.5")
    pictures.append(page.evaluate(drawn))
    page.get_by_label("log scale").check()
    expect(reward.locator("canvas")).to_be_visible()
    pictures.append(page.evaluate(drawn))
    assert len(set(pictures)) == 3
    page.get_by_placeholder("filter figures").fill("grad norm")
    expect(page.locator("figure[data-figure]").filter(visible=True)).to_have_count(1)
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".legend bdi")).to_have_count(1)
    page.get_by_label("Overlay another run").select_option(index=1)
    expect(page.locator(".legend bdi")).to_have_count(2)


def test_smoothing_is_the_moving_average_without_bias_to_its_start(page: Page, watch: Watch) -> None:
    page.goto(watch.url)
    values = [1.0, None, 3.0, -2.0, 0.5]
    weight, sum_, mass, expected = 0.7, 0.0, 0.0, list[float | None]()
    for value in values:
        if value is not None:
            sum_, mass = weight * sum_ + (1 - weight) * value, weight * mass + 1 - weight
        expected.append(None if value is None else sum_ / mass)
    drawn = page.evaluate(
        "async ([values, weight]) => (await import('/static/curves.js')).smooth(values, weight)", [values, weight]
    )
    assert drawn == pytest.approx(expected)


def test_a_point_of_a_curve_leads_to_the_rollouts_of_its_step(page: Page, watch: Watch) -> None:
    page.goto(f"{watch.url}/#/source/first/math")
    reward = page.locator("figure[data-figure=reward]")
    area = reward.locator(".u-over")
    expect(area).to_be_visible()
    box = area.bounding_box()
    assert box
    area.click(position={"x": box["width"] - 2, "y": box["height"] / 2})
    expect(page).to_have_url(re.compile(r"#/rollouts/first\?split=train&source=math&step_from=4&step_to=4$"))
    expect(page.locator("table.rollouts tbody tr")).to_have_count(ANSWERS)
    page.go_back()
    expect(area).to_be_visible()
    reward.locator(".plot").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(reward.locator(".readout")).to_have_attribute("data-step", "step 3")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("step_from=3&step_to=3$"))


def test_a_task_of_several_sources_has_curves_of_its_own(page: Page, tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", recipe={}, total_steps=3, threads=1) as store:
        for step in (1, 2, 3):
            own = {"math/rollouts": 4.0, "math/reward": 0.1, "task:math/reward": step / 8, "task:math/rollouts": 8.0}
            store.log(step, "train", own | {"all/reward": 0.1})
    with watching(tmp_path) as served:
        page.goto(f"{served.url}/#/source/run/math")
        page.get_by_label("source").select_option("task:math")
        reward = page.locator("figure[data-figure=reward] .plot")
        expect(reward).to_have_attribute("aria-label", re.compile("run: 0.125 → 0.375"))
        expect(page.get_by_role("link", name="Rollouts")).to_have_attribute("href", "#/rollouts/run?task=math")


def test_rollouts_are_filtered_sorted_searched_and_turned_page_by_page(page: Page, world: Path, watch: Watch) -> None:
    rows = [row for step in range(1, 5) for row in rollouts(world / "runs" / "first", f"step-{step:06d}")]
    page.goto(f"{watch.url}/#/rollouts/first")
    shown = page.locator("table.rollouts tbody tr")
    status = page.get_by_role("status").filter(has_text="match")
    expect(status).to_have_text(f"{len(rows)} match")
    expect(shown).to_have_count(50)
    seen = {row.get_attribute("data-key") for row in shown.all()}
    page.get_by_role("link", name="next page").click()
    expect(page).to_have_url(re.compile("cursor="))
    expect(page.get_by_role("link", name="first page")).to_be_visible()
    assert not seen & {row.get_attribute("data-key") for row in shown.all()}

    page.get_by_label("source").select_option("detection")
    page.get_by_label("correct").select_option("correct")
    matching = [row for row in rows if row["source"] == "detection" and row["correct"]]
    expect(status).to_have_text(f"{len(matching)} match")
    page.get_by_label("reward to").fill("0.9")
    page.keyboard.press("Enter")
    matching = [row for row in matching if row["reward"] <= 0.9]
    expect(status).to_have_text(f"{len(matching)} match")
    page.get_by_role("link", name="clear", exact=True).click()
    expect(status).to_have_text(f"{len(rows)} match")

    head = page.locator("th").filter(has_text="reward")
    head.get_by_role("link").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    best = max(row["reward"] for row in rows)
    expect(shown.first).to_contain_text(said(best))
    head.get_by_role("link").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    expect(shown.first.locator("td").nth(3)).to_have_text("0")

    page.get_by_label("text").fill("ONERROR=")
    page.keyboard.press("Enter")
    expect(shown).to_have_count(min(50, sum("onerror=" in row["response"] for row in rows)))
    page.get_by_label("text").fill("nobody wrote this")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No rollout matches.")).to_be_visible()
    expect(page.get_by_label("text")).to_be_focused()
    page.get_by_role("link", name="Clear the filters").click()
    page.get_by_label("split").select_option("held out")
    page.get_by_label("decoding").select_option("greedy")
    expect(status).to_have_text(f"{2 * len(read_evaluation_groups(world))} match")
    assert sideways(page) == 0


def read_evaluation_groups(world: Path) -> set[int]:
    rows = rollouts(world / "runs" / "first", "eval-000000")
    return {row["group"] for row in rows if row["decoding"] == "greedy"}


def test_a_group_shows_its_picture_with_what_was_asked_and_what_was_answered(
    page: Page, world: Path, watch: Watch
) -> None:
    rows = rollouts(world / "runs" / "first", "step-000004")
    group = next(row["group"] for row in rows if row["source"] == "detection" and (row["report"] or "").count("iou"))
    answers = [row for row in rows if row["group"] == group]
    page.goto(f"{watch.url}/#/group/first/train/sampled/4/{group}")
    picture = page.locator(".picture img")
    expect(picture).to_be_visible()
    expect(page.locator(".picture img")).to_have_js_property("naturalWidth", 112)
    gold = len(re.findall("bbox_2d", answers[0]["gold"]))
    expect(page.locator(".picture g.gold rect").filter(visible=True)).to_have_count(gold)
    expect(page.get_by_label("Gold", exact=True)).to_have_text(answers[0]["gold"])
    cards = page.locator("article")
    expect(cards).to_have_count(ANSWERS)
    for card, row in zip(cards.all(), answers, strict=True):
        expect(card.locator(".reward")).to_have_text(said(row["reward"]))
        expect(card).to_contain_text("✓ correct" if row["correct"] else "✗ wrong")
    best = max(answers, key=lambda row: row["reward"])
    answered = page.locator(".picture g.answered").filter(visible=True)
    expect(answered).to_have_count(len(re.findall("bbox_2d", best["response"])))
    expect(answered.first.locator("text")).to_contain_text(re.compile(r"IoU \d\.\d\d"))
    frame, place = answered.first.locator("rect").bounding_box(), page.locator(".picture > div").bounding_box()
    found = re.search(r"\[(\d+), (\d+), (\d+), (\d+)\]", best["response"])
    assert frame
    assert place
    assert found
    share = (frame["x"] + frame["width"] / 2 - place["x"]) / place["width"]
    assert share == pytest.approx((int(found[1]) + int(found[3])) / 2 / 112, abs=0.01)
    page.locator(f"#show-{best['answer']}").uncheck()
    expect(answered).to_have_count(0)
    page.get_by_role("button", name="all / none").click()
    assert answered.count() > 0
    page.locator("#show-gold").uncheck()
    expect(page.locator(".picture g.gold").filter(visible=True)).to_have_count(0)

    card = cards.nth(best["answer"])
    expect(card.get_by_label("Reasoning")).to_be_hidden()
    card.get_by_text("Reasoning,").click()
    expect(card.get_by_label("Reasoning")).to_have_text("I look at the picture, then I count again.")

    page.keyboard.press("]")
    expect(page).to_have_url(re.compile(f"/4/{group + 1}$"))
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile(f"/4/{group}$"))
    assert sideways(page) == 0


def test_a_picture_that_is_gone_says_so_in_its_place(page: Page, world: Path, judge: JudgePool, tmp_path: Path) -> None:
    shutil.copytree(world / "playground", tmp_path / "data")
    with Writer(tmp_path / "run", tmp_path / "data", judge) as writer:
        writer.step(1)
    shutil.rmtree(tmp_path / "data")
    with watching(tmp_path) as served:
        page.goto(f"{served.url}/#/group/run/train/sampled/1/0")
        expect(page.locator(".picture .empty")).to_contain_text("parquet")
        expect(page.locator("article")).to_have_count(ANSWERS)


def test_masks_lie_on_the_picture_in_both_colours_with_their_iou(page: Page, judge: JudgePool, tmp_path: Path) -> None:
    # Gold is the left half as polygons, the answer the left quarter and more below the middle as RLE.
    gold = "[[0, 0, 56, 0, 56, 112, 0, 112]]"
    answer = '<answer>{"size": [112, 112], "counts": [0, 3136, ' + "56, 56, " * 28 + "6272]}</answer>"
    split: Split
    for split in get_args(Split):
        row = to_row(draw_problem(random.Random(0), "detection", rare=False, split=split), "masks")
        row["reward_model"] |= {"ground_truth": gold, "verifier": "mask", "verifier_parm": {}}
        (tmp_path / "data" / split).mkdir(parents=True)
        write_rows([row], tmp_path / "data" / split / "masks.parquet")
    with Writer(tmp_path / "run", tmp_path / "data", judge, texts=[answer]) as writer:
        writer.step(1)
    with watching(tmp_path) as served:
        page.goto(f"{served.url}/#/group/run/train/sampled/1/0?answer=1")
        expect(page.locator(".picture img")).to_have_js_property("naturalWidth", 112)
        wanted, found = (page.locator(f".picture g.{kind}").filter(visible=True) for kind in ("gold", "answered"))
        expect(found.locator("text")).to_have_text("IoU 0.75")
        assert page.locator(".picture svg").bounding_box() == page.locator(".picture img").bounding_box()
        box = "path => { const { x, y, width, height } = path.getBBox(); return [x, y, width, height]; }"
        for mask in (wanted, found):
            assert mask.locator("path.mask").evaluate(box) == [0, 0, 500, 1000]
        colours = [
            mask.locator("path.mask").evaluate("path => [getComputedStyle(path).fill, getComputedStyle(path).stroke]")
            for mask in (wanted, found)
        ]
        assert colours[0] != colours[1]
        assert all(fill.endswith("0.25)") and stroke.startswith("rgb(") for fill, stroke in colours)
        inside = "path => [[200, 100], [400, 100], [400, 900]].map(([x, y]) => path.isPointInFill(new DOMPoint(x, y)))"
        assert wanted.locator("path.mask").evaluate(inside) == [True, True, True]
        assert found.locator("path.mask").evaluate(inside) == [True, False, True]


@pytest.mark.parametrize("text", HOSTILE, ids=["markup", "direction", "long"])
def test_hostile_text_is_shown_as_text_and_runs_nothing(page: Page, world: Path, watch: Watch, text: str) -> None:
    rows = rollouts(world / "runs" / "first", "step-000004")
    row = next(row for row in rows if row["response"] == text)
    page.goto(f"{watch.url}/#/rollouts/first?source={row['source']}")
    shown = page.locator(f"tr[data-key='train/sampled/4/{row['group']}/{row['answer']}'] .text bdi")
    expect(shown).to_be_visible()
    assert shown.evaluate("node => node.textContent") == text[:300].strip()
    assert sideways(page) == 0
    shown.click()
    answer = page.locator("article.chosen pre").last
    expect(answer).to_be_visible()
    assert answer.evaluate("node => node.textContent") == text
    assert page.evaluate("window.ran") is None
    assert page.locator("main script, main iframe, main img[src=x]").count() == 0
    assert sideways(page) == 0


def test_a_run_with_a_hostile_name_is_listed_and_opened(page: Page, world: Path, tmp_path: Path) -> None:
    name = "<img src=x onerror=window.ran=1> #?%&+'\"\u202e"
    shutil.copytree(world / "runs" / "first", tmp_path / name)
    with watching(tmp_path) as served:
        page.goto(served.url)
        page.get_by_role("link", name=name).click()
        expect(page.locator("h1")).to_have_text(name)
        page.get_by_role("link", name="Curves").click()
        expect(page.locator("figure[data-figure=reward] canvas")).to_be_visible()
        page.get_by_role("link", name="Rollouts").click()
        page.locator("table.rollouts a.item").first.click()
        expect(page.locator(".picture img")).to_be_visible()
        expect(page.locator(".picture img")).to_have_js_property("naturalWidth", 112)
        assert quote(name, safe="!'()*") in page.url
        assert page.evaluate("window.ran") is None


def test_the_later_of_two_quick_keys_has_the_last_word(page: Page, watch: Watch) -> None:
    page.goto(f"{watch.url}/#/run/first")
    expect(page.locator("table.grid")).to_be_visible()
    page.goto(f"{watch.url}/#/source/first/detection")
    expect(page.locator("h1")).to_be_visible()
    page.evaluate(
        "for (const key of ['Escape', 'r']) document.body.dispatchEvent(new KeyboardEvent('keydown', "
        "{ key, bubbles: true }))"
    )
    expect(page.locator("table.runs tbody tr")).to_have_count(3)


def test_everything_can_be_reached_by_keys(page: Page, watch: Watch) -> None:
    page.goto(watch.url)
    expect(page.locator("table.runs tbody tr")).to_have_count(3)
    page.keyboard.press("/")
    expect(page.get_by_placeholder("filter by name")).to_be_focused()
    page.keyboard.type("jk?first")  # keys are letters in a field
    expect(page.get_by_placeholder("filter by name")).to_have_value("jk?first")
    page.get_by_placeholder("filter by name").fill("")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_contain_text("next, previous entry of the list")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()

    page.keyboard.press("j")
    first = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.textContent") == first
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.locator("a.item", has_text="second").focus()
    page.keyboard.press("Enter")
    expect(page.locator("table.grid tbody tr")).to_have_count(17)
    for _ in range(2):
        page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("figure[data-figure=reward] canvas")).to_be_visible()
    source = page.locator("h1").inner_text()
    page.keyboard.press("]")
    expect(page.locator("h1")).not_to_have_text(source)
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_have_text(source)
    page.keyboard.press("Escape")
    expect(page.locator("table.grid")).to_be_visible()
    page.keyboard.press("r")
    expect(page.locator("table.runs")).to_be_visible()
    # the tab order follows the page: skip link, brand, ...
    page.goto(f"{watch.url}/#/run/first")
    page.reload()
    expect(page.locator("table.grid")).to_be_visible()
    names = []
    for _ in range(3):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
    assert names[:2] == ["To the content", "V-Triune"]


def test_light_and_dark_follow_the_system_until_one_is_chosen(page: Page, watch: Watch) -> None:
    def paper() -> int:
        found: list[str] = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
        return sum(map(int, found[:3])) // 3

    page.goto(f"{watch.url}/#/source/first/all")
    expect(page.locator("figure[data-figure=reward] canvas")).to_be_visible()
    axis = "document.querySelector('figure[data-figure=reward] canvas').toDataURL()"
    light = page.evaluate(axis)
    assert paper() > 200
    page.emulate_media(color_scheme="dark")
    assert paper() < 50
    page.emulate_media(color_scheme="light")
    toggle = page.get_by_role("button", name="Colours: auto")
    toggle.click()
    page.get_by_role("button", name="Colours: light").click()
    assert paper() < 50
    expect(page.locator("figure[data-figure=reward] canvas")).to_be_visible()
    assert page.evaluate(axis) != light
    page.reload()
    expect(page.get_by_role("button", name="Colours: dark")).to_be_visible()
    assert paper() < 50


def test_a_server_that_is_gone_is_told_and_asked_again(page: Page, world: Path) -> None:
    with watching(world / "runs") as served:
        port = int(served.url.rpartition(":")[2])
        page.goto(f"{served.url}/#/run/first")
        expect(page.locator("table.grid")).to_be_visible()
    told = page.get_by_role("alert").filter(has_text="The server does not answer")
    expect(told).to_be_visible()
    expect(page.locator("table.grid")).to_be_visible()  # what was shown stays
    with watching(world / "runs", port=port):
        expect(told).to_be_hidden()
        expect(page.get_by_text("● live")).to_be_visible()


def test_a_hidden_tab_asks_nothing(page: Page, watch: Watch) -> None:
    page.clock.install()
    page.goto(watch.url)
    expect(page.locator("table.runs")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    show = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    show += "document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(show, True)
    expect(page.get_by_text("paused")).to_be_visible()
    page.clock.run_for(30_000)
    assert asked == []
    page.evaluate(show, False)
    expect(page.get_by_text("● live")).to_be_visible()
    assert asked
