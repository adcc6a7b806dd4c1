"""`temporal`: do the answered stretches of time lie where gold has them?

Intervals are judged as boxes of height 1: overlap and matching are box_match.py's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.box_match import matched_ious, overlaps
from vtriune.verifiers.box_text import Box, make_box
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.places import gold_text, judged_text

MAX_INTERVALS = 300
"""Intervals read from one text; what follows them is not looked at."""

_REPORTED = (0.3, 0.5, 0.7)
_TIME = r"""["']?((?:[0-9]{1,4}+:){0,2}+[0-9]{1,12}+(?:\.[0-9]{0,20}+)?+)["']?\s{0,9}+(?:s(?:ec(?:ond)?)?s?)?"""
_LISTED = re.compile(rf"[\[(]\s{{0,9}}+{_TIME}\s{{0,9}}+[,-]\s{{0,9}}+{_TIME}\s{{0,9}}+[\])]")
_SPOKEN = re.compile(rf"(?<![0-9.:]){_TIME}\s{{0,9}}+(?:-|–|to|and)\s{{0,9}}+{_TIME}(?![0-9])")


class TemporalParams(BaseModel):
    """There are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Intervals:
    """The different intervals of a text, in its order, and how many were meant as such and are none."""

    found: list[Box]
    dropped: int


class Temporal:
    """R_acc is the IoU of time, sum of IoU / max(n_pred, n_gold) over the one-to-one matching with the greatest sum.

    For one interval that is its IoU. Correct is R@0.5: each has its own at IoU >= 0.5, none is left over.

    An interval is `[start, end]` or `(start, end)`; where none is written so, also `start - end`, `start to end` or
    `start and end`. Times are seconds, `mm:ss` or `hh:mm:ss`, each with decimals, `s` or `seconds` behind it or
    not. Swapped ends are dropped and counted, the same interval twice is one. The answer is what the last `<answer>`
    after the last `</think>` holds, or all that follows `</think>` if no tag does. R_fmt is eq. 4.

    The report: mean_iou over the matched pairs, 0 without such; recall_30, recall_50, recall_70: the share of gold
    that is matched at that IoU (R@1 for one interval); n_pred, n_gold, dropped_intervals.

    Source: R@1 at IoU m as for Charades-STA (Gao et al. 2017, arXiv 1705.02101).

    >>> verifier, params = Temporal(), TemporalParams()
    >>> context = Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold("[[60, 70]]", params, context)
    >>> verifier.judge("It happens from 01:00 to 01:08.", gold, params, context).accuracy
    0.8
    """

    name = "temporal"
    Params = TemporalParams

    def parse_gold(self, gold: str, params: TemporalParams, context: Context) -> list[Box]:
        """Gold's intervals, in seconds, as boxes of height 1.

        Raises:
            Unscorable: there is none, too many, one with swapped ends or one without length.
        """
        read = read_intervals(gold_text(gold))
        if read.dropped or any(one.x1 == one.x2 for one in read.found):
            raise Unscorable(f"gold {gold[:80]!r} has an interval whose start is not before its end")
        if not read.found:
            raise Unscorable(f"no interval in gold {gold[:80]!r}; write [start, end] in seconds or mm:ss")
        if len(read.found) >= MAX_INTERVALS:
            raise Unscorable(f"gold has {MAX_INTERVALS} intervals or more")
        return read.found

    def judge(self, response: str, gold: list[Box], params: TemporalParams, context: Context) -> Outcome:
        """Compare the answered intervals with gold."""
        answer = read_intervals(judged_text(response))
        n_pred, n_gold = len(answer.found), len(gold)
        whole, *at = matched_ious(overlaps(answer.found, gold), (0.0, *_REPORTED))
        accuracy = sum(whole) / max(n_pred, n_gold)
        report = {"mean_iou": sum(whole) / len(whole) if whole else 0.0}
        report |= {f"recall_{eps * 100:.0f}": len(own) / n_gold for eps, own in zip(_REPORTED, at, strict=True)}
        report |= {"n_pred": float(n_pred), "n_gold": float(n_gold), "dropped_intervals": float(answer.dropped)}
        reason = "" if accuracy else "no overlap" if n_pred else "no interval found in the answer"
        correct = n_pred == n_gold and report["recall_50"] == 1
        return Outcome(accuracy, tag_score(response), correct=correct, report=report, reason=reason)


def read_intervals(text: str) -> Intervals:
    """The intervals of a text in seconds, as boxes of height 1, at most MAX_INTERVALS.

    >>> read_intervals("[[1.5, 3], [00:09, 00:02]]")
    Intervals(found=[Box(label='', x1=1.5, y1=0.0, x2=3.0, y2=1.0)], dropped=1)
    """
    for pattern in (_LISTED, _SPOKEN):
        found: dict[Box, None] = {}
        dropped = 0
        for match in pattern.finditer(text):
            start, end = (_seconds(match.group(k)) for k in (1, 2))
            box = make_box("", [start, 0.0, end, 1.0])
            if box is None:
                dropped += 1
            else:
                found[box] = None
            if len(found) == MAX_INTERVALS:
                break
        if found or dropped:
            return Intervals(list(found), dropped)
    return Intervals([], 0)


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds
