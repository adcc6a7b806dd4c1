"""What a run needs before and beside its loop: its folder, checked data, judged answers, held-out evaluation, a polite
Ctrl-C.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from vtriune.data.mixture import Mixture
from vtriune.data.prompts import with_fixed_prompt, with_prompt_pool
from vtriune.data.sources import QuarantinedRow, SourceConfig, load_samples, mixture_weights
from vtriune.grpo.advantages import Advantage, group_advantages
from vtriune.local.engine import LocalEngine
from vtriune.monitor.evaluation import Evaluation, evaluate_metrics
from vtriune.monitor.files import is_locked
from vtriune.monitor.metrics import ALL, TASK
from vtriune.monitor.store import RunStore
from vtriune.recipe import Recipe
from vtriune.reward.blocking import BlockingJudge
from vtriune.reward.client import RewardClient, read_token
from vtriune.reward.config import RewardConfig
from vtriune.reward.judge import EXHAUSTED, JudgeItem
from vtriune.reward.pool import JudgePool
from vtriune.types import ImageSize, JudgedGroup, Progress, RewardSpec, Sample, Status, UserError
from vtriune.verifiers import registry

EVALUATION_SEED_STEP = -1
"""Every evaluation draws the same random numbers, so that two of them differ by the model alone."""
TRIAL_ANSWERS = ("", r"\boxed{1}")
"""What every sample's reward is tried out with. Some gold is read in no time, but can't be compared with an answer."""
STOP_FILE = ".stop"
"""In a run folder: a run on verl is to end after its step. Who asks for it is in another process or on another node."""
RUN_FILES = (
    "recipe.yaml",
    "versions.json",
    "metrics.jsonl",
    "history.bin",
    "quarantine.jsonl",
    "skipped.jsonl",
    "alerts.jsonl",
    "summary.json",
    ".lock",
    STOP_FILE,
    "run.json",
)
RUN_FOLDERS = ("rollouts", "checkpoints", "tensorboard", "wandb")
"""All that a run folder holds: what `--replace` deletes."""


def new_store(folder: Path, recipe: Recipe, *, threads: int, replace: bool) -> RunStore:
    """Start a run in `folder`; with `replace` an earlier one there is deleted, and nothing else that lies beside it.

    Raises:
        UserError: `folder` holds a run that is not to be replaced or is still being written, or can't be written to.
    """
    try:
        if replace and is_locked(folder):
            raise UserError(f"{folder}: another process is writing this run; stop it first, or choose another --out")
        # A recipe.yaml alone may be anything, above all the very recipe that this run was started with.
        if replace and ((folder / "versions.json").exists() or (folder / "run.json").exists()):
            for name in RUN_FOLDERS:
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
            for name in RUN_FILES:
                (folder / name).unlink(missing_ok=True)
        return RunStore.create(folder, recipe=recipe.model_dump(mode="json"), total_steps=recipe.steps, threads=threads)
    except OSError as error:
        raise UserError(f"{folder}: no run can be written there ({error.strerror}); choose another --out") from error


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything that is asked in a run, checked; and its place in it, as JSON values."""

    mixture: Mixture
    test: list[Sample]
    set_aside: list[QuarantinedRow]
    """Rows that were found to be bad when they were read."""
    shared_tasks: frozenset[str] = frozenset()
    """Tasks of more than one source, which have figures of their own; those of any other are its only source's."""
    unreadable_tests: list[str] = field(default_factory=list)
    """Ids of held-out rows that were found to be bad later."""

    def first_tests(self, limit: int | None) -> list[Sample]:
        """The first `limit` held-out samples of each source; None: all."""
        seen: Counter[str] = Counter()
        chosen = []
        for sample in self.test:
            seen[sample.source] += 1
            if limit is None or seen[sample.source] <= limit:
                chosen.append(sample)
        return chosen

    def remove_test(self, sample_id: str) -> None:
        """Never evaluate this sample again."""
        self.unreadable_tests.append(sample_id)
        self.test[:] = [sample for sample in self.test if sample.id != sample_id]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {"mixture": self.mixture.state_dict(), "unreadable_tests": self.unreadable_tests}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises UserError if the data has changed since."""
        self.mixture.load_state_dict(state["mixture"])
        for sample_id in state["unreadable_tests"]:
            self.remove_test(sample_id)


Judge = BlockingJudge[Any]
"""Whoever judges: the embedded pool, or reward servers."""


def open_judge(reward: RewardConfig) -> Judge:
    """The judge of a recipe, started.

    Raises:
        UserError: a verifier of the user's own can't be loaded, no server is ready, the token can't be read.
    """
    if reward.servers:
        token = read_token(reward.token_file) if reward.token_file else ""
        return RewardClient(reward.servers, token=token, deadline=reward.deadline, patience=reward.patience)
    for place in reward.load:
        registry.register(place)  # here, too, so that a mistake is an error at once
    return JudgePool(reward.workers, reward.cpu_limit, load=reward.load, remotes=reward.remotes)


def load_data(recipe: Recipe, judge: Judge) -> RunData:
    """Read all sources; each row's reward is tried out in a judge process, where hostile gold can do no harm.

    Raises:
        UserError: what is wrong with the first source that can't be used, row by row.
    """
    nowhere = Progress(step=0, total_steps=recipe.steps, split="test")

    def check(spec: RewardSpec, sizes: tuple[ImageSize, ...]) -> Callable[[], None]:
        verdicts = judge.submit([JudgeItem(answer, spec, nowhere, sizes) for answer in TRIAL_ANSWERS])

        def wait() -> None:
            for verdict in verdicts.result():
                if verdict.status is Status.FAILED:  # not the row's fault: it must not be set aside for it
                    raise RuntimeError(f"the judge itself failed while the row was checked: {verdict.reason}")
                if verdict.status is Status.UNSCORABLE:
                    raise UserError(verdict.reason)
                if verdict.reason in EXHAUSTED:
                    raise UserError(f"comparing an answer with ground_truth exhausts its verifier: {verdict.reason}")

        return wait

    set_aside: list[QuarantinedRow] = []

    def load(config: SourceConfig) -> list[Sample]:
        loaded = load_samples(config, preset=recipe.reward.preset, base=recipe.base, check=check)
        set_aside.extend(loaded.quarantined)
        for sample in loaded.samples:
            if sample.source == ALL or sample.source.startswith(TASK):
                reserved = f'data_source "{sample.source}" is reserved for figures of several sources'
                raise UserError(f"{sample.id}: {reserved}; set `name` for this source")
        return loaded.samples

    train = [load(config) for config in recipe.data.train]
    test = [sample for config in recipe.data.test for sample in load(config)]
    trained = {sample.id for source in train for sample in source}
    if both := [sample.id for sample in test if sample.id in trained]:
        raise UserError(f"data.test: {both[0]} and {len(both) - 1} more rows are in data.train, too; hold them out")
    if recipe.data.prompt_pool:
        test = [with_fixed_prompt(sample) for sample in test]
    sources = {(sample.task, sample.source) for source in (*train, test) for sample in source}
    counts = Counter(task for task, _ in sources)
    return RunData(
        Mixture(train, mixture_weights(recipe.data.train), seed=recipe.seed),
        test,
        set_aside,
        frozenset(task for task, count in counts.items() if count > 1),
    )


def ask_and_judge(
    engine: LocalEngine,
    judge: Judge,
    samples: Sequence[Sample],
    *,
    seed_step: int,
    progress: Progress,
    group_size: int | None,
    advantage: Advantage = "grpo",
) -> tuple[list[JudgedGroup], float]:
    """Answers to encoded samples with their verdicts. A group is judged while the next ones are sampled.

    Returns:
        The judged groups, and how many seconds were spent waiting for verdicts after the last group was sampled.
    """
    pending = []
    for group in engine.generate(samples, seed_step, group_size):
        items = [
            JudgeItem(
                one.text, group.sample.reward, progress, group.image_sizes, len(one.token_ids), group.sample.source
            )
            for one in group.rollouts
        ]
        pending.append((group, judge.submit(items)))
    sampled = time.monotonic()
    judged = []
    for group, future in pending:
        verdicts = tuple(future.result())
        judged.append(JudgedGroup(group, verdicts, group_advantages(advantage, verdicts, group.sample.reward)))
    return judged, time.monotonic() - sampled


@dataclass(slots=True)
class TrainingBatch:
    """What one training step has asked."""

    judged: list[JudgedGroup]
    lessons: list[JudgedGroup]
    """Those of `judged` that are learned from."""
    waited: float
    """Seconds spent waiting for verdicts."""


def ask_batch(
    recipe: Recipe,
    data: RunData,
    engine: LocalEngine,
    judge: Judge,
    progress: Progress,
    set_aside: Callable[[int, str, str], None],
) -> TrainingBatch:
    """Draw the rows of a step, ask and judge them. Those that turn out bad are set aside: (step, id, reason).

    With `objective.dynamic_sampling` groups that teach nothing are left out, and further rows are asked in their place
    until none is missing, for so many rounds at most (DAPO, arXiv 2503.14476, eq. 11).
    """
    wanted, extra = recipe.rollout.prompts_per_step, recipe.objective.dynamic_sampling
    batch = TrainingBatch([], [], 0.0)
    asked: set[str] = set()
    for number in range(1 + extra):
        drawn = data.mixture.next_batch(wanted - len(batch.lessons))
        # A small source can come round twice in a batch; a row is asked once a step.
        draws = {draw.sample.id: draw for draw in drawn if draw.sample.id not in asked}
        asked.update(draws)
        pool = recipe.data.prompt_pool
        samples, bad = engine.encode(
            [with_prompt_pool(one.sample, one.epoch, recipe.seed) if pool else one.sample for one in draws.values()],
            further=number > 0,
        )
        for sample, reason in bad:
            data.mixture.remove(sample.id)
            set_aside(progress.step + 1, sample.id, reason)
        judged, waited = ask_and_judge(
            engine,
            judge,
            samples,
            seed_step=progress.step,
            progress=progress,
            group_size=recipe.rollout.responses_per_prompt,
            advantage=recipe.objective.advantage,
        )
        for one in judged:
            if all(verdict.status is Status.UNSCORABLE for verdict in one.verdicts):
                data.mixture.remove(one.group.sample.id)
                set_aside(progress.step + 1, one.group.sample.id, one.verdicts[0].reason)
        batch.judged += judged
        batch.lessons += [one for one in judged if one.advantages.any()] if extra else judged
        batch.waited += waited
        if len(batch.lessons) == wanted:
            break
    return batch


@dataclass(frozen=True, slots=True)
class JudgedEvaluation:
    """All answers of a held-out evaluation."""

    sampled: list[JudgedGroup]
    greedy: list[JudgedGroup]

    @property
    def scores(self) -> Evaluation:
        """Scores per source."""
        return Evaluation(evaluate_metrics(self.sampled), evaluate_metrics(self.greedy))


def evaluate(
    recipe: Recipe,
    engine: LocalEngine,
    judge: Judge,
    samples: Sequence[Sample],
    *,
    progress: Progress,
    advance: Callable[[int], None],
) -> tuple[JudgedEvaluation, list[tuple[Sample, str]]]:
    """Ask all samples, chunk by chunk, decoupled from training: sampled and greedy, thresholds and prompts fixed.

    Returns:
        The answers, and the samples that could not be asked, each with the reason.
    """
    result, bad = JudgedEvaluation([], []), []
    size = recipe.evaluation.prompts_per_chunk
    for start in range(0, len(samples), size):
        good, unreadable = engine.encode(samples[start : start + size])
        bad.extend(unreadable)
        for groups, count in ((result.sampled, recipe.evaluation.responses_per_prompt), (result.greedy, None)):
            judged, _ = ask_and_judge(
                engine, judge, good, seed_step=EVALUATION_SEED_STEP, progress=progress, group_size=count
            )
            groups.extend(judged)
        advance(len(samples[start : start + size]))
    return result, bad


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C, with a checkpoint."""


@contextmanager
def polite_interrupt(console: Console, ask: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the loop to stop after its step; a second one stops at once. Yields whether it was asked.

    `ask` hands the request on to a loop in another process, or raises KeyboardInterrupt if that has not begun.
    """
    asked = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask()
        console.print("Stopping after this step, with a checkpoint. Ctrl-C again stops at once.", style="yellow")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
