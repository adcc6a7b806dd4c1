"""Items and verdicts survive the journey between processes."""

from __future__ import annotations

import math
import socket
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.reward.judge import MAX_CHARACTERS, MAX_PARAMETERS, JudgeItem, judge_item
from vtriune.reward.wire import (
    decode_item,
    decode_verdict,
    encode_item,
    encode_verdict,
    join,
    receive_frame,
    send_frame,
)
from vtriune.types import ImageSize, Progress, RewardSpec, Status, Verdict

texts = st.text(max_size=50)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
sides = st.tuples(st.integers(1, 9999), st.integers(1, 9999))
items = st.builds(
    JudgeItem,
    response=texts,
    spec=st.builds(
        RewardSpec,
        verifier=texts,
        gold=texts,
        accuracy_weight=numbers,
        format_weight=numbers,
        parameters=st.dictionaries(texts, json_values, max_size=3),
        preset=st.sampled_from(["paper", "official_code", "modern"]),
    ),
    progress=st.builds(
        Progress, step=st.integers(0, 999), total_steps=st.integers(0, 999), split=st.sampled_from(["train", "test"])
    ),
    image_sizes=st.lists(st.builds(ImageSize, original=sides, resized=sides), max_size=3).map(tuple),
)
verdicts = st.builds(
    Verdict,
    status=st.sampled_from(Status),
    reward=st.none() | numbers,
    accuracy=st.none() | numbers,
    format=st.none() | numbers,
    correct=st.none() | st.booleans(),
    report=st.dictionaries(texts, numbers, max_size=5),
    reason=texts,
)

ITEM = JudgeItem(r"\boxed{4}", RewardSpec("mathverify", "4"), Progress(0, 1, "test"))


@given(items)
def test_an_item_arrives_as_it_was_sent(item: JudgeItem) -> None:
    assert decode_item(orjson.loads(encode_item(item))) == item


@given(verdicts)
def test_a_verdict_arrives_as_it_was_sent_to_the_last_bit(verdict: Verdict) -> None:
    assert decode_verdict(encode_verdict(verdict)) == verdict


@given(st.lists(items, max_size=4))
def test_joined_items_are_one_array_in_order(batch: list[JudgeItem]) -> None:
    assert [decode_item(fields) for fields in orjson.loads(join([encode_item(item) for item in batch]))] == batch


def test_equal_items_give_equal_bytes_whatever_the_order_of_their_parameters() -> None:
    one = replace(ITEM, spec=replace(ITEM.spec, parameters={"a": 1, "b": 2}))
    other = replace(ITEM, spec=replace(ITEM.spec, parameters={"b": 2, "a": 1}))
    assert encode_item(one) == encode_item(other)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_still_refused_on_the_other_side(weight: float) -> None:
    item = replace(ITEM, spec=replace(ITEM.spec, format_weight=weight))
    arrived = decode_item(orjson.loads(encode_item(item)))
    assert judge_item(arrived).status is judge_item(item).status is Status.UNSCORABLE


def test_an_overlong_answer_is_cut_and_still_judged_as_overlong() -> None:
    item = replace(ITEM, response="x" * (3 * MAX_CHARACTERS))
    data = encode_item(item)
    assert len(data) < 2 * MAX_CHARACTERS
    assert judge_item(decode_item(orjson.loads(data))) == judge_item(item)


@pytest.mark.parametrize("spec", [replace(ITEM.spec, gold="\ud800"), replace(ITEM.spec, parameters={"a": {1}})])
def test_a_sample_that_json_cannot_hold_is_a_value_error(spec: RewardSpec) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_item(replace(ITEM, spec=spec))


@pytest.mark.parametrize("response", ["\ud800", r"\boxed{4}" + "\udfff", "\ud800" + "x" * MAX_CHARACTERS])
def test_an_answer_that_json_cannot_hold_is_judged_on_the_other_side_as_on_this(response: str) -> None:
    item = replace(ITEM, response=response)
    arrived = decode_item(orjson.loads(encode_item(item)))
    assert (judge_item(arrived).reward, judge_item(item).reward) == (0.0, 0.0)
    assert judge_item(arrived).status is judge_item(item).status is Status.SCORED


@given(st.lists(st.binary(max_size=500), max_size=5))
def test_frames_arrive_whole_and_in_order(frames: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for frame in frames:
            send_frame(ours, frame)
        assert [receive_frame(theirs) for _ in frames] == frames


@pytest.mark.parametrize("begun", [b"", b"\0\0", b"\0\0\0\5abc"])
def test_a_frame_that_breaks_off_is_the_end_of_the_channel(begun: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(begun)
        ours.close()
        with pytest.raises(EOFError):
            receive_frame(theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": replace(ITEM.spec, parameters={"a": "x" * MAX_PARAMETERS})},
        {"spec": replace(ITEM.spec, parameters={"a": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]})},
        {"spec": replace(ITEM.spec, verifier="x" * 3000)},
        {"image_sizes": (ImageSize((9, 9), (9, 9)),) * 70_000},
    ],
)
def test_what_is_beyond_the_judges_limits_is_cut_and_has_the_same_verdict(change: dict[str, Any]) -> None:
    item = replace(ITEM, **change)
    data = encode_item(item)
    assert len(data) < 2 * MAX_PARAMETERS
    assert judge_item(decode_item(orjson.loads(data))) == judge_item(item)
    assert judge_item(item).status is Status.UNSCORABLE
