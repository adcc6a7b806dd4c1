"""R_fmt: is the answer laid out as asked? The paper's score, the released code's two variants, and the verifier
`format`, which makes layout the accuracy. Whether the content is right is for the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vtriune.verifiers.answers import final_text, tagged
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.json_text import JsonObject, read_json

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FENCE = re.compile(r"```[a-zA-Z]*+\s(.*)```", re.DOTALL)
_PROBES: tuple[Any, ...] = (None, True, 0, "", [], {})


def tag_score(response: str) -> float:
    """R_fmt of eq. 4: 0.25 for each of the four tags that occurs exactly once.

    >>> tag_score("<think>1 + 1</think><answer>2</answer>")
    1.0
    >>> tag_score("<think>1 + 1</think><answer>2</answer> or <answer>3</answer>")
    0.5
    """
    return _quarters(response, _TAGS)


def released_tag_score(response: str) -> float:
    r"""The released code's score for rows verified by math-verify: eq. 4 with line breaks demanded around the tags.

    >>> released_tag_score("<think>\n1 + 1\n</think>\n<answer>\n2\n</answer>")
    1.0
    >>> released_tag_score("<think>1 + 1</think>\n<answer>\n2\n</answer>")
    0.5
    """
    return _quarters(response, ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"))


def released_detection_score(response: str, n_boxes: int) -> float:
    r"""The released code's score for detection rows: 1 if the answer tags are there and boxes were read, else 0.

    The opening tag may occur more than once: the released code compares only the count of the closing one with 1.

    >>> released_detection_score("\n<answer>\n[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}]\n</answer>", n_boxes=1)
    1.0
    """
    return float("\n<answer>\n" in response and response.count("\n</answer>") == 1 and n_boxes > 0)


def strictly_tagged(response: str) -> bool:
    """Is the whole of it `<think>...</think><answer>...</answer>`, both with content, white space aside?

    >>> strictly_tagged("<think>1 + 1</think> <answer>2</answer>"), strictly_tagged("<think></think><answer>2</answer>")
    (True, False)
    """
    text = response.strip()
    thinking, _, rest = text.removeprefix("<think>").partition("</think>")
    rest = rest.strip()
    answer = rest.removeprefix("<answer>").removesuffix("</answer>")
    placed = text.startswith("<think>") and rest.startswith("<answer>") and rest.endswith("</answer>")
    once = all(text.count(tag) == 1 for tag in _TAGS)
    return placed and once and bool(thinking.strip()) and bool(answer.strip())


class FormatParams(BaseModel):
    """Which layout is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tags", "released_tags", "strict", "json_schema"] = "tags"
    """`tags`: eq. 4. `released_tags`: the released code's variant of it. `strict`: nothing but one thought and one
    answer. `json_schema`: the answer is one JSON value that satisfies `schema`."""
    json_schema: JsonObject | None = Field(None, alias="schema")
    """For `json_schema`: a JSON Schema (draft 2020-12, unless it names another), as an object or as its text. `$ref`
    reaches only within it; `format` is not checked."""

    @model_validator(mode="after")
    def _schema_where_it_is_used(self) -> Self:
        if (self.kind == "json_schema") != (self.json_schema is not None):
            raise ValueError("kind json_schema needs `schema`, and no other kind has one")
        return self


class Format:
    """R_acc is the layout alone, gold is ignored and may be empty; correct means 1. For parts of a `composite`.

    Kinds:
        `tags`: eq. 4, a quarter for each of the four tags that occurs exactly once, see `tag_score`.
        `released_tags`: the same with line breaks demanded around the tags, see `released_tag_score`.
        `strict`: 1 if the response is `<think>...</think><answer>...</answer>` and nothing else, see
            `strictly_tagged`.
        `json_schema`: 1 if what the last `<answer>` after the last `</think>` holds (all that follows `</think>` if no
            tag does), a code fence around it aside, is one JSON value that satisfies the schema. Of at most 100,000
            characters and 32 levels, which holds for the schema, too; nothing is fetched.

    R_fmt is eq. 4 for all of them.

    Source: arXiv 2505.18129 eq. 4; github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server; JSON Schema as
    github.com/python-jsonschema/jsonschema has it.

    >>> verifier, context = Format(), Context(preset="modern", split="train")
    >>> params = FormatParams(kind="json_schema", schema={"type": "object", "required": ["colour"]})
    >>> gold = verifier.parse_gold("", params, context)
    >>> verifier.judge('<answer>{"colour": "red"}</answer>', gold, params, context).accuracy
    1.0
    >>> verifier.judge('<answer>{"color": "red"}</answer>', gold, params, context).reason
    "$: 'colour' is a required property"
    """

    name = "format"
    Params = FormatParams

    def parse_gold(self, gold: str, params: FormatParams, context: Context) -> Any:
        """The schema's validator; None for the other kinds.

        Raises:
            Unscorable: the schema is none.
        """
        return None if params.json_schema is None else _validator(read_json(params.json_schema))

    def judge(self, response: str, gold: Any, params: FormatParams, context: Context) -> Outcome:
        """Score the layout.

        Raises:
            Unscorable: the schema turns out to be broken where this answer leads it.
        """
        reason = ""
        if params.kind == "tags":
            accuracy = tag_score(response)
            reason = "no tag occurs exactly once"
        elif params.kind == "released_tags":
            accuracy = released_tag_score(response)
            reason = "no tag occurs exactly once with line breaks around it"
        elif params.kind == "strict":
            accuracy = float(strictly_tagged(response))
            reason = "is not <think>...</think><answer>...</answer> and nothing else"
        else:
            reason = _fault(response, gold)
            accuracy = float(not reason)
        return Outcome(accuracy, tag_score(response), correct=accuracy == 1, reason="" if accuracy else reason)


def _fault(response: str, validator: Any) -> str:
    """Why the answer does not satisfy the schema; empty if it does."""
    final = final_text(response)
    content = tagged(final)
    text = (final if content is None else content).strip()
    fenced = _FENCE.fullmatch(text)
    try:
        value = read_json(fenced[1] if fenced else text)
    except ValueError as error:
        return f"the answer is {error}"
    with _blaming_the_schema():
        fault = next(validator.iter_errors(value), None)
    return "" if fault is None else f"{fault.json_path}: {fault.message[-300:]}"


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - few rows have a schema
    from jsonschema.validators import validator_for  # noqa: PLC0415
    from referencing import Registry, Resource  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

    with _blaming_the_schema():
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
        resolver = Registry().with_resource("", Resource.from_contents(schema, DRAFT202012)).resolver()
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise ValueError(f"$ref {reference!r} reaches out of it; put it into #/$defs")
            resolver.lookup(reference)
        # A registry of our own, since the library's fetches what `$ref` names.
        validator = kind(schema, registry=Registry())
        for value in _PROBES:
            list(validator.iter_errors(value))
    return validator


@contextmanager
def _blaming_the_schema() -> Iterator[None]:
    """Answers are JSON, and not deep: what jsonschema stumbles over is in the schema."""
    from jsonschema import SchemaError  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        yield
    except RecursionError as error:
        raise Unscorable("verifier_parm.schema refers to itself without end") from error
    except SchemaError as error:
        raise Unscorable(f"verifier_parm.schema: {error.json_path}: {error.message}") from error
    except Unresolvable as error:
        raise Unscorable(f"verifier_parm.schema: no {error.ref!r} in it; define it under #/$defs") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Unscorable(f"verifier_parm.schema: {error}") from error


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _quarters(response: str, tags: tuple[str, ...]) -> float:
    return sum(0.25 for tag in tags if response.count(tag) == 1)
