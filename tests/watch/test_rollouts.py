"""The endpoints of rollouts over a run with real rows, pictures and verdicts."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from httpx import Response

from vtriune.data.sources import SourceConfig, load_samples
from vtriune.grpo.advantages import group_advantages
from vtriune.monitor.rollouts import SCHEMA
from vtriune.monitor.runs import rollout_file
from vtriune.monitor.store import RunStore
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import FinishReason, Group, ImageSize, JudgedGroup, Progress, Rollout, Sample
from vtriune.watch import pictures
from vtriune.watch.app import create_app

HOSTILE = '<script>alert(1)</script>\u202e\u2028 \\boxed{"'
Get = Callable[..., Response]


def answered(sample: Sample, texts: Sequence[str], progress: Progress) -> JudgedGroup:
    sizes = tuple(ImageSize(size, size) for size in (image.load().size for image in sample.images))
    rollouts = tuple(
        Rollout(np.arange(2 + len(text) % 5), np.zeros(0, np.float32), text, FinishReason.STOP, 0.5) for text in texts
    )
    items = [JudgeItem(one.text, sample.reward, progress, sizes, len(one.token_ids)) for one in rollouts]
    verdicts = tuple(map(judge_item, items))
    group = Group(sample, f"user: {sample.messages[-1].content}", np.arange(3), sizes, rollouts)
    return JudgedGroup(group, verdicts, group_advantages("grpo", verdicts, sample.reward))


@pytest.fixture(scope="module")
def runs(playground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `demo`: two training steps and an evaluation, every task of the playground."""
    root = tmp_path_factory.mktemp("runs")
    data = {split: [{"path": f"data/{split}"}] for split in ("train", "test")}
    (root / "data").symlink_to(playground)
    recipe = {"base": str(root), "data": data, "objective": {"advantage": "grpo"}}
    with RunStore.create(root / "demo", recipe=recipe, total_steps=2, threads=1) as store:
        for split in ("train", "test"):
            config = SourceConfig(path=f"data/{split}")
            samples = load_samples(config, preset="modern", base=root, check=lambda *_: lambda: None).samples
            for step in (1, 2) if split == "train" else (0,):
                progress = Progress(step - 1 if step else 0, 2, "train" if step else "test")
                groups = [
                    answered(sample, [f"<think>step {step}</think>{sample.reward.gold}", HOSTILE], progress)
                    for sample in samples
                ]
                if step:
                    store.write_rollouts(step, groups, progress)
                    store.log(step, "train", {"all/reward": 0.5})
                else:
                    store.write_evaluation(0, groups, [answered(groups[0].group.sample, ["no"], progress)], progress)
    return root


@pytest.fixture
def get(runs: Path) -> Iterator[Get]:
    with TestClient(create_app(runs), base_url="http://127.0.0.1") as client:
        yield lambda path, said="", **query: client.get(path, params=said or {"run": "demo", **query})


def test_a_page_of_rollouts_says_of_each_what_is_stored(get: Get, runs: Path) -> None:
    page = get("/api/rollouts", sort="step", limit=500).json()
    stored = pq.read_table(sorted((runs / "demo" / "rollouts").glob("step-*"))).to_pylist()
    assert page["rows"] == [
        {"split": "train"}
        | {name: row[name] for name in page["rows"][0] if name not in ("split", "response")}
        | {"response": row["response"][:300]}
        for row in stored
    ]
    assert (page["matching"], page["next"], page["damaged"]) == (len(stored), None, [])
    assert page["searched"] == {"rows": len(stored), "of": len(stored)}


def test_filters_narrow_and_pages_follow_each_other(get: Get) -> None:
    wanted = get("/api/rollouts", task="counting", text="<SCRIPT>", sort="-step", limit=500).json()
    assert wanted["matching"] == len(wanted["rows"]) > 2
    assert {row["task"] for row in wanted["rows"]} == {"counting"}
    assert all("<script>" in row["response"] for row in wanted["rows"])
    seen: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = get("/api/rollouts", task="counting", text="<SCRIPT>", sort="-step", limit=1, cursor=cursor).json()
        seen, cursor = seen + page["rows"], page["next"]
    assert seen == wanted["rows"]
    assert get("/api/rollouts", split="eval", decoding="greedy").json()["matching"] == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"run": "nothing"}, 404),
        ({"run": ".."}, 404),
        ({"cursor": "abc"}, 422),
        ({"sort": "colour"}, 422),
        ({"limit": "501"}, 422),
        ({"limit": "many"}, 422),
        ({"reward_from": "inf"}, 422),
        ({"step_from": "-1"}, 422),
        ({"colour": "red"}, 422),
        ({"split": "../train"}, 422),
        ({"text": "a" * 501}, 422),
    ],
)
def test_a_bad_query_is_answered_with_one_sentence(get: Get, query: dict[str, str], status: int) -> None:
    reply = get("/api/rollouts", **query)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
    assert reply.json()["error"]


