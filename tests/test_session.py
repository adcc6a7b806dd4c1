"""What surrounds the loop, with a real engine, real judge processes and real signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from rich.console import Console

from vtriune.local.engine import LocalEngine
from vtriune.local.model import ModelConfig
from vtriune.local.rollout import RolloutConfig
from vtriune.local.update import UpdateConfig
from vtriune.monitor.runs import inspect
from vtriune.recipe import Recipe, load_recipe
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import JudgePool
from vtriune.session import (
    EVALUATION_SEED_STEP,
    RUN_FILES,
    RUN_FOLDERS,
    TrainingBatch,
    ask_and_judge,
    ask_batch,
    evaluate,
    load_data,
    new_store,
    polite_interrupt,
)
from vtriune.types import Progress, Sample, Status, UserError, Verdict

ROW = {
    "data_source": "sums",
    "prompt": [{"role": "user", "content": "What is 1 + 1?"}],
    "ability": "math",
    "reward_model": {"ground_truth": "2", "verifier": "mathverify"},
}
TEST = Progress(0, 1, "test")


@pytest.fixture(scope="module")
def pool() -> Iterator[JudgePool]:
    with JudgePool(workers=1, cpu_limit=0.5) as pool:
        yield pool


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> LocalEngine:
    rollout = RolloutConfig(max_new_tokens=4, cache_tokens=200)
    return LocalEngine(ModelConfig(path=str(tiny_model), device="cpu"), rollout, UpdateConfig(), seed=0)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe over `train.jsonl` and `test.jsonl` of given rows; what can go into its files can be changed."""

    def make(
        train: Sequence[dict[str, Any]] = (ROW, ROW),
        test: Sequence[dict[str, Any]] = (ROW,),
        source: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Recipe:
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
        fields = {
            "steps": 3,
            "model": {"path": "model"},
            "data": {"train": [{"path": "train.jsonl"} | (source or {})], "test": [{"path": "test.jsonl"}]},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields | changes))
        return load_recipe(tmp_path / "recipe.yaml")

    return make


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_a_new_run_is_refused_where_there_is_one_and_replaces_it_when_asked(
    tmp_path: Path, recipe: Callable[..., Recipe]
) -> None:
    run = tmp_path / "run"
    with new_store(run, recipe(), threads=1, replace=False) as store:
        store.log(1, "train", {"all/reward": 1.0})
    (run / "rollouts" / "step-000001.parquet").touch()
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "my notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"stopped at step 1 of 3.*--resume.*--replace"):
        new_store(run, recipe(), threads=1, replace=False)
    assert inspect(run).step == 1
    with new_store(run, recipe(steps=9), threads=1, replace=True):
        assert (inspect(run).step, inspect(run).total_steps) == (0, 9)
    assert not list((run / "rollouts").iterdir())
    assert not (run / "checkpoints").exists()
    assert (run / "my notes.txt").read_text() == "mine"


def test_a_run_that_is_being_written_is_never_replaced(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    run = tmp_path / "run"
    with (
        new_store(run, recipe(), threads=1, replace=False) as store,
        pytest.raises(UserError, match="another process is writing this run; stop it first"),
    ):
        store.log(1, "train", {})
        new_store(run, recipe(), threads=1, replace=True)
    assert inspect(run).step == 1


def test_a_recipe_of_that_name_is_not_taken_for_a_run_and_deleted(
    tmp_path: Path, recipe: Callable[..., Recipe]
) -> None:
    mine = recipe()
    text = (tmp_path / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"holds files like a run's .* but no run \(run.json\); choose another folder"):
        new_store(tmp_path, mine, threads=1, replace=True)
    assert (tmp_path / "recipe.yaml").read_text() == text


def test_replacing_deletes_everything_that_a_run_writes(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    run = tmp_path / "run"
    with new_store(run, recipe(), threads=1, replace=False) as store:
        store.finish({"sources": {}, "mean_before": 0, "mean_after": 0, "minutes": 0, "steps": 0, "seed": 0})
    assert {path.name for path in run.iterdir()} <= {*RUN_FILES, *RUN_FOLDERS}


@pytest.mark.parametrize("replace", [False, True])
def test_a_place_where_no_run_can_be_written_is_a_clear_error(
    tmp_path: Path, recipe: Callable[..., Recipe], replace: bool
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"no run can be written there .*; choose another --out"):
        new_store(tmp_path / "file" / "run", recipe(), threads=1, replace=replace)


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["all", "task:math"])
def test_a_source_with_a_name_that_figures_of_several_have_is_refused(
    recipe: Callable[..., Recipe], pool: JudgePool, tmp_path: Path, split: str, name: str
) -> None:
    bad = recipe(**{split: [ROW | {"data_source": name}]})
    with pytest.raises(UserError, match=rf'{split}.jsonl#1: data_source "{name}" is reserved .*; set `name`'):
        load_data(bad, pool)


def test_a_task_is_shared_if_train_and_test_rows_of_it_are_of_several_sources(
    recipe: Callable[..., Recipe], pool: JudgePool
) -> None:
    train = [ROW, ROW | {"data_source": "dots", "ability": "counting"}, ROW | {"data_source": "puzzles"}]
    test = [ROW, ROW | {"data_source": "dots, held out", "ability": "counting"}, ROW | {"ability": "science"}]
    assert load_data(recipe(train=train, test=test), pool).shared_tasks == {"math", "counting"}
    assert load_data(recipe(), pool).shared_tasks == set()


def test_a_source_named_all_can_be_renamed(recipe: Callable[..., Recipe], pool: JudgePool) -> None:
    data = load_data(recipe(train=[ROW | {"data_source": "all"}], source={"name": "sums"}), pool)
    assert [draw.sample.source for draw in data.mixture.next_batch(1)] == ["sums"]


def test_hostile_gold_is_found_and_stops_neither_the_check_nor_the_rows_after_it(
    recipe: Callable[..., Recipe], pool: JudgePool
) -> None:
    tower, misspelt = (
        ROW | {"reward_model": {"ground_truth": gold, "verifier": verifier}}
        for gold, verifier in ((r"\boxed{9^{9^{9^9}}}", "mathverify"), ("4", "mathverfy"))
    )
    with pytest.raises(UserError) as error:
        load_data(recipe(train=[ROW, tower, ROW, misspelt]), pool)
    message = str(error.value)
    assert "2 of 4 rows cannot be used" in message
    assert "train.jsonl row 2 (line 2): reward_model: comparing an answer with ground_truth exhausts" in message
    assert 'train.jsonl row 4 (line 4): reward_model: verifier "mathverfy" is not registered' in message


def test_rows_that_are_trained_on_are_not_held_out(recipe: Callable[..., Recipe], pool: JudgePool) -> None:
    made = recipe(data={"train": [{"path": "train.jsonl"}], "test": [{"path": "t*.jsonl"}]})
    with pytest.raises(UserError, match=r"data.test: train.jsonl#1 and 1 more rows are in data.train, too; hold them"):
        load_data(made, pool)


def test_no_row_is_set_aside_for_a_judge_that_breaks(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(source={"on_bad_row": "quarantine"})
    monkeypatch.setattr(sys, "executable", "/bin/false")  # no worker can be started
    told = r"train.jsonl.*: the judge itself failed while the row was checked: .*; mend that and start again"
    with JudgePool(workers=1) as broken, pytest.raises(UserError, match=told):
        load_data(made, broken)


def test_bad_rows_are_set_aside_where_the_source_says_so(recipe: Callable[..., Recipe], pool: JudgePool) -> None:
    empty = ROW | {"reward_model": {"ground_truth": " ", "verifier": "mathverify"}}
    data = load_data(recipe(train=[ROW, empty], source={"on_bad_row": "quarantine"}), pool)
    assert [(row.id, "empty" in row.reason) for row in data.set_aside] == [("train.jsonl#2", True)]
    assert {draw.sample.id for draw in data.mixture.next_batch(5)} == {"train.jsonl#1"}


def test_held_out_prompts_are_always_the_same_and_only_with_the_pool_instructed(
    recipe: Callable[..., Recipe], pool: JudgePool
) -> None:
    texts = [load_data(recipe(), pool).test[0].messages[0].content for _ in range(2)]
    assert texts[0] == texts[1]
    assert r"\boxed{}" in texts[0]
    made = recipe()
    plain = made.model_copy(update={"data": made.data.model_copy(update={"prompt_pool": False})})
    assert load_data(plain, pool).test[0].messages[0].content == "What is 1 + 1?"


def test_the_place_in_the_data_is_json_and_can_be_taken_up_again(
    recipe: Callable[..., Recipe], pool: JudgePool
) -> None:
    made = recipe(train=[ROW] * 5, test=[ROW] * 3)
    one, other = load_data(made, pool), load_data(made, pool)
    one.mixture.next_batch(3)
    one.mixture.remove("train.jsonl#4")
    one.remove_test("test.jsonl#2")
    other.load_state_dict(orjson.loads(orjson.dumps(one.state_dict())))
    assert [sample.id for sample in other.test] == ["test.jsonl#1", "test.jsonl#3"]
    assert other.state_dict() == one.state_dict()
    assert other.mixture.next_batch(20) == one.mixture.next_batch(20)


def test_evaluations_in_between_take_the_first_samples_of_every_source(
    recipe: Callable[..., Recipe], pool: JudgePool
) -> None:
    other = ROW | {"data_source": "others"}
    data = load_data(recipe(test=[ROW, ROW, other, ROW, other, other]), pool)
    assert [sample.id[-1] for sample in data.first_tests(2)] == ["1", "2", "3", "5"]
    assert data.first_tests(None) == data.test


# --- asking and judging -----------------------------------------------------------------------------------------------


class NotingPool(JudgePool):
    """A judge pool that notes when it is handed a group."""

    def __init__(self, events: list[tuple[str, str]]) -> None:
        self.events = events
        super().__init__(workers=1)

    def submit(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
        self.events.append(("judged", items[0].spec.gold))
        return super().submit(items)


class NotingEngine(LocalEngine):
    """An engine that notes what it has sampled, batch by batch."""

    events: list[tuple[str, str]]

    def generate(self, samples: Sequence[Sample], step: int, group_size: int | None) -> Iterator[Any]:
        for group in super().generate(samples, step, group_size):
            self.events.append(("sampled", group.sample.reward.gold))
            yield group


def test_a_group_is_handed_to_the_judge_before_the_next_batch_is_sampled(
    recipe: Callable[..., Recipe], tiny_model: Path, pool: JudgePool
) -> None:
    rows = [ROW | {"reward_model": {"ground_truth": gold, "verifier": "mathverify"}} for gold in "123"]
    rollout = RolloutConfig(max_new_tokens=4, cache_tokens=1)
    engine = NotingEngine(ModelConfig(path=str(tiny_model), device="cpu"), rollout, UpdateConfig(), seed=0)
    engine.events = []
    samples, _ = engine.encode(load_data(recipe(test=rows), pool).test)
    with NotingPool(engine.events) as noting:
        judged, _ = ask_and_judge(engine, noting, samples, seed_step=0, progress=TEST, group_size=3)
    assert engine.events == [(what, gold) for gold in "123" for what in ("sampled", "judged")]
    assert [(one.group.sample.reward.gold, len(one.verdicts), len(one.advantages)) for one in judged] == [
        (gold, 3, 3) for gold in "123"
    ]
    assert all(verdict.status is Status.SCORED for one in judged for verdict in one.verdicts)


def test_an_evaluation_asks_every_sample_sampled_and_greedy_whatever_the_chunks(
    recipe: Callable[..., Recipe], engine: LocalEngine, pool: JudgePool
) -> None:
    made = recipe(test=[ROW | {"prompt": [{"role": "user", "content": "1" * n}]} for n in (9, 1, 5)])
    samples = load_data(made, pool).test
    answers = []
    for chunk in (1, 2, 3):
        config = made.evaluation.model_copy(update={"prompts_per_chunk": chunk, "responses_per_prompt": 4})
        advanced: list[int] = []
        result, bad = evaluate(
            made.model_copy(update={"evaluation": config}),
            engine,
            pool,
            samples,
            progress=TEST,
            advance=advanced.append,
        )
        assert (bad, sum(advanced), max(advanced)) == ([], 3, chunk)
        assert set(result.scores.sampled) == set(result.scores.greedy) == {"sums"}
        assert len(result.scores.sampled["sums"].by_prompt) == 3
        texts = {
            (name, one.group.sample.id): [rollout.text for rollout in one.group.rollouts]
            for name, groups in (("sampled", result.sampled), ("greedy", result.greedy))
            for one in groups
        }
        assert {(name, len(answers)) for (name, _), answers in texts.items()} == {("sampled", 4), ("greedy", 1)}
        answers.append(texts)
    assert answers[0] == answers[1] == answers[2]


def test_two_evaluations_of_the_same_model_draw_the_same_answers_and_training_draws_others(
    recipe: Callable[..., Recipe], engine: LocalEngine, pool: JudgePool
) -> None:
    samples, _ = engine.encode(load_data(recipe(), pool).test)

    def texts(seed_step: int) -> list[str]:
        judged, _ = ask_and_judge(engine, pool, samples, seed_step=seed_step, progress=TEST, group_size=8)
        return [rollout.text for one in judged for rollout in one.group.rollouts]

    assert texts(EVALUATION_SEED_STEP) == texts(EVALUATION_SEED_STEP)
    assert texts(EVALUATION_SEED_STEP) != texts(0)


def test_a_held_out_sample_that_cannot_be_asked_is_named_and_the_others_are_asked(
    recipe: Callable[..., Recipe], engine: LocalEngine, pool: JudgePool
) -> None:
    mark = {"prompt": [{"role": "user", "content": "Is <|image_pad|> a picture?"}]}
    made = recipe(test=[ROW, ROW | mark, ROW])
    result, bad = evaluate(made, engine, pool, load_data(made, pool).test, progress=TEST, advance=lambda _: None)
    assert [(sample.id, "pictures" in reason) for sample, reason in bad] == [("test.jsonl#2", True)]
    assert sorted(one.group.sample.id for one in result.greedy) == ["test.jsonl#1", "test.jsonl#3"]


# --- the rows of a step -----------------------------------------------------------------------------------------------


class Lottery(JudgePool):
    """A judge for whom every second answer is right, but all are wrong where the gold is 0."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def submit(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
        gold = items[0].spec.gold
        self.asked.append(gold)
        rewards = [float(gold != "0" and k % 2) for k in range(len(items))]
        future: Future[list[Verdict]] = Future()
        future.set_result([Verdict(Status.SCORED, reward, reward, 0.0, reward == 1) for reward in rewards])
        return future


def asked_of_a_step(
    recipe: Callable[..., Recipe], engine: LocalEngine, pool: JudgePool, golds: str, **changes: Any
) -> tuple[TrainingBatch, list[str]]:
    """A step of four prompts from rows of such gold, and all that was judged."""
    rows = [ROW | {"reward_model": {"ground_truth": gold, "verifier": "mathverify"}} for gold in golds]
    made = recipe(rows, rollout={"prompts_per_step": 4, "responses_per_prompt": 4}, **changes)
    lottery = Lottery()
    batch = ask_batch(
        made,
        load_data(made, pool),
        engine,
        lottery,
        Progress(0, 3, "train"),
        lambda *problem: pytest.fail(str(problem)),
    )
    ids = [one.group.sample.id for one in batch.judged]
    assert len(set(ids)) == len(ids) == len(lottery.asked)
    return batch, lottery.asked


def test_without_dynamic_sampling_a_step_asks_once_and_learns_from_all(
    recipe: Callable[..., Recipe], engine: LocalEngine, pool: JudgePool
) -> None:
    batch, asked = asked_of_a_step(recipe, engine, pool, "00110011")
    assert len(asked) == 4
    assert batch.lessons == batch.judged


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "gdpo"])
def test_groups_that_teach_nothing_give_way_to_further_prompts_until_none_is_missing(
    recipe: Callable[..., Recipe], tiny_model: Path, pool: JudgePool, advantage: str
) -> None:
    model, rollout = ModelConfig(path=str(tiny_model), device="cpu"), RolloutConfig(max_new_tokens=4)
    engine = LocalEngine(model, rollout, UpdateConfig(), seed=0)
    objective = {"dynamic_sampling": 20, "advantage": advantage}
    batch, asked = asked_of_a_step(recipe, engine, pool, "0101010101010101", objective=objective)
    assert len(batch.lessons) == 4
    assert all(one.advantages.any() for one in batch.lessons)
    assert {one.group.sample.reward.gold for one in batch.lessons} == {"1"}
    assert len(batch.judged) == 4 + asked.count("0")
    # All of them are still known to the engine, in the order in which they were asked.
    assert engine.update(batch.lessons, 0, 3)["optimizer_steps"] == 1


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_rounds_of_further_prompts_are_bounded(
    recipe: Callable[..., Recipe], engine: LocalEngine, pool: JudgePool, rounds: int
) -> None:
    batch, asked = asked_of_a_step(recipe, engine, pool, "0" * 40, objective={"dynamic_sampling": rounds})
    assert len(asked) == 4 * (1 + rounds)
    assert batch.lessons == []
    assert engine.update(batch.lessons, 0, 3) == {}


def test_a_source_with_too_few_rows_is_asked_once_a_step_for_each_of_them(
    recipe: Callable[..., Recipe], engine: LocalEngine, pool: JudgePool
) -> None:
    batch, asked = asked_of_a_step(recipe, engine, pool, "001", objective={"dynamic_sampling": 5})
    assert sorted(asked) == ["0", "0", "1"]
    assert len(batch.lessons) == 1


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_asks_to_stop_and_the_second_one_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with polite_interrupt(Console()) as asked_to_stop:
        assert not asked_to_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked_to_stop()
        assert "Ctrl-C again stops at once" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_first_ctrl_c_is_handed_on_and_interrupts_where_nothing_has_begun() -> None:
    asked = []
    with polite_interrupt(Console(), lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]

    def nothing_has_begun() -> None:
        raise KeyboardInterrupt

    with polite_interrupt(Console(), nothing_has_begun), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
