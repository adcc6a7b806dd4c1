"""One answer to one verdict: route by the sample's verifier, verify, weigh (eq. 8).

Pure and in this process. Limits of time and memory are the worker processes' (`pool.py`); what is measured
is the verifiers'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any, Literal, get_args

import orjson
from pydantic import BaseModel

from vtriune.types import ImageSize, Preset, Progress, RewardSpec, Status, UserError, Verdict
from vtriune.verifiers import registry
from vtriune.verifiers.base import Context, Unscorable, Verifier, in_context_of

MAX_CHARACTERS = 400_000
"""A longer answer is scored 0, longer gold is unscorable. Ten times what the longest token limits allow."""

MAX_PARAMETERS = 65536
"""A sample with more bytes of parameters, as JSON, is unscorable."""

MAX_DEPTH = 16
"""Objects and lists within each other in a sample's parameters."""

MAX_PICTURES, MAX_SIDE = 64, 10**6
"""Pictures of a sample, and pixels of a picture's side."""

MAX_REASON = 500
"""Reasons are one line of at most so many characters: they quote answers and parameters."""

REMEMBERED = 4096
"""Samples whose gold is kept as its verifier reads it."""

Exhaustion = Literal["cpu limit", "memory limit", "recursion limit"]
"""What a judgement can run out of."""

EXHAUSTED: tuple[Exhaustion, ...] = get_args(Exhaustion)
"""Reasons of a scored 0 for an answer whose judgement ran out of something."""

Phase = Literal["gold", "answer"]


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One answer, and all that its verdict depends on."""

    response: str
    spec: RewardSpec
    progress: Progress
    image_sizes: tuple[ImageSize, ...] = ()
    response_tokens: int | None = None
    """Length of the answer in tokens, for verifiers that shape by length."""
    source: str = ""
    """The sample's data source, for the metrics of a reward server; no verdict depends on it."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A sample's side of the judgement: the same for all G answers."""

    verifier: Verifier[Any, Any]
    params: BaseModel
    gold: Any


def judge_item(item: JudgeItem, entering: Callable[[Phase], None] | None = None) -> Verdict:
    """Judge one answer; never raises.

    `entering` is called before gold is parsed, if it is not remembered from an earlier call, and before the answer is
    judged, for whoever limits each of the two.

    Returns:
        `scored` with R of eq. 8; a scored 0 whose reason is `memory limit` or `recursion limit` is an answer
        that exhausted its verifier. `unscorable`: gold, parameters or weights are invalid. `failed`: the
        verifier broke, with the exception in the reason.

    >>> progress = Progress(step=0, total_steps=1, split="test")
    >>> judge_item(JudgeItem("So it is \\\\boxed{4}.", RewardSpec("mathverify", "4"), progress)).reward
    1.0
    >>> judge_item(JudgeItem("cat", RewardSpec("mathverfy", "4"), progress)).reason
    'verifier "mathverfy" is not registered; did you mean "mathverify"?'
    """
    try:
        _check_weights(item.spec)
        prepared = _prepare(item.spec, item.image_sizes, entering)
        context = _context(item, prepared.params)
        if entering:
            entering("answer")
        return _judge(item, prepared, context)
    except Unscorable as error:
        return Verdict(Status.UNSCORABLE, reason=_line(str(error)))
    except Exception as error:  # our own breakdown must become neither a reward nor the end of the run
        return Verdict(Status.FAILED, reason=_line(f'verifier "{item.spec.verifier}": {type(error).__name__}: {error}'))


def validate(spec: RewardSpec, image_sizes: tuple[ImageSize, ...] = ()) -> None:
    """Check all of a sample's reward that can be known before training: verifier, parameters, weights and gold.

    It parses gold in this process, without a limit of time. Rows from strangers are better checked by
    `JudgePool.submit` with an empty response, which answers `unscorable` with the same message.

    Raises:
        UserError: the sample can't be judged; the message names the field, the caller adds file and row.
    """
    try:
        _check_weights(spec)
        _prepare(spec, image_sizes)
    except Unscorable as error:
        raise UserError(_line(str(error))) from error


def weigh(accuracy: float, format: float, spec: RewardSpec) -> float:  # noqa: A002  (R_fmt's name all over the project)
    """R = a_acc * R_acc + a_fmt * R_fmt (eq. 8); `official_code` divides it by a_acc + a_fmt.

    >>> weigh(0.5, 1.0, RewardSpec("detection", "", accuracy_weight=1.0, format_weight=0.25))
    0.75
    >>> weigh(0.5, 1.0, RewardSpec("detection", "", accuracy_weight=1.0, format_weight=0.25, preset="official_code"))
    0.6
    """
    reward = spec.accuracy_weight * accuracy + spec.format_weight * format
    if spec.preset == "official_code":
        reward /= spec.accuracy_weight + spec.format_weight
    return reward


def exhausted(what: Exhaustion) -> Verdict:
    """The verdict on an answer that exhausted its verifier, which is the model's doing: 0, and why."""
    return _worthless(what)


def gold_exhausted(what: Exhaustion) -> Verdict:
    """The verdict on every answer to a sample whose gold exhausts its verifier."""
    return Verdict(Status.UNSCORABLE, reason=_gold_reason(what))


def ran_out_of_memory(verdict: Verdict) -> bool:
    """Did answer or gold meet the memory limit? In a process that holds less they may fit.

    >>> ran_out_of_memory(exhausted("memory limit"))
    True
    """
    return verdict in (exhausted("memory limit"), gold_exhausted("memory limit"))


