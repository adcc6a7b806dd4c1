import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.monitor.conftest import judged

from vtriune.monitor.alerts import Alert
from vtriune.monitor.evaluation import Evaluation, evaluate_metrics, evaluation_figures, gain, mean_over_tasks
from vtriune.monitor.history import History
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.runs import read_metrics
from vtriune.monitor.store import RunStore
from vtriune.types import JudgedGroup, Progress
from vtriune.watch import watched
from vtriune.watch.app import create_app
from vtriune.watch.guard import is_loopback
from vtriune.watch.listing import Listing
from vtriune.watch.series import SHOWN

STEPS = 8

EVERY_PATH = (
    "/",
    "/static/index.html",
    "/static/none",
    "/none",
    "/api/runs",
    "/api/grid?run=demo",
    "/api/grid?run=none",
    "/api/grid?run=demo&points=0",
    "/api/grid",
    "/api/figures?run=demo&source=all",
    "/api/series?run=demo&source=math&figure=reward",
    "/api/alerts?run=demo",
)


def groups_of(step: int) -> list[JudgedGroup]:
    """Two sources of two tasks: `dots` is not in every step, `zeta` comes first by its task."""
    groups = [judged([1.0, step / STEPS, 0.0], source="zeta", task="chart", sample_id=f"zeta.parquet#{step}")]
    if step % 3:
        groups.append(judged([step / STEPS] * 2, source="dots", task="counting", sample_id=f"dots.parquet#{step}"))
    return groups


def held_out(step: int) -> tuple[list[JudgedGroup], list[JudgedGroup]]:
    """Sampled and greedy answers to two prompts of `zeta`."""
    samples = [(f"test.parquet#{n}", [n / 4, step / STEPS]) for n in range(2)]
    return (
        [judged(values, source="zeta", task="chart", sample_id=sample) for sample, values in samples],
        [judged(values[:1], source="zeta", task="chart", sample_id=sample) for sample, values in samples],
    )


def scores(step: int) -> Evaluation:
    sampled, greedy = held_out(step)
    return Evaluation(evaluate_metrics(sampled), evaluate_metrics(greedy))


def train(store: RunStore, steps: range) -> None:
    for step in steps:
        groups = groups_of(step)
        store.write_rollouts(step, groups, Progress(step - 1, STEPS, "train"))
        figures = source_metrics(groups) | {
            "all/grad_norm": 0.5,
            "layer_00/grad_norm_llm": 0.25,
            "task:chart/reward": 1,
        }
        store.log(step, "train", figures, {"rollout_s": 2.0 * step})
        if step % 4 == 0:
            store.write_evaluation(step, *held_out(step), Progress(step, STEPS, "test"))
            store.log(step, "eval", evaluation_figures(scores(step)))


def create(folder: Path) -> RunStore:
    return RunStore.create(folder, recipe={}, total_steps=STEPS, threads=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    with create(folder) as store:
        train(store, range(1, STEPS + 1))
    return folder


@pytest.fixture
def runs(tmp_path: Path, written: Path) -> Path:
    """A folder with the run `demo`, of eight steps and two evaluations."""
    shutil.copytree(written, tmp_path / "runs" / "demo")
    return tmp_path / "runs"


@pytest.fixture
def client(runs: Path) -> Iterator[TestClient]:
    with client_of(runs) as client:
        yield client


def client_of(root: Path) -> TestClient:
    return TestClient(create_app(root), base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


def grid(client: TestClient, run: str = "demo", points: int = 60) -> Any:
    reply = client.get("/api/grid", params={"run": run, "points": points})
    assert reply.status_code == httpx.codes.OK, reply.text
    return reply.json()


def series(client: TestClient, **asked: Any) -> Any:
    reply = client.get("/api/series", params=asked)
    assert reply.status_code == httpx.codes.OK, reply.text
    return reply.json()["series"]


def refused(reply: httpx.Response, status: int, said: str) -> None:
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
    assert said in reply.json()["error"]


@pytest.mark.parametrize("path", EVERY_PATH)
def test_every_reply_forbids_foreign_content_and_caching(client: TestClient, path: str) -> None:
    for reply in (client.get(path), client.post(path), client.get(path, headers={"Host": "evil.example"})):
        assert reply.headers["content-security-policy"] == (
            "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
        )
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")
        assert "access-control-allow-origin" not in reply.headers


def test_the_page_and_its_files_are_served_and_nothing_beside_them(client: TestClient) -> None:
    assert client.get("/").text == client.get("/static/index.html").text
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..\\app.py",
        "/static/%00",
        "/docs",
        "/openapi.json",
    ):
        refused(client.get(path), 404, "Not Found")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:7860", "", "localhost.", "0.0.0.0", "[::2]:1"]
)
def test_a_page_that_rebinds_its_name_to_this_machine_is_refused(client: TestClient, host: str) -> None:
    for path in EVERY_PATH:
        refused(client.get(path, headers={"Host": host}), 403, "127.0.0.1 and localhost only")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:7860"])
