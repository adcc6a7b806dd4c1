"""Each known fault of the released detection reward by name: `modern` is free of it, `official_code` keeps its verdict.

One test or one row a fault, in the order of the list that was made when the released server was read and run. Where
that server crashed or answered a silent 0, `official_code` gives the reason instead of a verdict.
"""

from __future__ import annotations

import json
import random
from itertools import permutations
from typing import Any, NamedTuple

import pytest

from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import ImageSize, Preset, Progress, RewardSpec, Status, Verdict

LABEL_FIRST = {"iou_max_label_first": 1.0}
ATTESTED = {"iou_max_label_first": 1.0, "iou_completeness": 0.3}
IOU_FIRST = {"iou_max_iou_first": 1.0}
MAP50 = {"map50": 1.0}

HALFWAY = Progress(50, 100, "train")

A = ([0, 0, 100, 100], "cat")
A90 = ([0, 0, 90, 100], "cat")  # IoU with A: 0.9; with A80: 8/9
A80 = ([0, 0, 80, 100], "cat")  # IoU with A: 0.8
B = ([200, 0, 300, 100], "cat")
C = ([400, 0, 500, 100], "cat")
DOG = ([200, 0, 300, 100], "dog")
KITES = [([i, 0, i + 5, 5], "kite") for i in range(19)]


def listed(*items: tuple[list[Any], str]) -> str:
    return json.dumps([{"bbox_2d": box, "label": label} for box, label in items])


def answer(content: str) -> str:
    return f"<think>\nlooking\n</think>\n\n<answer>\n{content}\n</answer>"


def verdict(
    response: str,
    gold: str,
    preset: Preset,
    ratio: dict[str, float] = LABEL_FIRST,
    eps: Any = 0.5,
    progress: Progress = HALFWAY,
    sizes: tuple[ImageSize, ...] = (),
    weights: tuple[float, float] = (1.0, 0.0),
    **parameters: Any,
) -> Verdict:
    parameters = {"det_reward_ratio": ratio, "iou_threshold": eps} | parameters
    spec = RewardSpec("detection", gold, weights[0], weights[1], parameters, preset)
    return judge_item(JudgeItem(response, spec, progress, sizes))


class Fault(NamedTuple):
    """A response on which the two presets part."""

    response: str
    gold: str
    official: float
    modern: float
    ratio: dict[str, float] = LABEL_FIRST


