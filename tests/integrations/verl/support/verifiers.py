"""Verifiers of a user's own: one that breaks on some answers, and one that breaks on all after the first step."""

from __future__ import annotations

import zlib

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.base import Context, Outcome


def unreliable(response: str, gold: str) -> float:
    if zlib.crc32(response.encode()) % 3 == 1:
        raise RuntimeError("broken on purpose")
    return float(len(response) % 2)


class NoParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fading:
    """Any two answers are worth something else, as long as it judges."""

    name = "fading"
    Params = NoParams

    def parse_gold(self, gold: str, params: NoParams, context: Context) -> str:
        return gold

    def judge(self, response: str, gold: str, params: NoParams, context: Context) -> Outcome:
        if context.progress is not None and context.progress.step > 0:
            raise RuntimeError("broken on purpose")
        return Outcome(zlib.crc32(response.encode()) % 1000 / 1000, 0.0, False)