def is_deep(value: object, depth: int = MAX_DEPTH) -> bool:
    """Are objects and lists nested deeper in it than in parameters that can be judged?

    >>> is_deep({"a": [{}]}, depth=3), is_deep({"a": [{}]}, depth=2)
    (False, True)
    """
    if value is None or isinstance(value, str | int | float) or not isinstance(value, Mapping | list | tuple):
        return False
    children = value.values() if isinstance(value, Mapping) else value
    return depth == 0 or any(is_deep(child, depth - 1) for child in children)


def is_unicode(text: str) -> bool:
    """Can it be written as UTF-8? A lone surrogate can't, and so reaches no other process."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _worthless(reason: str) -> Verdict:
    return Verdict(Status.SCORED, reward=0.0, accuracy=0.0, format=0.0, correct=False, reason=reason)


def _gold_reason(what: Exhaustion) -> str:
    return f"ground_truth exhausts its verifier: {what}"


def _check_weights(spec: RewardSpec) -> None:
    for field, weight in (("accuracy_ratio", spec.accuracy_weight), ("format_ratio", spec.format_weight)):
        if not (isfinite(weight) and weight >= 0):
            raise Unscorable(f"{field} must be a finite number of at least 0, got {weight}")
    total = spec.accuracy_weight + spec.format_weight
    if not (isfinite(total) and total > 0):
        raise Unscorable(f"accuracy_ratio + format_ratio must be a finite number above 0, got {total}")


def _prepare(
    spec: RewardSpec, image_sizes: tuple[ImageSize, ...], entering: Callable[[Phase], None] | None = None
) -> _Prepared:
    try:
        parameters = orjson.dumps(spec.parameters, default=dict, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise Unscorable(f"verifier_parm is not JSON: {error}") from error
    if len(parameters) > MAX_PARAMETERS:
        raise Unscorable(f"verifier_parm is longer than {MAX_PARAMETERS} bytes of JSON")
    key = spec.verifier, parameters, spec.gold, spec.preset, image_sizes
    prepared = _remembered.get(key)
    if prepared is None:
        if entering:
            entering("gold")
        prepared = _remembered[key] = _prepared(*key)
        if len(_remembered) > REMEMBERED:
            del _remembered[next(iter(_remembered))]
    if isinstance(prepared, str):
        raise Unscorable(prepared)
    return prepared


@lru_cache(maxsize=REMEMBERED)
def _params(name: str, parameters: bytes) -> BaseModel | str:
    """The checked parameters, or why there are none (lru_cache would forget an exception)."""
    read = orjson.loads(parameters)
    if is_deep(read):
        return f"verifier_parm is nested deeper than {MAX_DEPTH} objects and lists"
    try:
        return registry.parse_params(name, read)
    except UserError as error:
        return str(error)


_remembered: dict[tuple[str, bytes, str, Preset, tuple[ImageSize, ...]], _Prepared | str] = {}
"""What `_prepared` said, of the latest REMEMBERED samples."""


def _prepared(
    name: str, parameters: bytes, gold: str, preset: Preset, image_sizes: tuple[ImageSize, ...]
) -> _Prepared | str:
    """Everything of a sample's judgement that its answers share, or why it can't be judged."""
    params = _params(name, parameters)
    if isinstance(params, str):
        return params
    if len(gold) > MAX_CHARACTERS:
        return f"ground_truth is longer than {MAX_CHARACTERS} characters"
    if fault := _fault_of_pictures(image_sizes):
        return fault
    verifier = registry.get(name)
    # A verifier's gold depends on preset and sizes alone, so that the split given here does not matter.
    context = Context(preset=preset, split="train", image_sizes=image_sizes)
    try:
        return _Prepared(verifier, params, verifier.parse_gold(gold, params, context))
    except Unscorable as error:
        return str(error)
    except (MemoryError, RecursionError) as error:
        return _gold_reason("memory limit" if isinstance(error, MemoryError) else "recursion limit")


def _fault_of_pictures(sizes: tuple[ImageSize, ...]) -> str:
    if len(sizes) > MAX_PICTURES:
        return f"the sample has more than {MAX_PICTURES} pictures"
    for size in sizes:
        if not all(0 <= side <= MAX_SIDE for side in (*size.original, *size.resized)):
            return f"a picture's sides must be 0 to {MAX_SIDE} pixels, got {size.original} and {size.resized}"
    return ""


def _context(item: JudgeItem, params: BaseModel) -> Context:
    context = Context(
        preset=item.spec.preset,
        split=item.progress.split,
        image_sizes=item.image_sizes,
        progress=item.progress,
        response_tokens=item.response_tokens,
    )
    return in_context_of(params, context)


def _judge(item: JudgeItem, prepared: _Prepared, context: Context) -> Verdict:
    if len(item.response) > MAX_CHARACTERS:
        return _worthless(f"answer longer than {MAX_CHARACTERS} characters")
    if not is_unicode(item.response):
        return _worthless("answer is no Unicode text: it holds half a surrogate pair")
    try:
        outcome = prepared.verifier.judge(item.response, prepared.gold, prepared.params, context)
    except MemoryError:
        return exhausted("memory limit")
    except RecursionError:
        return exhausted("recursion limit")
    for name, share in (("accuracy", outcome.accuracy), ("format", outcome.format)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} came out as {share}; it is a share from 0 to 1")
    reward = weigh(outcome.accuracy, outcome.format, item.spec)
    if not (isfinite(reward) and all(map(isfinite, outcome.report.values()))):
        _refuse_not_finite({"reward": reward, **outcome.report})
    return Verdict(
        Status.SCORED,
        reward=reward,
        accuracy=outcome.accuracy,
        format=outcome.format,
        correct=outcome.correct,
        report=outcome.report,
        reason=_line(outcome.reason),
    )


def _refuse_not_finite(measured: Mapping[str, float]) -> None:
    name, value = next((name, value) for name, value in measured.items() if not isfinite(value))
    raise ValueError(f"{name} came out as {value}")


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 3] + "..."