FAULTS = {
    # Matching
    "IoU-first matching scores a perfect answer in another order 0": Fault(
        answer(listed(DOG, A)), listed(A, DOG), 0.0, 1.0, IOU_FIRST
    ),
    "IoU-first matching scores a box that meets nothing as a full match": Fault(
        answer(listed(A, C)), listed(A, B), 1.0, 0.5, IOU_FIRST
    ),
    # (8/9 of A80) / 2; taken in the other order it would be 0.9 / 2, as in modern: 2 * 0.9 / 4.
    "label-first matching depends on the order of gold": Fault(answer(listed(A90, C)), listed(A80, A), 4 / 9, 0.45),
    # Average precision
    "mAP of a miss before the hit is half of it": Fault(answer(listed(C, A)), listed(A, B), 0.5 * 51 / 101, 0.5, MAP50),
    "mAP of the hit before a miss": Fault(answer(listed(A, C)), listed(A, B), 51 / 101, 0.5, MAP50),
    # Without the penalty for the number of boxes, 0.6^19, the released mAP would be 1.
    "mAP ignores boxes of labels that gold lacks": Fault(answer(listed(A, *KITES)), listed(A), 0.6**19, 2 / 21, MAP50),
    # Reading
    "an answer in a json fence never parses": Fault(answer(f"```json\n{listed(A)}\n```"), listed(A), 0.0, 1.0),
    "a trailing comma voids the answer": Fault(answer(listed(A)[:-1] + ",]"), listed(A), 0.0, 1.0),
    "one box cut off voids the complete ones": Fault(
        answer(listed(A)[:-1] + ', {"bbox_2d": [200, 0, 300, 100]'), listed(A), 0.0, 1.0
    ),
    "a list of one box, cut off before its bracket, voids it": Fault(answer(listed(A)[:-1]), listed(A), 0.0, 1.0),
    "a draft in the thinking is graded instead of the answer": Fault(
        f"<think><answer>{listed(C)}</answer> no</think>\n<answer>{listed(A)}</answer>", listed(A), 0.0, 1.0
    ),
    "a right draft in the thinking is paid though the answer is wrong": Fault(
        f"<think><answer>{listed(A)}</answer> no</think>\n<answer>{listed(C)}</answer>", listed(A), 1.0, 0.0
    ),
    "'cat ' differs from 'cat'": Fault(answer(listed((A[0], "cat "))), listed(A), 0.0, 1.0),
    # There it passed the reader and raised afterwards, all rewards 0; the preset drops that box.
    "1e999 costs the whole answer": Fault(
        answer(listed(A)[:-1] + ", {'bbox_2d': [0, 0, 1e999, 5], 'label': 'cat'}]".replace("'", '"')),
        listed(A),
        1.0,
        1.0,
    ),
    # Accuracy: 0.7 * 0.9 / 1 + 0.3 * (1 - (0 + 1/2) / 2) = 0.855, times 0.6; in modern 2 * 0.9 / 3.
    "accuracy is a penalised blend, not the paper's IoU": Fault(
        answer(listed(A90, C)), listed(A), 0.855 * 0.6, 0.6, ATTESTED
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_modern_is_free_of_the_fault_and_official_code_keeps_it(name: str) -> None:
    fault = FAULTS[name]
    official = verdict(fault.response, answer(fault.gold), "official_code", fault.ratio)
    assert official.accuracy == pytest.approx(fault.official, abs=1e-9)
    modern = verdict(fault.response, answer(fault.gold), "modern", fault.ratio)
    assert modern.accuracy == pytest.approx(fault.modern, abs=1e-12)


def test_a_label_with_an_apostrophe_is_no_answer_in_official_code_and_there_is_no_verdict_on_such_gold() -> None:
    seat = "[{'bbox_2d': [0, 0, 100, 100], 'label': 'driver's seat'}]"
    assert verdict(answer(seat), answer(listed(A)), "official_code").accuracy == 0.0
    assert verdict(answer(seat), answer(seat), "official_code").status is Status.UNSCORABLE
    assert verdict(answer(seat), answer(seat), "modern").accuracy == 1.0


def test_label_first_depends_on_the_order_of_gold_and_the_default_does_not() -> None:
    rewards: dict[Preset, set[float]] = {"official_code": set(), "modern": set()}
    for preset, seen in rewards.items():
        for gold in permutations((A80, A)):
            reward = verdict(answer(listed(A90, C)), answer(listed(*gold)), preset).reward
            assert reward is not None
            seen.add(round(reward, 9))
    assert rewards == {"official_code": {round(4 / 9, 9), 0.45}, "modern": {0.45}}


def test_map_depends_on_the_order_of_boxes_and_the_default_reward_does_not() -> None:
    # The reward of modern is no mAP; its report keeps pycocotools' figures, order and all, under their names.
    orders = [answer(listed(*order)) for order in ((A, C), (C, A))]
    official = [verdict(response, answer(listed(A)), "official_code", MAP50) for response in orders]
    assert [one.accuracy for one in official] == pytest.approx([0.6 * 1.0, 0.6 * 0.5], abs=1e-9)
    modern = [verdict(response, answer(listed(A)), "modern") for response in orders]
    assert [one.accuracy for one in modern] == [2 / 3, 2 / 3]
    assert [one.report["map50"] for one in modern] == pytest.approx([1.0, 0.5])


def test_map_ignores_19_boxes_of_absent_labels_and_the_default_reward_does_not() -> None:
    modern = verdict(answer(listed(A, *KITES)), answer(listed(A)), "modern")
    assert (modern.report["map50"], modern.accuracy, modern.correct) == (1.0, 2 / 21, False)


def test_an_empty_answer_is_right_where_the_object_is_not() -> None:
    assert verdict(answer("[]"), answer("[]"), "modern").reward == 1.0
    assert verdict(answer(listed(A)), answer("[]"), "modern").reward == 0.0
    # The released server scores every answer to such a sample 0 without a word.
    released = verdict(answer("[]"), answer("[]"), "official_code")
    assert (released.status, released.reward) == (Status.UNSCORABLE, None)


def test_two_answer_tags_count_as_well_formed_only_in_official_code() -> None:
    twice = answer(listed(A)) + "\n<answer>\n"
    assert verdict(twice, answer(listed(A)), "official_code").format == 1.0
    assert verdict(twice, answer(listed(A)), "modern").format == 0.75


def test_a_gold_box_without_area_which_nothing_can_match_is_no_silent_0() -> None:
    line = answer(listed(([5, 2, 5, 40], "pole")))
    assert verdict(line, line, "official_code").reward == 0.0
    modern = verdict(line, line, "modern")
    assert (modern.status, modern.reward) == (Status.UNSCORABLE, None)
    assert "no area" in modern.reason


def test_format_is_all_or_nothing_in_official_code_and_a_quarter_a_tag_in_modern() -> None:
    untagged = f"<think>.</think><answer>{listed(A)}</answer>"
    unreadable = answer("none")
    assert [verdict(r, answer(listed(A)), "official_code").format for r in (untagged, unreadable)] == [0.0, 0.0]
    assert [verdict(r, answer(listed(A)), "modern").format for r in (untagged, unreadable)] == [1.0, 1.0]


def test_the_total_is_divided_by_the_weights_only_in_official_code() -> None:
    weights = (1.0, 0.1)
    full = answer(listed(A))
    assert verdict(full, full, "official_code", weights=weights).reward == pytest.approx(1.0, abs=1e-12)
    assert verdict(full, full, "modern", weights=weights).reward == pytest.approx(1.1, abs=1e-12)


@pytest.mark.parametrize("preset", ["modern", "official_code"])
def test_the_schedule_belongs_to_the_sample_and_never_reaches_test_samples(preset: Preset) -> None:
    schedule = [[0.0, 0.85], [0.1, 0.95], [0.25, 0.99]]
    points = Progress(0, 100, "train"), Progress(50, 100, "train"), Progress(50, 100, "test")
    rewards = [
        verdict(answer(listed(A90)), answer(listed(A)), preset, eps=schedule, progress=at).accuracy for at in points
    ]
    assert rewards == pytest.approx([0.9, 0.0, 0.9], abs=1e-12)


def test_correct_does_not_wait_for_an_accuracy_of_1() -> None:
    near = verdict(answer(listed(A90)), answer(listed(A)), "modern")
    assert (near.accuracy, near.correct) == (0.9, True)


@pytest.mark.parametrize("parameters", [{"det_reward_ratio": {"map": 7}}, {"nonsense": 1}, {"iou_threshold": 2}])
def test_bad_parameters_are_no_silent_0(parameters: dict[str, Any]) -> None:
    for preset in ("modern", "official_code"):
        bad = verdict(answer(listed(A)), answer(listed(A)), preset, **parameters)
        assert (bad.status, bad.reward) == (Status.UNSCORABLE, None)


def passes(sides: tuple[float, float], preset: Preset, *, exact: bool, gate: str | None = None) -> float:
    """The share of 400 boxes, sides in that range of thousandths, whose perfect predictor passes eps = 0.99; with a
    gate its mean worth. It answers in pixels of the resized picture: rounded ones, or exactly those of gold's corners.
    """
    rng = random.Random(0)
    total = 0.0
    for _ in range(400):
        size = ImageSize((0, 0), (28 * rng.randint(16, 40), 28 * rng.randint(16, 40)))
        w, h = rng.uniform(*sides), rng.uniform(*sides)
        x, y = rng.uniform(0, 1000 - w), rng.uniform(0, 1000 - h)
        true = (x, y, x + w, y + h)
        gold = [round(corner) for corner in true]
        scale = [side / 1000 for side in size.resized * 2]
        pixels: list[float] = [round(corner * k) for corner, k in zip(true, scale, strict=True)]
        if exact:
            pixels = [corner * k for corner, k in zip(gold, scale, strict=True)]
        extra: dict[str, Any] = {"gate": gate} if gate else {}
        one = verdict(
            answer(listed((pixels, "cat"))),
            answer(listed((gold, "cat"))),
            preset,
            eps=0.99,
            sizes=(size,),
            det_verifier_normalized=True,
            **extra,
        )
        assert one.accuracy is not None
        total += one.accuracy if gate else one.accuracy > 0
    return total / 400


@pytest.mark.parametrize(
    ("sides", "released", "sloped"),
    [((20, 60), (0.03, 0.08), 0.8), ((60, 200), (0.17, 0.25), 0.9), ((200, 600), (0.82, 0.94), 0.99)],
    ids=["small", "middling", "large"],
)
def test_a_perfect_answer_reaches_099_unless_the_answer_itself_is_rounded(
    sides: tuple[float, float], released: tuple[float, float], sloped: float
) -> None:
    # The released server truncates the perfect answer after the answer was rounded to pixels.
    assert released[0] <= passes(sides, "official_code", exact=False) <= released[1]
    # Nothing is truncated in modern: who answers gold's place in pixels passes, always.
    assert passes(sides, "modern", exact=True) == 1.0
    # What an answer rounds away by itself no verdict brings back, but the saturating gate has no cliff there.
    assert passes(sides, "modern", exact=False, gate="saturating") > sloped
