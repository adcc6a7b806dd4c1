import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest

from vtriune.monitor.evaluation import Evaluation, evaluate_metrics
from vtriune.monitor.files import DamagedRun
from vtriune.monitor.rollouts import SCHEMA, read_evaluation, write_rollouts
from vtriune.types import ImageSize, JudgedGroup, Progress, RewardSpec, Status, Verdict

Judged = Callable[..., JudgedGroup]
Scored = Callable[..., Verdict]

PROGRESS = Progress(step=11, total_steps=90, split="train")


def test_everything_a_verdict_follows_from_can_be_read_back(tmp_path: Path, judged: Judged, scored: Scored) -> None:
    verdicts = [
        scored(1 / 3, report={"iou_50": 0.1 + 0.2, "map": math.nan}),
        scored(0.0, reason="cpu limit"),
        Verdict(Status.UNSCORABLE, reason="gold does not parse"),
    ]
    group = judged(verdicts, texts=["a\nb", "\u2028'\"<script>", ""], lengths=[4, 5, 1], cut=[False, True, False])
    path = tmp_path / "step-000012.parquet"
    write_rollouts(path, 12, PROGRESS, {"sampled": [group]})

    rows = pq.read_table(path).to_pylist()
    for position, (row, rollout, verdict) in enumerate(zip(rows, group.group.rollouts, verdicts, strict=True)):
        spec = RewardSpec(
            row["verifier"],
            row["gold"],
            row["accuracy_weight"],
            row["format_weight"],
            orjson.loads(row["parameters"]),
            row["preset"],
        )
        assert spec == group.group.sample.reward
        assert Progress(row["progress_step"], row["total_steps"], row["split"]) == PROGRESS
        sizes = [ImageSize(tuple(image["original"]), tuple(image["resized"])) for image in row["images"]]
        assert tuple(sizes) == group.group.image_sizes
        assert [image["where"] for image in row["images"]] == ["train.parquet row 7 image 0"]
        assert row["response"] == rollout.text
        assert (row["tokens"], row["finish"]) == (len(rollout.token_ids), rollout.finish)
        assert (row["step"], row["group"], row["answer"], row["decoding"]) == (12, 0, position, "sampled")
        assert row["advantage"] == group.advantages[position]
        stored = Verdict(
            Status(row["status"]),
            row["reward"],
            row["accuracy"],
            row["format"],
            row["correct"],
            {name: value for name, value in orjson.loads(row["report"]).items() if value is not None},
            row["reason"],
        )
        finite = {name: value for name, value in verdict.report.items() if math.isfinite(value)}
        assert stored == Verdict(
            verdict.status, verdict.reward, verdict.accuracy, verdict.format, verdict.correct, finite, verdict.reason
        )


def test_pandas_reads_a_step_and_a_whole_folder_in_one_line(tmp_path: Path, judged: Judged) -> None:
    write_rollouts(tmp_path / "step-000001.parquet", 1, PROGRESS, {"sampled": [judged([1.0, 0.0])]})
    write_rollouts(tmp_path / "step-000002.parquet", 2, PROGRESS, {"sampled": [judged([1.0]), judged([0.5])]})
    assert pd.read_parquet(tmp_path / "step-000001.parquet").reward.tolist() == [1.0, 0.0]
    assert pd.read_parquet(tmp_path).groupby("step").reward.mean().tolist() == [0.5, 0.75]


def test_a_step_without_rollouts_is_a_table_of_the_same_columns(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "step-000001.parquet", 1, PROGRESS, {"sampled": []})
    table = pq.read_table(tmp_path / "step-000001.parquet")
    assert table.schema == SCHEMA
    assert len(table) == 0


def test_a_lone_surrogate_is_stored_as_a_question_mark(tmp_path: Path, judged: Judged) -> None:
    path = tmp_path / "step-000001.parquet"
    write_rollouts(path, 1, PROGRESS, {"sampled": [judged([0.0], texts=["a\ud800b"])]})
    assert pq.read_table(path)["response"].to_pylist() == ["a?b"]


def test_an_evaluation_read_back_equals_the_one_that_was_computed(tmp_path: Path, judged: Judged) -> None:
    failed = Verdict(Status.FAILED, reason="worker died")
    sampled = [judged([1 / 3, 0.0, failed], sample_id="a"), judged([0.7, 1.0, 1.0], sample_id="b", source="ocr")]
    greedy = [judged([1.0], sample_id="a"), judged([failed], sample_id="b", source="ocr")]
    path = tmp_path / "eval-000000.parquet"
    write_rollouts(path, 0, Progress(0, 90, "test"), {"sampled": sampled, "greedy": greedy})
    assert read_evaluation(path) == Evaluation(evaluate_metrics(sampled), evaluate_metrics(greedy))


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_a_broken_or_missing_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "eval-000000.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedRun, match="eval-000000"):
        read_evaluation(path)


def test_a_parquet_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "eval-000000.parquet"
    pd.DataFrame({"a": np.arange(3)}).to_parquet(path)
    with pytest.raises(DamagedRun, match="eval-000000"):
        read_evaluation(path)
