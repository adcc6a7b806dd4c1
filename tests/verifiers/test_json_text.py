"""JSON within bounds, and objects that are hashable parameters."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from vtriune.verifiers.json_text import MAX_DEPTH, MAX_JSON, JsonObject, read_json

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


class Holder(BaseModel):
    model_config = ConfigDict(frozen=True)

    thing: JsonObject


@given(JSON)
def test_what_is_json_is_read(value: Any) -> None:
    import json

    assert read_json(json.dumps(value)) == value


@given(st.text())
def test_what_is_not_is_a_value_error_and_nothing_else(text: str) -> None:
    with suppress(ValueError):
        read_json(text)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_bounded(opening: str, closing: str) -> None:
    read_json(opening * MAX_DEPTH + "1" + closing * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 900, 10_000):
        with pytest.raises(ValueError, match="JSON"):
            read_json(opening * depth + "1" + closing * depth)


def test_length_is_bounded() -> None:
    read_json(" " * (MAX_JSON - 1) + "1")
    with pytest.raises(ValueError, match=f"longer than {MAX_JSON}"):
        read_json(" " * MAX_JSON + "1")


def test_an_object_and_its_text_are_the_same_parameter() -> None:
    holders = {Holder(thing={"b": 1, "a": [None]}), Holder(thing='{"a": [null], "b": 1}')}
    assert [holder.thing for holder in holders] == ['{"a":[null],"b":1}']


@pytest.mark.parametrize("value", [1, [1], "[1]", "{", {"a": {1, 2}}, {"a": "\ud800"}, {"a": "x" * MAX_JSON}])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        Holder(thing=value)
