"""Judging again a run whose every figure can be computed by hand, with real judge processes and the real command."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vtriune.grpo.advantages import group_advantages
from vtriune.monitor.files import DamagedRun
from vtriune.monitor.rollouts import SCHEMA
from vtriune.monitor.runs import rollout_file
from vtriune.monitor.store import RunStore
from vtriune.rejudge.changes import Change
from vtriune.rejudge.rejudging import Rejudged, Rejudging, Side, read_steps
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.reward.pool import JudgePool
from vtriune.types import (
    FinishReason,
    Group,
    JudgedGroup,
    Message,
    Progress,
    RewardSpec,
    Rollout,
    Sample,
    Status,
    UserError,
    Verdict,
)

BOX = '[{{"bbox_2d": [0, 1, 8, {}], "label": "box"}}]'
"""IoU with gold, BOX filled with 9: 0.75, 0.875, 1 if it is filled with 7, 8, 9."""
BOXES = RewardSpec("detection", BOX.format(9), parameters={"iou_threshold": [[0.0, 0.5]], "eval_iou_threshold": 0.5})
SUMS = RewardSpec("mathverify", "4", accuracy_weight=1.0, format_weight=0.5)
HALF_TAGGED = "<think>2 + 2</think> \\boxed{4}"
Again = Callable[..., Rejudged]


def asked(
    source: str, spec: RewardSpec, texts: Sequence[str], progress: Progress, *, failed: Sequence[int] = ()
) -> JudgedGroup:
    rollouts = tuple(Rollout(np.arange(9), np.zeros(9, np.float32), text, FinishReason.STOP, 0.5) for text in texts)
    verdicts = tuple(
        Verdict(Status.FAILED, reason="the judge died of it twice")
        if number in failed
        else judge_item(JudgeItem(text, spec, progress, (), 9))
        for number, text in enumerate(texts)
    )
    sample = Sample(f"{source}.parquet#0", source, source, (Message("user", "?"),), (), spec)
    group = Group(sample, "user: ?", np.arange(3), (), rollouts)
    return JudgedGroup(group, verdicts, group_advantages("grpo", verdicts, spec))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two training steps and an evaluation."""
    folder = tmp_path / "run"
    with RunStore.create(folder, recipe={"steps": 2, "reward": {"workers": 1}}, total_steps=2, threads=1) as store:
        first, second, held_out = Progress(0, 2, "train"), Progress(1, 2, "train"), Progress(0, 2, "test")
        box = [[BOX.format(y) for y in heights] for heights in ((7, 8, 9, 8), (7, 7, 7, 9), (7, 8, 7, 8))]
        sums = asked("sums", SUMS, [r"\boxed{4}", r"\boxed{5}", HALF_TAGGED, "none"], first, failed=[3])
        store.write_rollouts(
            1, [asked("boxes", BOXES, box[0], first), sums, asked("boxes", BOXES, box[1], first)], first
        )
        store.write_rollouts(2, [asked("boxes", BOXES, box[2], second)], second)
        evaluated = [asked("boxes", BOXES, box[0], held_out)], [asked("boxes", BOXES, box[0][:1], held_out)]
        store.write_evaluation(0, *evaluated, held_out)
    return folder


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgePool]:
    with JudgePool(workers=1) as pool:
        yield pool


@pytest.fixture
def again(run: Path, judge: JudgePool) -> Again:
    def rejudge(*changes: str, folder: Path = run, **restrictions: Any) -> Rejudged:
        return Rejudging(folder, [Change.read(text) for text in changes], **restrictions).run(judge)

    return rejudge


def rewrite(path: Path, row: int, **fields: Any) -> None:
    rows = pq.read_table(path).to_pylist()
    rows[row] |= fields
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def test_the_same_settings_give_the_same_verdicts_and_what_failed_is_counted_apart(run: Path, judge: JudgePool) -> None:
    told: list[int] = []
    one = Rejudging(run)
    result = one.run(judge, told.append)
    assert (result.answers, result.agree, result.disagree, result.failed) == (21, 20, 0, 1)
    assert (one.total, sum(told), len(told)) == (21, 21, 3)


