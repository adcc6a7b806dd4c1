"""Masks: RLE in both forms and polygons against pixel counts and pycocotools' own; hostile sizes and counts."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from vtriune.data.boxes import BoxSpace, extent
from vtriune.types import ImageSize
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.mask import Mask, MaskParams
from vtriune.verifiers.mask_text import MAX_POLYGONS, NotAMask, run_lengths

SIZE = ImageSize(original=(64, 48), resized=(84, 56))
LEFT = '{"size": [48, 64], "counts": [0, 1536, 1536]}'  # the left half of 64 x 48, column by column

bitmaps = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))


def judge(response: str, gold: str = LEFT, sizes: tuple[ImageSize, ...] = (SIZE,), **parameters: Any) -> Outcome:
    params = MaskParams(**parameters)
    context = Context(preset="modern", split="train", image_sizes=sizes)
    verifier = Mask()
    return verifier.judge(response, verifier.parse_gold(gold, params, context), params, context)


def uncompressed(bitmap: Any) -> dict[str, Any]:
    """COCO's counts of a bitmap (H, W): run lengths column by column, 0s first."""
    counts = [0]
    value = 0
    for pixel in bitmap.ravel(order="F").tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(bitmap.shape), "counts": counts}


def compressed(bitmap: Any) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(bitmap))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


# RLE


@given(bitmaps, st.data())
def test_iou_is_the_pixels_in_common_by_the_pixels_covered(gold: Any, data: st.DataObject) -> None:
    assume(gold.any())
    answered = data.draw(arrays(np.uint8, gold.shape, elements=st.integers(0, 1)))
    expected = (gold & answered).sum() / (gold | answered).sum()
    for write in (uncompressed, compressed):
        outcome = judge(json.dumps(write(answered)), json.dumps(uncompressed(gold)), ())
        assert outcome.accuracy == pytest.approx(expected, abs=1e-12)
        assert outcome.report["area"] == pytest.approx(answered.mean())
        assert outcome.correct == (expected >= 0.5)


@given(bitmaps)
def test_compressed_counts_are_read_as_pycocotools_reads_them(bitmap: Any) -> None:
    found = run_lengths(compressed(bitmap))
    assert found is not None
    (height, width), runs = found
    again = coco.decode(coco.frPyObjects({"size": [height, width], "counts": runs}, height, width))
    assert (again == bitmap).all()
    assert run_lengths(uncompressed(bitmap)) == found


def test_a_large_mask_of_long_runs_is_read() -> None:
    bitmap = np.zeros((3000, 4000), dtype=np.uint8)
    bitmap[500:2500, 100:3900] = 1
    assert run_lengths(compressed(bitmap)) == run_lengths(uncompressed(bitmap))


def test_empty_runs_do_not_end_the_comparison() -> None:
    # Columns 0 and 2 of a 2 x 4 picture, and column 0 alone, both with an empty run within column 0.
    two, one = [0, 1, 0, 1, 2, 2, 2], [0, 1, 0, 1, 6]
    unchecked = [coco.frPyObjects({"size": [2, 4], "counts": counts}, 2, 4) for counts in (two, one)]
    assert coco.iou(unchecked[:1], unchecked[1:], [0])[0, 0] == 1.0  # why counts are merged first
    written = [json.dumps({"size": [2, 4], "counts": counts}) for counts in (two, one)]
    assert judge(written[1], written[0]).accuracy == 0.5
    assert judge(written[0], written[1]).accuracy == 0.5


@pytest.mark.parametrize(
    "write",
    [
        LEFT,
        LEFT.replace('"', "'"),
        f"```json\n{LEFT}\n```",
        f"<think>{{}}</think><answer>\n{LEFT} That is it.\n</answer>",
        json.dumps(compressed(np.pad(np.ones((48, 32), dtype=np.uint8), ((0, 0), (0, 32))))),
    ],
)
def test_a_right_mask_is_right_however_it_is_written(write: str) -> None:
    outcome = judge(write)
    assert (outcome.accuracy, outcome.correct, outcome.reason) == (1.0, True, "")


# Polygons


