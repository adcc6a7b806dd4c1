import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.monitor.metrics import FIGURES, _metrics, source_metrics, sources_of
from vtriune.monitor.reflection import words_in
from vtriune.reward.judge import weigh
from vtriune.types import FinishReason, JudgedGroup, RewardSpec, Status, UserError, Verdict

Judged = Callable[..., JudgedGroup]
Scored = Callable[..., Verdict]

UNSCORABLE = Verdict(Status.UNSCORABLE, reason="gold does not parse")
FAILED = Verdict(Status.FAILED, reason="worker died")
REWARD_FIGURES = {
    "reward",
    "reward_std",
    "accuracy",
    "format",
    "correct",
    "iou_50",
    "length_correct",
    "length_incorrect",
    *("reward_accuracy", "reward_format", "best_of_n", "worst_of_n", "majority_of_n", "pass_1", "pass_2", "pass_4"),
}

verdicts = st.one_of(
    st.builds(
        lambda reward, correct, report, reason: Verdict(
            Status.SCORED, reward, reward / 2, reward / 4, correct, report, reason
        ),
        st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.7, 1.0]),
        st.booleans(),
        st.dictionaries(st.sampled_from(["iou_50", "map"]), st.floats(0, 1) | st.just(math.nan), max_size=2),
        st.sampled_from(["", "cpu limit"]),
    ),
    st.just(UNSCORABLE),
    st.just(FAILED),
)
answers = st.tuples(
    verdicts, st.integers(0, 9), st.booleans(), st.sampled_from(["wait, 4", "it is 4", "yet again", "waiter"])
)
drawn_groups = st.lists(
    st.tuples(st.sampled_from(["math", "org/coco", "ocr"]), st.lists(answers, min_size=1, max_size=4)), max_size=8
)
DrawnGroups = list[tuple[str, list[tuple[Verdict, int, bool, str]]]]


def build(judged: Judged, drawn: DrawnGroups) -> list[JudgedGroup]:
    return [
        judged(
            [verdict for verdict, _, _, _ in members],
            source=source,
            lengths=[length for _, length, _, _ in members],
            cut=[cut for _, _, cut, _ in members],
            texts=[text for _, _, _, text in members],
        )
        for source, members in drawn
    ]


def pass_at_k(correct: list[bool], k: int) -> float:
    """The share of all choices of k answers that hold a correct one."""
    choices = list(itertools.combinations(correct, k))
    return sum(any(choice) for choice in choices) / len(choices)


def majority(answers: list[tuple[str, bool]]) -> float:
    """The mean over the most frequent texts of the share of right answers among those with this text."""
    counts = Counter(text for text, _ in answers)
    winners = [text for text, count in counts.items() if count == max(counts.values())]
    return statistics.fmean(statistics.fmean(c for t, c in answers if t == winner) for winner in winners)


