"""The command: what it says, what it returns, and what it makes of input that is wrong or hostile."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import PIL.Image
import pytest
import yaml

from vtriune import cli
from vtriune.monitor.store import RunStore
from vtriune.types import Preset

Vtriune = Callable[..., subprocess.CompletedProcess[str]]

HOSTILE = "[bold red]x[/bold red] \x1b[31mred\x1b[0m \x1b]0;title\x07 <script>alert(1)</script>"
BOX = "[{'bbox_2d': [0, 0, 100, 100], 'label': 'cat'}]"
CLOSE_BOX = "<answer>[{'bbox_2d': [0, 0, 90, 100], 'label': 'cat'}]</answer>"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command's entry point in this process: quicker than `vtriune`, for what ends before a training begins."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["vtriune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


Command = Callable[..., Result]


# --- help, imports, usage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), ("train", "judge", "verifiers", "runs")),
        (("train",), ("recipe", "overrides", "--out", "--resume", "--replace", "runs/<name of the recipe>")),
        (
            ("judge",),
            ("file", "--response", "--gold", "--verifier", "--parameters", "--preset", "--progress", "--json"),
        ),
        (("verifiers",), ("name", "--load", "--json")),
        (("runs",), ("list", "show")),
        (("rejudge",), ("run", "--set", "--steps", "--source", "--load", "--json", "verifier_parm.NAME")),
        (("runs", "list"), ("root", "[default: runs]")),
        (("runs", "show"), ("run", "A run folder")),
    ],
)
def test_help_explains_every_command_and_names_its_arguments(
    command: Command, arguments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    result = command(*arguments, "--help")
    assert (result.code, result.err) == (0, "")
    assert all(name in result.out for name in named)
    assert "[bold]" not in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["judge", "--response", r"\boxed{4}", "--gold", "4"],
        ["verifiers"],
        ["runs", "list", "."],
        ["rejudge", "."],
    ],
)
def test_only_training_imports_torch(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys; from vtriune.cli import main\n"
        f"sys.argv = ['vtriune', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "give a RECIPE to start a run, or --resume FOLDER alone to go on with one"),
        (("train", "a.yaml", "--resume", "runs/a"), "give a RECIPE to start a run, or --resume FOLDER"),
        (("train", "--resume", "runs/a", "--replace"), "leave out --out and --replace"),
        (("train", "--resume", "runs/a", "--out", "b"), "leave out --out and --replace"),
        (("train", "--resume", "runs/a"), "runs/a: holds no run (no recipe.yaml); give the folder of one"),
        (("train", "dmeo.yaml"), "dmeo.yaml: can't be read (No such file or directory); give the path of a recipe"),
        (("judge",), "give a FILE, or both --response and --gold"),
        (("judge", "--response", "4"), "give a FILE, or both --response and --gold"),
        (("judge", "a.jsonl", "--gold", "4"), "give a FILE, or both --response and --gold"),
        (("judge", "a.jsonl"), "a.jsonl: can't be read (No such file or directory); give a JSON Lines file"),
        (("judge", "--response", "4", "--gold", "4", "--parameters", "{"), "--parameters: is not JSON"),
        (("judge", "--response", "4", "--gold", "4", "--parameters", "[]"), "the command line: verifier_parm: "),
        (("judge", "--response", "4", "--gold", "4", "--preset", "papre"), "'papre' is not one of 'paper'"),
        (("judge", "--response", "4", "--gold", "4", "--progress", "2"), "less than or equal to 1"),
        (("runs", "show", "runs/a"), "runs/a holds no run"),
        (("rejudge", "runs/a"), "runs/a holds no run"),
        (("rejudge", "runs/a", "--set", "preset"), "write it as [SOURCE:]key=value"),
        (("rejudge", "runs/a", "--steps", "a..b"), "write it as A..B, A.., ..B or A"),
        (("trian",), "Did you mean 'train'?"),
    ],
)
def test_a_wrong_use_is_explained_without_a_traceback(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in " ".join(result.err.replace("│", " ").split())
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


# --- train ------------------------------------------------------------------------------------------------------------


def png(width: int = 56) -> bytes:
    stream = io.BytesIO()
    PIL.Image.effect_noise((width, width), 50).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def row(**changes: Any) -> dict[str, Any]:
    return {
        "data_source": "sums",
        "images": ["good.png"],
        "prompt": [{"role": "user", "content": "<image>What is 1 + 1?"}],
        "ability": "math",
        "reward_model": {"ground_truth": "2", "verifier": "mathverify"},
    } | changes


def boxes(gold: str) -> dict[str, Any]:
    return row(reward_model={"ground_truth": gold, "verifier": "detection"})


BAD_ROWS = {
    1: (
        row(reward_model={"ground_truth": "2", "verifier": "mathverfy"}),
        'reward_model: verifier "mathverfy" is not registered; did you mean "mathverify"?',
    ),
    2: (
        boxes(BOX) | {"reward_model": boxes(BOX)["reward_model"] | {"verifier_parm": {"iou_treshold": 0.5}}},
        "iou_treshold",
    ),
    3: (row(images=["gone.png"]), "images[0]: no picture at "),
    4: (row(images=["corrupt.png"]), "images[0]: cannot be read as a picture"),
    5: (row(images=["good.png", "good.png"]), "prompt holds 1 <image> marks but the row has 2 pictures; put one mark"),
    6: (b'{"data_source": "\xff"}', "is not UTF-8 text (invalid start byte at byte 17); save the file as UTF-8"),
    7: (row(reward_model={"ground_truth": "", "verifier": "mathverify"}), "are empty; give the reference answer"),
    8: (boxes(BOX.replace("[0, 0", "[200, 0")), "reward_model: 1 of the gold boxes are broken"),
    9: (boxes(BOX.replace("[0, 0", "[NaN, 0")), "reward_model: 1 of the gold boxes are broken"),
    10: (row(reward_model={"ground_truth": r"\boxed{9^{9^{9^9}}}", "verifier": "mathverify"}), "exhausts its verifier"),
}


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "corrupt.png").write_bytes(png()[:60] + b"\0" * 20 + png()[80:])
    (tmp_path / "test.jsonl").write_bytes(orjson.dumps(row()))
    path = tmp_path / "recipe.yaml"
    fields = {
        "steps": 1,
        "threads": 1,
        "model": {"path": str(tiny_model), "device": "cpu"},
        "data": {"train": [{"path": "train.jsonl"}], "test": [{"path": "test.jsonl"}]},
        "rollout": {"prompts_per_step": 2, "responses_per_prompt": 2, "max_new_tokens": 4},
        "evaluation": {"responses_per_prompt": 2},
        "reward": {"workers": 1, "cpu_limit": 1.0},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.heavy
def test_bad_rows_are_all_named_before_training_and_nothing_blocks_the_next_start(
    vtriune: Vtriune, command: Command, recipe: Path, tmp_path: Path
) -> None:
    lines = [bad if isinstance(bad, bytes) else orjson.dumps(bad) for bad, _ in BAD_ROWS.values()]
    data = tmp_path / "train.jsonl"
    data.write_bytes(b"\n".join([*lines, orjson.dumps(row())]))
    run = tmp_path / "run"
    refused = vtriune("train", recipe, "--out", run)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert (
        "train.jsonl: 10 of 11 rows cannot be used. Mend or remove them, or set on_bad_row: quarantine"
        in refused.stderr
    )
    told = {number: line for number in BAD_ROWS for line in refused.stderr.splitlines() if f" row {number} " in line}
    for number, (_, message) in BAD_ROWS.items():
        assert f"train.jsonl row {number} (line {number})" in told[number]
        assert message in told[number]
    assert not run.exists()

    data.write_bytes(orjson.dumps(row()) + b"\n" + orjson.dumps(row()))
    trained = vtriune("train", recipe, "--out", run)
    assert trained.returncode == 0, trained.stderr
    again = command("train", recipe, "--out", run)
    assert again.code == 2
    assert (
        f"{run} already holds a run (finished at step 1 of 1): continue it with --resume, delete it with" in again.err
    )
    replaced = vtriune("train", recipe, "seed=9", "--out", run, "--replace")
    assert replaced.returncode == 0, replaced.stderr
    assert json.loads((run / "summary.json").read_text())["seed"] == 9


def test_bad_keys_of_a_recipe_are_all_named_at_every_depth(command: Command, recipe: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(recipe.read_text())
    fields["stpes"] = 3
    fields["rollout"]["temprature"] = 3
    fields["data"]["train"][0]["verifer"] = "mathverify"
    recipe.write_text(yaml.safe_dump(fields))
    result = command("train", recipe, "seed=-1", "--out", tmp_path / "run")
    assert (result.code, result.out) == (2, "")
    for message in (
        'stpes: unknown key; did you mean "steps"?',
        'rollout.temprature: unknown key; did you mean "temperature"?',
        'data.train.0.verifer: unknown key; did you mean "verifier"?',
        "seed: Input should be greater than or equal to 0, not -1",
    ):
        assert f"{recipe}: {message}" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("steps: [", "seed=1", "is not YAML"),
        ("- steps", "seed=1", "a recipe is a mapping of keys"),
        (None, "seed", '"seed": write overrides as section.key=value'),
        (None, "seed=[", '"seed=[": the value is not YAML'),
        (None, "update.prompts_per_update=3", "3 is more than a step samples; lower it to"),
        (None, "model.path=gone", "gone is not a transformers folder"),
        (None, "data.train=[{path: gone.jsonl}]", "gone.jsonl: no Parquet (.parquet) or JSON Lines (.jsonl) file"),
    ],
)
def test_a_bad_recipe_is_explained_and_leaves_no_run_behind(
    command: Command, recipe: Path, tmp_path: Path, text: str | None, override: str, message: str
) -> None:
    (tmp_path / "train.jsonl").write_bytes(orjson.dumps(row()))
    if text is not None:
        recipe.write_text(text)
    result = command("train", recipe, override, "--out", tmp_path / "run")
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


# --- judge ------------------------------------------------------------------------------------------------------------


def test_one_answer_is_judged_on_the_command_line(command: Command) -> None:
    result = command("judge", "--response", r"So it is \boxed{1/2}.", "--gold", "0.5")
    assert result.code == 0
    for word in (r"So it is \boxed{1/2}.", "0.5", "scored", "True", "accuracy 1", "mean reward 1"):
        assert word in result.out


def test_an_answer_can_be_judged_as_in_training(command: Command) -> None:
    options = ["--verifier", "detection", "--response", CLOSE_BOX, "--gold", BOX, "--json"]
    schedule = ["--parameters", '{"iou_threshold": [[0, 0.5], [0.5, 0.95]], "eval_iou_threshold": 0.75}']
    rewards = [
        orjson.loads(command("judge", *options, *schedule, *progress).out)["reward"]
        for progress in ((), ("--progress", "0.49"), ("--progress", "0.5"))
    ]
    assert rewards == pytest.approx([0.9, 0.9, 0.0])


@pytest.mark.parametrize(("preset", "reward"), [("paper", 1.5), ("official_code", 0.5), ("modern", 1.5)])
def test_a_file_is_judged_by_every_preset(command: Command, tmp_path: Path, preset: Preset, reward: float) -> None:
    tags = r"<think>4</think><answer>\boxed{4}"
    lines = [
        {"response": r"\boxed{4}", "ground_truth": "4"},
        {"response": tags, "ground_truth": "4", "accuracy_ratio": 1.2, "format_ratio": 0.4},
        {"response": CLOSE_BOX, "ground_truth": BOX, "verifier": "detection", "image_size": [100, 100], "other": 1},
        {"response": "4", "ground_truth": "4", "verifier": "mathverfy"},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"\n\n".join(map(orjson.dumps, lines)))
    result = command("judge", file, "--preset", preset, "--json")
    assert result.code == 1  # one of them has no verdict
    verdicts = [orjson.loads(line) for line in result.out.splitlines()]
    assert [verdict["status"] for verdict in verdicts][:2] == ["scored", "scored"]
    assert verdicts[3]["status"] == "unscorable"
    assert verdicts[3]["reason"] == 'verifier "mathverfy" is not registered; did you mean "mathverify"?'
    assert verdicts[1]["reward"] == pytest.approx(reward if preset != "official_code" else 1.2 / 1.6)
    assert verdicts[0].keys() >= {"status", "reward", "accuracy", "format", "correct", "report", "reason"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is not JSON in UTF-8"),
        (b'{"response": "\xff", "ground_truth": "4"}', "is not JSON in UTF-8"),
        (b'{"response": "\\ud800", "ground_truth": "4"}', "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON in UTF-8"),
        (b'{"response": "4", "ground_truth": "4", "accuracy_ratio": NaN}', "is not JSON in UTF-8"),
        (b'"4"', 'is not a JSON object; write {"response": ..., "ground_truth": ...}'),
        (b'{"response": "4"}', "ground_truth: Field required; correct it"),
        (b'{"response": 4, "ground_truth": "4"}', "response: Input should be a valid string; correct it"),
        (b'{"response": "4", "ground_truth": "4", "verifier_parm": [1]}', "verifier_parm: "),
        (b'{"response": "4", "ground_truth": "4", "image_size": [1]}', "image_size.1: Field required"),
        (b" " * cli.MAX_LINE + b"{}", f"is longer than {cli.MAX_LINE} bytes"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(
    command: Command, tmp_path: Path, line: bytes, message: str
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b'{"response": "4", "ground_truth": "4"}\n\n' + line + b"\n")
    result = command("judge", file)
    assert (result.code, result.out) == (2, "")
    assert f"{file} line 3: {message}" in result.err


def test_a_file_without_lines_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    assert "empty.jsonl: holds no lines" in command("judge", tmp_path / "empty.jsonl").err
    assert "Is a directory" in command("judge", tmp_path).err


def test_hostile_text_is_shown_as_text(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(orjson.dumps({"response": HOSTILE, "ground_truth": HOSTILE, "verifier": HOSTILE}))
    for result in (
        command("judge", file),
        command("judge", tmp_path / HOSTILE),
        command("judge", "--response", HOSTILE, "--gold", "4", "--parameters", orjson.dumps({HOSTILE: 1}).decode()),
    ):
        shown = result.out + result.err
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "[bold red]x[/bold" in shown or "x[/bold red]" in shown
        assert "alert(1)" in shown


def test_a_long_file_is_shown_in_part_and_counted_in_full(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b'{"response": "\\\\boxed{4}", "ground_truth": "4"}\n' * 60)
    result = command("judge", file)
    assert result.out.count("boxed") == 50
    assert "60 scored, mean reward 1 (the first 50 shown)" in result.out


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs that end in all the ways there are, under names that no terminal should obey."""
    root = tmp_path / "runs"
    for name in ("finished", "stopped", "failed", "empty", HOSTILE.replace("/", "")):
        with suppress(RuntimeError), RunStore.create(root / name, recipe={}, total_steps=4, threads=1) as store:
            if name != "empty":
                store.log(1, "train", {"all/reward": 0.5, "all/rollouts": 8, "sums/reward": 0.5, "sums/rollouts": 8})
                store.quarantine(1, "train.jsonl#3", HOSTILE)
            if name == "finished":
                store.finish({"sources": {}, "mean_before": 0, "mean_after": 0, "minutes": 0, "steps": 4, "seed": 0})
            if name == "failed":
                raise RuntimeError(HOSTILE)
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text("{")
    (root / "no run").mkdir()
    return root


