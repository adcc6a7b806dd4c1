from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

if find_spec("verl") is None:
    pytest.skip("verl isn't installed here: make test-verl", allow_module_level=True)

from vtriune.integrations.verl.updates import arrange
from vtriune.local.update import split


def optimizer_steps(order: list[int], size: int, ranks: int) -> list[list[list[int]]]:
    """As verl takes rows: those of each optimizer step, rank by rank."""
    run, share = len(order) // ranks, size // ranks
    by_rank = [order[rank * run : (rank + 1) * run] for rank in range(ranks)]
    return [[rows[k : k + share] for rows in by_rank] for k in range(0, run, share)]


@given(
    answers=st.lists(st.integers(1, 4), min_size=4, max_size=16),
    most=st.sampled_from([2, 4]),
    ranks=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_optimizer_steps_learn_from_the_prompts_that_the_local_engine_learns_from(
    answers: list[int], most: int, ranks: int, data: st.DataObject
) -> None:
    size = most * 4
    total = -(-len(answers) // most) * size
    rows = data.draw(st.permutations(range(total)))
    starts = [sum(answers[:k]) for k in range(len(answers) + 1)]
    groups = [rows[a:b] for a, b in pairwise(starts)]
    order = arrange(groups, rows[starts[-1] :], [k + 1 for k in range(total)], size=size, ranks=ranks)
    assert sorted(order) == list(range(total))
    teaching = set(rows[: starts[-1]])
    learned = [{row for share in step for row in share} & teaching for step in optimizer_steps(order, size, ranks)]
    assert learned == [{row for group in some for row in group} for some in split(groups, most)]


@given(
    answers=st.lists(st.integers(1, 8), min_size=1, max_size=16),
    unjudged=st.integers(0, 20),
    most=st.sampled_from([1, 2, 4]),
    ranks=st.sampled_from([1, 2, 4]),
)
@example(answers=[1] * 10 + [8] * 6, unjudged=0, most=4, ranks=2)
def test_every_answer_is_learned_from_once_and_in_order_however_many_are_missing(
    answers: list[int], unjudged: int, most: int, ranks: int
) -> None:
    """verl fills up to whole optimizer steps what came, so that there may be fewer than the recipe asks for."""
    size, came = most * 8, sum(answers)
    total = -(-(came + unjudged) // size) * size
    starts = [sum(answers[:k]) for k in range(len(answers) + 1)]
    groups = [range(a, b) for a, b in pairwise(starts)]
    order = arrange(groups, range(came, total), [k + 1 for k in range(total)], size=size, ranks=ranks)
    steps = [sorted(row for share in step for row in share) for step in optimizer_steps(order, size, ranks)]
    assert {len(step) for step in steps} == {size}
    assert sorted(row for step in steps for row in step) == list(range(total))
    assert [row for step in steps for row in step if row < came] == list(range(came))


def test_the_work_of_each_optimizer_step_is_divided_evenly_over_the_ranks() -> None:
    work = [1, 1, 1, 97, 50, 50, 99, 1]
    order = arrange([[0, 1], [2, 3], [4, 5], [6, 7]], [], work, size=4, ranks=2)
    steps = optimizer_steps(order, 4, 2)
    assert [sorted(sum(work[row] for row in share) for share in step) for step in steps] == [[2, 98], [100, 100]]
