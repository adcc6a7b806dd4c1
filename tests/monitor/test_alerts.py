import itertools
import math
import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.monitor.alerts import CALM, GRADIENT_STEPS, WINDOW, Alert, Alerts

HEALTHY = {
    "rollouts": 64.0,
    "groups": 8.0,
    "scored_groups": 8.0,
    "reward": 0.6,
    "zero_spread": 0.4,
    "truncated": 0.02,
    "length_correct": 200.0,
    "length_incorrect": 300.0,
    "entropy": 0.5,
    "failed": 0.0,
    "unscorable": 0.0,
}
NORMS = {"all/rollouts": 128.0, "all/grad_norm_llm": 0.2, "all/grad_norm_connector": 0.1}

Row = Mapping[str, float]


def row(source: str = "math", /, **changes: float) -> dict[str, float]:
    return {f"{source}/{name}": value for name, value in (HEALTHY | changes).items()}


def watch(rows: Sequence[Row], split: str = "train") -> list[Alert]:
    """The alerts of a run whose first row is step 1, as they stand after the last one."""
    alerts = Alerts()
    found: dict[tuple[str, str, int], Alert] = {}
    for step, metrics in enumerate(rows, start=1):
        for alert in alerts.update(step, split, metrics):  # type: ignore[arg-type]
            found[alert.source, alert.kind, alert.since] = alert
    assert [alert for alert in found.values() if alert.until is None] == alerts.open
    return list(found.values())


def noisy(rng: random.Random, metrics: Row, share: float = 0.1) -> dict[str, float]:
    return {key: value * rng.uniform(1 - share, 1 + share) for key, value in metrics.items()}


@given(
    reward=st.floats(0, 1.2),
    zero_spread=st.floats(0, 0.99),
    truncated=st.floats(0, 1),
    length=st.floats(1, 4000),
    entropy=st.floats(0, 5),
    lost=st.floats(0, 0.05),
    norm=st.floats(0, 1e6),
)
def test_figures_that_do_not_change_are_no_alarm(
    reward: float, zero_spread: float, truncated: float, length: float, entropy: float, lost: float, norm: float
) -> None:
    figures = row(
        **{"reward": reward, "zero_spread": zero_spread, "truncated": truncated, "entropy": entropy},
        **{"length_correct": length, "length_incorrect": length, "failed": lost, "unscorable": lost},
    )
    assert watch([figures | {"all/grad_norm_llm": norm}] * 80) == []
    assert watch([{"math/rollouts": 8.0, "math/score": 100 * reward, "math/score_se": entropy}] * 9, "eval") == []


def test_noise_is_an_alarm_in_fewer_than_one_run_of_fifty() -> None:
    rngs = map(random.Random, range(200))
    told = [bool(watch([noisy(rng, row() | NORMS, 0.4) for _ in range(300)])) for rng in rngs]
    assert sum(told) < 4


@given(seed=st.integers(0, 99))
def test_learning_is_no_alarm(seed: int) -> None:
    """Reward and lengths rise, entropy falls to a fifth, and the best source is hardly wrong any more."""
    rng = random.Random(seed)
    rows = []
    for step in range(200):
        done = step / 200
        rows.append(
            noisy(
                rng,
                row(
                    reward=0.2 + 0.7 * done,
                    entropy=0.5 - 0.4 * done,
                    zero_spread=0.3 + 0.5 * done,
                    length_correct=200 + 600 * done,
                    length_incorrect=300 + 900 * done,
                ),
            )
        )
    assert watch(rows) == []


SICK = {
    "reward_collapsed": {"reward": 0.02},
    "entropy_to_zero": {"entropy": 0.001},
    "entropy_rising": {"entropy": 3.0},
    "incorrect_longer": {"length_incorrect": 900.0},
    "truncation_rising": {"truncated": 0.5},
    "no_spread": {"zero_spread": 1.0},
    "failed": {"failed": 0.6},
    "unscorable": {"unscorable": 0.6},
}
"""What each kind looks like in a source."""


@pytest.mark.parametrize("kind", SICK)
def test_what_falls_ill_is_told_with_the_step_where_it_began_and_where_it_ended(kind: str) -> None:
    rng = random.Random(0)
    rows = [noisy(rng, row("well") | row()) for _ in range(110)]
    for step in range(41, 71):
        rows[step - 1] |= {f"math/{name}": value for name, value in SICK[kind].items()}
    alert, *others = watch(rows)
    assert [one.kind for one in others] == ["entropy_rising"] * (kind == "entropy_to_zero")  # when it comes back
    assert (alert.source, alert.kind, alert.since) == ("math", kind, 41)
    # A window is well again when enough of it is, which is within its length.
    assert alert.until is not None
    assert 71 <= alert.until <= 71 + WINDOW
    (still,) = watch(rows[:70])
    assert still == Alert("math", alert.kind, 41, alert.message)


