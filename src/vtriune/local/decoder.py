"""The language model, run so that the answers of a group share their prompt: once through it, then from its keys and
values. Which tokens are chosen is `rollout.py`'s, what they are worth `update.py`'s.

Layers are called one by one with a cache of our own, which any of transformers' takes the place of: the prompt's keys
and values are never copied for sampling, and one layer at a time can be recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vtriune.local.attention import Shared
from vtriune.local.model import Encoded, VisionLanguageModel


@dataclass(frozen=True, slots=True)
class Prefix:
    """What prompts leave behind for their answers. P prompts, left-padded to length L."""

    hidden: Tensor
    """(P, H) of the last token: what predicts the first of the answer."""
    keys: list[Tensor]
    """Per layer: (P, key heads, L, head size)."""
    values: list[Tensor]
    mask: Tensor
    """(P, L) bool: False where padded."""
    next_position: Tensor
    """(P,) position of the answer's first token."""


class _Slot:
    """A layer's cache: gives the layer what came before, and keeps what it adds."""

    own: tuple[Tensor, Tensor]

    def __init__(self, before: tuple[Tensor, Tensor] | None) -> None:
        self._before = before

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        self.own = keys, values
        if self._before is None:
            return keys, values
        return torch.cat([self._before[0], keys], 2), torch.cat([self._before[1], values], 2)


def run_prompts(vlm: VisionLanguageModel, prompts: Sequence[Encoded], *, recompute: bool = False) -> Prefix:
    """Run P prompts once.

    Args:
        vlm: the policy.
        prompts: of any length, with any number of pictures of any size, or none.
        recompute: keep only what lies between layers and compute the rest again in the backward pass.
    """
    ids, mask, positions = vlm.prompt_inputs(prompts)
    embeds = vlm.model.get_input_embeddings()(ids)
    pictured = ids == vlm.placeholder_ids[0]
    features = [found for one in prompts if (found := vlm.features(one.pictures)) is not None]
    deepstack: list[Tensor] = []
    if features:
        embeds = embeds.masked_scatter(pictured[..., None], torch.cat([one.embeds for one in features]).to(embeds))
        deepstack = [torch.cat(level) for level in zip(*(one.deepstack for one in features), strict=True)]
    visible = None  # causal, which attention does in half the time if it isn't spelled out
    if not bool(mask.all()):
        steps = torch.arange(ids.shape[1], device=vlm.device)
        # Padding sees itself, since nothing at all would be NaN.
        visible = ((steps[None] <= steps[:, None]) & mask[:, None] | (steps[None] == steps[:, None]))[:, None]
    text = vlm.language_model
    hidden, rotary = embeds, text.rotary_emb(embeds, positions)
    keys, values = [], []
    for number, layer in enumerate(text.layers):
        hidden, key, value = _layer(recompute, layer, hidden, visible, rotary, None)
        keys.append(key)
        values.append(value)
        if number < len(deepstack):
            hidden = hidden.clone()
            hidden[pictured] = hidden[pictured] + deepstack[number].to(hidden)
    return Prefix(text.norm(hidden)[:, -1], keys, values, mask, positions.amax(dim=(0, 2)) + 1)


def run_answers(
    vlm: VisionLanguageModel, prefix: Prefix, owner: Tensor, tokens: Tensor, mask: Tensor, *, recompute: bool = False
) -> Tensor:
    """Run R answers after their prompts. Gradients flow back through the prompts.

    Args:
        vlm: the policy.
        prefix: of the prompts.
        owner: (R,) each answer's prompt.
        tokens: (R, T) token ids, padded behind.
        mask: (R, T) bool: False where padded.
        recompute: as in `run_prompts`.

    Returns:
        (R, T, H) hidden states, after each token.
    """
    steps = torch.arange(tokens.shape[1], device=vlm.device)
    embeds = vlm.model.get_input_embeddings()(tokens)
    positions = (prefix.next_position[owner][:, None] + steps).expand(3, -1, -1)
    own = (steps[None] <= steps[:, None]) & mask[:, None] | torch.eye(len(steps), dtype=torch.bool, device=vlm.device)
    visible = torch.cat([prefix.mask[owner][:, None].expand(-1, len(steps), -1), own], 2)[:, None]
    text = vlm.language_model
    hidden, rotary = embeds, text.rotary_emb(embeds, positions)
    for layer, keys, values in zip(text.layers, prefix.keys, prefix.values, strict=True):
        hidden, _, _ = _layer(recompute, layer, hidden, visible, rotary, (keys, values, owner))
    out: Tensor = text.norm(hidden)
    return out