@pytest.mark.parametrize(
    ("fields", "differs"),
    [
        ({"reward": math.nextafter(0.875, 1)}, {"reward": (math.nextafter(0.875, 1), 0.875)}),
        ({"accuracy": 0.5}, {"accuracy": (0.5, 0.875)}),
        ({"format": -0.0}, {"format": (-0.0, 0.0)}),
        ({"correct": False}, {"correct": (False, True)}),
        ({"reason": "tired"}, {"reason": ("tired", "")}),
        ({"status": "unscorable", "reward": None}, {"status": ("unscorable", "scored"), "reward": (None, 0.875)}),
        ({"response": BOX.format(9)}, None),
    ],
)
def test_a_verdict_that_differs_in_its_last_bit_is_named_with_both_values(
    run: Path, again: Again, fields: dict[str, Any], differs: dict[str, Any] | None
) -> None:
    rewrite(rollout_file(run, "train", 1), 1, **fields)
    result = again()
    assert (result.agree, result.disagree) == (19, 1)
    (one,) = result.first
    assert one.where == "step-000001.parquet group 0 answer 1 (sampled, boxes)"
    if differs is None:
        assert {"reward", "accuracy", "report"} <= one.fields.keys()
    else:
        assert repr(one.fields) == repr(differs)  # -0.0 is not 0.0


def test_figures_that_are_reported_only_now_are_named_and_those_in_the_log_still_must_agree(
    run: Path, again: Again
) -> None:
    path = rollout_file(run, "train", 1)
    old = orjson.loads(pq.read_table(path).to_pylist()[1]["report"])
    rewrite(path, 1, report=orjson.dumps({name: old[name] for name in old if name != "map"}).decode())
    result = again()
    assert (result.agree, result.disagree, result.new_figures) == (20, 0, {"map"})
    rewrite(path, 1, report=orjson.dumps({"f1": old["f1"], "gone": 1.0}).decode())
    result = again()
    assert (result.disagree, set(result.first[0].fields)) == (1, {"report"})


def test_a_changed_threshold_moves_exactly_the_figures_that_follow_from_it(again: Again) -> None:
    effects = again("verifier_parm.iou_threshold=0.9").effects
    boxes = effects["train", "boxes"]
    # Rewards 0.75, 0.875, 1, 0.875 | 0.75, 0.75, 0.75, 1 | 0.75, 0.875, 0.75, 0.875; with 0.9 only the 1s are left.
    assert boxes.answers == 12
    assert boxes.before == Side(scored=12, rewards=10.0, groups=3, zero_spread=0)
    assert boxes.after == Side(scored=12, rewards=2.0, groups=3, zero_spread=1)
    assert (boxes.before.mean_reward, boxes.after.zero_spread_share) == (10 / 12, 1 / 3)
    # Signs - 0 + 0 become - - + -, - - - + stay, - + - + become 0.
    assert boxes.advantages == {"changed": 6, "became_zero": 4, "ceased_to_be_zero": 2}
    assert not boxes.became
    sums = effects["train", "sums"]
    assert sums.before == Side(scored=3, rewards=2.25, groups=1, zero_spread=0)
    assert sums.after.rewards == 2.25  # mathverify has no threshold
    # The stored failure could be scored now; that it broke then is no effect of the change.
    assert (sums.failed, sums.after, sums.advantages["changed"], sums.became) == (1, sums.before, 0, {})
    assert (sums.answers, sums.scored_twice) == (4, 3)
    held_out = effects["eval", "boxes"]
    assert held_out.before == held_out.after  # evaluations have a threshold of their own
    everything = effects["train", "all"]
    assert (everything.answers, everything.before.rewards, everything.after.rewards) == (16, 12.25, 4.25)


