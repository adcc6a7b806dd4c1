import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.data.mixture import Mixture
from vtriune.types import RewardSpec, Sample, UserError


def sources(*sizes: int) -> list[list[Sample]]:
    spec = RewardSpec("mathverify", "4")
    return [[Sample(f"{s}#{row}", str(s), "math", (), (), spec) for row in range(n)] for s, n in enumerate(sizes)]


def ids(mixture: Mixture, n: int) -> list[tuple[str, int]]:
    return [(draw.sample.id, draw.epoch) for draw in mixture.next_batch(n)]


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)
seeds = st.integers(0, 2**63)


@given(sizes, seeds, st.integers(1, 4))
def test_by_numbers_of_rows_every_row_is_seen_once_in_every_pass(rows: list[int], seed: int, passes: int) -> None:
    mixture = Mixture(sources(*rows), seed=seed)
    everything = sorted(f"{source}#{row}" for source, n in enumerate(rows) for row in range(n))
    for epoch in range(passes):
        drawn = ids(mixture, sum(rows))
        assert sorted(id_ for id_, _ in drawn) == everything
        assert {at for _, at in drawn} == {epoch}


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 100)), min_size=1, max_size=5), seeds, st.integers(1, 300))
def test_weights_are_kept_at_every_draw_and_a_source_repeats_no_row_within_an_epoch(
    rows_and_weights: list[tuple[int, float]], seed: int, n: int
) -> None:
    rows, weights = [r for r, _ in rows_and_weights], [w for _, w in rows_and_weights]
    drawn = ids(Mixture(sources(*rows), weights, seed=seed), n)
    given_ = Counter(id_.split("#")[0] for id_, _ in drawn)
    for source, weight in enumerate(weights):
        assert abs(given_[str(source)] - n * weight / sum(weights)) <= (len(rows) + 1) / 2 + 1e-9
        assert given_[str(source)] == sum(c for (id_, _), c in Counter(drawn).items() if id_.startswith(f"{source}#"))
    assert max(Counter(drawn).values()) == 1
    for source, size in enumerate(rows):
        epochs = Counter(epoch for id_, epoch in drawn if id_.startswith(f"{source}#"))
        assert all(epochs[epoch] == size for epoch in range(max(epochs, default=0)))


@given(sizes, seeds, st.data())
def test_a_resume_at_any_point_with_rows_set_aside_equals_the_uninterrupted_run(
    rows: list[int], seed: int, data: st.DataObject
) -> None:
    every_id = [f"{source}#{row}" for source, n in enumerate(rows) for row in range(n)]
    batches: st.SearchStrategy[int | str] = st.integers(0, 7)
    removals: st.SearchStrategy[int | str] = st.sampled_from(every_id[1:]) if every_id[1:] else batches  # never all
    actions = data.draw(st.lists(st.one_of(batches, removals), max_size=12))
    cut = data.draw(st.integers(0, len(actions)))

    def play(mixture: Mixture, actions: list[int | str]) -> list[tuple[str, int]]:
        drawn: list[tuple[str, int]] = []
        for action in actions:
            if isinstance(action, str):
                mixture.remove(action)
            else:
                drawn += ids(mixture, action)
        return drawn

    whole = play(Mixture(sources(*rows), seed=seed), actions)
    first = Mixture(sources(*rows), seed=seed)
    before = play(first, actions[:cut])
    second = Mixture(sources(*rows), seed=seed)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + play(second, actions[cut:]) == whole
    assert second.state_dict().keys() == first.state_dict().keys()


def test_a_removed_row_is_never_drawn_again_and_the_others_still_once_an_epoch() -> None:
    mixture = Mixture(sources(5, 5), seed=1)
    mixture.next_batch(3)
    mixture.remove("0#2")
    mixture.remove("0#2")
    mixture.next_batch(40)
    drawn = ids(mixture, 90)
    assert "0#2" not in {id_ for id_, _ in drawn}
    assert max(Counter(drawn).values()) == 1


def test_an_exhausted_source_leaves_its_turns_to_the_others_by_weight() -> None:
    mixture = Mixture(sources(1, 4, 4), [5, 1, 3], seed=1)
    mixture.next_batch(90)
    mixture.remove("0#0")
    counts = Counter(draw.sample.source for draw in mixture.next_batch(400))
    assert counts == {"1": 100, "2": 300}


def test_with_every_row_set_aside_there_is_a_clear_error() -> None:
    mixture = Mixture(sources(1), seed=1)
    mixture.remove("0#0")
    with pytest.raises(UserError, match=r"every row has been set aside, see quarantine\.jsonl"):
        mixture.next_batch(1)


def test_seeds_and_epochs_shuffle_differently() -> None:
    one, other = Mixture(sources(50), seed=1), Mixture(sources(50), seed=2)
    first, second = [[id_ for id_, _ in ids(one, 50)] for _ in range(2)]
    assert first != second
    assert first != [id_ for id_, _ in ids(other, 50)]


def test_each_place_of_an_epoch_is_equally_likely_for_every_row() -> None:
    firsts = Counter(Mixture(sources(4), seed=seed).next_batch(1)[0].sample.id for seed in range(2000))
    assert all(430 < n < 570 for n in firsts.values())  # 500 +- 3.6 standard deviations
    assert len(firsts) == 4


def test_the_sequence_is_the_same_in_another_process() -> None:
    code = (
        "from vtriune.data.mixture import Mixture; from vtriune.types import *;"
        "rows = [Sample(f'0#{n}', 's', 't', (), (), RewardSpec('v', 'g')) for n in range(9)];"
        "print(*[draw.sample.id for draw in Mixture([rows], seed=3).next_batch(20)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {" ".join(id_ for id_, _ in ids(Mixture(sources(9), seed=3), 20)).encode() + b"\n"}


def test_a_state_of_other_data_weights_or_seed_is_refused() -> None:
    state = Mixture(sources(3, 4), seed=1).state_dict()
    for other in (
        Mixture(sources(3, 5), seed=1),
        Mixture(sources(3, 4), [1, 2], seed=1),
        Mixture(sources(3, 4), seed=2),
    ):
        with pytest.raises(UserError, match=r"made with other data: .*; restore them, or start a new run"):
            other.load_state_dict(state)


def test_the_same_row_in_two_sources_is_refused() -> None:
    twice = sources(2)[0]
    with pytest.raises(UserError, match="0#0: read by two sources; to see a row more often, raise its source's weight"):
        Mixture([twice, twice], seed=1)


def test_the_state_does_not_grow_with_the_data() -> None:
    mixture = Mixture(sources(2000, 2000), seed=1)
    mixture.next_batch(1500)
    assert len(json.dumps(mixture.state_dict())) < 200