def run_tokens(vlm: VisionLanguageModel, shared: Shared, own: KeptTokens, tokens: Tensor, positions: Tensor) -> Tensor:
    """Run one new token of each of n answers. `own` is what they have of keys and values; the new ones are added.

    Args:
        vlm: the policy.
        shared: their prompts.
        own: their earlier tokens.
        tokens: (n,) token ids.
        positions: (n,) their positions.

    Returns:
        (n, H) hidden states.
    """
    embeds = vlm.model.get_input_embeddings()(tokens[:, None])
    text = vlm.language_model
    hidden, rotary = embeds, text.rotary_emb(embeds, positions.expand(3, -1)[..., None])
    visible = own.begin(len(tokens))
    for layer in text.layers:
        hidden = layer(
            hidden,
            attention_mask=visible,
            position_embeddings=rotary,
            past_key_values=own,
            use_cache=True,
            shared=shared,
        )
    own.end()
    out: Tensor = text.norm(hidden)[:, 0]
    return out


class KeptTokens:
    """Keys and values of the tokens that rows have of their own, in place: no row is copied when it grows.

    Rows 0..n-1 are in use; row k holds `lengths[k]` tokens.
    """

    def __init__(self, like: Prefix, rows: int, length: int) -> None:
        self.lengths = torch.zeros(rows, dtype=torch.long, device=like.mask.device)
        self._keys, self._values = (
            [one.new_zeros(rows, one.shape[1], length, one.shape[3]) for one in side]
            for side in (like.keys, like.values)
        )

    def begin(self, rows: int) -> Tensor:
        """Rows 0..`rows`-1 grow by a token. Returns (rows, 1, 1, T) bool: what each sees of the longest's length."""
        self._rows = torch.arange(rows, device=self.lengths.device)
        self._at = self.lengths[:rows]
        self._longest = int(self._at.max()) + 1
        return (torch.arange(self._longest, device=self._at.device) <= self._at[:, None])[:, None, None]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """As a layer's cache: add a token's (rows, heads, 1, size), and give all there is."""
        found = []
        for store, new in ((self._keys[layer], keys), (self._values[layer], values)):
            store[self._rows, :, self._at] = new[:, :, 0]
            found.append(store[: len(new), :, : self._longest])
        return found[0], found[1]

    def end(self) -> None:
        """All layers have added theirs."""
        self.lengths[: len(self._rows)] += 1

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Put rows `sources` in the place of `targets`."""
        longest = int(self.lengths[sources].max()) if len(sources) else 0
        for store in (*self._keys, *self._values):
            store[targets, :, :longest] = store[sources, :, :longest]
        self.lengths[targets] = self.lengths[sources]


def _layer(
    recompute: bool,
    layer: torch.nn.Module,
    hidden: Tensor,
    visible: Tensor | None,
    rotary: tuple[Tensor, Tensor],
    before: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: hidden states, and the keys and values that it adds. `before`: those of prompts, and each row's."""

    def run(hidden: Tensor, before: tuple[Tensor, Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        # Shared out to the rows in here, so that only the prompts' own are kept if this is to be computed again.
        slot = _Slot((before[0][before[2]], before[1][before[2]]) if before else None)
        hidden = layer(hidden, attention_mask=visible, position_embeddings=rotary, past_key_values=slot, use_cache=True)
        return hidden, *slot.own

    if recompute and torch.is_grad_enabled():
        result: tuple[Tensor, Tensor, Tensor] = checkpoint(run, hidden, before, use_reentrant=False)
        return result
    return run(hidden, before)