def test_every_name_of_the_loopback_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"Host": host}).status_code == httpx.codes.OK


@pytest.mark.parametrize("name", ["DIRECTIONS", "MEANINGS"])
def test_the_page_explains_just_the_figures_that_the_grid_shows(name: str) -> None:
    script = (Path(watched.__file__).parent / "static" / "format.js").read_text()
    table = re.search(rf"const {name} = {{(.*?)}};", script, re.DOTALL)
    assert table
    assert set(re.findall(r"(\w+): (?:[\"-]|\d)", table[1])) == set(SHOWN)


def test_whoever_gives_an_address_is_answered_by_every_name(runs: Path) -> None:
    with TestClient(create_app(runs, any_host=True), base_url="http://gpu-7.example") as client:
        assert client.get("/api/runs").status_code == httpx.codes.OK


def test_runs_are_listed_the_latest_first(client: TestClient, runs: Path) -> None:
    with create(runs / "sweep" / "b") as store:
        store.log(1, "train", {"all/reward": 0.5})
        told = client.get("/api/runs").json()
        assert told["root"] == str(runs)
        assert [run["name"] for run in told["runs"]] == ["sweep/b", "demo"]
        latest, demo = told["runs"]
        assert (latest["state"], latest["step"], latest["total_steps"], latest["reward"]) == ("running", 1, STEPS, 0.5)
        assert demo["state"] == "stopped"
        assert demo["reward"] == list(read_metrics(runs / "demo"))[-2]["metrics"]["all/reward"]
    assert client.get("/api/runs").json()["runs"][0]["state"] == "stopped"


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        assert client.get("/api/runs").json() == {"root": str(tmp_path), "runs": []}
        refused(client.get("/api/grid?run=demo"), 404, 'no run "demo" in this folder')


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b""),
        ("run.json", b"{}"),
        ("run.json", b'{"total_steps": 1, "sessions": [], "state": "\xff"}'),
        ("metrics.jsonl", None),
        ("metrics.jsonl", b"nonsense\nnonsense\nnonsense\n"),
        ("metrics.jsonl", b'{"step": 1, "split": "train", "metrics": {"all/reward": {}}, "timing": {}}\n'),
        ("metrics.jsonl", b"\x00" * 5000),
    ],
)
def test_damage_in_one_run_is_told_of_it_and_leaves_the_others_alone(
    client: TestClient, runs: Path, file: str, content: bytes | None
) -> None:
    with create(runs / "bad") as store:
        train(store, range(1, 3))
    if content is None:
        (runs / "bad" / file).unlink()
    else:
        (runs / "bad" / file).write_bytes(content)
    listed = {run["name"]: run for run in client.get("/api/runs").json()["runs"]}
    assert listed["demo"]["state"] == "stopped"
    if file == "metrics.jsonl" and content and content.startswith(b"\x00"):  # looks like a row that is half written
        assert grid(client, "bad")["read"]["bytes"] == 0
    else:
        assert listed["bad"]["state"] == "damaged"
        assert file in listed["bad"]["problem"]
        refused(client.get("/api/grid?run=bad"), 409, file)
    assert grid(client)["run"]["name"] == "demo"


