"""The label: all that the reward of a row depends on, as the one column of text that other trainers carry along.

Written once per row, read with each answer. What a trainer makes of the verdict is its adapter's (integrations/).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from vtriune.reward.api import ItemIn, Name, ProgressIn, SizeIn, SpecIn, explain, too_many_values
from vtriune.reward.judge import JudgeItem
from vtriune.types import ImageSize, Sample, Split, UserError, Verdict

MAX_VALUES = 4096
"""Values in a label."""


class _Spec(SpecIn):
    model_config = ConfigDict(extra="forbid")


class _Size(SizeIn):
    model_config = ConfigDict(extra="forbid")


class Label(BaseModel):
    """A row's side of the judgement, as in `/v1/judge`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Name = ""
    source: Name = ""
    split: Split = "train"
    spec: _Spec
    image_sizes: list[_Size] = []

    def item(self, response: str, step: int | None, total_steps: int, tokens: int | None = None) -> JudgeItem:
        """The row with an answer.

        Args:
            response: the answer's text.
            step: training steps that are done; None: the trainer doesn't tell. Thresholds are then those of tests:
                a schedule can't be followed.
            total_steps: of the whole training.
            tokens: the answer's length.
        """
        split = "test" if step is None else self.split
        asked = ItemIn(
            id="",
            response=None,
            spec=self.spec,
            progress=ProgressIn(step=step or 0, total_steps=total_steps, split=split),
            image_sizes=list(self.image_sizes),
            response_tokens=tokens,
            source=self.source,
        )
        return replace(asked.item(), response=response)


def write_label(sample: Sample, split: Split = "train", image_sizes: Sequence[ImageSize] = ()) -> str:
    """The label of a sample, for its column; boxes want the sizes of its pictures.

    >>> from vtriune.types import RewardSpec
    >>> write_label(Sample("a#0", "gsm", "math", (), (), RewardSpec("mathverify", "4")))[:43]
    '{"id":"a#0","source":"gsm","split":"train",'
    """
    sizes = [{"original": one.original, "resized": one.resized} for one in image_sizes]
    fields = {"id": sample.id, "source": sample.source, "split": split, "spec": sample.reward, "image_sizes": sizes}
    return orjson.dumps(fields, default=dict).decode()


def read_label(text: str) -> Label:
    """The inverse of `write_label`.

    Raises:
        UserError: the text is no label.
    """
    try:
        data = text.encode()
        if too_many_values(data, MAX_VALUES):
            raise UserError(f"label: holds more than {MAX_VALUES} values")
        return Label.model_validate_json(data)
    except UnicodeEncodeError as error:
        raise UserError("label: is no Unicode text") from error
    except ValidationError as error:
        raise UserError(f"label: {explain(error)}; write it with vtriune.reward.label.write_label") from error


def neutral_rewards(labels: Sequence[str], verdicts: Sequence[Verdict], group: int | None = None) -> list[float]:
    """Rewards for a trainer that wants a number for each answer and takes a group's mean over all of them.

    An answer without a verdict gets the mean of those of its group that have one, which leaves the mean as it is and
    gives it an advantage of exactly 0; the deviation becomes smaller, so that the others weigh more by the square root
    of (n - 1) / (n scored - 1). A group without any verdict gets 0 throughout, hence advantages of 0.

    Args:
        labels: one per answer; equal labels are a group.
        verdicts: in the same order.
        group: answers per group, where some of them may be judged by another process.

    Raises:
        UserError: none of a group's answers here has a verdict, and others of it are elsewhere.

    >>> from vtriune.types import Status
    >>> told = [Verdict(Status.SCORED, 1.0, 1.0, 0.0, True), Verdict(Status.FAILED), Verdict(Status.SCORED, 0.5, 0.5)]
    >>> neutral_rewards(["a", "a", "a"], told), neutral_rewards(["a", "b", "a"], told)
    ([1.0, 0.75, 0.5], [1.0, 0.0, 0.5])
    """
    scored: defaultdict[str, list[float]] = defaultdict(list)
    for label, verdict in zip(labels, verdicts, strict=True):
        if verdict.reward is not None:
            scored[label].append(verdict.reward)
    counts = Counter(labels)
    for label, verdict in zip(labels, verdicts, strict=True):
        if group and label not in scored and counts[label] % group:
            raise UserError(
                f"no answer of a group has a verdict here ({verdict.reason}), and the rest of the group is in another "
                "process; let each process have whole groups"
            )
    means = {label: fmean(rewards) for label, rewards in scored.items()}
    return [
        verdict.reward if verdict.reward is not None else means.get(label, 0.0)
        for label, verdict in zip(labels, verdicts, strict=True)
    ]