def test_a_group_has_its_prompt_gold_parameters_pictures_shapes_and_answers(get: Get, runs: Path) -> None:
    stored = pq.read_table(rollout_file(runs / "demo", "train", 2)).to_pylist()
    first = next(row for row in stored if row["verifier"] == "detection")
    group = get("/api/group", step=2, group=first["group"]).json()
    assert {name: group[name] for name in ("step", "group", "decoding", "split")} == {
        "step": 2,
        "group": first["group"],
        "decoding": "sampled",
        "split": "train",
    }
    assert group["groups"] == 1 + max(row["group"] for row in stored)
    for name in ("sample_id", "source", "task", "prompt", "gold", "verifier", "preset", "progress_step", "total_steps"):
        assert group[name] == first[name]
    assert group["parameters"] == orjson.loads(first["parameters"])
    assert [(one["where"], one["original"], one["resized"]) for one in group["images"]] == [
        (one["where"], one["original"], one["resized"]) for one in first["images"]
    ]
    right, hostile = group["answers"]
    assert right["response"] == first["response"]
    assert right["reasoning"] == "step 2"
    assert right["report"] == orjson.loads(first["report"])
    assert (right["reward"], right["advantage"]) == (first["reward"], first["advantage"])
    assert group["gold_shapes"]
    assert [shape["xy"] for shape in right["shapes"]] == [shape["xy"] for shape in group["gold_shapes"]]
    assert {shape["iou"] for shape in right["shapes"]} == {1.0}
    assert (hostile["response"], hostile["shapes"], hostile["reasoning"]) == (HOSTILE, [], "")
    greedy = get("/api/group", split="eval", step=0, group=0, decoding="greedy").json()
    assert (greedy["groups"], [one["response"] for one in greedy["answers"]]) == (1, ["no"])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"step": 9, "group": 0}, "train step 9 has no stored rollouts"),
        ({"step": 1, "group": 999}, "train step 1 has no group 999 of sampled answers"),
        ({"step": 1, "group": 0, "decoding": "greedy"}, "train step 1 has no group 0 of greedy answers"),
    ],
)
def test_a_group_that_is_not_there_is_404(get: Get, query: dict[str, Any], message: str) -> None:
    for path in ("/api/group", "/api/image"):
        reply = get(path, **query)
        assert (reply.status_code, reply.json()) == (404, {"error": message})


def test_every_picture_of_a_run_is_shown_again_to_the_pixel(get: Get, runs: Path) -> None:
    seen = 0
    for split, step in (("train", 1), ("eval", 0)):
        config = SourceConfig(path=f"data/{'train' if split == 'train' else 'test'}")
        loaded = load_samples(config, preset="modern", base=runs, check=lambda *_: lambda: None).samples
        for number, sample in enumerate(loaded):
            group = get("/api/group", split=split, step=step, group=number).json()
            for image, reference in zip(group["images"], sample.images, strict=True):
                reply = get(*image["url"].split("?"))
                assert reply.headers["content-type"] == "image/png"
                shown = PIL.Image.open(io.BytesIO(reply.content))
                assert (shown.format, shown.tobytes()) == ("PNG", reference.load().tobytes())
                seen += 1
    assert seen > 10


@pytest.fixture
def one_picture(tmp_path: Path) -> Callable[..., Response]:
    """Ask for the picture of a run with one row, after `change` has happened to its data."""

    def ask(change: Callable[[Path], object], *, position: int = 0, size: tuple[int, int] = (8, 6)) -> Response:
        data = tmp_path / "data"
        data.mkdir()
        PIL.Image.new("RGB", size, "red").save(data / "a.png")
        row = {
            "data_source": "dots",
            "images": ["a.png"],
            "prompt": [{"role": "user", "content": "<image>How many?"}],
            "ability": "counting",
            "reward_model": {"ground_truth": "4", "verifier": "mathverify"},
        }
        (data / "train.jsonl").write_bytes(orjson.dumps(row) + b"\n")
        config = SourceConfig(path="data/train.jsonl")
        (sample,) = load_samples(config, preset="modern", base=tmp_path, check=lambda *_: lambda: None).samples
        recipe = {"base": str(tmp_path), "data": {"train": [{"path": "data/train.jsonl"}], "test": []}}
        with RunStore.create(tmp_path / "runs" / "demo", recipe=recipe, total_steps=1, threads=1) as store:
            progress = Progress(0, 1, "train")
            store.write_rollouts(1, [answered(sample, ["4"], progress)], progress)
        change(data)
        with TestClient(create_app(tmp_path / "runs"), base_url="http://127.0.0.1") as client:
            reply: Response = client.get(f"/api/image?run=demo&step=1&group=0&position={position}")
            return reply

    return ask