def plain_figures(groups: list[JudgedGroup], words: set[str]) -> dict[str, float]:
    """The figures of one source as one would write them down first, and the shares of these reflection words."""
    pairs = [pair for group in groups for pair in zip(group.group.rollouts, group.verdicts, strict=True)]
    scored = [(r, v) for r, v in pairs if v.status == "scored"]
    columns: dict[str, list[float]] = {
        "reward": [v.reward or 0.0 for _, v in scored],
        "accuracy": [v.accuracy or 0.0 for _, v in scored],
        "format": [v.format or 0.0 for _, v in scored],
        "correct": [float(v.correct or 0) for _, v in scored],
        "length": [len(r.token_ids) for r, _ in pairs],
        "length_correct": [len(r.token_ids) for r, v in scored if v.correct],
        "length_incorrect": [len(r.token_ids) for r, v in scored if not v.correct],
        "truncated": [float(r.finish == FinishReason.LENGTH) for r, _ in pairs],
        "reflection": [float(bool(words_in(r.text))) for r, _ in pairs],
        "reflection_correct": [float(v.correct or 0) for r, v in scored if words_in(r.text)],
        "unscorable": [float(v.status == "unscorable") for _, v in pairs],
        "failed": [float(v.status == "failed") for _, v in pairs],
        "zero_with_reason": [float(v.reason != "") for _, v in scored if v.reward == 0],
        "zero_spread": [
            float(max(rewards) == min(rewards))
            for group in groups
            if (rewards := [v.reward or 0.0 for v in group.verdicts if v.status == "scored"])
        ],
    }
    several = []
    for group in groups:
        members = zip(group.group.rollouts, group.verdicts, strict=True)
        several.append([(r.text, v.accuracy or 0.0, bool(v.correct)) for r, v in members if v.status == "scored"])
    several = [members for members in several if len(members) > 1]
    columns["best_of_n"] = [max(accuracy for _, accuracy, _ in members) for members in several]
    columns["worst_of_n"] = [min(accuracy for _, accuracy, _ in members) for members in several]
    columns["majority_of_n"] = [majority([(text, correct) for text, _, correct in members]) for members in several]
    for k in (1, 2, 4):
        columns[f"pass_{k}"] = [pass_at_k([c for _, _, c in group], k) for group in several if len(group) >= k]
    columns["reward_accuracy"] = columns["accuracy"]  # a_acc is 1, a_fmt 0.5
    columns["reward_format"] = [value / 2 for value in columns["format"]]
    for word in words:
        name = "reflection_" + word.replace(" ", "_").replace("-", "_")
        columns[name] = [float(word in words_in(r.text)) for r, _ in pairs]
    for name in ("iou_50", "map"):
        columns[name] = [v.report[name] for _, v in scored if not math.isnan(v.report.get(name, math.nan))]
    figures = {name: statistics.fmean(values) for name, values in columns.items() if values}
    tokens = [r.entropy for r, _ in pairs for _ in r.token_ids]
    if tokens:
        figures["entropy"] = statistics.fmean(tokens)
    if scored:
        figures["reward_std"] = float(np.std(columns["reward"]))
    if pairs:
        lengths = columns["length"]
        figures |= {
            f"length_p{share}": float(np.percentile(lengths, share, method="inverted_cdf"))
            for share in (10, 50, 90, 99)
        }
    return figures | {
        "rollouts": len(pairs),
        "groups": len(groups),
        "scored_groups": sum(any(v.status == "scored" for v in group.verdicts) for group in groups),
        "spurious_tokens": sum(r.spurious_tokens for r, _ in pairs),
        "unscorable_count": sum(v.status == "unscorable" for _, v in pairs),
        "failed_count": sum(v.status == "failed" for _, v in pairs),
    }


@given(drawn=drawn_groups)
def test_figures_equal_those_of_a_plain_computation(judged: Judged, drawn: DrawnGroups) -> None:
    groups = build(judged, drawn)
    words = {word for group in groups for rollout in group.group.rollouts for word in words_in(rollout.text)}
    expected = {f"all/{name}": value for name, value in plain_figures(groups, words).items()}
    for source in {source for source, _ in drawn}:
        own = [group for group in groups if group.group.sample.source == source]
        expected |= {f"{source}/{name}": value for name, value in plain_figures(own, words).items()}
    assert source_metrics(groups) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(drawn=drawn_groups)
def test_figures_of_a_task_are_those_of_its_sources_taken_together(judged: Judged, drawn: DrawnGroups) -> None:
    groups = [
        replace(group, group=replace(group.group, sample=replace(group.group.sample, task=task)))
        for group in build(judged, drawn)
        for task in ["perception" if group.group.sample.source == "org/coco" else "text"]
    ]
    figures = source_metrics(groups, {"text"})
    text = [group for group in groups if group.group.sample.task == "text"]
    expected = {name: value for key, value in source_metrics(text).items() for name in [key.removeprefix("all/")]}
    own = {key.removeprefix("task:text/"): value for key, value in figures.items() if key.startswith("task:text/")}
    for name, value in own.items():
        assert value == expected.get(name, 0.0)  # words of the other task have a share of 0 here
    if text:
        assert {name for name in expected if "/" not in name} <= own.keys()
    assert {key for key in figures if not key.startswith("task:")} == source_metrics(groups).keys()
    assert sources_of(figures) == sorted({source for source, _ in drawn})


@given(drawn=drawn_groups)
def test_no_figure_is_nan_whatever_is_missing(judged: Judged, drawn: DrawnGroups) -> None:
    assert all(math.isfinite(value) for value in source_metrics(build(judged, drawn)).values())


