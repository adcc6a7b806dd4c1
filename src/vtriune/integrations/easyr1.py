"""A reward function file for EasyR1: `worker.reward.reward_function=<this file>:compute_score`.

Source: EasyR1 (commit b44b311), verl/workers/reward/function.py, `AutoRewardManager`.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from vtriune.reward.client import RewardClient, read_token
from vtriune.reward.label import neutral_rewards, read_label

REWARD_NAME = "vtriune"
REWARD_TYPE = "batch"


@cache
def _client(servers: tuple[str, ...], token_file: str) -> RewardClient:
    return RewardClient(servers, token=read_token(Path(token_file)) if token_file else "")


def compute_score(
    reward_inputs: list[dict[str, Any]], servers: Iterable[str], token_file: str = ""
) -> list[dict[str, float]]:
    """One dictionary per answer, whose `ground_truth` is a label. EasyR1 logs the mean of each key over the rows that
    have it: `accuracy` and `format` those with a verdict only, `overall` is neutral without (`neutral_rewards`).
    """
    labels = [read_label(one["ground_truth"]) for one in reward_inputs]
    rows = zip(labels, reward_inputs, strict=True)
    items = [label.item(one["response"], None, 1, one["response_length"]) for label, one in rows]
    verdicts = _client(tuple(servers), token_file).submit(items).result()
    overall = neutral_rewards([one["ground_truth"] for one in reward_inputs], verdicts)
    scores = [
        {"overall": value, "no_verdict": float(v.reward is None)} for value, v in zip(overall, verdicts, strict=True)
    ]
    for label, score, verdict in zip(labels, scores, verdicts, strict=True):
        if verdict.accuracy is not None and verdict.format is not None:
            score |= {
                "accuracy": verdict.accuracy,
                "format": verdict.format,
                f"{label.source}/accuracy": verdict.accuracy,
            }
    return scores
