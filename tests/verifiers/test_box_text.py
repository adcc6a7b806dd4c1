"""Boxes are read from what models really write, in every quoting style, in linear time."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.box_text import MAX_BOXES, Box, BoxList, read_boxes, read_loose
from vtriune.verifiers.released_detection import read_boxes_as_released

CAT = Box("cat", 1, 2, 3, 4)
SEAT = Box("driver's seat", 5, 6.5, 7, 8)

coordinate = st.one_of(st.integers(-(10**6), 10**6).map(float), st.floats(-1e6, 1e6))
any_label = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
apostrophes = st.text(st.sampled_from("ab 9'é-"), max_size=20)


@st.composite
def boxes_with(draw: st.DrawFn, labels: st.SearchStrategy[str]) -> list[Box]:
    found = []
    for label in draw(st.lists(labels, min_size=1, max_size=5)):
        x1, x2 = sorted((draw(coordinate), draw(coordinate)))
        y1, y2 = sorted((draw(coordinate), draw(coordinate)))
        found.append(Box(label, x1, y1, x2, y2))
    return found


def as_objects(boxes: list[Box]) -> list[dict[str, object]]:
    return [{"bbox_2d": list(box[1:]), "label": box.label} for box in boxes]


def as_swapped_objects(boxes: list[Box]) -> list[dict[str, object]]:
    return [{"label": box.label, "confidence": 0.9, "bbox_2d": list(box[1:])} for box in boxes]


@given(boxes_with(any_label), st.sampled_from([as_objects, as_swapped_objects]), st.booleans())
def test_json_is_read_back_whatever_the_labels(boxes: list[Box], layout: object, ascii_only: bool) -> None:
    assert callable(layout)
    text = json.dumps(layout(boxes), ensure_ascii=ascii_only)
    assert read_boxes(text) == BoxList(boxes)
    assert read_boxes(json.dumps(layout(boxes), indent=2)) == BoxList(boxes)


@given(boxes_with(any_label), st.sampled_from([as_objects, as_swapped_objects]))
def test_pythons_repr_is_read_back_whatever_the_labels(boxes: list[Box], layout: object) -> None:
    assert callable(layout)
    assert read_boxes(repr(layout(boxes))) == BoxList(boxes)


@given(boxes_with(apostrophes), st.sampled_from("\"'"))
def test_apostrophes_within_labels_are_read_back_from_either_quotes_unescaped(boxes: list[Box], q: str) -> None:
    objects = [f"{{{q}bbox_2d{q}: {list(box[1:])}, {q}label{q}: {q}{box.label}{q}}}" for box in boxes]
    assert read_boxes("[" + ", ".join(objects) + "]") == BoxList(boxes)
    turned = [f"{{{q}label{q}: {q}{box.label}{q}, {q}bbox_2d{q}: {list(box[1:])}}}" for box in boxes]
    assert read_boxes("[" + ",\n".join(turned) + ",]") == BoxList(boxes)


BOTH = '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6.5, 7, 8], "label": "driver\'s seat"}'


@pytest.mark.parametrize(
    "text",
    [
        f"[{BOTH}]",
        f"[{BOTH},]",
        f"[{BOTH}",
        BOTH,
        f"```json\n[{BOTH}]\n```",
        f"Here they are: [{BOTH}] (two boxes, {{as asked}}).",
        f'{{"objects": [{BOTH}]}}',
        BOTH.replace("}, {", "}\n{"),
        f"[{BOTH}]".replace('"', "'"),
        f"[{BOTH}]".replace('"', "'").replace("driver's", "driver\\'s"),
        "[{bbox_2d: [1, 2, 3, 4], label: cat}, {bbox_2d: [5, 6.5, 7, 8], label: 'driver's seat'}]",
        f"[{BOTH}]".replace("[1, 2, 3, 4]", "[[1, 2, 3, 4]]"),
        f"[{BOTH}]".replace("[1, 2, 3, 4]", "[ 1.0,2,\n3e0 , +4 ]"),
        f"[{BOTH}]".replace('"cat"', '"cat",').replace("seat'", "seat',"),
    ],
)
def test_two_boxes_are_read_from_everything_models_write(text: str) -> None:
    assert read_boxes(text) == BoxList([CAT, SEAT])


def test_of_a_list_cut_off_the_complete_boxes_count() -> None:
    text = f"[{BOTH}, {BOTH}]"
    for end in range(len(text)):
        complete = text[:end].count("}")
        found = read_boxes(text[:end])
        assert found.boxes == [CAT, SEAT, CAT, SEAT][:complete]
        assert found.dropped <= 1


def test_one_object_is_as_good_as_a_list_of_one() -> None:
    assert read_boxes("{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}") == BoxList([CAT])


def test_a_box_without_a_label_has_an_empty_one() -> None:
    assert read_boxes('[{"bbox_2d": [1, 2, 3, 4]}]').boxes == [Box("", 1, 2, 3, 4)]


@pytest.mark.parametrize(
    "corners",
    [
        "3, 2, 1, 4",
        "1, 4, 3, 2",
        "1, 2, 1e999, 4",
        "-1e999, 2, 3, 4",
        "NaN, 2, 3, 4",
        "Infinity, 2, 3, 4",
        "1, 2, 3",
        "1, 2, 3, 4, 5",
        "a, b, c, d",
        "",
        "1, 2, 1e300, 4",
    ],
)
def test_a_broken_box_is_dropped_and_counted_and_its_neighbours_stay(corners: str) -> None:
    text = f'[{{"bbox_2d": [{corners}], "label": "cat"}}, {BOTH}]'
    assert read_boxes(text) == BoxList([CAT, SEAT], dropped=1)


def test_a_box_without_area_is_a_box() -> None:
    assert read_boxes('{"bbox_2d": [5, 5, 5, 9], "label": "pole"}').boxes == [Box("pole", 5, 5, 5, 9)]


@pytest.mark.parametrize("text", ["[]", "[ \n]", "```json\n[]\n```", "None of them: []."])
def test_an_empty_list_says_that_there_is_nothing(text: str) -> None:
    assert read_boxes(text) == BoxList([], empty=True)


@pytest.mark.parametrize("text", ["", "There is no cat.", "{}", "[", '{"bbox_2d": [], "label": "cat"}', "[1, 2, 3, 4]"])
def test_anything_else_without_boxes_says_nothing_at_all(text: str) -> None:
    assert not read_boxes(text).boxes
    assert not read_boxes(text).empty


def test_reading_stops_at_the_cap_on_boxes() -> None:
    text = str([{"bbox_2d": [i, 0, i + 1, 1], "label": "cat"} for i in range(2 * MAX_BOXES)])
    assert len(read_boxes(text).boxes) == MAX_BOXES


HOSTILE = [
    "{",
    "}",
    "[",
    "[[",
    "[ ",
    '"',
    "'",
    "\\",
    "a",
    "\n",
    "<answer>",
    "{ ",
    '{"a":',
    '{"a":"',
    "{'a':'",
    '{"a":[',
    '{"a":"\\',
    '{"a":1,',
    '{"a":"{b:1","',
    '{"a":\'{"a":"x",',
    '{"label":" " " " "',
    '{"bbox_2d": [1,2,3,4], "label": "',
    '{"bbox_2d": [1,2,3,4], "label": "a"},',
    '{"bbox_2d": [1,',
    '{"bbox_2d": [' + "1" * 390,
    '{"label":"' + '" ' * 400,
    "{'label':'" + "',a " * 330,
    "},",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_400000_characters_of_anything_are_read_in_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    read_boxes(text)
    read_boxes_as_released(f"<answer>{text}</answer>")
    read_boxes_as_released(text)


@given(st.text(st.sampled_from("{}[]\"':,\\ 19.e-bbox_2dlabel<>\n"), max_size=200))
def test_no_text_breaks_the_reading(text: str) -> None:
    for found in (read_boxes(text), read_boxes_as_released(f"<answer>{text}</answer>")):
        assert all(box.x1 <= box.x2 and box.y1 <= box.y2 for box in found.boxes)


@st.composite
def nearly_strict(draw: st.DrawFn) -> str:
    """One JSON list of boxes, as strict as can be, with some of it replaced."""
    text = json.dumps(draw(st.sampled_from([as_objects, as_swapped_objects]))(draw(boxes_with(any_label))))
    for _ in range(draw(st.integers(0, 3))):
        start, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        end = min(end, start + draw(st.integers(0, 12)))
        inserted = st.sampled_from(
            ("", "[]", "]", "{", '"', "'", "NaN", "1e999", "9" * 400, " " * 401, text, "\\", "-0")
        )
        text = text[:start] + draw(inserted) + text[end:]
    return draw(st.sampled_from(("{}", "```json\n{}\n```", "Two [2]: {}", "{} {{}}"))).replace("{}", text, 1)


@given(nearly_strict())
def test_the_short_cut_for_strict_json_reads_what_the_long_way_reads(text: str) -> None:
    assert read_boxes(text) == read_loose(text)


@pytest.mark.parametrize(
    "objects",
    [
        '{"bbox_2d": [1, 2, 3, 4], "label": "a", "label": "b"}',
        '{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [2, 2, 3, 4]}',
        '{"bbox_2d": [3, 2, 1, 4], "label": "swapped"}',
        '{"bbox_2d": [], "label": ""}',
        '{"bbox_2d": [true, 2, 3, 4], "label": "a"}',
        '{"bbox_2d": [123456789012345678901234567890, 2, 1e40, 4], "label": "a"}',
        '{"bbox_2d": [1, 2, 3, 4], "label": ["a"]}',
        '{"bbox_2d": ["1", 2, 3, 4], "label": "a"}, 7',
        '{"bbox_2d": [1, 2, 3, 4], "label": "' + "a" * 600 + '"}',
        '{"bbox_2d": [1, 2, 3, ' + " " * 400 + '4], "label": "a"}',
    ],
)
def test_the_short_cut_gives_way_where_it_would_differ(objects: str) -> None:
    assert read_boxes(f"[{objects}]") == read_loose(f"[{objects}]")