@given(drawn=drawn_groups, seed=st.integers(0, 99))
def test_the_order_of_groups_and_rollouts_changes_no_bit(judged: Judged, drawn: DrawnGroups, seed: int) -> None:
    shuffled = [(source, random.Random(seed).sample(members, len(members))) for source, members in drawn]
    random.Random(seed).shuffle(shuffled)
    assert source_metrics(build(judged, shuffled)) == source_metrics(build(judged, drawn))


@given(drawn=drawn_groups, extra=st.lists(st.sampled_from([UNSCORABLE, FAILED]), min_size=1, max_size=3))
def test_unscorable_and_failed_rollouts_move_no_mean(judged: Judged, drawn: DrawnGroups, extra: list[Verdict]) -> None:
    before = source_metrics(build(judged, drawn))
    added = [(source, [*members, *((verdict, 7, True, "wait") for verdict in extra)]) for source, members in drawn]
    after = source_metrics(build(judged, added))

    def of_rewards(figures: dict[str, float]) -> dict[str, float]:
        return {key: value for key, value in figures.items() if key.rpartition("/")[2] in REWARD_FIGURES}

    assert of_rewards(after) == of_rewards(before)


def test_a_source_without_a_scored_answer_has_counts_but_no_reward(judged: Judged) -> None:
    figures = source_metrics([judged([UNSCORABLE, FAILED], source="ocr"), judged([1.0, 0.0])])
    assert figures["ocr/unscorable"] == figures["ocr/failed"] == 0.5
    assert figures["ocr/rollouts"] == 2
    assert not {"ocr/reward", "ocr/reward_std", "ocr/accuracy", "ocr/correct", "ocr/zero_spread"} & figures.keys()
    assert figures["all/reward"] == 0.5
    assert figures["all/failed_count"] == 1


def test_lengths_are_told_apart_by_the_verifiers_own_rule_of_correctness(judged: Judged, scored: Scored) -> None:
    group = judged([scored(0.6, correct=True), scored(0.9, correct=False), FAILED], lengths=[10, 30, 80])
    figures = source_metrics([group])
    assert figures["math/length_correct"] == 10
    assert figures["math/length_incorrect"] == 30
    assert figures["math/length"] == 40
    assert figures["math/correct"] == 0.5


def test_reflecting_answers_are_counted_and_their_correctness_told(judged: Judged) -> None:
    group = judged([1.0, 0.0, 0.0, 1.0], texts=["Wait, 4", "verify: 5", "the waiter", "4"])
    figures = source_metrics([group])
    assert figures["math/reflection"] == 0.5
    assert figures["math/reflection_correct"] == 0.5
    assert "math/reflection_correct" not in source_metrics([judged([1.0])])


def test_a_group_whose_scored_rewards_are_equal_has_zero_spread(judged: Judged) -> None:
    groups = [judged([0.0, 0.0, FAILED]), judged([0.0, 1.0]), judged([1.0, UNSCORABLE]), judged([FAILED])]
    figures = source_metrics(groups)
    assert figures["math/zero_spread"] == pytest.approx(2 / 3)
    assert (figures["math/groups"], figures["math/scored_groups"]) == (4, 3)


def test_zero_rewards_with_a_reason_are_a_share_of_the_zero_rewards(judged: Judged, scored: Scored) -> None:
    figures = source_metrics([judged([scored(0.0, reason="cpu limit"), 0.0, 0.0, 0.0, 1.0])])
    assert figures["math/zero_with_reason"] == 0.25


def test_reports_are_averaged_over_the_rollouts_that_have_them(judged: Judged, scored: Scored) -> None:
    figures = source_metrics(
        [judged([scored(1.0, report={"iou_50": 1.0, "map": 0.5}), scored(0.0, report={"iou_50": 0.0}), 0.5])]
    )
    assert figures["math/iou_50"] == 0.5
    assert figures["math/map"] == 0.5


def test_spurious_tokens_are_summed(judged: Judged) -> None:
    assert source_metrics([judged([1.0, 0.0], spurious=3)])["all/spurious_tokens"] == 6