def test_runs_are_listed_with_how_they_stand(command: Command, runs: Path) -> None:
    with RunStore.create(runs / "running", recipe={}, total_steps=4, threads=1):
        result = command("runs", "list", runs)
    assert result.code == 0
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert "1/4" in lines["finished"]
    for name in ("finished", "stopped", "failed", "damaged", "running"):
        assert f" {name}" in lines[name]
    assert "stopped" in lines["empty"]
    assert "0/4" in lines["empty"]
    assert "no run" not in result.out
    assert "\x1b" not in result.out
    assert "[bold red]x" in result.out


def test_a_folder_without_runs_is_an_empty_list(command: Command, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        result = command("runs", "list", folder)
        assert result.code == 0
        assert "no runs in" in result.out


def test_a_run_is_shown_however_it_ended(command: Command, runs: Path) -> None:
    for name in ("finished", "stopped", "failed", HOSTILE.replace("/", "")):
        result = command("runs", "show", runs / name)
        assert result.code == 0
        for word in ("step 1/4", "sums", "0.50", "rows set aside (quarantine.jsonl): train.jsonl 1"):
            assert word in result.out
        assert "\x1b" not in result.out
    assert "no training step yet" in command("runs", "show", runs / "empty").out


@pytest.mark.parametrize(("name", "message"), [("damaged", "run.json"), ("no run", "holds no run")])
def test_a_folder_that_is_no_sound_run_is_an_error(command: Command, runs: Path, name: str, message: str) -> None:
    result = command("runs", "show", runs / name)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_misspelt_key_of_a_line_is_an_error_and_a_note_is_none(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"response": "4", "ground_truth": "4", "verifer": "ocr"}\n')
    told = command("judge", file)
    assert told.code == 2
    assert 'verifer: unknown key; did you mean "verifier"?' in told.err
    file.write_text('{"response": "4", "ground_truth": "4", "verifier": "ocr", "note": "mine", "id": 7}\n')
    assert command("judge", file).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remote", "style=foo"], "is no URL"),
        (["--remote", "style"], "name=url"),
        (["--host", "0.0.0.0"], "--token-file"),
        (["--load", "os.py:getcwd"], "leave out .py"),
        (["--token-file", "missing"], "can't be read"),
        (["--job", "../x", "--discovery-dir", "."], "name of one folder"),
    ],
)
def test_a_server_that_could_not_serve_says_so_at_once(command: Command, arguments: list[str], message: str) -> None:
    told = command("serve", "--port", "0", *arguments)
    assert told.code == 2
    assert message in told.err
