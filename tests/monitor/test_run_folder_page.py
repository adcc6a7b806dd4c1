"""docs/run_folder.md says of the run folder what is so, and its one-line readings work."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vtriune.monitor.alerts import Alert
from vtriune.monitor.evaluation import Summary
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.rollouts import SCHEMA
from vtriune.monitor.runs import MetricsRow, RunFile, Session
from vtriune.monitor.store import RunStore
from vtriune.session import RUN_FILES, RUN_FOLDERS
from vtriune.types import JudgedGroup, Progress, Verdict

PAGE = (Path(__file__).parents[2] / "docs" / "run_folder.md").read_text()
LINES = [line for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) for line in block.splitlines()]

Judged = Callable[..., JudgedGroup]
Scored = Callable[..., Verdict]


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.M)[0]


def table(title: str) -> list[list[str]]:
    rows = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_page_names_every_column_with_its_type_in_order() -> None:
    def spelt(kind: Any) -> str:
        return "list of struct" if pa.types.is_list(kind) else str(kind)

    columns = [(cells[0].strip("`| "), cells[1]) for cells in table("rollouts/*.parquet")]
    assert columns == [(field.name, spelt(field.type)) for field in SCHEMA]
    assert all(cells[-1] for cells in table("rollouts/*.parquet"))
    for part in SCHEMA.field("images").type.value_type:
        assert f"`{part.name}`" in table("rollouts/*.parquet")[-1][-1]


def test_the_page_names_every_file_and_folder_of_a_run() -> None:
    named = {re.split(r"[`/]", cells[0].lstrip("`| "))[0] for cells in table("Files")}
    assert named == {*RUN_FILES, *RUN_FOLDERS}


def test_the_page_names_every_key_of_the_json_files() -> None:
    assert [cells[0].strip("`| ") for cells in table("metrics.jsonl")] == list(MetricsRow.__annotations__)
    files = section("Files")
    keys = {*RunFile.model_fields, *Session.model_fields, *Summary.__annotations__, *Alert.__dataclass_fields__}
    for key in keys - {"versions_changed", "sources"}:
        assert f"`{key}`" in files, key


@pytest.fixture
def folder(tmp_path: Path, judged: Judged, scored: Scored, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/demo of two steps and an evaluation, killed in the middle of the third step."""
    with RunStore.create(tmp_path / "runs" / "demo", recipe={}, total_steps=4, threads=1) as store:
        for step in (1, 2):
            groups = [
                judged([1.0, 0.0], source="math", texts=["4", f"wrong {step}"], lengths=[1, 10 * step]),
                judged([scored(step / 4, report={"iou_50": step / 2})], source="coco"),
            ]
            store.write_rollouts(step, groups, Progress(step - 1, 4, "train"))
            store.log(step, "train", source_metrics(groups))
        store.write_evaluation(2, groups[:1], groups[1:], Progress(2, 4, "test"))
        store.log(2, "eval", {"all/score": 50.0})
        (store.folder / "rollouts" / ".step-000003.parquet.tmp").write_bytes(b"PAR1 half")
        with (store.folder / "metrics.jsonl").open("ab") as file:
            file.write(b'{"metrics": {"all/rew')
    monkeypatch.chdir(tmp_path)
    return store.folder


def readings(folder: Path) -> list[Callable[[], Any]]:
    """The page's lines, each as a function of a module that imports what they need."""
    functions = [f"def reading_{number}():\n    return {line}" for number, line in enumerate(LINES)]
    path = folder.parent / "readings.py"
    path.write_text("\n".join(["import json", "import duckdb", "import pandas", *functions]))
    spec = spec_from_file_location("readings", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return [getattr(module, f"reading_{number}") for number in range(len(LINES))]


def test_the_page_has_readings_for_pandas_and_for_duckdb() -> None:
    assert len(LINES) == 8
    assert [line.split(".")[0] for line in LINES] == ["pandas"] * 4 + ["duckdb"] * 4


def test_every_reading_of_pandas_gives_what_was_written_though_the_run_was_killed(folder: Path) -> None:
    figures, means, wrong, reports = (reading() for reading in readings(folder)[:4])
    assert figures[figures.split == "train"]["metrics.math/reward"].tolist() == [0.5, 0.5]
    assert figures["metrics.all/score"].tolist()[-1] == 50.0
    assert means["coco"].tolist() == [0.25, 0.5]
    assert sorted(wrong) == ["wrong 1", "wrong 2", "wrong 2"]
    assert reports.iou_50.dropna().tolist() == [1.0]


def test_every_reading_of_duckdb_gives_what_was_written_though_the_run_was_killed(folder: Path) -> None:
    means, longest, reports, figures = (reading().fetchall() for reading in readings(folder)[4:])
    assert means == [("coco", 1, 0.25), ("coco", 2, 0.5), ("math", 1, 0.5), ("math", 2, 0.5)]
    assert [row[0] for row in longest] == ["wrong 2", "wrong 2", "wrong 1"]
    assert dict(reports)["coco"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert [step for step, _ in figures] == [1, 2]
    rewards = [metrics["all/reward"] for _, metrics in figures]
    assert rewards == pytest.approx([(1 + 0 + 0.25) / 3, (1 + 0 + 0.5) / 3])
