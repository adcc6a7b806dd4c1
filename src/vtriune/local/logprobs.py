"""log pi of answers: their prompt run once for all of a group, and logits made chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vtriune.grpo.loss import entropies
from vtriune.local import plain
from vtriune.local.decoder import run_answers, run_prompts
from vtriune.local.model import Encoded, VisionLanguageModel

LOGITS_PER_CHUNK = 2**26
"""Logits that exist at a time, in sampling and in the update: 256 MiB in float32, and a softmax has copies of them."""

ALIKE, FEWEST = 0.8, 8
"""Answers run together if the shortest has this share of the longest's length; so many do whatever their lengths."""


def response_logprobs(
    vlm: VisionLanguageModel,
    prompts: Sequence[Encoded],
    answers: Sequence[Sequence[np.ndarray]],
    temperature: float,
    *,
    recompute: bool = False,
) -> Tensor:
    """log pi of every response token, all answers one after the other: (N,) float32, with gradient."""
    return logprobs_and_entropies(vlm, prompts, answers, temperature, recompute=recompute, entropy=False)[0]


def logprobs_and_entropies(
    vlm: VisionLanguageModel,
    prompts: Sequence[Encoded],
    answers: Sequence[Sequence[np.ndarray]],
    temperature: float,
    *,
    recompute: bool = False,
    entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """(N,) log pi of every response token and, if asked for, (N,) entropies of the distributions that it is one of.

    Each prompt runs once. Its keys and values feed all of its answers, and gradients flow back through them, so the
    result and the gradients equal those of running prompt + answer for each answer, as `plain.logprobs` does, which is
    what a model with `plain` set uses.
    """
    if vlm.plain:
        pairs = [(prompt, ids) for prompt, group in zip(prompts, answers, strict=True) for ids in group]
        logprobs = torch.cat([plain.logprobs(vlm, prompt, ids, temperature) for prompt, ids in pairs])
        if not entropy:
            return logprobs, None
        whole = [entropies(plain.distributions(vlm, prompt, ids, temperature)) for prompt, ids in pairs]
        return logprobs, torch.cat(whole)
    flat = [ids for group in answers for ids in group]
    owners = [number for number, group in enumerate(answers) for _ in group]
    found: list[Tensor] = []
    with vlm.autocast():
        prefix = run_prompts(vlm, prompts, recompute=recompute)
        runs = list(alike([len(ids) for ids in flat]))
        for run in runs:
            tokens = torch.full((len(run), max(len(flat[row]) for row in run)), vlm.pad_id)
            chosen = torch.zeros_like(tokens, dtype=torch.bool)
            for place, row in enumerate(run):
                tokens[place, : len(flat[row])] = torch.from_numpy(flat[row])
                chosen[place, : len(flat[row])] = True
            tokens, chosen = tokens.to(vlm.device), chosen.to(vlm.device)
            owner = torch.tensor([owners[row] for row in run], device=vlm.device)
            hidden = prefix.hidden[owner][:, None]
            if tokens.shape[1] > 1:
                rest = run_answers(vlm, prefix, owner, tokens[:, :-1], chosen[:, :-1], recompute=recompute)
                hidden = torch.cat([hidden, rest], 1)
            found.append(_in_chunks(vlm, hidden[chosen], tokens[chosen], temperature, entropy))
    told = torch.cat(found, 1)[:, _order(runs, [len(ids) for ids in flat]).to(vlm.device)]
    return told[0], told[1] if entropy else None


def alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of similar length together, so that few tokens are padding; at least FEWEST of them, as far as there are.

    >>> list(alike([9, 1, 10] + [5] * 7))
    [[2, 0, 3, 4, 5, 6, 7, 8], [9, 1]]
    """
    run: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if len(run) >= FEWEST and lengths[row] < ALIKE * lengths[run[0]]:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _order(runs: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
    """(N,) where each token, row after row, stands when the rows stand as in `runs`."""
    starts = np.zeros(len(lengths), dtype=np.int64)
    rows = [row for run in runs for row in run]
    starts[rows] = np.cumsum([0, *(lengths[row] for row in rows[:-1])])
    return torch.from_numpy(np.concatenate([start + np.arange(n) for start, n in zip(starts, lengths, strict=True)]))


def _in_chunks(vlm: VisionLanguageModel, hidden: Tensor, tokens: Tensor, temperature: float, entropy: bool) -> Tensor:
    """(N, H) hidden states and (N,) tokens that follow them -> (1, N) log pi; (2, N) with the entropies.

    The distributions of many tokens over a large vocabulary would fill the memory several times over: they are made
    chunk by chunk, and once more in the backward pass.
    """

    def whole(hidden: Tensor, tokens: Tensor) -> Tensor:
        distributions = torch.log_softmax(vlm.logits(hidden, temperature), -1)
        chosen = distributions.gather(-1, tokens[:, None]).T
        return torch.cat([chosen, entropies(distributions)[None]]) if entropy else chosen

    size = max(1, LOGITS_PER_CHUNK // vlm.model.lm_head.out_features)
    if len(tokens) <= size:
        return whole(hidden, tokens)
    chunks = zip(torch.split(hidden, size), torch.split(tokens, size), strict=True)
    return torch.cat([checkpoint(whole, *chunk, use_reentrant=False) for chunk in chunks], -1)