@pytest.mark.parametrize(
    ("polygons", "expected"),
    [
        ("[[0, 0, 500, 0, 500, 1000, 0, 1000]]", 1.0),
        ("[0, 0, 500, 0, 500, 1000, 0, 1000]", 1.0),
        ("[[0, 0], [500, 0], [500, 1000], [0, 1000]]", 1.0),
        ("[[[0, 0], [500, 0], [500, 1000], [0, 1000]]]", 1.0),
        ("{'segmentation': [[0, 0, 500, 0, 500, 1000, 0, 1000]]}", 1.0),
        ('{"polygon": [[0, 0], [500, 0], [500, 1000], [0, 1000]]}', 1.0),
        # Two parts of one mask, and parts that overlap
        ("[[0, 0, 500, 0, 500, 500, 0, 500], [0, 500, 500, 500, 500, 1000, 0, 1000]]", 1.0),
        ("[[0, 0, 500, 0, 500, 750, 0, 750], [0, 250, 500, 250, 500, 1000, 0, 1000]]", 1.0),
        ("[[0, 0, 250, 0, 250, 1000, 0, 1000]]", 0.5),
        ("[[0, 0, 1000, 0, 1000, 1000, 0, 1000]]", 0.5),
        # Beyond the picture is at its edge
        ("[[-900, -1e99, 500, -5, 500, 1e99, -1, 1e99]]", 1.0),
        ("[[500, 0, 1000, 0, 1000, 1000, 500, 1000]]", 0.0),
        ("[[7, 7, 7, 7, 7, 7]]", 0.0),
    ],
)
def test_polygons_are_drawn_on_golds_raster(polygons: str, expected: float) -> None:
    assert judge(polygons).accuracy == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gold_space", BoxSpace)
@pytest.mark.parametrize("answer_space", BoxSpace)
def test_the_same_outline_in_any_two_spaces_is_a_perfect_answer(gold_space: BoxSpace, answer_space: BoxSpace) -> None:
    def written(space: BoxSpace) -> str:
        width, height = extent(space, SIZE)
        return json.dumps([[0.1 * width, 0.2 * height], [0.9 * width, 0.2 * height], [0.5 * width, 0.85 * height]])

    outcome = judge(written(answer_space), written(gold_space), gold_space=gold_space, answer_space=answer_space)
    assert outcome.accuracy > 0.97  # a corner may fall on either side of a pixel's edge
    assert outcome.correct


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 48)), min_size=3, max_size=8))
def test_polygons_in_pixels_are_drawn_as_pycocotools_draws_them(corners: list[tuple[int, int]]) -> None:
    rle = coco.merge(coco.frPyObjects([[float(c) for corner in corners for c in corner]], 48, 64))
    expected = coco.iou([rle], [coco.frPyObjects(json.loads(LEFT), 48, 64)], [0])[0, 0]
    assert judge(json.dumps(corners), answer_space="absolute_original").accuracy == pytest.approx(expected, abs=0.02)


