"""The loop: mix, sample, judge, learn, report. It joins the rooms and computes nothing itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from vtriune.local.checkpoint import read_latest, write_checkpoint
from vtriune.local.engine import LocalEngine
from vtriune.monitor.alerts import Alerts
from vtriune.monitor.evaluation import evaluation_figures, is_better, summarize
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.rollouts import read_evaluation
from vtriune.monitor.runs import RowSplit, rollout_file, watched
from vtriune.monitor.store import RunStore, check_vacant
from vtriune.monitor.table import alert_line, before_after_table, evaluation_line, plain, step_line
from vtriune.monitor.trackers.base import Trackers, check_installed, open_trackers
from vtriune.recipe import Recipe
from vtriune.session import (
    Interrupted,
    Judge,
    RunData,
    ask_batch,
    evaluate,
    load_data,
    new_store,
    open_judge,
    polite_interrupt,
)
from vtriune.types import Progress, UserError


def train(recipe: Recipe, folder: Path, console: Console, *, resume: bool = False, replace: bool = False) -> None:
    """Run a recipe from start to end, or go on from the last checkpoint in `folder`.

    Raises:
        UserError: the recipe, the data, the model or the folder can't be used.
        Interrupted: Ctrl-C; the run can be resumed.
        KeyboardInterrupt: a second Ctrl-C, or one before the run has started.
    """
    if not resume and not replace:
        check_vacant(folder)  # before minutes are spent on reading data
    check_installed(recipe.tracking)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    threads = torch.get_num_threads()
    with open_judge(recipe.reward) as judge:
        with console.status("Reading and checking the data"):
            data = load_data(recipe, judge)
        with console.status("Loading the model"):
            engine = LocalEngine(recipe.model, recipe.rollout, recipe.update, recipe.seed, recipe.objective)
        first = 0
        if resume:
            checkpoint, state = read_latest(folder / "checkpoints")
            engine.load(checkpoint)
            data.load_state_dict(state["data"])
            first = state["step"]
            store = RunStore.resume(folder, step=first, threads=threads, total_steps=recipe.steps)
        else:
            store = new_store(folder, recipe, threads=threads, replace=replace)
        resolved, resumed_at = recipe.model_dump(mode="json"), first if resume else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            store,
            open_trackers(recipe.tracking, folder, store.run_id, resolved, resumed_at=resumed_at) as trackers,
            Bars(*columns, console=console) as bars,
        ):
            run = _Run(recipe, data, engine, judge, store, trackers, watched(folder), console, bars)
            run.go(first, fresh=not resume)


@dataclass(frozen=True, slots=True)
class _Run:
    recipe: Recipe
    data: RunData
    engine: LocalEngine
    judge: Judge
    store: RunStore
    trackers: Trackers
    alerts: Alerts
    console: Console
    bars: Bars

    def go(self, first: int, *, fresh: bool) -> None:
        """All steps from `first` on, with evaluations and checkpoints between them."""
        total, every = self.recipe.steps, self.recipe.evaluation.every
        whole = 0.0  # seconds of a whole evaluation, as comes again after the last step; unknown where a run resumes
        with polite_interrupt(self.console) as asked_to_stop:
            if fresh:
                for row in self.data.set_aside:
                    self.store.quarantine(0, row.id, row.reason)
                if self.data.set_aside:
                    said = (
                        f"{len(self.data.set_aside)} rows are set aside: see {self.store.folder / 'quarantine.jsonl'}"
                    )
                    self.console.print(plain(said), style="yellow", soft_wrap=True)
                began = time.monotonic()
                self.evaluate(0)
                whole = time.monotonic() - began
                self.save(0, self.best(0))
            bar, began = self.bars.add_task("training", total=total, completed=first), time.monotonic()
            for done in range(first + 1, total + 1):
                figures, waited = self.step(done - 1)
                self.bars.update(bar, completed=done)
                left = (time.monotonic() - began) / (done - first) * (total - done) + whole
                line = step_line(done, total, figures, left, waited, self.alerts.open)
                cut = self.console.is_terminal  # a log file has room for all of it
                self.console.print(line, no_wrap=True, overflow="ellipsis" if cut else "ignore", crop=cut)
                if done == total or (every and done % every == 0):
                    self.evaluate(done)
                stopping = (asked_to_stop() or self.engine.learner.stuck) and done < total
                best = self.best(done)
                if done in (total, best) or stopping or done % self.recipe.checkpoint.every == 0:
                    self.save(done, best)
                if stopping and self.engine.learner.stuck:
                    raise UserError(self.stuck(done))
                if stopping:
                    raise Interrupted(f"Stopped after step {done}. Go on: vtriune train --resume {self.store.folder}")
        self.finish()

    def step(self, step: int) -> tuple[dict[str, float], float]:
        """Mix, sample, judge, learn. Returns the step's figures and the seconds that it waited for rewards."""
        recipe, began = self.recipe, time.monotonic()
        progress = Progress(step, recipe.steps, "train")
        batch = ask_batch(recipe, self.data, self.engine, self.judge, progress, self.set_aside)
        judged, waited = batch.judged, batch.waited
        judged_at = time.monotonic()
        learned = self.engine.update(batch.lessons, step, recipe.steps)
        updated_at = time.monotonic()
        for skipped in self.engine.learner.skipped:
            self.store.skip(step + 1, skipped.samples, skipped.reason)
            said = f"step {step + 1}: an optimizer step was skipped ({skipped.reason}), see skipped.jsonl"
            self.console.print(plain(said), style="yellow", soft_wrap=True)
        figures = source_metrics(judged, self.data.shared_tasks) | {
            name if "/" in name else f"all/{name}": value for name, value in learned.items()
        }
        tokens = sum(len(rollout.token_ids) for one in judged for rollout in one.group.rollouts)
        timing = {
            "rollout_s": judged_at - began - waited,
            "tokens_per_s": tokens / (judged_at - began - waited),
            "reward_wait_s": waited,
            "update_s": updated_at - judged_at,
        }
        self.store.write_rollouts(step + 1, judged, progress)
        timing["step_s"] = time.monotonic() - began
        self.log(step + 1, "train", figures, timing)
        return figures, waited

    def stuck(self, done: int) -> str:
        """Why training stops after `done` steps whose last updates were all skipped, and what to do."""
        count, folder = self.engine.learner.skipped_in_a_row, self.store.folder
        return (
            f"stopped after step {done}: loss or gradient of the last {count} optimizer steps was not finite, so "
            f"nothing was learned from them; their samples are in {folder / 'skipped.jsonl'}. Go on with vtriune train "
            f"--resume {folder}, or start again with a lower update.learning_rate than "
            f"{self.recipe.update.learning_rate} or without those samples"
        )

    def evaluate(self, done: int) -> None:
        """Held-out evaluation after `done` steps: whole at first and at last, as the recipe says in between."""
        between = 0 < done < self.recipe.steps
        samples = self.data.first_tests(self.recipe.evaluation.samples_between) if between else self.data.test
        progress = Progress(done, self.recipe.steps, "test")
        bar = self.bars.add_task(f"evaluation after {done} steps", total=len(samples))
        answers, bad = evaluate(
            self.recipe,
            self.engine,
            self.judge,
            samples,
            progress=progress,
            advance=lambda count: self.bars.advance(bar, count),
        )
        self.bars.remove_task(bar)
        for sample, reason in bad:
            self.data.remove_test(sample.id)
            self.set_aside(done, sample.id, reason)
        figures = source_metrics(answers.sampled, self.data.shared_tasks) | evaluation_figures(answers.scores)
        self.store.write_evaluation(done, answers.sampled, answers.greedy, progress)
        self.console.print(evaluation_line(done, self.recipe.steps, figures), soft_wrap=True)
        self.log(done, "eval", figures)
        if done == 0 and not answers.scores.sampled:
            raise UserError("no held-out row got a score, so gains can't be shown: see quarantine.jsonl and rollouts/")

    def log(
        self, step: int, split: RowSplit, figures: dict[str, float], timing: dict[str, float] | None = None
    ) -> None:
        """Store figures, show them, and tell what fell ill or recovered by them."""
        self.store.log(step, split, figures, timing)
        changes = self.alerts.update(step, split, figures)
        self.trackers.write(step, split, figures | self.alerts.figures(split, changes))
        for alert in changes:
            self.store.alert(step, alert)
            self.console.print(alert_line(alert), soft_wrap=True)

    def set_aside(self, step: int, row_id: str, reason: str) -> None:
        """A row turned out bad: note it, say it, go on without it."""
        self.store.quarantine(step, row_id, reason)
        self.console.print(plain(f"set aside: {reason}"), style="yellow", soft_wrap=True)

    def best(self, done: int) -> int | None:
        """The step of the best evaluation so far, whose checkpoint is to be kept; None if none is."""
        if not self.recipe.checkpoint.keep_best:
            return None
        folder = self.store.folder
        best: int | None = read_latest(folder / "checkpoints")[1].get("best") if done else None
        latest = rollout_file(folder, "eval", done)
        if latest.exists() and (
            best is None or is_better(read_evaluation(rollout_file(folder, "eval", best)), read_evaluation(latest))
        ):
            return done
        return best

    def save(self, done: int, best: int | None) -> None:
        """Write a checkpoint from which the run continues exactly."""
        folder, state = self.store.folder / "checkpoints", {"data": self.data.state_dict()}
        write_checkpoint(folder, done, self.engine.save, state, keep=self.recipe.checkpoint.keep, best=best)

    def finish(self) -> None:
        """Compare the last evaluation with the first one."""
        folder, steps, minutes = self.store.folder, self.recipe.steps, self.store.elapsed / 60
        before, after = (read_evaluation(rollout_file(folder, "eval", done)) for done in (0, steps))
        self.store.finish(summarize(before, after, minutes=minutes, steps=steps, seed=self.recipe.seed))
        self.console.print(before_after_table(before, after))
        done = f"{steps} steps in {minutes:.1f} minutes. Look closer: vtriune runs show {folder}"
        self.console.print(plain(done), soft_wrap=True)
