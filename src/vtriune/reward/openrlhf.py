"""OpenRLHF's remote reward protocol: its request as items, and verdicts as its reply.

Source: OpenRLHF 0.11.2, openrlhf/utils/agent.py, `SingleTurnAgentExecutor.execute` and `_fetch_rewards_via_http`.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, Field

from vtriune.reward.api import MAX_ITEMS
from vtriune.reward.judge import JudgeItem
from vtriune.reward.label import read_label
from vtriune.types import UserError, Verdict

Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_ITEMS)]

_TOKEN = re.compile(r"(<[^<>\s]{1,64}>)")
"""What may be a picture's mark, which stands once in a prompt and many times in what the model saw."""

_END = re.compile(r"(?:<\|[^<>|\s]{1,64}\|>|</s>|<eos>)+\Z")
"""End tokens, which the query still has."""


class OpenRLHFRequest(BaseModel, strict=True):
    """Queries (prompt and answer, decoded with special tokens), their prompts, and labels of `label.write_label`."""

    query: Texts
    prompts: Texts
    labels: Texts


class OpenRLHFReply(BaseModel):
    """Numbers if one answer was asked for, as OpenRLHF does, otherwise lists."""

    rewards: float | list[float]
    scores: float | list[float]
    extra_logs: dict[str, float | list[float]]


def read_openrlhf(asked: OpenRLHFRequest) -> list[JudgeItem]:
    """The request as items.

    Raises:
        UserError: there is not one prompt and label per query, a query doesn't begin with its prompt, or a label is no
            label.
    """
    if not len(asked.query) == len(asked.prompts) == len(asked.labels):
        raise UserError("query, prompts and labels are not of the same length")
    rows = zip(asked.query, asked.prompts, asked.labels, strict=True)
    return [read_label(label).item(_answer(query, prompt), None, 1) for query, prompt, label in rows]


def write_openrlhf(verdicts: list[Verdict]) -> dict[str, Any]:
    """Scored verdicts as a reply."""

    def told(name: str) -> float | list[float]:
        values = [float(getattr(verdict, name)) for verdict in verdicts]
        return values[0] if len(values) == 1 else values

    logs = {name: told(name) for name in ("accuracy", "format", "correct")}
    return {"rewards": told("reward"), "scores": told("reward"), "extra_logs": logs}


def _answer(query: str, prompt: str) -> str:
    """What follows the prompt.

    >>> _answer("<s>Look: <img><img><img> What?\\nA <b><b>cat.<|im_end|>", "<s>Look: <img> What?\\n")
    'A <b><b>cat.'
    """
    place = 0
    pieces = _TOKEN.split(prompt)
    for number, piece in enumerate(pieces):
        if not query.startswith(piece, place):
            raise UserError("a query does not begin with its prompt; was the prompt cut to max_len?")
        place += len(piece)
        # Repeated in the query only: a mark that is followed by text, or by another mark.
        if number % 2 and any(pieces[number + 1 :]) and (number + 2 >= len(pieces) or pieces[number + 2] != piece):
            while query.startswith(piece, place):
                place += len(piece)
    return _END.sub("", query[place:])