# What is no mask


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "no mask found"),
        ("<think>" + LEFT, "no mask found"),
        ("I see it.", "no mask found"),
        (LEFT[:-5], "no mask found that is sound JSON"),
        (LEFT + " or " + LEFT, "no mask found that is sound JSON"),
        (f"[{LEFT}, {LEFT}]", "a polygon is"),
        ("[]", "a mask is RLE with size and counts, or 1 to 100 polygons"),
        ("[[1, 2, 3, 4]]", "a polygon is"),
        ("[[1, 2, 3, 4, 5, 6, 7]]", "a polygon is"),
        ('[["1", "2", "3", "4", "5", "6"]]', "a polygon is"),
        (json.dumps([[0, 0, 9, 9, 0, 9]] * (MAX_POLYGONS + 1)), "1 to 100 polygons"),
        ('{"size": [64, 48], "counts": [0, 3072]}', "the mask's size is [64, 48], not [48, 64]"),
        ('{"size": [48, 64], "counts": [0, 3071]}', "add up to"),
        ('{"size": [48, 64], "counts": [3073, -1]}', "run lengths"),
        ('{"size": [48, 64], "counts": [0, 3072.0]}', "run lengths"),
        ('{"size": [48, 64], "counts": [true, 3071]}', "run lengths"),
        ('{"size": [48, 64], "counts": []}', "add up to"),
        ('{"size": [48, 64], "counts": null}', "run lengths"),
        ('{"size": [48, 64], "counts": "0o"}', "cut off"),
        ('{"size": [48, 64], "counts": "oooooooooo0"}', "never writes"),
        ('{"size": [48, 64], "counts": "\\u0000~"}', "never writes"),
        ('{"size": [48, 64], "counts": "O"}', "leave the picture"),
        ('{"size": [1000000000, 1000000000], "counts": "0"}', "pixels"),
        ('{"size": [0, 64], "counts": []}', "pixels"),
        ('{"size": [48], "counts": []}', "pixels"),
        ('{"size": [48, 64], "counts": [3072]}', "no overlap"),
    ],
)
def test_what_is_no_sound_mask_is_0_and_says_why(response: str, reason: str) -> None:
    outcome = judge(response)
    assert (outcome.accuracy, outcome.correct) == (0.0, False)
    assert reason in outcome.reason
    assert tuple(outcome.report) == ("iou", "area")


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("a cat", "no mask found"),
        ('{"size": [48, 64], "counts": [3072]}', "covers nothing"),
        ('{"size": [48, 64], "counts": [1]}', "add up to"),
        ('{"size": [100000, 100000], "counts": [0, 10000000000]}', "pixels"),
    ],
)
def test_gold_that_is_no_mask_is_unscorable(gold: str, message: str) -> None:
    with pytest.raises(Unscorable, match=message):
        judge(LEFT, gold)


def test_polygons_without_the_size_they_need_are_unscorable() -> None:
    triangle = "[[0, 0, 9, 0, 9, 9]]"
    with pytest.raises(Unscorable, match="need the size of the picture"):
        judge(LEFT, triangle, ())
    with pytest.raises(Unscorable, match="absolute_resized need the size"):
        judge(triangle, LEFT, (), answer_space="absolute_resized")
    assert judge("[[0, 0, 500, 0, 500, 1000, 0, 1000]]", LEFT, ()).accuracy == 1.0
    with pytest.raises(Unscorable, match="1 to 67108864 pixels"):
        judge(LEFT, triangle, (ImageSize((100_000, 100_000), (28, 28)),))


HOSTILE = """
import json, resource
from vtriune.verifiers.base import Context
from vtriune.verifiers.mask import Mask, MaskParams

verifier, params, context = Mask(), MaskParams(), Context(preset="modern", split="train")
text = json.dumps({"size": [8192, 8192], "counts": [0, 8192 * 8192]})
gold = verifier.parse_gold(text, params, context)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
zigzag = [[k % 2 * 1000, k % 999] for k in range(20_000)]
square = [0, 0, 1000, 0, 1000, 1000, 0, 1000]
answers = [zigzag, [square] * 6, [square] * 100, {"size": [1 << 40, 1 << 40], "counts": "0"}]
accuracies = [verifier.judge(json.dumps(one), gold, params, context).accuracy for one in answers]
print([*map(round, accuracies)], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_answer_makes_the_verifier_hold_much_memory() -> None:
    # In a process of its own, since the peak is the process's. The mask of 8192 x 8192 unpacked would be 64 MiB.
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, check=True)
    accuracies, _, kilobytes = done.stdout.strip().rpartition(" ")
    assert accuracies == "[0, 1, 0, 0]"
    assert int(kilobytes) < 48 * 1024


@given(st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=40), st.integers(1, 40), st.integers(1, 40))
def test_no_compressed_counts_break_the_reading(counts: str, height: int, width: int) -> None:
    try:
        found = run_lengths({"size": [height, width], "counts": counts})
    except NotAMask:
        return
    assert found is not None
    assert sum(found[1]) == height * width


@pytest.mark.parametrize(
    "unit", ["[", "{", '{"a":', "[[1,2],", "1,", '"', "'", "]", "[]", '{"size": [48, 64], "counts": "']
)
def test_400000_characters_of_anything_are_judged(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    for response in (text, f"[{text}]", f'{{"size": [48, 64], "counts": "{text}"}}', f"[{text}1]"):
        assert not judge(response).correct
