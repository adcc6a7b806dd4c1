import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from vtriune.curate.puzzlevqa import convert
from vtriune.data.schema import write_rows
from vtriune.data.sources import SourceConfig, load_samples
from vtriune.reward.judge import validate
from vtriune.types import UserError

FIXTURE = Path(__file__).parent.parent / "fixtures" / "puzzlevqa"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vtriune.curate.puzzlevqa", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_rows_that_load_as_samples(tmp_path: Path) -> None:
    done = run(FIXTURE / "puzzlevqa_20.jsonl", tmp_path / "puzzles.parquet")
    assert done.returncode == 0, done.stderr
    assert "20 rows" in done.stdout
    samples = load_samples(
        SourceConfig(path="puzzles.parquet"),
        preset="paper",
        base=tmp_path,
        check=lambda *reward: partial(validate, *reward),
    ).samples
    assert len(samples) == 20
    assert {(sample.source, sample.task, sample.reward.verifier) for sample in samples} == {
        ("puzzlevqa", "puzzle", "mathverify")
    }
    first = samples[0]
    question = "What is the missing number of the part denoted with a question mark?"
    assert [(turn.role, turn.content) for turn in first.messages] == [("user", f"<image>\n{question}")]
    assert (first.reward.gold, first.reward.accuracy_weight, first.reward.format_weight) == (r"\boxed{4}", 1.0, 0.0)
    assert all(image.load().size == (512, 512) for sample in samples for image in sample.images)


def test_answers_written_as_numbers_and_as_words_are_both_boxed() -> None:
    golds = [row["reward_model"]["ground_truth"] for row in convert(FIXTURE / "puzzlevqa_20.jsonl")]
    assert golds[3] == r"\boxed{9}"  # the number 9 in the file
    assert golds[5] == r"\boxed{light purple}"


def test_the_options_are_not_shown_to_the_model() -> None:
    for row in convert(FIXTURE / "puzzlevqa_20.jsonl"):
        assert "option" not in row["prompt"][0]["content"].lower()
        assert row["prompt"][0]["content"].count("<image>") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "images/gone.png", "question": "?", "answer": 1}', r"no picture images/gone\.png beside .*put it"),
        ('{"image": "images/a.png", "answer": 1}', r"not a PuzzleVQA row, which has .*correct or remove the line"),
        ('{"image": ', r"not a PuzzleVQA row"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path: Path, line: str, message: str) -> None:
    source = tmp_path / "bad.jsonl"
    good = (FIXTURE / "puzzlevqa_20.jsonl").read_text().splitlines()[0]
    shutil.copytree(FIXTURE / "images", tmp_path / "images")
    source.write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=rf"bad\.jsonl line 2: {message}"):
        write_rows(convert(source), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_help_and_errors_are_for_people(tmp_path: Path) -> None:
    assert "data_source puzzlevqa" in run("--help").stdout
    failed = run(tmp_path / "gone.jsonl", tmp_path / "out.parquet")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
