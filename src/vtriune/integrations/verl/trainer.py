"""verl's synchronous trainer with what a run of ours has: our advantages, figures per source, evaluation, run folder.

The steps themselves (sampling, log-probs, update, weight transfer, checkpoints) are verl's.
"""

from __future__ import annotations

import math
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer_queue
from ray.exceptions import RayError
from tensordict import TensorDict
from transformers import GenerationConfig
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.seqlen_balancing import calculate_workload

from vtriune.grpo.advantages import group_advantages
from vtriune.integrations.verl.agent import FAILURES
from vtriune.integrations.verl.dataset import SampleRows, as_row
from vtriune.integrations.verl.engine import NORMS
from vtriune.integrations.verl.reasons import reason_of
from vtriune.integrations.verl.reward import decode_verdict, image_sizes, progress_of
from vtriune.integrations.verl.settings import settings_of
from vtriune.integrations.verl.updates import arrange
from vtriune.monitor.alerts import Alerts
from vtriune.monitor.evaluation import Evaluation, evaluate_metrics, evaluation_figures, summarize
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.rollouts import read_evaluation
from vtriune.monitor.runs import RowSplit, rollout_file, watched
from vtriune.monitor.store import RunStore
from vtriune.monitor.table import alert_line, evaluation_line, step_line
from vtriune.monitor.trackers.base import Trackers, open_trackers
from vtriune.session import STOP_FILE, new_store
from vtriune.types import FinishReason, Group, JudgedGroup, Rollout, Status, UserError, Verdict

TRAINER = "vtriune"
FIGURES = {
    "actor/loss": "loss",
    "actor/pg_clipfrac": "clip_fraction",
    "actor/kl_loss": "kl",
    "vtriune/logprob_gap": "logprob_gap",
}
"""verl's figures of a step that ours have a name for."""
TIMINGS = {"gen": "rollout_s", "old_log_prob": "logprobs_s", "update_actor": "update_s"}
"""verl's timings of a step. Answers are judged while others are sampled: reward has no time of its own."""
UNKNOWN = "see the log of verl's agent loop for the reason"
"""What broke was beside our agent loop."""
NO_ANSWER = "no materializable trajectories"
"""How verl's queue says that no row of a step got an answer."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One row of verl's queue."""

    key: str
    session: int
    about: dict[str, Any]
    """`extra_info` of dataset.as_row."""
    prompt_ids: np.ndarray
    sizes: list[list[list[int]]]
    rollout: Rollout
    verdict: Verdict


