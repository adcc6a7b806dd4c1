"""`composite`: one reward out of several verifiers' accuracies, each part's figures kept apart in the report.

What the parts measure is theirs; a_acc and a_fmt (eq. 8) stay the judge's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vtriune.types import UserError
from vtriune.verifiers import registry
from vtriune.verifiers.base import Context, Outcome, Unscorable, Verifier, in_context_of
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.json_text import JsonObject

MAX_PARTS = 8
MAX_NESTING = 3
"""Composites within each other: the outermost is the first."""


class Part(BaseModel):
    """One verifier of a composite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verifier: str
    """Name in the registry, e.g. `detection`."""
    parameters: JsonObject = "{}"
    """Its own parameters, as a row's verifier_parm."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """w, for `weighted` and `gated`; with 0 it is only reported."""
    name: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")] | None = None
    """What the report calls it; default: the verifier's name."""
    gold: str | None = None
    """Its reference answer; default: the sample's."""

    @property
    def called(self) -> str:
        """Its name in the report."""
        return self.name or self.verifier


class CompositeParams(BaseModel):
    """Which verifiers, and how their accuracies become one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=MAX_PARTS)]
    """The verifiers."""
    combine: Literal["weighted", "gated", "min", "max"] = "weighted"
    """How their accuracies become one, see `Composite`."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names = [part.called for part in self.parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f'two parts are called "{twice}"; give them a `name`')
        weighed = self.parts[1:] if self.combine == "gated" else self.parts
        if self.combine in ("weighted", "gated") and not sum(part.weight for part in weighed) > 0:
            raise ValueError(
                f"{self.combine} needs a part{' after the first' * (self.combine == 'gated')} of weight > 0"
            )
        return self


@dataclass(frozen=True, slots=True)
class _Prepared:
    verifier: Verifier[Any, Any]
    params: BaseModel
    gold: Any


class Composite:
    """R_acc out of the R_acc of its parts.

    Combine, with the rule of correctness:
        `weighted`: sum of w * R_acc / sum of w; correct if every part of weight > 0 is.
        `gated`: 0 unless the first part is correct; then `weighted` of the others. Correct if the first part is.
        `min`: the least; correct if every part is.
        `max`: the greatest; correct if any part is.

    Every part judges every answer, with the eps of its own schedule. The report has, for each part,
    `<name>.accuracy`, `<name>.correct` (0 or 1) and `<name>.<key>` for every key of its own report. R_fmt is eq. 4,
    whatever the parts' are. If one part is unscorable, so is the whole. A part may be a composite, three deep at most.

    Source: weighted sums are eq. 8 of arXiv 2505.18129, for accuracies; the gate is the usual guard against paying for
    brevity or layout of wrong answers.

    >>> verifier, context = Composite(), Context(preset="modern", split="train", response_tokens=1800)
    >>> brief = {"kind": "soft_overlong", "max_tokens": 2000, "buffer_tokens": 400}
    >>> parts = [{"verifier": "mathverify"}, {"verifier": "shaping", "parameters": brief, "name": "brief"}]
    >>> params = CompositeParams.model_validate({"parts": parts, "combine": "gated"})
    >>> gold = verifier.parse_gold("4", params, context)
    >>> [verifier.judge(rf"So it is \\boxed{{{n}}}.", gold, params, context).accuracy for n in (4, 5)]
    [0.5, 0.0]
    """

    name = "composite"
    Params = CompositeParams

    def parse_gold(self, gold: str, params: CompositeParams, context: Context) -> tuple[_Prepared, ...]:
        """Every part's verifier, parameters and gold.

        Raises:
            Unscorable: a part's verifier, parameters or gold are invalid; the message names the part.
        """
        return self._prepare(gold, params, context, MAX_NESTING)

    def _prepare(self, gold: str, params: CompositeParams, context: Context, levels: int) -> tuple[_Prepared, ...]:
        if not levels:
            raise Unscorable(f"composites stand {MAX_NESTING} deep at most")
        prepared = []
        for part in params.parts:
            with _naming(part):
                verifier = registry.get(part.verifier)
                own = registry.parse_params(part.verifier, orjson.loads(part.parameters))
                reference = gold if part.gold is None else part.gold
                parsed = (
                    self._prepare(reference, own, context, levels - 1)
                    if isinstance(own, CompositeParams)
                    else verifier.parse_gold(reference, own, context)
                )
                prepared.append(_Prepared(verifier, own, parsed))
        return tuple(prepared)

    def judge(self, response: str, gold: tuple[_Prepared, ...], params: CompositeParams, context: Context) -> Outcome:
        """Have every part judge, and combine.

        Raises:
            Unscorable: a part can't judge in this context; the message names it.
        """
        outcomes = []
        report: dict[str, float] = {}
        for part, one in zip(params.parts, gold, strict=True):
            with _naming(part):
                outcome = one.verifier.judge(response, one.gold, one.params, in_context_of(one.params, context))
            outcomes.append(outcome)
            own = {**outcome.report, "accuracy": outcome.accuracy, "correct": float(outcome.correct)}
            report.update({f"{part.called}.{key}": value for key, value in own.items()})
        accuracy, correct = _combine(params, outcomes)
        reasons = [
            f"{part.called}: {one.reason}" for part, one in zip(params.parts, outcomes, strict=True) if one.reason
        ]
        if params.combine == "gated" and not correct:
            reasons.insert(0, f"{params.parts[0].called} is not correct")
        return Outcome(
            accuracy, tag_score(response), correct=correct, report=report, reason="" if accuracy else "; ".join(reasons)
        )


def _combine(params: CompositeParams, outcomes: list[Outcome]) -> tuple[float, bool]:
    """Accuracy and correctness of the whole."""
    accuracies = [one.accuracy for one in outcomes]
    if params.combine == "max":
        return max(accuracies), any(one.correct for one in outcomes)
    if params.combine == "min":
        return min(accuracies), all(one.correct for one in outcomes)
    pairs = list(zip([part.weight for part in params.parts], outcomes, strict=True))
    if params.combine == "gated":
        correct = outcomes[0].correct
        pairs = pairs[1:]
    else:
        correct = all(one.correct for weight, one in pairs if weight)
    mean = sum(weight * one.accuracy for weight, one in pairs) / sum(weight for weight, _ in pairs)
    return (0.0 if params.combine == "gated" and not correct else min(mean, 1.0)), correct


@contextmanager
def _naming(part: Part) -> Iterator[None]:
    try:
        yield
    except (Unscorable, UserError) as error:
        raise Unscorable(f'part "{part.called}": {error}') from error
    except (MemoryError, RecursionError):
        raise  # what the answer or gold exhausted is told by type
    except Exception as error:
        raise RuntimeError(f'part "{part.called}": {type(error).__name__}: {error}') from error
