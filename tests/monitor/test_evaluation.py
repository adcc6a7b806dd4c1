import math
import statistics
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.monitor.evaluation import (
    Estimate,
    Evaluation,
    evaluate_metrics,
    evaluation_figures,
    gain,
    is_better,
    mean_over_tasks,
    summarize,
)
from vtriune.types import JudgedGroup, Status, Verdict

Judged = Callable[..., JudgedGroup]

FAILED = Verdict(Status.FAILED, reason="worker died")


def of(judged: Judged, source: str, *prompts: Sequence[float | Verdict], task: str = "math") -> list[JudgedGroup]:
    return [judged(answers, source=source, task=task, sample_id=f"{source}#{i}") for i, answers in enumerate(prompts)]


def test_the_score_is_the_mean_accuracy_in_percent_with_an_error_clustered_by_prompt(judged: Judged) -> None:
    score = evaluate_metrics(of(judged, "math", [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]))["math"]
    value, error = score.estimate
    assert value == 50
    assert error == pytest.approx(statistics.stdev([50, 100, 0, 50]) / 2)


def test_eight_equal_answers_to_a_prompt_are_no_eight_pieces_of_evidence(judged: Judged) -> None:
    once = evaluate_metrics(of(judged, "math", [1.0], [0.0], [1.0]))["math"]
    eight_times = evaluate_metrics(of(judged, "math", [1.0] * 8, [0.0] * 8, [1.0] * 8))["math"]
    assert once.estimate == eight_times.estimate


def test_the_error_of_a_single_prompt_is_unknown(judged: Judged) -> None:
    assert evaluate_metrics(of(judged, "math", [1.0, 0.0]))["math"].estimate == (50, None)


@given(extra=st.integers(1, 5))
def test_answers_that_could_not_be_judged_move_no_score_and_are_counted(judged: Judged, extra: int) -> None:
    plain = evaluate_metrics(of(judged, "math", [1.0, 0.0], [1.0]))["math"]
    mixed = evaluate_metrics(of(judged, "math", [1.0, *[FAILED] * extra, 0.0], [1.0], [FAILED]))["math"]
    assert mixed.estimate == plain.estimate
    assert mixed.not_scored == extra + 1


def test_a_source_without_any_scored_answer_is_absent(judged: Judged) -> None:
    assert evaluate_metrics(of(judged, "math", [FAILED])) == {}


def test_a_task_of_two_sources_counts_once_in_the_mean_over_tasks() -> None:
    estimates = [("math", Estimate(10, 3.0)), ("math", Estimate(30, 4.0)), ("ocr", Estimate(80, 6.0))]
    value, error = mean_over_tasks(estimates)
    assert value == 50
    assert error == pytest.approx(math.hypot(3 / 4, 4 / 4, 6 / 2))
    assert mean_over_tasks([*estimates, ("ocr", Estimate(0, None))]).standard_error is None


def test_there_is_no_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="no source"):
        mean_over_tasks([])


def test_the_gain_is_paired_by_prompt(judged: Judged) -> None:
    before = evaluate_metrics(of(judged, "math", [0.0, 0.0], [1.0, 0.0]))["math"]
    after = evaluate_metrics(of(judged, "math", [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]))["math"]
    # Both prompts gained 50 though they differ by 50: the difference is certain, the two scores are not.
    assert gain(before, after) == Estimate(50, 0)
    assert before.estimate.standard_error == 25


def test_there_is_no_gain_without_a_shared_prompt(judged: Judged) -> None:
    first, second = of(judged, "math", [1.0], [1.0])
    assert gain(evaluate_metrics([first])["math"], evaluate_metrics([second])["math"]) is None


def test_the_order_of_prompts_changes_no_bit(judged: Judged) -> None:
    groups = of(judged, "math", *([x / 7, x / 3] for x in range(20)))
    assert evaluate_metrics(groups)["math"].estimate == evaluate_metrics(groups[::-1])["math"].estimate


def evaluation(judged: Judged, math_accuracy: float, ocr_accuracy: float) -> Evaluation:
    groups = [
        *of(judged, "math", [math_accuracy, 0.0], [math_accuracy, 0.0]),
        *of(judged, "ocr", [ocr_accuracy], [ocr_accuracy], task="ocr"),
    ]
    return Evaluation(sampled=evaluate_metrics(groups), greedy=evaluate_metrics(of(judged, "math", [1.0])))


def test_evaluation_figures_hold_scores_errors_and_the_mean_over_tasks(judged: Judged) -> None:
    assert evaluation_figures(evaluation(judged, 1.0, 0.25)) == {
        "math/score": 50,
        "math/score_se": 0,
        "ocr/score": 25,
        "ocr/score_se": 0,
        "all/score": 37.5,
        "all/score_se": 0,
        "math/greedy": 100,
        "all/greedy": 100,
        "math/prompts": 2,
        "ocr/prompts": 2,
        "all/prompts": 4,
    }
    assert evaluation_figures(Evaluation({}, {})) == {"all/prompts": 0}


def test_the_summary_has_exactly_the_documented_fields(judged: Judged) -> None:
    summary = summarize(evaluation(judged, 0.5, 0.0), evaluation(judged, 1.0, 0.0), minutes=2.5, steps=9, seed=3)
    assert summary == {
        "sources": {"math": {"task": "math", "before": 25, "after": 50, "greedy_before": 100, "greedy_after": 100}},
        "mean_before": 25,
        "mean_after": 50,
        "minutes": 2.5,
        "steps": 9,
        "seed": 3,
    }


def test_an_evaluation_is_better_if_its_mean_over_tasks_is_higher_on_the_prompts_that_both_asked(
    judged: Judged,
) -> None:
    low, high = evaluation(judged, 0.25, 0.5), evaluation(judged, 0.75, 0.5)
    assert is_better(low, high)
    assert not is_better(high, low)
    assert not is_better(low, low)
    easy = Evaluation(evaluate_metrics([judged([1.0], sample_id="easy#1")]), {})
    assert not is_better(low, easy)  # no prompt in common: nothing is known
