"""Sampling: each prompt is prefilled once and shared by its G answers; who has finished makes room for who waits."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vtriune.local import plain
from vtriune.local.attention import Shared
from vtriune.local.decoder import KeptTokens, run_prompts, run_tokens
from vtriune.local.logprobs import LOGITS_PER_CHUNK
from vtriune.local.model import Encoded, VisionLanguageModel
from vtriune.types import FinishReason, Rollout

REFILL = 0.25
"""Waiting prompts join once this share of the places is free: prompts are faster together than one by one."""

PREFILL = 16_384
"""Tokens of prompts that are run together at most, unless one prompt has more."""

Draws = Callable[[int], np.ndarray]
"""Of a prompt, by its number: (G, max_new_tokens) uniforms in [0, 1)."""


class RolloutConfig(BaseModel):
    """How answers are sampled (5.1.2)."""

    model_config = ConfigDict(extra="forbid")

    prompts_per_step: int = Field(1024, ge=1, description="Prompts of one training step.")
    responses_per_prompt: int = Field(8, ge=2, description="G: answers per prompt.")
    max_new_tokens: int = Field(2048, ge=1, description="Longer answers are cut and count as truncated.")
    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Of training rollouts and of sampled evaluation."
    )
    cache_tokens: int = Field(
        262_144,
        ge=1,
        description="Tokens (prompts once, answers at their longest) whose keys and values are held; bounds memory.",
    )


def uniforms(seed: int, step: int, sample_id: str, count: int, length: int) -> np.ndarray:
    """(count, length) numbers in [0, 1) that decide the tokens of a sample's answers at a step.

    They depend on nothing else, so that an answer doesn't depend on what it is batched with, and resuming
    needs no generator state.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{sample_id}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((count, length))


