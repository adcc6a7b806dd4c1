"""What travels over HTTP: the requests and replies of `/v1`, as types, and as the items and verdicts of this project.

Names are those of `wire.encode_item`. The released protocol is `released.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import nan
from typing import Annotated, Any, Self

import numpy as np
import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from vtriune.reward.judge import JudgeItem
from vtriune.reward.wire import MAX_NAME, NOT_UNICODE
from vtriune.types import ImageSize, Preset, Progress, RewardSpec, Split, Status, Verdict

MAX_ITEMS = 4096
MAX_VALUES = 2**18
"""Values in a body, keys not counted: each takes time and memory, however short."""

# The judge has its own limits, of which a sample learns from its verdict; these keep out what is no number of its kind.
Side = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Count = Annotated[int, Field(ge=0, le=2**53)]


def too_many_values(body: bytes, limit: int = MAX_VALUES) -> bool:
    """Are there more than `limit` in it? Looked at before it is parsed, which nothing can interrupt.

    >>> too_many_values(b'[",,,,"]', 3), too_many_values(b"[1,2,3,4]", 3)
    (False, True)
    """
    if len(body) <= limit or _marks(body) <= limit:  # texts included
        return False
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return plain.count(b'"') > 4 * MAX_VALUES or _marks(b"".join(plain.split(b'"')[::2])) > limit


def _marks(text: bytes) -> int:
    characters = np.frombuffer(text, np.uint8)
    return sum(int(np.count_nonzero(characters == ord(mark))) for mark in ",[{")


class _Strict(BaseModel):
    # Strict, as the schema has it: "5" and true are no numbers.
    model_config = ConfigDict(extra="forbid", strict=True)


def _forbid(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = False


class _Asked(BaseModel):
    # Unknown fields are refused by `JudgeRequest.read`: `forbid` makes an error of each, and a body may hold many.
    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=_forbid)


class SpecIn(_Asked):
    """How an answer is rewarded: `types.RewardSpec`."""

    verifier: str
    gold: str
    accuracy_weight: FiniteFloat | None = 1.0
    format_weight: FiniteFloat | None = 0.0
    parameters: dict[str, JsonValue] = {}
    preset: Preset = "modern"


class ProgressIn(_Asked):
    """Where training stands: `types.Progress`."""

    step: Annotated[int, Field(ge=-(2**53), le=2**53)]
    total_steps: Annotated[int, Field(ge=-(2**53), le=2**53)]
    split: Split


class SizeIn(_Asked):
    """`types.ImageSize`: [width, height] in pixels, as stored and as the model's processor resized it."""

    original: tuple[Side, Side]
    resized: tuple[Side, Side]


class ItemIn(_Asked):
    """One answer to be judged."""

    id: Name = Field(
        description="Comes back with the verdict. The same id with the same content is not judged again, "
        "so that whoever lost the connection can ask again."
    )
    response: str | None = Field(description="The answer; null: it is no Unicode text, which scores 0.")
    spec: SpecIn
    progress: ProgressIn
    image_sizes: Annotated[list[SizeIn], FailFast()] = []
    response_tokens: Count | None = None
    source: Name = Field("", description="Data source, for the service's metrics.")

    def item(self) -> JudgeItem:
        """As this project has it."""
        spec = self.spec
        return JudgeItem(
            NOT_UNICODE if self.response is None else self.response,
            RewardSpec(
                spec.verifier,
                spec.gold,
                nan if spec.accuracy_weight is None else spec.accuracy_weight,
                nan if spec.format_weight is None else spec.format_weight,
                spec.parameters,
                spec.preset,
            ),
            Progress(self.progress.step, self.progress.total_steps, self.progress.split),
            tuple(ImageSize(one.original, one.resized) for one in self.image_sizes),
            self.response_tokens,
            self.source,
        )


class JudgeRequest(_Asked):
    """Answers to be judged together."""

    items: Annotated[list[ItemIn], Field(min_length=1, max_length=MAX_ITEMS), FailFast()]


class RefusedError(Exception):
    """A body that makes no sense, and why."""


def read(body: bytes) -> list[ItemIn]:
    """The items of a `JudgeRequest`.

    Raises:
        RefusedError: the body is none.
    """
    try:
        asked = _REQUEST.validate_json(body)
    except ValidationError as error:
        raise RefusedError(explain(error)) from error
    _refuse_unknown(asked, "")
    for n, one in enumerate(asked.items):
        _refuse_unknown(one, f"items.{n}.")
        _refuse_unknown(one.spec, f"items.{n}.spec.")
        _refuse_unknown(one.progress, f"items.{n}.progress.")
        for m, size in enumerate(one.image_sizes):
            _refuse_unknown(size, f"items.{n}.image_sizes.{m}.")
    return asked.items


_REQUEST = TypeAdapter(JudgeRequest)


def _refuse_unknown(part: _Asked, where: str) -> None:
    if part.model_extra:
        name = next(iter(part.model_extra))
        raise RefusedError(f"{where}{name[:MAX_NAME]}: there is no such field")


class VerdictOut(_Strict):
    """`types.Verdict`: all of its numbers if it is scored, else null and the reason."""

    id: str
    status: Status
    reward: FiniteFloat | None
    accuracy: FiniteFloat | None
    format: FiniteFloat | None
    correct: bool | None
    report: dict[str, FiniteFloat]
    reason: str

    @model_validator(mode="after")
    def _scored_or_not(self) -> Self:
        values = (self.reward, self.accuracy, self.format, self.correct)
        if any((value is None) == (self.status is Status.SCORED) for value in values):
            raise ValueError("a verdict has all of its numbers if it is scored, and none if it is not")
        return self

    def verdict(self) -> Verdict:
        """As this project has it."""
        return Verdict(self.status, self.reward, self.accuracy, self.format, self.correct, self.report, self.reason)


class JudgeReply(_Strict):
    """The verdicts, in the order of the items."""

    verdicts: list[VerdictOut]


class StreamedVerdict(VerdictOut):
    """One line of a stream: a verdict, and the position of its item."""

    index: int


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


def verdict_fields(name: str, verdict: Verdict) -> dict[str, Any]:
    """A verdict's fields for `orjson.dumps`, in the order of `VerdictOut`."""
    return {
        "id": name,
        "status": verdict.status,
        "reward": verdict.reward,
        "accuracy": verdict.accuracy,
        "format": verdict.format,
        "correct": verdict.correct,
        "report": verdict.report,
        "reason": verdict.reason,
    }


def reply(verdicts: Iterable[tuple[str, Verdict]]) -> bytes:
    """A `JudgeReply` as JSON; numbers survive to the last bit."""
    return orjson.dumps({"verdicts": [verdict_fields(name, verdict) for name, verdict in verdicts]}, default=dict)


def explain(error: ValidationError) -> str:
    """The first of a request's faults in one line, with the path to it, e.g. `items.3.spec.gold`."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}{more}"