@register_trainer(TRAINER)
class SourceTrainer(PPOTrainerSync):  # type: ignore[misc]
    """One per run, in the process of verl's TaskRunner. The run folder is written from here."""

    global_steps: int
    """Of verl: the step under way, counted from 1; in an evaluation, how many are done."""
    # verl compares this with the text "sync" in several places; which trainer it is was decided by the registry.
    trainer_mode = property(lambda self: "sync", lambda self, value: None)

    def __init__(self, config: Any) -> None:
        self.settings = settings_of(config.data)
        self.recipe = self.settings.recipe
        self._store: RunStore
        self._trackers: Trackers
        self._alerts: Alerts
        self._judged: list[JudgedGroup] = []
        self._started = (0, 0.0)
        """Steps done when this session began to train, and when that was."""
        self._unreadable: set[str] = set()
        self._eos_ids: tuple[int, ...] = ()
        super().__init__(config)

    def _setup(self) -> None:
        super()._setup()
        if not isinstance(self.train_dataset, SampleRows) or not isinstance(self.val_dataset, SampleRows):
            raise RuntimeError("verl uses another dataset: data.custom_cls was overridden")
        if len(self.train_dataset) != self.total_training_steps * self.config.data.train_batch_size:
            raise RuntimeError("verl counts other steps than the recipe: a size was overridden")
        given = Path(self.recipe.model.path, "generation_config.json").is_file()
        eos = GenerationConfig.from_pretrained(self.recipe.model.path).eos_token_id if given else None
        eos = eos or self.tokenizer.eos_token_id
        self._eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)

    def fit(self, agent_loop_manager: Any) -> None:
        """All steps from the last checkpoint on, or until it is asked to stop, into the run folder."""
        folder, first = self.settings.folder, self.global_steps
        threads = torch.get_num_threads()
        if first:
            self._store = RunStore.resume(folder, step=first, threads=threads, total_steps=self.recipe.steps)
            self.config.trainer.val_before_train = False  # the run has its first evaluation
        else:
            self._store = new_store(folder, self.recipe, threads=threads, replace=self.settings.replace)
        with (
            self._store,
            open_trackers(
                self.recipe.tracking,
                folder,
                self._store.run_id,
                self.recipe.model_dump(mode="json"),
                resumed_at=first or None,
            ) as self._trackers,
        ):
            self._alerts = watched(folder)
            if not first:
                for row in self.train_dataset.data.set_aside:
                    self._store.quarantine(0, row.id, row.reason)
            try:
                super().fit(agent_loop_manager)
            except RayError as error:
                raise RuntimeError(reason_of(error)) from error  # the run folder keeps it
            if self.global_steps >= self.recipe.steps:
                self._finish()

    def on_train_begin(self) -> None:
        """Catch up on the evaluation that a killed run owed when its checkpoint had been written."""
        super().on_train_begin()
        done, every = self.global_steps - 1, self.recipe.evaluation.every
        due = done == self.recipe.steps or (every is not None and done % every == 0)
        if done and due and not rollout_file(self.settings.folder, "eval", done).exists():
            self.global_steps = done
            self._validate()
            self.global_steps = done + 1
        self._started = (done, time.monotonic())

    def on_step_end(self) -> None:
        """Where Ctrl-C has asked for it, let this step be the last one, with a checkpoint."""
        done = self.global_steps
        if done < self.recipe.steps and (self.settings.folder / STOP_FILE).exists():
            if done % self.config.trainer.save_freq:
                self._save_checkpoint()
            self.total_training_steps = done  # where verl's loop ends
        super().on_step_end()

    def _save_checkpoint(self) -> None:
        """verl's, which forgets what lay there before the run was resumed; here only the latest ones stay."""
        super()._save_checkpoint()
        there = (self.settings.folder / "checkpoints").glob("global_step_*")
        for path in sorted(there, key=lambda path: int(path.name.rpartition("_")[2]))[: -self.recipe.checkpoint.keep]:
            shutil.rmtree(path)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        """verl's step, then its row and its rollouts in the run folder."""
        began, step = time.monotonic(), self.global_steps
        size, each = self.recipe.rollout.prompts_per_step, self.recipe.rollout.responses_per_prompt
        asked = [self.train_dataset.sample(k).id for k in range((step - 1) * size, step * size)]
        try:
            batch = super().step(metrics, timing_raw)
        except RuntimeError as error:
            if NO_ANSWER not in str(error):
                raise
            reason = self._note_missing(step, asked, each, [])[0]
            raise UserError(f"step {step}: none of its rows got an answer, the first because {reason}") from error
        judged = self._judged
        self._note_missing(step, asked, each, judged)
        figures = source_metrics(judged, self.train_dataset.data.shared_tasks)
        figures |= {f"all/{ours}": float(metrics[theirs]) for theirs, ours in FIGURES.items() if theirs in metrics}
        for theirs in [name for name in metrics if name.startswith(f"actor/{NORMS}")]:
            name = theirs.removeprefix(f"actor/{NORMS}")
            figures[name if "/" in name else f"all/{name}"] = float(metrics.pop(theirs))
        if "all/clip_fraction" in figures:  # verl counts apart what dual_clip limits
            figures["all/clip_fraction"] += float(metrics.get("actor/pg_clipfrac_lower", 0.0))
        if not math.isfinite(metrics["actor/grad_norm"]):
            reason = "norm of a gradient is not finite in some of its optimizer steps"  # verl tells their mean only
            self._store.skip(step, [one.group.sample.id for one in judged], reason)
        timing = {ours: timing_raw[theirs] for theirs, ours in TIMINGS.items() if theirs in timing_raw}
        tokens = sum(len(rollout.token_ids) for one in judged for rollout in one.group.rollouts)
        timing["tokens_per_s"] = tokens / timing["rollout_s"]
        self._store.write_rollouts(step, judged, progress_of(step, self.recipe.steps, "train"))
        timing["step_s"] = time.monotonic() - began
        self._log(step, "train", figures, timing)
        before, since = self._started
        left = (time.monotonic() - since) / (step - before) * (self.recipe.steps - step)
        line = step_line(step, self.recipe.steps, figures, left, alerts=self._alerts.open)
        print(line.plain, flush=True)
        metrics.update({f"vtriune/{name}": value for name, value in figures.items()})
        return batch

    def _balance_batch(self, batch: Any, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """verl's, which fills the batch up to whole optimizer steps; then rows are put in the order of updates.py.

        It is the first that is done with a step's answers.
        """
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        real = [k for k, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        rows = transfer_queue.kv_batch_get(
            keys=[batch.keys[k] for k in real],
            partition_id=batch.partition_id,
            select_fields=["extra_info", "extra_fields"],
        )
        known = sorted(
            (about["index"], _session(batch.keys[k]), k, extra["reward_extra_info"]["status"] == Status.SCORED)
            for k, about, extra in zip(real, _column(rows["extra_info"]), _column(rows["extra_fields"]), strict=True)
        )
        teaching: list[list[int]] = []
        others = sorted(set(range(len(batch.keys))) - set(real))
        for _, group in groupby(known, key=lambda row: row[0]):
            _, _, members, scored = zip(*group, strict=True)
            if any(scored):
                teaching.append(list(members))
            else:
                others += members
        sizes = self.config.actor_rollout_ref
        order = arrange(
            teaching,
            others,
            calculate_workload(torch.tensor([tag["seq_len"] for tag in batch.tags])).tolist(),
            size=sizes.actor.ppo_mini_batch_size * sizes.rollout.n,
            ranks=max(self.actor_rollout_wg._dispatch_info["actor"]) + 1,
        )
        batch.reorder(order)
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Our advantages in the place of verl's, over the answers that have a verdict.

        The others get advantage 0, and `response_mask` and `loss_mask` 0 on all of their tokens: they enter neither a
        group's mean nor the sums, nor the number of tokens, or by engine.py of answers, that the loss is divided by.
        """
        batch = super()._compute_advantage(batch, metrics)  # sampler weights and divergence are verl's
        answers = self._answers(batch)
        self._judged = self._groups(answers, self.train_dataset)
        worth = {
            key: float(value)
            for one, keys in zip(self._judged, self._keys(answers), strict=True)
            for key, value in zip(keys, one.advantages, strict=True)
        }
        scored = {one.key: one.verdict.status is Status.SCORED for one in answers}
        rows = transfer_queue.kv_batch_get(
            keys=batch.keys,
            partition_id=batch.partition_id,
            select_fields=["response_mask", "old_log_probs", "rollout_log_probs"],
        )
        ours, theirs = rows["old_log_probs"].unbind(), rows["rollout_log_probs"].unbind()
        metrics["vtriune/logprob_gap"] = max(
            (a - b).abs().max().item() for key, a, b in zip(batch.keys, ours, theirs, strict=True) if key in scored
        )
        masks, advantages = [], []
        for key, mask in zip(batch.keys, rows["response_mask"].unbind(), strict=True):
            # A key that has no answer is one of the rows that verl fills a batch up with.
            masks.append(mask if scored.get(key, True) else torch.zeros_like(mask))
            advantages.append(worth.get(key, 0.0) * masks[-1].float())
        nested = {
            "advantages": advantages,
            "returns": advantages,
            "response_mask": masks,
            "loss_mask": masks,
        }
        fields = {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in nested.items()}
        return transfer_queue.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch.keys))
        )

    def _validate(self) -> dict[str, float]:
        """Held-out evaluation as the recipe has it: sampled and greedy, chunk by chunk, thresholds fixed."""
        done, dataset = self.global_steps, self.val_dataset
        evaluation = self.recipe.evaluation
        between = 0 < done < self.recipe.steps
        chosen = dataset.data.first_tests(evaluation.samples_between if between else None)
        numbers = {sample.id: index for index, sample in enumerate(dataset.data.test)}
        asked = [(numbers[one.id], one) for one in chosen if one.id not in self._unreadable]
        sampled: list[JudgedGroup] = []
        greedy: list[JudgedGroup] = []
        for start in range(0, len(asked), evaluation.prompts_per_chunk):
            chunk = asked[start : start + evaluation.prompts_per_chunk]
            rows = [as_row(one, k, "test", "sampled", evaluation.responses_per_prompt) for k, one in chunk]
            rows += [as_row(one, k, "test", "greedy", 1) for k, one in chunk]
            answers = self._ask_tests(rows)
            for groups, decoding in ((sampled, "sampled"), (greedy, "greedy")):
                some = [one for one in answers if one.about["decoding"] == decoding]
                groups.extend(self._groups(some, dataset))
        answered = {one.group.sample.id for one in greedy} & {one.group.sample.id for one in sampled}
        self._unreadable |= {one.id for _, one in asked} - answered
        self._note_missing(done, [one.id for _, one in asked], evaluation.responses_per_prompt + 1, [*sampled, *greedy])
        scores = Evaluation(evaluate_metrics(sampled), evaluate_metrics(greedy))
        if done == 0 and not scores.sampled:
            raise UserError("no held-out row got a score, so gains can't be shown: see quarantine.jsonl and rollouts/")
        figures = source_metrics(sampled, dataset.data.shared_tasks) | evaluation_figures(scores)
        self._store.write_evaluation(done, sampled, greedy, progress_of(done, self.recipe.steps, "test"))
        print(evaluation_line(done, self.recipe.steps, figures).plain, flush=True)  # Ray shows it where `train` runs
        self._log(done, "eval", figures)
        return {f"val/{name}": value for name, value in figures.items()}

    def _log(
        self, step: int, split: RowSplit, figures: dict[str, float], timing: dict[str, float] | None = None
    ) -> None:
        """Store figures, show them, and tell what fell ill or recovered by them."""
        self._store.log(step, split, figures, timing)
        changes = self._alerts.update(step, split, figures)
        self._trackers.write(step, split, figures | self._alerts.figures(split, changes))
        for alert in changes:
            self._store.alert(step, alert)
            print(alert_line(alert).plain, flush=True)

    def _ask_tests(self, rows: list[dict[str, Any]]) -> list[_Answer]:
        """Answers to held-out rows, by verl's agent loops."""
        asked = collate_fn(rows)
        asked["uid"] = np.array([str(uuid.uuid4()) for _ in rows], dtype=object)
        batch = tensordict_utils.get_tensordict(asked)
        tensordict_utils.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        tensordict_utils.assign_non_tensor_data(batch, "validate", True)
        tags = [{"is_prompt": True, "status": "pending", "global_steps": self.global_steps} for _ in rows]
        transfer_queue.kv_batch_put(keys=list(asked["uid"]), partition_id="val", tags=tags)
        self.agent_loop_manager.generate_sequences(batch)
        got, _ = self.replay_buffer.sample(global_steps=self.global_steps, partition_id="val", batch_size=len(rows))
        if not got.keys:
            return []
        answers = self._answers(got)
        transfer_queue.kv_clear(keys=got.keys, partition_id=got.partition_id)
        return answers

    def _answers(self, batch: Any) -> list[_Answer]:
        """What verl's queue holds of a batch, in the order of rows and sessions, without the rows that fill it up."""
        kept = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        fields = ["prompts", "responses", "rollout_log_probs", "extra_fields", "extra_info"]
        if batch.partition_id == "train":
            fields.append("entropy")
        rows = transfer_queue.kv_batch_get(keys=kept, partition_id=batch.partition_id, select_fields=fields)
        columns = {name: _column(rows[name]) for name in fields}
        answers = []
        for number, key in enumerate(kept):
            row = {name: values[number] for name, values in columns.items()}
            ids, logprobs = row["responses"].numpy(), row["rollout_log_probs"].float().numpy()
            # Of tests verl computes no entropies; the mean surprisal of what was sampled estimates it.
            entropy = row["entropy"].float().mean() if "entropy" in row else -logprobs.mean()
            extra = row["extra_fields"]
            rollout = Rollout(
                ids,
                logprobs,
                self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
                FinishReason.STOP if ids[-1] in self._eos_ids else FinishReason.LENGTH,
                float(entropy),
                int(extra["spurious_tokens"]),
            )
            answers.append(
                _Answer(
                    key,
                    _session(key),
                    row["extra_info"],
                    row["prompts"].numpy(),
                    extra["image_sizes"],
                    rollout,
                    decode_verdict(extra["reward_extra_info"]),
                )
            )
        return sorted(answers, key=lambda one: (one.about["index"], one.session))

    def _groups(self, answers: Sequence[_Answer], dataset: SampleRows) -> list[JudgedGroup]:
        judged = []
        for index, members in groupby(answers, key=lambda one: one.about["index"]):
            group = list(members)
            sample = dataset.sample(index)
            verdicts = tuple(one.verdict for one in group)
            judged.append(
                JudgedGroup(
                    Group(
                        sample,
                        self._prompt(group[0].prompt_ids),
                        group[0].prompt_ids,
                        image_sizes(group[0].sizes),
                        tuple(one.rollout for one in group),
                    ),
                    verdicts,
                    group_advantages(self.recipe.objective.advantage, verdicts, sample.reward),
                )
            )
        return judged

    @staticmethod
    def _keys(answers: Sequence[_Answer]) -> list[list[str]]:
        """Keys of the answers, group by group."""
        return [[one.key for one in some] for _, some in groupby(answers, key=lambda one: one.about["index"])]

    def _prompt(self, ids: np.ndarray) -> str:
        """The prompt with one mark per picture."""
        placeholder = self.processor.image_token_id
        kept = [token for k, token in enumerate(ids) if token != placeholder or k == 0 or ids[k - 1] != placeholder]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _note_missing(self, step: int, asked: Sequence[str], each: int, judged: Sequence[JudgedGroup]) -> list[str]:
        """Note answers that verl's agent loops failed on, which nobody judged. Their rows come again in their turn.

        Args:
            step: training steps done with the one that asked.
            asked: ids of samples.
            each: how many answers each was to get.
            judged: what came.

        Returns:
            Why, row by row.
        """
        missing = Counter([*asked] * each)
        for one in judged:
            missing[one.group.sample.id] -= len(one.group.rollouts)
        known, reasons = self._failures(), []
        for sample_id in sorted(one for one, count in missing.items() if count > 0):
            reasons.append(known.get(sample_id, UNKNOWN))
            self._store.quarantine(step, sample_id, f"{missing[sample_id]} answers are missing: {reasons[-1]}")
        return reasons

    @staticmethod
    def _failures() -> dict[str, str]:
        """The first reason of each sample whose agent loops failed, by its id. They are told once."""
        tags = (transfer_queue.kv_list(FAILURES) or {}).get(FAILURES, {})
        if tags:
            transfer_queue.kv_clear(keys=list(tags), partition_id=FAILURES)
        return {tag["sample"]: tag["reason"] for _, tag in sorted(tags.items(), reverse=True)}

    def _finish(self) -> None:
        """Compare the last evaluation with the first one."""
        folder, steps = self.settings.folder, self.recipe.steps
        before, after = (read_evaluation(rollout_file(folder, "eval", done)) for done in (0, steps))
        minutes = self._store.elapsed / 60
        self._store.finish(summarize(before, after, minutes=minutes, steps=steps, seed=self.recipe.seed))


def _session(key: str) -> int:
    """Which answer to its prompt a row of verl's queue holds."""
    return int(key.rsplit("_", 2)[1])


def _column(values: Any) -> list[Any]:
    """A field of verl's queue row by row: nested tensors, or objects in wrappers of their own."""
    if isinstance(values, torch.Tensor):
        return list(values.unbind())
    return [getattr(value, "data", value) for value in values]