def generate(
    vlm: VisionLanguageModel,
    prompts: Sequence[Encoded],
    draws: Draws | None,
    *,
    group: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    budget: int = 262_144,
) -> Iterator[tuple[int, list[Rollout]]]:
    """G answers to each of P prompts, each group as soon as it is finished, with the number of its prompt.

    No placeholder token is among them: their probability is zero.

    Args:
        vlm: the policy.
        prompts: P encoded samples. Neighbours are prefilled together: sorted by length, little is padded.
        draws: what decides the tokens; None for the likeliest ones.
        group: G.
        max_new_tokens: limit per answer.
        temperature: of the distribution that is sampled and whose log-probs are recorded.
        budget: tokens, as `RolloutConfig.cache_tokens`; one prompt is asked however long it is.
    """
    if vlm.plain:
        yield from _generate_plainly(vlm, prompts, draws, group, max_new_tokens, temperature)
    elif prompts:
        length = max(len(prompt.ids) for prompt in prompts)
        places = min(len(prompts), max(1, budget // (length + group * max_new_tokens)))
        batch = _Batch(vlm, prompts, draws, group, max_new_tokens, temperature, places, length)
        while batch.unfinished:
            with torch.no_grad(), vlm.autocast():  # not around the yield: whoever asks goes on in between
                finished = batch.advance()
            yield from finished


class _Batch:
    """Places for S prompts of at most `length` tokens, and up to S * G rows: the answers that are not finished.

    Rows 0..n-1 are in use. Which answer a row belongs to is its `seat`, place * G + number in the group; what is told
    of an answer is written to its seat.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        prompts: Sequence[Encoded],
        draws: Draws | None,
        group: int,
        max_new_tokens: int,
        temperature: float,
        places: int,
        length: int,
    ) -> None:
        self._vlm, self._prompts, self._draws = vlm, prompts, draws
        self._group, self._limit, self._temperature = group, max_new_tokens, temperature
        self._waiting = deque(range(len(prompts)))
        self._asked = [-1] * places
        """The prompt in each place; -1: free."""
        seats, device = places * group, vlm.device
        self._seat = torch.zeros(0, dtype=torch.long, device=device)
        self._hidden = torch.zeros(0, device=device)
        self._position = torch.zeros(0, dtype=torch.long, device=device)
        """Of the next token."""
        self._count = torch.zeros(0, dtype=torch.long, device=device)
        """Tokens that a row has."""
        self._length = length
        self._mask = torch.zeros(places, length, dtype=torch.bool, device=device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._numbers = None if draws is None else torch.zeros(seats, max_new_tokens, dtype=torch.double, device=device)
        self._tokens = torch.zeros(seats, max_new_tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(seats, max_new_tokens, device=device)
        self._entropies = torch.zeros(seats, max_new_tokens, device=device)
        self._left = np.zeros(places, dtype=np.int64)
        """Unfinished answers per place."""
        self._counts = np.zeros(seats, dtype=np.int64)
        self._stopped = np.zeros(seats, dtype=bool)
        self._eos = torch.tensor(vlm.eos_ids, device=device)

    @property
    def unfinished(self) -> bool:
        """Whether there are answers to come."""
        return bool(self._waiting) or len(self._seat) > 0

    def advance(self) -> list[tuple[int, list[Rollout]]]:
        """One more token of each answer. Returns the groups of which none is left."""
        if len(self._seat):
            tokens = self._tokens[self._seat, self._count - 1]
            self._hidden = run_tokens(self._vlm, self._shared(), self._own, tokens, self._position)
            self._position = self._position + 1
        free = [place for place, asked in enumerate(self._asked) if asked < 0]
        if free and self._waiting and (not len(self._seat) or len(free) >= REFILL * len(self._asked)):
            joining = free[: len(self._waiting)]
            size = max(1, PREFILL // self._length)
            for start in range(0, len(joining), size):
                self._admit(joining[start : start + size])
        return list(self._leave(self._choose()))

    def _admit(self, places: Sequence[int]) -> None:
        """Have waiting prompts take free places."""
        numbers = [self._waiting.popleft() for _ in places]
        prefix = run_prompts(self._vlm, [self._prompts[number] for number in numbers])
        if not self._keys:
            shape = len(self._asked), prefix.keys[0].shape[1], self._length, prefix.keys[0].shape[3]
            self._keys, self._values = ([one.new_zeros(shape) for one in side] for side in (prefix.keys, prefix.values))
            self._own = KeptTokens(prefix, len(self._asked) * self._group, self._limit)
        at = torch.tensor(places, device=self._vlm.device)
        start = self._length - prefix.mask.shape[1]
        self._mask[at, :start] = False
        self._mask[at, start:] = prefix.mask
        for stores, sides in ((self._keys, prefix.keys), (self._values, prefix.values)):
            for store, new in zip(stores, sides, strict=True):
                store[at, :, start:] = new
        seats = (at[:, None] * self._group + torch.arange(self._group, device=at.device)).flatten()
        if self._numbers is not None and self._draws is not None:
            drawn = np.concatenate([self._draws(number) for number in numbers])
            self._numbers[seats] = torch.from_numpy(drawn).to(at.device)
        for place, number in zip(places, numbers, strict=True):
            self._asked[place], self._left[place] = number, self._group
        began = len(self._seat)
        self._own.lengths[began : began + len(seats)] = 0
        self._seat = torch.cat([self._seat, seats])
        hidden = prefix.hidden.repeat_interleave(self._group, 0)
        self._hidden = torch.cat([self._hidden.to(hidden), hidden]) if began else hidden
        self._position = torch.cat([self._position, prefix.next_position.repeat_interleave(self._group)])
        self._count = torch.cat([self._count, torch.zeros_like(seats)])

    def _choose(self) -> Tensor:
        """Note the next token of each row. (n,) bool: which rows it ends."""
        size = max(1, LOGITS_PER_CHUNK // self._vlm.model.lm_head.out_features)
        for start in range(0, len(self._seat), size):
            rows = slice(start, start + size)
            seat, at = self._seat[rows], self._count[rows]
            distribution = torch.log_softmax(self._vlm.logits(self._hidden[rows], self._temperature), -1)
            probabilities = distribution.exp()
            if self._numbers is None:
                tokens = distribution.argmax(-1)
            else:
                tokens = _inverse_cdf(probabilities, self._numbers[seat, at])
            self._tokens[seat, at] = tokens
            self._logprobs[seat, at] = distribution.gather(-1, tokens[:, None])[:, 0]
            self._entropies[seat, at] = -(probabilities * distribution.clamp_min(-1e4)).sum(-1)
        tokens = self._tokens[self._seat, self._count]
        self._count = self._count + 1
        return torch.isin(tokens, self._eos) | (self._count == self._limit)

    def _leave(self, ended: Tensor) -> Iterator[tuple[int, list[Rollout]]]:
        """Give the rows that have ended to others; groups of which none is left are told."""
        if not bool(ended.any()):
            return
        seats = self._seat[ended].cpu().numpy()
        self._counts[seats] = self._count[ended].cpu().numpy()
        last = self._tokens[self._seat[ended], self._count[ended] - 1]
        self._stopped[seats] = torch.isin(last, self._eos).cpu().numpy()
        np.subtract.at(self._left, seats // self._group, 1)
        # The last rows that stay move into the places of the first that leave.
        n = int((~ended).sum())
        holes = ended[:n].nonzero()[:, 0]
        movers = (~ended[n:]).nonzero()[:, 0] + n
        if len(movers):
            self._own.move(movers, holes)
        order = torch.arange(n, device=ended.device)
        order[holes] = movers
        self._seat, self._hidden = self._seat[order], self._hidden[order]
        self._position, self._count = self._position[order], self._count[order]
        for place in sorted(set((seats // self._group).tolist())):
            if not self._left[place]:
                number, self._asked[place] = self._asked[place], -1
                yield number, self._rollouts(place)

    def _shared(self) -> Shared:
        """Which row belongs to which prompt."""
        n = len(self._seat)
        rows = torch.full((len(self._asked) * self._group,), n, device=self._seat.device)
        rows[self._seat] = torch.arange(n, device=self._seat.device)
        return Shared(self._keys, self._values, self._mask, rows.view(-1, self._group), self._seat)

    def _rollouts(self, place: int) -> list[Rollout]:
        span = slice(place * self._group, (place + 1) * self._group)
        told = (self._tokens, self._logprobs, self._entropies)
        tokens, logprobs, entropies = (one[span].cpu().numpy() for one in told)
        return [
            _rollout(self._vlm, tokens[k, :count], logprobs[k, :count], entropies[k, :count], bool(stopped))
            for k, (count, stopped) in enumerate(zip(self._counts[span], self._stopped[span], strict=True))
        ]


def _generate_plainly(
    vlm: VisionLanguageModel,
    prompts: Sequence[Encoded],
    draws: Draws | None,
    group: int,
    max_new_tokens: int,
    temperature: float,
) -> Iterator[tuple[int, list[Rollout]]]:
    """`generate` for a model with `plain` set: token by token of answer by answer."""
    for number, prompt in enumerate(prompts):
        numbers = None if draws is None else torch.from_numpy(draws(number)).to(vlm.device)
        rollouts = []
        for k in range(group):
            ids, logprobs, entropies = np.zeros(0, dtype=np.int64), [], []
            while len(ids) < max_new_tokens and not np.isin(ids[-1:], vlm.eos_ids).any():
                with torch.no_grad():
                    distribution = plain.next_distribution(vlm, prompt, ids, temperature)
                token = (
                    distribution.argmax(-1)
                    if numbers is None
                    else _inverse_cdf(distribution.exp(), numbers[k, len(ids), None])
                )
                logprobs.append(float(distribution[0, token]))
                entropies.append(float(-(distribution.exp() * distribution.clamp_min(-1e4)).sum()))
                ids = np.append(ids, token.cpu().numpy())
            told = np.array(logprobs, dtype=np.float32), np.array(entropies, dtype=np.float32)
            rollouts.append(_rollout(vlm, ids, *told, bool(ids[-1] in vlm.eos_ids)))
        yield number, rollouts


def _inverse_cdf(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """(B, V), (B,) -> (B,) tokens. In float64: a vocabulary of 150,000 sums to 1 +- 1e-3 in float32.

    The running sum is flat over tokens of probability zero and the target stays below its end, so that none of
    them can be hit.
    """
    cdf = probabilities.double().cumsum(-1)
    target = numbers.clamp_max(1 - 1e-12)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True)[:, 0]


def _rollout(
    vlm: VisionLanguageModel, ids: np.ndarray, logprobs: np.ndarray, entropies: np.ndarray, stopped: bool
) -> Rollout:
    return Rollout(
        token_ids=ids.copy(),
        logprobs=logprobs.copy(),
        text=vlm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        finish=FinishReason.STOP if stopped else FinishReason.LENGTH,
        entropy=float(entropies.mean()),
    )


def remove_placeholders(rollout: Rollout, placeholder_ids: Sequence[int]) -> Rollout:
    """The rollout without image and video placeholder tokens, counted in `spurious_tokens` (section 4, Fig. 8).

    Our own sampler can't produce them; answers of another sampler may hold some, and the model would then look
    for features of pictures that don't exist.
    """
    keep = ~np.isin(rollout.token_ids, placeholder_ids)
    if keep.all():
        return rollout
    return Rollout(
        rollout.token_ids[keep],
        rollout.logprobs[keep],
        rollout.text,
        rollout.finish,
        rollout.entropy,
        rollout.spurious_tokens + int((~keep).sum()),
    )
