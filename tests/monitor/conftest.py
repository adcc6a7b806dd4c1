"""What the monitor's tests share: one way to make a judged group, and one to make an evaluated one."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from vtriune.types import (
    FinishReason,
    Group,
    ImageSize,
    JudgedGroup,
    Message,
    RewardSpec,
    Rollout,
    Sample,
    Status,
    Verdict,
)


class Picture:
    """A picture that is only spoken of."""

    where = "train.parquet row 7 image 0"

    def load(self) -> object:
        raise AssertionError("the monitor never looks at a picture")


def scored(
    reward: float, *, correct: bool | None = None, reason: str = "", report: Mapping[str, float] | None = None
) -> Verdict:
    return Verdict(
        status=Status.SCORED,
        reward=reward,
        accuracy=reward,
        format=1.0,
        correct=reward == 1 if correct is None else correct,
        report=report or {},
        reason=reason,
    )


def judged(
    verdicts: Sequence[Verdict | float],
    *,
    source: str = "math",
    task: str = "math",
    sample_id: str = "math.parquet#0",
    texts: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    cut: Sequence[bool] | None = None,
    spurious: int = 0,
) -> JudgedGroup:
    """A group with these verdicts; a number stands for a scored verdict with this reward."""
    count = len(verdicts)
    texts = texts or ["so it is \\boxed{4}"] * count
    lengths = lengths or [5] * count
    rollouts = tuple(
        Rollout(
            token_ids=np.arange(length),
            logprobs=np.zeros(length, np.float32),
            text=text,
            finish=FinishReason.LENGTH if is_cut else FinishReason.STOP,
            entropy=length / 10,
            spurious_tokens=spurious,
        )
        for text, length, is_cut in zip(texts, lengths, cut or [False] * count, strict=True)
    )
    sample = Sample(
        id=sample_id,
        source=source,
        task=task,
        messages=(Message("user", "<image>How many?"),),
        images=(Picture(),),  # type: ignore[arg-type]
        reward=RewardSpec("mathverify", "\\boxed{4}", 1.0, 0.5, {"det_reward_ratio": {"map": 0.25}}, "paper"),
    )
    group = Group(sample, "<|im_start|>user How many?", np.arange(9), (ImageSize((640, 480), (644, 476)),), rollouts)
    given = tuple(verdict if isinstance(verdict, Verdict) else scored(verdict) for verdict in verdicts)
    return JudgedGroup(group, given, np.linspace(-1, 1, count))


@pytest.fixture(scope="session", name="judged")
def judged_fixture() -> Callable[..., JudgedGroup]:
    return judged


@pytest.fixture(scope="session", name="scored")
def scored_fixture() -> Callable[..., Verdict]:
    return scored