@pytest.mark.parametrize("name", ["reward", "reward_std", "rollouts", "a/b", "pass_3", "reflection_yet", "score"])
def test_a_report_under_a_name_of_the_monitor_is_refused(judged: Judged, scored: Scored, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        source_metrics([judged([scored(1.0, report={name: 1.0})])])


@pytest.mark.parametrize("name", ["all", "task:math"])
def test_a_source_with_a_name_that_stands_for_several_is_refused(judged: Judged, name: str) -> None:
    with pytest.raises(UserError, match="another name"):
        source_metrics([judged([1.0], source=name)])


def test_pass_at_k_is_asked_of_powers_of_two_up_to_the_size_of_a_group(judged: Judged) -> None:
    figures = source_metrics([judged([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])])
    assert {name: value for name, value in figures.items() if name.startswith("math/pass_")} == {
        "math/pass_1": pytest.approx(1 / 6),
        "math/pass_2": pytest.approx(1 / 3),
        "math/pass_4": pytest.approx(2 / 3),
    }


def test_a_single_answer_is_neither_the_best_of_several_nor_the_worst(judged: Judged) -> None:
    figures = source_metrics([judged([1.0]), judged([1.0, FAILED, UNSCORABLE])])
    assert not {key for key in figures if "pass_" in key or "of_n" in key}


def test_the_vote_goes_by_what_the_answers_say_at_last(judged: Judged) -> None:
    texts = ["<think>4?</think>\\boxed{5}", "it is \\boxed{4} or \\boxed{5}", "<answer>4</answer>"]
    assert source_metrics([judged([0.0, 0.0, 1.0], texts=texts)])["math/majority_of_n"] == 0
    assert source_metrics([judged([1.0, 1.0, 0.0], texts=texts)])["math/majority_of_n"] == 1
    assert source_metrics([judged([1.0, 0.0], texts=["4", "5"])])["math/majority_of_n"] == 0.5  # a tie


def test_the_parts_of_the_reward_add_up_to_it_in_every_preset(judged: Judged) -> None:
    for preset in ("paper", "modern", "official_code"):
        group = judged([0.0])
        spec = RewardSpec("mathverify", "4", 1.5, 0.5, preset=preset)
        verdict = Verdict(Status.SCORED, weigh(0.8, 0.25, spec), 0.8, 0.25, True)
        sample = replace(group.group.sample, reward=spec)
        figures = source_metrics([JudgedGroup(replace(group.group, sample=sample), (verdict,), group.advantages)])
        assert figures["math/reward_accuracy"] + figures["math/reward_format"] == pytest.approx(verdict.reward)
        assert figures["math/reward_accuracy"] == pytest.approx(1.2 / (2 if preset == "official_code" else 1))


def test_a_word_that_occurs_in_a_step_has_a_share_in_every_source(judged: Judged) -> None:
    groups = [judged([1.0, 0.0], texts=["Wait, wait!", "check  again"]), judged([1.0], source="ocr")]
    figures = source_metrics(groups)
    shares = {key: value for key, value in figures.items() if "/reflection_" in key and "correct" not in key}
    assert shares == {
        **{"math/reflection_wait": 0.5, "math/reflection_check_again": 0.5},
        **{"ocr/reflection_wait": 0.0, "ocr/reflection_check_again": 0.0},
        **{"all/reflection_wait": 1 / 3, "all/reflection_check_again": 1 / 3},
    }


@given(drawn=drawn_groups)
def test_every_figure_that_no_verifier_reports_is_described(judged: Judged, drawn: DrawnGroups) -> None:
    for key in source_metrics(build(judged, drawn)):
        name = key.rpartition("/")[2]
        patterns = ("pass_<k>", "reflection_<word>")
        pattern = next((one for one in patterns if name.startswith(one.partition("<")[0])), name)
        assert name in FIGURES or pattern in FIGURES or name in ("iou_50", "map")


@given(drawn=drawn_groups)
def test_a_metric_that_is_reset_is_as_new(judged: Judged, drawn: DrawnGroups) -> None:
    groups = build(judged, drawn)
    for used, new in zip(_metrics(), _metrics(), strict=True):
        for group in groups:
            used.update(group)
        used.reset()
        for group in groups[:1]:
            used.update(group)
            new.update(group)
        assert used.compute() == new.compute()


def test_a_step_without_groups_has_counts_of_zero() -> None:
    assert source_metrics([])["all/rollouts"] == 0