def rewrite(file: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda data: (data / file).write_text((data / file).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "train.jsonl").unlink(), "no Parquet (.parquet) or JSON Lines (.jsonl) file there"),
        (lambda data: (data / "train.jsonl").write_bytes(b""), "no data file that this run's recipe names has the row"),
        (rewrite("train.jsonl", '"4"', '"5"'), "it has other gold or another number of pictures"),
        (rewrite("train.jsonl", "a.png", "gone.png"), "no picture at"),
        (lambda data: (data / "a.png").write_bytes(b"root:x:0:0"), "cannot be read as a picture"),
        (lambda data: PIL.Image.new("RGB", (9, 6)).save(data / "a.png"), "its picture is (9, 6), and was (8, 6)"),
        (rewrite("../runs/demo/recipe.yaml", "path:", "paht:"), "recipe.yaml: "),
        (lambda data: (data / "../runs/demo/recipe.yaml").unlink(), "recipe.yaml: "),
    ],
)
def test_a_picture_whose_data_is_gone_or_changed_is_refused(
    one_picture: Callable[..., Response], change: Callable[[Path], object], message: str
) -> None:
    reply = one_picture(change)
    assert reply.status_code == 409
    assert message in reply.json()["error"]


@pytest.mark.parametrize("sample_id", ["data/secret.jsonl#1", "../data/train.jsonl#1", "/etc/passwd#1", "#1", ""])
def test_a_file_that_no_source_names_is_not_opened_whatever_the_rollouts_say(
    one_picture: Callable[..., Response], sample_id: str
) -> None:
    def point_elsewhere(data: Path) -> None:
        (data / "secret.jsonl").write_bytes((data / "train.jsonl").read_bytes())
        path = rollout_file(data.parent / "runs" / "demo", "train", 1)
        rows = pq.read_table(path).to_pylist()
        pq.write_table(pa.Table.from_pylist([row | {"sample_id": sample_id} for row in rows], schema=SCHEMA), path)

    reply = one_picture(point_elsewhere)
    assert reply.status_code == 409
    assert f"no data file that this run's recipe names has the row {sample_id}" in reply.json()["error"]


def test_a_large_picture_is_shown_smaller_and_a_missing_position_is_404(
    one_picture: Callable[..., Response], tmp_path: Path
) -> None:
    reply = one_picture(lambda data: None, size=(4000, 1000))
    assert PIL.Image.open(io.BytesIO(reply.content)).size == (pictures.MAX_SIDE, 400)
    with TestClient(create_app(tmp_path / "runs"), base_url="http://127.0.0.1") as client:
        reply = client.get("/api/image", params={"run": "demo", "step": 1, "group": 0, "position": 1})
    assert (reply.status_code, reply.json()["error"]) == (404, "data/train.jsonl#1 has 1 pictures, and none 1")


def test_damaged_rollout_files_are_told_of_and_hide_no_others(runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs / "demo", tmp_path / "demo")
    folder = tmp_path / "demo"
    rollout_file(folder, "train", 1).write_bytes(rollout_file(folder, "train", 1).read_bytes()[:-9])
    half = pq.read_table(rollout_file(folder, "train", 2)).drop_columns(["gold"])
    pq.write_table(half, rollout_file(folder, "train", 3))
    with TestClient(create_app(tmp_path), base_url="http://127.0.0.1") as client:
        page = client.get("/api/rollouts?run=demo&limit=500").json()
        assert {row["step"] for row in page["rows"]} == {2}
        assert ["step-000001.parquet" in fault for fault in page["damaged"]] == [True, False]
        for step in (1, 3):
            reply = client.get(f"/api/group?run=demo&step={step}&group=0")
            assert reply.status_code == 409
            assert f"step-00000{step}.parquet: not readable as rollouts" in reply.json()["error"]


def test_the_dashboard_imports_neither_torch_nor_transformers() -> None:
    import subprocess

    code = "import sys, vtriune.watch.app; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