def test_a_schedule_is_seen_as_at_the_stored_progress(again: Again) -> None:
    effects = again("boxes:verifier_parm.iou_threshold=[[0, 0.5], [0.5, 0.9]]").effects
    assert effects["train", "boxes"].after.rewards == 3.5 + 3.25  # step 2 is half of the way: its 0.875s are worth 0
    assert again("verifier_parm.eval_iou_threshold=0.9").effects["eval", "boxes"].after.rewards == 1.0


def test_weights_and_presets_change_rewards_as_eq_8_says(again: Again) -> None:
    halved = again("accuracy_ratio=0.5", "sums:format_ratio=2").effects
    assert halved["train", "boxes"].after.rewards == 5.0
    assert halved["train", "boxes"].advantages["changed"] == 0
    assert halved["train", "sums"].after.rewards == 0.5 * 2 + 2 * 0.5
    official = again("sums:preset=official_code").effects
    assert official["train", "sums"].after.mean_reward != official["train", "sums"].before.mean_reward
    assert official["train", "boxes"].after == official["train", "boxes"].before


def test_another_verifier_takes_no_parameters_along_and_what_it_cannot_judge_is_counted(again: Again) -> None:
    effects = again("verifier_parm.value=acc", "boxes:verifier=grounding").effects
    assert effects["train", "boxes"].after.rewards == 12.0  # IoU >= 0.5 is 1, whatever the order of the changes
    boxes = again("boxes:verifier=counting").effects["train", "boxes"]
    assert boxes.became == {"unscorable": 12}
    assert boxes.after == Side()
    assert (boxes.scored_twice, sum(boxes.advantages.values())) == (
        0,
        0,
    )  # those that lost their verdict are told above
    (reason,) = boxes.reasons
    assert "gold" in reason


def test_what_was_unscorable_and_is_scored_now_is_counted(run: Path, again: Again) -> None:
    rewrite(rollout_file(run, "train", 2), 0, status="unscorable", reward=None, advantage=0.0, reason="no gold")
    boxes = again("boxes:verifier_parm.iou_threshold=0.5").effects["train", "boxes"]
    assert (boxes.became, boxes.reasons) == ({"scored": 1}, {})
    assert (boxes.before.scored, boxes.after.scored, boxes.failed) == (11, 12, 0)
    # Its advantage was 0 for want of a verdict and is below 0 now: no change of sign, as it had none.
    assert (boxes.scored_twice, boxes.advantages["ceased_to_be_zero"]) == (11, 0)


