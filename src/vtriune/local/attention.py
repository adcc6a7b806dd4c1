"""Attention of rows that share prompts: over a prompt's keys and values, of which there is one copy, and a row's own.

It is registered with transformers, whose layers call it; without prompts to share it is their own `sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "vtriune_shared"
"""Its name, as transformers' `attn_implementation`."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Prefixes that rows of one new token each attend to, see `attend_shared`. S prompts of at most G rows, n rows."""

    keys: Sequence[Tensor]
    """Per layer: (S, key heads, L, head size)."""
    values: Sequence[Tensor]
    mask: Tensor
    """(S, L) bool."""
    rows: Tensor
    """(S, G) which row stands there; n for none."""
    places: Tensor
    """(n,) where in the flattened `rows` each row stands."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared: Shared | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' layers call it: its own, or over a shared prefix and each row's own tokens."""
    if shared is None:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return found, None
    return attend_shared(query, key, value, attention_mask, scaling, shared, cast(int, module.layer_idx)), None


def attend_shared(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scaling: float, shared: Shared, layer: int
) -> Tensor:
    """Softmax over a prompt's tokens and a row's own, with one product per prompt for all of its rows.

    Args:
        query: (n, heads, 1, size).
        key: (n, key heads, T, size) of the rows' own tokens; `value` the same.
        value: see `key`.
        visible: (n, 1, 1, T) bool.
        scaling: of the products.
        shared: the prompts.
        layer: whose keys and values.

    Returns:
        (n, 1, heads, size)
    """
    n, heads, _, size = query.shape
    groups = key.shape[1]
    prompts, most = shared.rows.shape
    asked = (query * scaling).view(n, groups, heads // groups, size)
    # Rows of a prompt side by side: (S, key heads, G * heads per key, size).
    padded = torch.cat([asked, asked.new_zeros(1, *asked.shape[1:])])[shared.rows]
    together = padded.transpose(1, 2).reshape(prompts, groups, -1, size)
    scores = together @ shared.keys[layer].transpose(-1, -2)
    scores = scores.masked_fill(~shared.mask[:, None, None], -torch.inf)
    length = scores.shape[-1]
    scores = scores.view(prompts, groups, most, -1, length).transpose(1, 2).flatten(0, 1)[shared.places]
    own = asked @ key.transpose(-1, -2)
    if visible is not None:
        own = own.masked_fill(~visible, -torch.inf)
    shares = torch.cat([scores, own], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    of_prompt, of_own = shares[..., :length], shares[..., length:]
    padded = of_prompt.new_zeros(prompts * most, *of_prompt.shape[1:])
    padded[shared.places] = of_prompt
    together = padded.view(prompts, most, groups, -1, length).transpose(1, 2).reshape(prompts, groups, -1, length)
    found = (together @ shared.values[layer]).view(prompts, groups, most, -1, size).transpose(1, 2).flatten(0, 1)
    out: Tensor = (found[shared.places] + of_own @ value).reshape(n, 1, heads, size)
    return out


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
