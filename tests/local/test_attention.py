"""Attention over a shared prefix and a row's own tokens is ordinary attention over both."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vtriune.local.attention import Shared, attend, attend_shared


def ordinary(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """One query (heads, size) over (key heads, T, size), head by head."""
    repeats = len(query) // len(keys)
    heads = [
        torch.softmax(one @ keys[k // repeats].T * scaling, -1) @ values[k // repeats] for k, one in enumerate(query)
    ]
    return torch.stack(heads)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    repeats=st.sampled_from((1, 2, 3)),
    seed=st.integers(0, 2**16),
)
def test_a_prompts_tokens_and_a_rows_own_are_one_context(
    lengths: list[int], owners: list[int], repeats: int, seed: int
) -> None:
    torch.manual_seed(seed)
    owners = [owner % len(lengths) for owner in owners]
    prompts, n, groups, size, longest, own = len(lengths), len(owners), 2, 4, max(lengths), 5
    keys, values = torch.randn(2, prompts, groups, longest, size, dtype=torch.double)
    mask = torch.tensor([[k >= longest - length for k in range(longest)] for length in lengths])
    own_keys, own_values = torch.randn(2, n, groups, own, size, dtype=torch.double)
    own_lengths = torch.randint(1, own + 1, (n,))
    query = torch.randn(n, groups * repeats, 1, size, dtype=torch.double)
    # Seats are given in any order; most prompts have fewer rows than places for them.
    most = max(owners.count(owner) for owner in owners) + 1
    rows, places = torch.full((prompts, most), n), torch.zeros(n, dtype=torch.long)
    for row, owner in enumerate(owners):
        place = int((rows[owner] == n).nonzero()[-1])
        rows[owner, place], places[row] = row, owner * most + place
    visible = (torch.arange(own) < own_lengths[:, None])[:, None, None]
    found = attend_shared(
        query, own_keys, own_values, visible, 0.3, Shared([keys], [values], mask, rows, places), layer=0
    )
    for row, owner in enumerate(owners):
        seen = int(own_lengths[row])
        all_keys, all_values = (
            torch.cat([one[owner, :, longest - lengths[owner] :], two[row, :, :seen]], 1)
            for one, two in ((keys, own_keys), (values, own_values))
        )
        # Its scores are made in double, its softmax in single precision, as the layers of transformers have it.
        torch.testing.assert_close(
            found[row, 0], ordinary(query[row, :, 0], all_keys, all_values, 0.3), atol=1e-6, rtol=0
        )


def test_without_a_prefix_it_is_transformers_own_attention() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    module = torch.nn.Identity()
    module.is_causal = True  # type: ignore[assignment]
    found, _ = attend(module, query, key, value, None, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))