def test_only_the_steps_and_the_source_that_are_asked_for_are_judged(again: Again) -> None:
    assert again(source="sums").answers == 4
    assert again(steps=(2, 2)).answers == 4
    assert again(steps=(1, math.inf), source="boxes").answers == 12
    assert set(again("accuracy_ratio=2", source="sums").effects) == {("train", "all"), ("train", "sums")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("verifer=format", 'unknown key "verifer"; did you mean "verifier"?'),
        ("colour=1", 'unknown key "colour"; there are verifier, verifier_parm, accuracy_ratio, format_ratio, preset'),
        ("verifier_parm=1", "name a parameter, e.g. verifier_parm.iou_threshold=0.5"),
        ("preset.x=1", "preset has no keys below it; write preset=value"),
        ("verifier_parm..x=1", "write it as [SOURCE:]key=value"),
        ("preset", "write it as [SOURCE:]key=value"),
        ("preset=papre", "there is no preset 'papre'; there are paper, official_code, modern"),
        ("accuracy_ratio=-1", "accuracy_ratio is a number of at least 0, not -1"),
        ("format_ratio=.nan", "format_ratio is a number of at least 0, not nan"),
        ("format_ratio=true", "format_ratio is a number of at least 0, not True"),
        ("verifier_parm.value=[", "the value is not YAML"),
        ("verifier=detecton", 'verifier "detecton" is not registered; did you mean "detection"?'),
        ("boxs:preset=paper", 'there is no source "boxs" in its rollouts; did you mean "boxes"?'),
        (
            "verifier_parm.iou_treshold=0.5",
            'no parameter "iou_treshold" of detection, mathverify; did you mean "iou_thr',
        ),
        ("sums:verifier_parm.iou_threshold=0.5", 'no parameter "iou_threshold" of mathverify; there are'),
        ("verifier_parm.iou_threshold=5", 'source "boxes": verifier "detection": verifier_parm.iou_threshold'),
        ("verifier_parm.det_reward_ratio.mpa=1", "verifier_parm.det_reward_ratio.mpa: Extra inputs are not permitted"),
    ],
)
def test_a_change_that_is_none_names_the_remedy(again: Again, change: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        again(change)
    assert message in str(error.value)


def test_a_folder_without_such_rollouts_or_with_damaged_ones_is_explained(
    again: Again, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds no run"):
        again(folder=tmp_path)
    with pytest.raises(UserError, match="holds no rollouts of these steps"):
        again(steps=(7, 9))
    with pytest.raises(UserError, match='there is no source "sum" in its rollouts; did you mean "sums"'):
        again(source="sum")
    with pytest.raises(UserError, match='only source "sums" is judged again'):
        again("boxes:preset=paper", source="sums")
    rewrite(rollout_file(run, "train", 2), 0, report="{")
    with pytest.raises(DamagedRun, match=r"step-000002\.parquet: parameters or report are no JSON"):
        again()
    rollout_file(run, "train", 2).write_bytes(b"PAR1")
    with pytest.raises(DamagedRun, match=r"step-000002\.parquet: not readable as rollouts"):
        again()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_tells_of_agreement_by_its_text_and_its_status(run: Path, vtriune: Callable[..., Any]) -> None:
    done = vtriune("rejudge", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "20 of 20 verdicts agree with the log to the last bit",
        "1 more are stored as failed, and so have nothing to agree with",
    ]
    rewrite(rollout_file(run, "train", 1), 0, reward=0.5, reason="<script>\x1b[31m", report='{"f1": 0.25}')
    done = vtriune("rejudge", run)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "19 of 20 verdicts agree with the log to the last bit"
    assert "step-000001.parquet group 0 answer 0 (sampled, boxes)" in lines
    assert "  reward: 0.5 in the log, 0.75 now" in lines
    assert "  report f1: 0.25 in the log, 1.0 now" in lines
    assert "\x1b" not in done.stdout
    told = orjson.loads(vtriune("rejudge", run, "--json").stdout)
    assert (told["agree"], told["disagree"], told["stored_as_failed"]) == (19, 1, 1)
    assert told["first"][0]["fields"]["reward"] == [0.5, 0.75]


def test_a_log_with_nothing_to_compare_is_no_agreement(run: Path, vtriune: Callable[..., Any]) -> None:
    path = rollout_file(run, "train", 2)
    for row in range(4):
        rewrite(path, row, status="failed", reward=None)
    done = vtriune("rejudge", run, "--steps", "2")
    assert done.stdout.startswith("0 of 0 verdicts agree")
    assert done.returncode == 1


def test_the_command_shows_what_a_change_does_per_source(run: Path, vtriune: Callable[..., Any]) -> None:
    arguments = "rejudge", run, "--set", "verifier_parm.iou_threshold=0.9", "--set", "sums:verifier=counting"
    done = vtriune(*arguments)
    assert done.returncode == 0, done.stderr
    cells = [line.split() for line in done.stdout.splitlines()]
    assert ["boxes", "12", "0.8333", "0.1667", "0.0", "%", "33.3", "%", "50.0", "%", "4", "2", "0", "0", "0"] in cells
    assert ["boxes", "5", "0.8500", "0.8500", "0", "0", "0"] in cells
    assert "1 answers are stored as failed, and so are on neither side" in done.stdout
    assert "signs: of advantages of the answers that are scored both times" in done.stdout
    told = orjson.loads(vtriune(*arguments, "--json").stdout)
    effect = next(one for one in told["effects"] if (one["split"], one["source"]) == ("train", "boxes"))
    assert effect["mean_reward"] == [10 / 12, 2 / 12]
    assert (effect["groups"], effect["zero_spread_groups"]) == ([3, 3], [0, 1])
    assert (effect["signs_changed"], effect["became_zero"], effect["ceased_to_be_zero"]) == (6, 4, 2)
    everything = next(one for one in told["effects"] if (one["split"], one["source"]) == ("train", "all"))
    assert (everything["answers"], everything["scored_twice"], everything["signs_changed"]) == (16, 15, 6)
    assert next(line for line in cells if line[:2] == ["all", "16"])[8:10] == ["40.0", "%"]  # 6 of 15


def test_verifiers_of_ones_own_are_imported_if_the_command_names_them_whatever_the_recipe_says(
    tmp_path: Path, vtriune: Callable[..., Any]
) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "from pathlib import Path\n"
        "Path('imported').touch()\n"
        "def concise(response: str, gold: str) -> float:\n    return 1 / (1 + len(response))\n"
    )
    for load in ([], ["my_rewards:concise"]):
        folder = tmp_path / f"run{len(load)}"
        with RunStore.create(folder, recipe={"reward": {"load": load}}, total_steps=1, threads=1) as store:
            progress, spec = Progress(0, 1, "train"), RewardSpec("concise", "4")
            group = asked("own", RewardSpec("mathverify", "4"), ["abc", "abcdefg"], progress)
            verdicts = [Verdict(Status.SCORED, worth, worth, 0.0, False) for worth in (0.25, 0.125)]
            sample = Sample("own.parquet#0", "own", "own", (Message("user", "?"),), (), spec)
            own = Group(sample, "user: ?", np.arange(3), (), group.group.rollouts)
            store.write_rollouts(1, [JudgedGroup(own, tuple(verdicts), np.array([0.5, -0.5]))], progress)
    refused = vtriune("rejudge", tmp_path / "run1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "run1/recipe.yaml: reward.load names code to import" in refused.stderr
    assert refused.stderr.endswith("if you trust it, add --load my_rewards:concise\n")
    unknown = vtriune("rejudge", tmp_path / "run0", cwd=tmp_path)
    assert unknown.returncode == 1
    assert 'verifier "concise" is not registered' in unknown.stdout
    assert not (tmp_path / "imported").exists()
    for run in ("run0", "run1"):
        done = vtriune("rejudge", tmp_path / run, "--load", "my_rewards:concise", cwd=tmp_path)
        assert "2 of 2 verdicts agree" in done.stdout
        assert done.stderr.splitlines()[0] == "imports my_rewards:concise"


def test_whom_a_run_folder_makes_it_ask_is_said_before_anybody_is_asked(run: Path) -> None:
    told: list[str] = []
    recipe = run / "recipe.yaml"
    recipe.write_text("reward: {remotes: {style: 'http://127.0.0.1:9/style'}}")
    Rejudging(run, tell=told.append)
    recipe.write_text("reward: {servers: ['http://127.0.0.1:9']}")
    Rejudging(run, tell=told.append)
    assert told == [
        'asks http://127.0.0.1:9/style about answers of the verifier remote, service "style"',
        "does not ask http://127.0.0.1:9, which judged in the run: this machine does",
    ]


@pytest.mark.parametrize(
    ("text", "told"), [("9..3", "the first step is after the last"), ("3-9", "write it as"), ("..", "write it as")]
)
def test_steps_that_mean_nothing_are_refused(text: str, told: str) -> None:
    with pytest.raises(UserError, match=rf'--steps "{re.escape(text)}": {told}'):
        read_steps(text)
