"""The formulas of docs/plan.md, in its symbols: bytes on a GPU, how a step is split, pictures on a host, judges.

From the recipe and the model's shape alone, without torch. docs/plan.md says what each was checked against.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from vtriune.shapes import PARTS, Shape

if TYPE_CHECKING:  # the recipe's sections stand beside the engine, which imports torch
    from vtriune.recipe import Recipe

GIB = 2**30
USABLE = 0.9
"""Share of a GPU's memory that a plan may fill; CUDA's context, NCCL and fragmentation take the rest. An assumption."""
SAMPLER_RESERVE = 2 * GIB
"""What the sampling engine needs beside weights, keys and values: activations, CUDA graphs. An assumption."""
VERDICTS_PER_WORKER = 345
"""Verdicts a second of one judge process in batches, the slowest of four loads: docs/reward_service.md, "How fast"."""
WORKERS_PER_SERVER = 8
LOGITS_AT_A_TIME = 2**26
"""As `local.logprobs.LOGITS_PER_CHUNK`; tests hold the two together."""
PREFILL_TOKENS = 16_384
"""As `local.rollout.PREFILL`."""


@dataclass(frozen=True, slots=True)
class Machines:
    """What there is to run on."""

    gpus: int = 1
    memory: float = 80
    """GiB of each."""
    nodes: int | None = None
    """None: 8 GPUs to a node."""
    tensor_parallel: int = 1
    """t: GPUs that share the weights of one sampling engine."""
    sampling_share: float = 0.5
    """u: share of a GPU that the sampling engine may fill (vLLM's gpu_memory_utilization)."""

    @property
    def hosts(self) -> int:
        """Number of nodes."""
        return self.nodes or ceil(self.gpus / 8)


@dataclass(frozen=True, slots=True)
class Load:
    """What prompts look like, which no recipe says."""

    text_tokens: int = 256
    picture_tokens: int = 1280
    """Of all pictures of a prompt."""
    sampling_seconds: float = 60
    """Of one step; with it grows the number of judges."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU, by what they hold."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """All together."""
        return sum(self.parts.values())


def saved_per_token(shape: Shape, kind: str) -> float:
    """Bytes that one decoder layer keeps of a token for the backward pass.

    `kind`: float32; autocast (float32 weights, products in bfloat16, as the local engine); bfloat16 (as FSDP's).
    """
    b = 4 if kind == "float32" else 2
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    norms = {"float32": 24, "autocast": 26, "bfloat16": 16}[kind] * shape.hidden + 8
    attention = b * (2 * queries + 2 * keys) + 4 * shape.heads
    if shape.family == "qwen3_vl":  # queries and keys are normalised, too
        norms += (8 if kind == "float32" else 6) * (queries + keys) + 4 * (shape.heads + shape.key_heads)
    return norms + attention + 4 * b * shape.intermediate


@dataclass(frozen=True, slots=True)
class Paper:
    """The formulas for one recipe on some machines."""

    recipe: Recipe
    shape: Shape
    machines: Machines
    load: Load
    recompute: bool | None = None
    """Instead of the recipe's `update.gradient_checkpointing`."""
    budget: int | None = None
    """Instead of the recipe's `update.tokens_per_batch`."""

    @property
    def local(self) -> bool:
        """Is it the local engine that is planned?"""
        return self.machines.gpus == 1 and self.recipe.engine == "local"

    @property
    def most(self) -> int:
        """What verl makes room for at least: an answer with the longest prompt that is let in."""
        return self.recipe.verl.max_prompt_tokens + self.answer

    @property
    def prompt(self) -> int:
        """L: tokens of a prompt."""
        return self.load.text_tokens + self.load.picture_tokens

    @property
    def answer(self) -> int:
        """T: tokens of an answer at its longest."""
        return self.recipe.rollout.max_new_tokens

    @property
    def group(self) -> int:
        """G: answers per prompt."""
        return self.recipe.rollout.responses_per_prompt

    @property
    def per_update(self) -> int:
        """Prompts of one optimizer step."""
        return self.recipe.update.prompts_per_update or self.recipe.rollout.prompts_per_step

    @property
    def tokens(self) -> int:
        """Asked for as the most of a micro-batch."""
        return self.budget or self.recipe.update.tokens_per_batch

    @property
    def checkpointing(self) -> bool:
        """Are layers computed again in the backward pass?"""
        return self.recipe.update.gradient_checkpointing if self.recompute is None else self.recompute

    @property
    def all_parameters(self) -> int:
        """P: with LoRA's adapters."""
        adapters = sum(self.trained.values()) if self.recipe.model.lora else 0
        return sum(self.shape.parameters.values()) + adapters

    @property
    def trained(self) -> dict[str, int]:
        """P_t per part."""
        parts = [part for part in PARTS if part not in self.recipe.model.freeze]
        if lora := self.recipe.model.lora:
            return self.shape.adapters(lora.rank, lora.target, parts)
        return {part: count if part in parts else 0 for part, count in self.shape.parameters.items()}

    # --- one GPU of many: FSDP2 shards, a sampling engine with tensor parallelism ---------------------------------

    def training(self) -> Memory:
        """While an optimizer step is computed."""
        shape, n = self.shape, self.machines.gpus
        trained = sum(self.trained.values())
        tokens = max(self.tokens, self.most)
        vocabulary = shape.vocabulary * shape.hidden
        largest = 0 if self.recipe.model.lora else max(vocabulary, shape.layer)
        inside = saved_per_token(shape, "bfloat16") * tokens
        return Memory(
            {
                "weights (float32 shards)": 4 * self.all_parameters / n,
                "gradients (float32 shards)": 4 * trained / n,
                "AdamW": 8 * trained / n,
                "initial weights (kl_coefficient)": 2 * self._reference() / n,
                "gathered weights and gradients": 2 * shape.embedding + 4 * shape.layer + 6 * largest,
                "activations": (2 * shape.hidden * tokens if self.checkpointing else inside) * shape.layers,
                **self._logits_or_layer(6 * shape.vocabulary * tokens, inside),
            }
        )

    def _logits_or_layer(self, logits: float, inside: float) -> dict[str, float]:
        """The backward pass has the logits first; once they are gone a layer computed again, with its gradients."""
        if not self.checkpointing:
            return {"logits": logits}
        return {"logits, or a layer computed again": max(logits, 2 * inside)}

    def kv(self) -> float:
        """Bytes of a token's keys and values on one GPU: heads that can't be divided are there on each."""
        shape = self.shape
        return 2 * shape.layers * ceil(shape.key_heads / self.machines.tensor_parallel) * shape.head_size * 2

    def sampling(self) -> tuple[float, Memory]:
        """Bytes for keys and values, and all there is while answers are sampled."""
        machines = self.machines
        trained = sum(self.trained.values())
        weights = 2 * sum(self.shape.parameters.values()) / machines.tensor_parallel
        share = machines.sampling_share * machines.memory * GIB
        room = share - weights - SAMPLER_RESERVE
        beside = (4 * self.all_parameters + 8 * trained + 2 * self._reference()) / machines.gpus
        return room, Memory(
            {
                "weights (bfloat16)": weights,
                "activations, graphs": SAMPLER_RESERVE,
                "keys and values": max(0.0, room),
                "training's shards beside": beside,
            }
        )

    def _reference(self) -> int:
        return sum(self.shape.parameters.values()) if self.recipe.objective.kl_coefficient else 0

    # --- the local engine -----------------------------------------------------------------------------------------

    def _states(self) -> dict[str, float]:
        trained = sum(self.trained.values())
        return {
            "weights (float32)": 4 * self.all_parameters,
            "AdamW": 8 * trained,
            "initial weights (kl_coefficient)": 4 * trained if self.recipe.objective.kl_coefficient else 0,
        }

    def _places(self, budget: int) -> int:
        """Prompts with all of their answers at their longest that fit into so many tokens; one always does."""
        return max(1, budget // (self.prompt + self.group * self.answer))

    def local_training(self) -> Memory:
        """While an optimizer step is computed."""
        shape, trained = self.shape, sum(self.trained.values())
        kind = "autocast" if self.recipe.model.dtype == "bfloat16" else "float32"
        b = 2 if kind == "autocast" else 4
        prompts = min(self._places(self.tokens), self.per_update)
        rows = prompts * self.group
        ends = prompts * self.prompt, rows * (self.answer - 1)
        queries = shape.heads * shape.head_size
        # An answer's attention keeps keys and values of its prompt and itself, repeated for each query head, and what
        # each of its tokens sees of them.
        seen = b * rows * (self.prompt + self.answer - 1) * (2 * queries + self.answer - 1)
        own = 2 * b * shape.key_heads * shape.head_size
        insides = ends[0] * saved_per_token(shape, kind), ends[1] * (saved_per_token(shape, kind) - own) + seen
        between = 4 * shape.hidden * sum(ends) + self._local_prefix() * ends[0]
        logits = min(rows * self.answer * shape.vocabulary, LOGITS_AT_A_TIME)
        return Memory(
            self._states()
            | {
                "gradients (float32)": 4 * trained,
                "weights in bfloat16": 2 * trained if kind == "autocast" else 0,
                "activations": (between if self.checkpointing else sum(insides)) * shape.layers
                + 8 * shape.hidden * sum(ends),
                **self._logits_or_layer(4 * 4 * logits, max(insides)),
            }
        )

    def _local_prefix(self) -> float:
        """Bytes of a token's keys and values in one layer: under autocast keys are float32, values bfloat16."""
        b = 6 if self.recipe.model.dtype == "bfloat16" else 8
        return b * self.shape.key_heads * self.shape.head_size

    def local_kv(self) -> float:
        """Bytes of a token's keys and values."""
        return self.shape.layers * self._local_prefix()

    def local_sampling(self) -> tuple[float, Memory]:
        """Bytes for keys and values, and all there is while answers are sampled."""
        places = min(self._places(self.recipe.rollout.cache_tokens), self.recipe.rollout.prompts_per_step)
        rows = places * self.group
        room = places * (self.prompt + self.group * self.answer) * self.local_kv()
        prefilled = min(places * self.prompt, max(PREFILL_TOKENS, self.prompt))
        logits = min(rows * self.shape.vocabulary, LOGITS_AT_A_TIME)
        return room, Memory(
            self._states()
            | {
                "keys and values": room,
                "prefill": prefilled * (8 * self.shape.hidden + 12 * self.shape.intermediate + self.local_kv()),
                "logits": 6 * 4 * logits,
                "tokens, numbers drawn": 24 * rows * self.answer,
            }
        )

    # --- the rest ---------------------------------------------------------------------------------------------------

    def split(self, kv_tokens: int) -> dict[str, float]:
        """How a step is divided. At their longest: answers are rarely all so long."""
        machines, recipe = self.machines, self.recipe
        prompts = recipe.rollout.prompts_per_step
        engines = machines.gpus // machines.tensor_parallel
        answers = prompts * self.group
        if self.local:
            at_once = min(self._places(recipe.rollout.cache_tokens), prompts) * self.group
            batches = ceil(self.per_update / self._places(self.tokens))
        else:
            at_once = min(kv_tokens // (self.prompt + self.answer), ceil(answers / engines))
            longest = self.prompt + self.answer
            batches = ceil(
                self.per_update * self.group / machines.gpus / max(1, max(self.tokens, self.most) // longest)
            )
        return {
            "prompts a step": prompts,
            "answers a step": answers,
            "sampling engines": engines,
            "answers per engine": answers / engines,
            "answers at once per engine, at their longest": at_once,
            "rounds of sampling, at their longest": ceil(answers / engines / at_once) if at_once else 0,
            "optimizer steps": ceil(prompts / self.per_update),
            "answers per GPU and optimizer step": self.per_update * self.group / machines.gpus,
            "micro-batches per GPU and optimizer step, at their longest": batches,
        }

    def host(self) -> dict[str, float]:
        """Of a step's pictures, on each node."""
        prompts = self.recipe.rollout.prompts_per_step / self.machines.hosts
        patches = self.load.picture_tokens * self.shape.merge**2
        decoded = 3 * patches * self.shape.patch**2
        read = 4 * patches * self.shape.patch_values
        return {
            "one prompt's pictures, decoded": decoded,
            "one prompt's pictures, as the model reads them": read,
            "of a step, once a prompt": prompts * read,
            "of a step, copied for every answer": prompts * self.group * read,
        }

    def rewards(self) -> dict[str, float]:
        """How many judges keep up, each at half of what it can do."""
        rate = self.recipe.rollout.prompts_per_step * self.group / self.load.sampling_seconds
        workers = ceil(rate / (VERDICTS_PER_WORKER / 2))
        return {
            "verdicts a second": rate,
            "verdicts a second of one worker (measured)": VERDICTS_PER_WORKER,
            "workers": workers,
            f"servers of {WORKERS_PER_SERVER} workers, two at least": max(2, ceil(workers / WORKERS_PER_SERVER)),
        }
