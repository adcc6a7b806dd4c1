"""The playground's files: the released schema, read by the loader of any other data; seeded; splits kept apart."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vtriune.data.sources import SourceConfig, load_samples
from vtriune.playground.dataset import rows, source_of, write_playground
from vtriune.playground.tasks import SIDE, TASKS
from vtriune.reward.judge import validate
from vtriune.types import Sample

TRAIN, TEST = 20, 8


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("playground")
    write_playground(folder, seed=1, train=TRAIN, test=TEST)
    return folder


def samples(folder: Path, path: str) -> list[Sample]:
    return load_samples(
        SourceConfig(path=path), preset="modern", base=folder, check=lambda *reward: partial(validate, *reward)
    ).samples


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_the_files_load_by_the_way_of_any_other_data_with_two_sources_per_task(written: Path) -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        loaded = samples(written, split)
        expected = {source_of(task, rare=rare): count // 2 for task in TASKS for rare in (False, True)}
        assert Counter(sample.source for sample in loaded) == expected
        assert len({sample.id for sample in loaded}) == len(loaded)
        for sample in loaded:
            assert sample.source.removesuffix("_rare") == sample.task
            assert sample.messages[-1].content.startswith("<image>")
            (picture,) = sample.images
            assert picture.load().size == (SIDE, SIDE)


def test_box_rows_name_their_box_spaces_and_all_others_go_to_math_verify(written: Path) -> None:
    for sample in samples(written, "train"):
        if sample.task in ("grounding", "detection"):
            assert sample.reward.verifier == "detection"
            assert sample.reward.parameters["gold_space"] == "absolute_original"
            assert sample.reward.parameters["answer_space"] == "absolute_resized"
            assert sample.reward.format_weight == pytest.approx(0.1)
        else:
            assert (sample.reward.verifier, sample.reward.format_weight) == ("mathverify", 0.0)
            assert sample.reward.gold.startswith("\\boxed{")


def test_files_are_named_as_the_released_ones(written: Path) -> None:
    assert (written / "train" / f"train_ocr_ocr_rare_{TRAIN // 2}.parquet").is_file()
    assert (written / "test" / f"test_ocr_ocr_{TEST // 2}.parquet").is_file()


def test_no_picture_is_in_both_splits(written: Path) -> None:
    seen = [
        {np.asarray(image.load()).tobytes() for sample in samples(written, split) for image in sample.images}
        for split in ("train", "test")
    ]
    assert not seen[0] & seen[1]


def test_no_row_comes_twice() -> None:
    for task in TASKS:
        drawn = [
            (row["images"][0]["bytes"], row["prompt"][0]["content"])
            for row in rows(task, task, rare=False, split="test", count=60, seed=0)
        ]
        assert len(set(drawn)) == len(drawn) == 60


def test_the_seed_decides_every_byte(written: Path, tmp_path: Path) -> None:
    write_playground(tmp_path / "same", seed=1, train=TRAIN, test=TEST)
    write_playground(tmp_path / "other", seed=2, train=TRAIN, test=TEST)
    expected, other = contents(written), contents(tmp_path / "other")
    assert contents(tmp_path / "same") == expected
    assert other.keys() == expected.keys()
    assert all(other[name] != expected[name] for name in expected)


def test_more_rows_begin_with_the_same_rows() -> None:
    few, many = (list(rows("chart", "chart", rare=True, split="train", count=n, seed=0)) for n in (5, 9))
    assert many[:5] == few


def test_the_command_writes_what_it_was_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vtriune.playground.dataset", str(tmp_path / "out")]
    subprocess.run([*command, "--seed", "1", "--train", "2", "--test", "2"], check=True, capture_output=True)
    assert len(contents(tmp_path / "out")) == 4 * len(TASKS)
