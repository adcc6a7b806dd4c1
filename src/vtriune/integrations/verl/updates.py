"""Which answers are learned from together: the optimizer steps of a step, each divided over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from vtriune.local.update import evenly


def arrange(
    groups: Sequence[Sequence[int]], others: Sequence[int], work: Sequence[int], *, size: int, ranks: int
) -> list[int]:
    """The order of a batch's rows that makes verl take the optimizer steps of the local engine.

    verl gives each rank a run of the rows, of which each optimizer step takes the next ones. In the order of its own,
    that in which answers were finished, the short ones would be learned from first, and answers to one prompt in
    different optimizer steps; and no run could be repeated.

    Args:
        groups: rows of each prompt that has an answer with a verdict, in the order in which prompts are asked.
        others: the rows that teach nothing; they fill optimizer steps up.
        work: what each row costs; ranks get about the same of each optimizer step.
        size: rows of an optimizer step.
        ranks: a divisor of `size`.

    >>> arrange([[4, 2], [0, 5]], [1, 3], [1] * 6, size=3, ranks=1)
    [4, 2, 1, 0, 5, 3]
    """
    teaching = [row for group in groups for row in group]
    count, filling = (len(teaching) + len(others)) // size, iter(others)
    steps: list[Sequence[int]] = [[row for group in some for row in group] for some in evenly(groups, count)]
    if max(map(len, steps)) > size:  # many answers are missing, but not of these prompts: answers to one are parted
        steps = evenly(teaching, count)
    order: list[list[int]] = [[] for _ in range(ranks)]
    for some in steps:
        rows = [*some, *islice(filling, size - len(some))]
        shares = get_seqlen_balanced_partitions([work[row] for row in rows], ranks, equal_size=True)
        for rank, share in zip(order, shares, strict=True):
            rank += [rows[place] for place in share]
    return [row for rank in order for row in rank]