def test_a_damaged_line_before_the_last_is_named_with_its_place(client: TestClient, runs: Path) -> None:
    path = runs / "demo" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{half\n", *lines[2:]]))
    refused(client.get("/api/grid?run=demo"), 409, "not a JSON object; restore the file, or delete this line")
    refused(client.get("/api/series?run=demo&source=all&figure=reward"), 409, "metrics.jsonl")
    assert client.get("/api/runs").json()["runs"][0]["step"] == STEPS


def test_damage_beside_the_figures_is_told_and_the_figures_are_shown(client: TestClient, runs: Path) -> None:
    (runs / "demo" / "rollouts" / f"eval-{STEPS:06d}.parquet").write_bytes(b"PAR1 or not")
    (runs / "demo" / "alerts.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    told = grid(client)
    assert (told["run"]["state"], told["evaluation"]) == ("stopped", None)
    assert "alerts.jsonl" in told["run"]["problem"]
    assert ["alerts.jsonl" in told["problems"][0], "eval-000008.parquet" in told["problems"][1]] == [True, True]
    assert told["sources"][0]["cells"]["reward"]["last"] is not None
    refused(client.get("/api/alerts?run=demo"), 409, "alerts.jsonl")


def test_the_grid_has_all_first_and_then_the_sources_by_task_and_name(client: TestClient) -> None:
    told = grid(client)
    assert [(row["source"], row["task"]) for row in told["sources"]] == [
        ("all", ""),
        ("zeta", "chart"),
        ("dots", "counting"),  # held out nowhere: its task is that of the rollouts
    ]
    assert told["figures"] == [
        "reward",
        "accuracy",
        "correct",
        "format",
        "zero_spread",
        "truncated",
        "length",
        "length_incorrect",
        "entropy",
        "reflection",
        "unscorable",
        "failed",
    ]


def test_the_cells_of_the_grid_are_the_means_of_the_rows(client: TestClient, runs: Path) -> None:
    rows = [row["metrics"] for row in read_metrics(runs / "demo") if row["split"] == "train"]
    for source in grid(client, points=STEPS)["sources"]:
        for figure, cell in source["cells"].items():
            values = [row.get(f"{source['source']}/{figure}") for row in rows]
            there = [value for value in values if value is not None]
            assert [value is None for value in cell["points"]] == [value is None for value in values]
            np.testing.assert_allclose([v for v in cell["points"] if v is not None], there, rtol=1e-6)
            np.testing.assert_allclose([cell["first"], cell["last"]], [there[0], there[-1]], rtol=1e-6)
    assert [len(source["cells"]["reward"]["points"]) for source in grid(client, points=3)["sources"]] == [3] * 3


def test_the_grid_compares_the_first_evaluation_with_the_last(client: TestClient) -> None:
    before, after = scores(4), scores(STEPS)
    change = gain(before.sampled["zeta"], after.sampled["zeta"])
    assert change
    told = grid(client)["evaluation"]
    assert (told["first_step"], told["last_step"]) == (4, STEPS)
    row = {
        "source": "zeta",
        "task": "chart",
        "n": 2,
        "before": before.sampled["zeta"].estimate.value,
        "before_se": before.sampled["zeta"].estimate.standard_error,
        "after": after.sampled["zeta"].estimate.value,
        "after_se": after.sampled["zeta"].estimate.standard_error,
        "gain": change.value,
        "gain_se": change.standard_error,
        "greedy_before": before.greedy["zeta"].estimate.value,
        "greedy_after": after.greedy["zeta"].estimate.value,
    }
    assert told["rows"] == [row]
    assert told["mean"] == row | {"source": "all", "task": ""}
    assert mean_over_tasks([("chart", before.sampled["zeta"].estimate)]).value == told["mean"]["before"]


def test_figures_that_no_source_has_are_those_of_the_step(client: TestClient, runs: Path) -> None:
    last = list(read_metrics(runs / "demo"))[-2]
    assert grid(client)["step_figures"] == {
        "grad_norm": 0.5,
        "timing/rollout_s": 2.0 * STEPS,
        "timing/elapsed_s": last["timing"]["elapsed_s"],
    }
    figures = client.get("/api/figures?run=demo&source=all").json()
    assert figures["train"][:2] == ["reward", "accuracy"]
    assert figures["train"][-4:] == [
        "zero_with_reason",
        "layer_00/grad_norm_llm",
        "timing/elapsed_s",
        "timing/rollout_s",
    ]
    assert {"score", "greedy"} <= set(figures["eval"])
    of_source = client.get("/api/figures?run=demo&source=dots").json()
    assert "reward" in of_source["train"]
    assert of_source["eval"] == []
    assert client.get("/api/figures?run=demo&source=task:chart").json() == {"train": ["reward"], "eval": []}
    for name, values in (
        ("timing/rollout_s", [2.0 * s for s in range(1, 9)]),
        ("layer_00/grad_norm_llm", [0.25] * 8),
        ("grad_norm", [0.5] * 8),
    ):
        assert series(client, run="demo", source="all", figure=name)[0]["mean"] == values


def test_counts_of_what_was_set_aside_and_skipped_are_shown(client: TestClient, runs: Path) -> None:
    with RunStore.resume(runs / "demo", step=STEPS, threads=1) as store:
        store.quarantine(STEPS, "dots.parquet#1", "the picture is corrupt")
        store.skip(STEPS, ["a", "b"], "loss nan")
        store.skip(STEPS, ["c"], "loss nan")
    told = grid(client)
    assert (told["quarantined"], told["skipped"]) == (1, 2)


def test_alerts_are_shown_with_their_source_and_counted_while_they_last(client: TestClient, runs: Path) -> None:
    before = grid(client)["version"]
    begun = Alert("zeta", "no_spread", 3, "all 30 groups of 10 steps are of equal rewards")
    with RunStore.resume(runs / "demo", step=STEPS, threads=1) as store:
        store.alert(STEPS, begun)
        store.alert(STEPS, Alert("gone", "failed", 2, "<script>"))
    row = {"step": 3, "until": None, "source": "zeta", "kind": "no_spread", "message": begun.message}
    other = {"step": 2, "until": None, "source": "gone", "kind": "failed", "message": "<script>"}
    told = grid(client)
    assert told["version"] != before
    assert told["run"]["alerts"] == 2
    assert {source["source"]: source["alerts"] for source in told["sources"]} == {
        "all": [other],  # of a source that has no row
        "zeta": [row],
        "dots": [],
    }
    with RunStore.resume(runs / "demo", step=STEPS, threads=1) as store:
        store.alert(STEPS, Alert("zeta", "no_spread", 3, begun.message, until=7))
    assert client.get("/api/alerts?run=demo").json()["alerts"] == [row | {"until": 7}, other]
    assert client.get("/api/runs").json()["runs"][0]["alerts"] == 1


def test_series_of_several_runs_sources_and_figures_come_in_the_order_asked(client: TestClient, runs: Path) -> None:
    with create(runs / "other") as store:
        train(store, range(1, 4))
    asked: dict[str, Any] = {
        "run": ["other", "demo"],
        "source": ["zeta", "all"],
        "figure": ["length", "reward"],
        "points": 4,
    }
    told = series(client, **asked)
    assert [(one["run"], one["source"], one["figure"]) for one in told] == [
        (run, source, figure) for run in asked["run"] for source in asked["source"] for figure in asked["figure"]
    ]
    assert told[0]["steps"] == [1, 2, 3]
    assert told[5]["steps"] == [1, 3, 5, 7]
    [reward] = series(client, run="demo", source="zeta", figure="reward", points=2)
    values = [(1 + step / STEPS) / 3 for step in range(1, STEPS + 1)]
    assert reward["steps"] == [2, 6]
    for name, expected in (
        ("mean", [np.mean(values[:4]), np.mean(values[4:])]),
        ("low", [values[0], values[4]]),
        ("high", [values[3], values[7]]),
    ):
        np.testing.assert_allclose(reward[name], expected, rtol=1e-6)


def test_steps_without_a_figure_are_null_in_its_curve(client: TestClient) -> None:
    [curve] = series(client, run="demo", source="dots", figure="reward")
    assert [step for step, value in zip(curve["steps"], curve["mean"], strict=True) if value is None] == [3, 6]
    [evaluated] = series(client, run="demo", source="zeta", figure="score", split="eval")
    assert evaluated["steps"] == [4, STEPS]
    assert series(client, run="demo", source="dots", figure="no_such")[0]["mean"] == []


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("grid", 422, "run: Field required"),
        ("grid?run=demo&points=x", 422, "points: "),
        ("grid?run=demo&points=501", 422, "points: "),
        ("grid?run=" + "x" * 1001, 422, "run: "),
        ("grid?run=..", 404, "no run"),
        ("grid?run=%2e%2e%2fdemo", 404, "no run"),
        ("grid?run=demo%00", 404, "no run"),
        ("grid?run=/etc", 404, "no run"),
        ("figures?run=demo&source=nobody", 404, 'no source "nobody"'),
        ("series?run=demo&source=nobody&figure=reward", 404, 'no source "nobody"'),
        ("series?run=demo&source=all", 422, "figure: Field required"),
        ("series?run=demo&source=all&figure=reward&split=dev", 422, "split: "),
        ("series?run=demo&source=all&figure=reward&points=0", 422, "points: "),
        ("series?run=demo&source=all" + "&figure=reward" * 501, 422, "figure: "),
        ("series?" + "run=demo&" * 30 + "source=all" + "&figure=reward" * 30, 422, "more than 500 curves"),
        ("alerts?run=none", 404, "no run"),
    ],
)
def test_a_request_that_makes_no_sense_is_answered_with_a_sentence(
    client: TestClient, query: str, status: int, said: str
) -> None:
    refused(client.get(f"/api/{query}"), status, said)