@pytest.mark.parametrize("kind", SICK)
def test_an_alert_is_told_within_a_window_of_its_beginning(kind: str) -> None:
    rng = random.Random(1)
    rows = [noisy(rng, row()) for _ in range(40 + WINDOW)]
    for metrics in rows[40:]:
        metrics |= {f"math/{name}": value for name, value in SICK[kind].items()}
    assert [alert.kind for alert in watch(rows)] == [kind]


@given(seed=st.integers(0, 99), cut=st.integers(0, 120))
def test_what_is_told_up_to_a_step_does_not_depend_on_what_follows(seed: int, cut: int) -> None:
    """So a resumed run, whose watcher is given the rows again, tells the same from its checkpoint on."""
    rng = random.Random(seed)
    kinds = [rng.choice([{}, *SICK.values()]) for _ in range(6)]
    rows = [noisy(rng, row(**kinds[step // 20])) for step in range(120)]
    whole, resumed = Alerts(), Alerts()
    told = [whole.update(step, "train", metrics) for step, metrics in enumerate(rows, start=1)]
    again = [resumed.update(step, "train", dict(metrics)) for step, metrics in enumerate(rows[:cut], start=1)]
    assert again == told[:cut]
    assert [resumed.update(step, "train", rows[step - 1]) for step in range(cut + 1, 121)] == told[cut:]


@given(seed=st.integers(0, 99))
def test_alerts_of_a_kind_on_a_source_never_overlap_and_have_a_beginning_each(seed: int) -> None:
    rng = random.Random(seed)
    rows = [noisy(rng, row(**rng.choice([{}, SICK["failed"]]))) for _ in range(200)]
    found = [alert for alert in watch(rows) if alert.kind == "failed"]
    for one, following in itertools.pairwise(found):
        assert one.until is not None
        assert one.since < one.until <= following.since


def test_a_swing_about_the_limit_is_one_alert() -> None:
    rows = [row(zero_spread=1.0)] * WINDOW + ([row()] * (CALM - 1) + [row(zero_spread=1.0)] * WINDOW) * 4
    assert [(alert.since, alert.until) for alert in watch(rows)] == [(1, None)]


def test_a_reward_that_falls_with_a_raised_eps_has_not_collapsed() -> None:
    rng = random.Random(0)
    rows = [noisy(rng, row(reward=0.6)) | {"math/eps": 0.85} for _ in range(30)]
    rows += [noisy(rng, row(reward=0.1)) | {"math/eps": 0.99} for _ in range(30)]
    assert watch(rows) == []
    rows += [noisy(rng, row(reward=0.01)) | {"math/eps": 0.99} for _ in range(30)]
    assert [(alert.kind, alert.since) for alert in watch(rows)] == [("reward_collapsed", 61)]


def test_rounding_of_the_mean_eps_and_rows_with_thresholds_of_their_own_hide_no_collapse() -> None:
    rng = random.Random(0)
    for wobble in (0.0, 0.02):
        rows = []
        for step in range(60):
            n = rng.randint(1, 99)
            eps = math.fsum([0.99] * n) / n - wobble * rng.random()
            rows.append(noisy(rng, row(reward=0.6 if step < 30 else 0.02)) | {"math/eps": eps})
        assert wobble or len({metrics["math/eps"] for metrics in rows}) > 1
        assert [(alert.kind, alert.since, alert.until) for alert in watch(rows)] == [("reward_collapsed", 31, None)]


def test_a_collapse_lasts_through_a_change_of_eps_until_the_reward_recovers() -> None:
    rng = random.Random(0)
    rows = [noisy(rng, row(reward=0.6)) | {"math/eps": 0.85} for _ in range(30)]
    rows += [noisy(rng, row(reward=0.01)) | {"math/eps": 0.85} for _ in range(20)]
    rows += [noisy(rng, row(reward=0.01)) | {"math/eps": 0.99} for _ in range(40)]
    assert [(alert.since, alert.until) for alert in watch(rows)] == [(31, None)]
    rows += [noisy(rng, row(reward=0.5)) | {"math/eps": 0.99} for _ in range(30)]
    ((since, until),) = [(alert.since, alert.until) for alert in watch(rows)]
    assert since == 31
    assert until is not None
    assert 91 <= until <= 91 + WINDOW


def test_a_chance_dip_before_a_collapse_is_not_its_beginning() -> None:
    rng = random.Random(0)
    rows = [noisy(rng, row(reward=0.02 if step == 28 or step > 30 else 0.6)) for step in range(1, 60)]
    assert [(alert.kind, alert.since) for alert in watch(rows)] == [("reward_collapsed", 31)]


def test_the_norm_of_all_parts_is_watched_where_parts_are_not_told() -> None:
    rows = [{"all/rollouts": 8.0, "all/grad_norm": 0.2} for _ in range(40)]
    rows[30] |= {"all/grad_norm": 5.0}
    (alert,) = watch(rows)
    assert (alert.kind, alert.since, alert.until) == ("gradient_norm", 31, 32)
    assert alert.message == "gradient norm 5, its median so far 0.2"
    assert watch([metrics | {"all/grad_norm_llm": 0.2} for metrics in rows]) == []


def test_a_source_with_few_answers_may_have_bad_luck() -> None:
    """Rewards of 0 or 1 with a mean of 0.1: windows of ten steps differ by more than half without any reason."""
    rng = random.Random(0)
    rows = [row(reward=float(rng.random() < 0.1)) for _ in range(400)]
    assert watch(rows) == []


def test_incorrect_answers_that_grow_with_the_correct_ones_are_well() -> None:
    grown = [row(length_correct=200 * 1.02**step, length_incorrect=300 * 1.02**step) for step in range(120)]
    assert watch(grown) == []
    alone = [row(length_incorrect=300 * 1.02**step) for step in range(120)]
    assert [alert.kind for alert in watch(alone)] == ["incorrect_longer"]


def test_one_broken_row_of_a_small_source_is_no_alarm_and_a_dead_judge_is_one_at_once() -> None:
    assert watch([row(), row(unscorable=0.25), *[row()] * 20]) == []
    (alert,) = watch([row(failed=1.0)])
    assert (alert.kind, alert.since, alert.until) == ("failed", 1, None)
    assert alert.message == "100% of the answers could not be judged, which is our side's doing"
    (alert,) = watch([row(), row(failed=0.6)])
    assert alert.message.endswith("; 30% over 2 steps")


@pytest.mark.parametrize("part", ["vision", "connector", "llm"])
def test_a_gradient_ten_times_its_median_is_told_with_its_part(part: str) -> None:
    rng = random.Random(0)
    rows = [noisy(rng, {"all/rollouts": 8.0, f"all/grad_norm_{part}": 0.2}, 0.8) for _ in range(40)]
    assert watch(rows) == []
    rows[30] |= {f"all/grad_norm_{part}": 5.0}
    (alert,) = watch(rows)
    assert (alert.source, alert.kind, alert.since, alert.until) == ("all", "gradient_norm", 31, 32)
    assert alert.message.startswith(f"gradient norm of {part} 5")


def test_norms_of_the_warm_up_are_no_median() -> None:
    warming = [{"all/rollouts": 8.0, "all/grad_norm_llm": 0.001 * (step + 1)} for step in range(GRADIENT_STEPS)]
    assert watch([*warming, {"all/rollouts": 8.0, "all/grad_norm_llm": 0.1}]) == []


def test_an_evaluation_beyond_its_errors_below_the_best_one_is_told() -> None:
    rows = [{"math/rollouts": 8.0, "math/score": score, "math/score_se": 2.0} for score in (40.0, 55.0, 50.0, 41.0)]
    (alert,) = watch(rows, "eval")
    assert (alert.kind, alert.since, alert.until) == ("evaluation_fell", 4, None)
    assert alert.message == "held-out score 41.0 ± 2.0, once 55.0 ± 2.0"
    rows.append({"math/rollouts": 8.0, "math/score": 54.0, "math/score_se": 2.0})
    assert [(alert.since, alert.until) for alert in watch(rows, "eval")] == [(4, 5)]


def test_steps_without_a_source_neither_count_nor_calm() -> None:
    other = row("ocr")
    rows = [row(zero_spread=1.0) | other, other, other] * WINDOW
    assert [(alert.source, alert.kind, alert.since) for alert in watch(rows)] == [("math", "no_spread", 1)]
    assert [alert.until for alert in watch([*rows, *[other] * 30])] == [None]


def test_groups_without_a_scored_answer_are_none_that_teach_nothing() -> None:
    broken = row(zero_spread=1.0, groups=8.0, scored_groups=2.0, unscorable=0.04)
    assert watch([broken] * (WINDOW + 4)) == []  # 20 groups in a window
    told = row(zero_spread=1.0, groups=8.0, scored_groups=3.0, unscorable=0.04)
    (alert,) = watch([told] * WINDOW)
    assert (alert.kind, alert.since) == ("no_spread", 1)
    assert alert.message.startswith("no group of 30 in 10 steps")


def test_figures_of_tasks_are_not_watched() -> None:
    assert watch([row("task:math", failed=1.0)] * 5) == []


def test_figures_that_are_not_finite_say_nothing() -> None:
    assert watch([row(reward=float("nan"), entropy=float("inf"), failed=float("nan"))] * 30) == []