def test_a_fault_of_the_servers_own_is_told_as_such(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listing, "rows", lambda self: 1 / 0)
    reply = client.get("/api/runs")
    refused(reply, 500, "a fault of the server's own, see its terminal: ZeroDivisionError")
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_run_that_grows_is_shown_as_it_grows(client: TestClient, runs: Path) -> None:
    with create(runs / "live") as store:
        empty = grid(client, "live")
        assert [row["source"] for row in empty["sources"]] == ["all"]
        assert (empty["figures"], empty["evaluation"], empty["run"]["step"]) == ([], None, 0)
        versions = [empty["version"]]
        for step in range(1, STEPS + 1):
            train(store, range(step, step + 1))
            told = grid(client, "live")
            versions.append(told["version"])
            assert told["run"]["step"] == step
            assert told["read"]["bytes"] == told["read"]["of"]
            assert len(told["sources"][0]["cells"]["reward"]["points"]) == step
            assert grid(client, "live")["version"] == told["version"]
        assert len(set(versions)) == STEPS + 1
    assert grid(client, "live")["run"]["state"] == "stopped"
    assert grid(client, "live")["version"] not in versions


def test_a_run_that_is_resumed_while_it_is_watched_is_shown_from_there(client: TestClient, runs: Path) -> None:
    assert len(series(client, run="demo", source="all", figure="reward")[0]["steps"]) == STEPS
    with RunStore.resume(runs / "demo", step=5, threads=1) as store:
        assert series(client, run="demo", source="all", figure="reward")[0]["steps"] == [1, 2, 3, 4, 5]
        store.log(6, "train", {"all/reward": 0.125})
        assert series(client, run="demo", source="all", figure="reward")[0]["mean"][-1] == 0.125


def test_a_run_killed_in_the_middle_of_a_row_shows_every_step_before(client: TestClient, runs: Path) -> None:
    (runs / "demo" / "history.bin").unlink()
    with (runs / "demo" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"metrics":{"all/rew')
    told = grid(client)
    assert told["run"]["step"] == STEPS
    size = (runs / "demo" / "metrics.jsonl").stat().st_size
    assert told["read"] == {"bytes": size - 20, "of": size - 20}  # there is nothing to wait for
    assert len(series(client, run="demo", source="all", figure="reward")[0]["steps"]) == STEPS


def test_a_long_file_is_read_in_the_background_and_the_grid_says_how_far(
    client: TestClient, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "demo" / "history.bin").unlink()
    monkeypatch.setattr(watched, "PATIENCE", 0.0)  # a row at a time
    monkeypatch.setattr(watched, "SLICE", 0.0)
    told = grid(client)
    assert told["read"]["bytes"] < told["read"]["of"]
    while told["read"]["bytes"] < told["read"]["of"]:
        told = grid(client)
    assert len(told["sources"][0]["cells"]["reward"]["points"]) == STEPS


def test_a_run_that_is_deleted_while_it_is_watched_is_gone(client: TestClient, runs: Path) -> None:
    grid(client)
    (runs / "demo").rename(runs.parent / "moved")
    refused(client.get("/api/grid?run=demo"), 404, "no run")
    assert client.get("/api/runs").json()["runs"] == []


def test_one_slow_run_keeps_nobody_else_waiting(
    client: TestClient, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(runs / "slow") as store:
        train(store, range(1, 3))
    asked, go_on = threading.Event(), threading.Event()
    read = History.reading

    def slow(folder: Path) -> History:
        if folder.name == "slow":
            asked.set()
            go_on.wait()
        return read(folder)

    monkeypatch.setattr(History, "reading", slow)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(grid, client, "slow")
        asked.wait()
        try:
            assert grid(client)["run"]["name"] == "demo"
            assert len(client.get("/api/runs").json()["runs"]) == 2
        finally:
            go_on.set()
        assert waiting.result()["run"]["name"] == "slow"


def test_many_at_a_time_get_the_same_answer(client: TestClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: client.get("/api/grid?run=demo").content, range(64)))
    assert len(set(replies)) == 1


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "vtriune.cli", "watch", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_other_names_of_the_loopback_do_not_switch_the_guard_off(runs: Path) -> None:
    for host in ("localhost", "127.0.0.2"):
        with start(runs, "--host", host, "--port", "0") as process:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert httpx.get(f"{url}/api/runs").status_code == httpx.codes.OK
            evil = httpx.get(f"{url}/api/runs", headers={"Host": "evil.example"})
            assert evil.status_code == httpx.codes.FORBIDDEN
            process.terminate()
    assert is_loopback("::1")
    assert not is_loopback("::")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_on_the_loopback_and_ends_without_a_word(runs: Path, number: signal.Signals) -> None:
    with start(runs, "--port", "0") as process:
        assert process.stdout
        assert process.stderr
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        with httpx.Client(base_url=url) as kept:  # its connection stays open
            assert kept.get("/api/runs").json()["runs"][0]["name"] == "demo"
            assert "<!doctype html>" in kept.get("/").text.lower()
            assert kept.get("/api/runs", headers={"Host": "evil.example"}).status_code == httpx.codes.FORBIDDEN
            process.send_signal(number)
            assert process.wait() == 0
        assert process.stderr.read() == ""


def test_the_command_says_what_is_wrong_with_its_folder_or_its_port(runs: Path, tmp_path: Path) -> None:
    with start(tmp_path / "none") as process:
        assert process.wait() == 2
        assert process.stderr
        assert "no such folder; give the folder that holds your runs" in process.stderr.read()
    with start(runs, "--port", "0") as first:
        assert first.stdout
        port = first.stdout.readline().strip().rpartition(":")[2]
        with start(runs, "--port", port) as second:
            assert second.wait() == 2
            assert second.stderr
            assert "choose another --host or --port" in second.stderr.read()
        first.kill()
