"""The recipe's section that says how answers are judged. Who judges by it is session.py's and rejudge.py's to open."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vtriune.types import Preset


class RewardConfig(BaseModel):
    """How answers are judged."""

    model_config = ConfigDict(extra="forbid")

    preset: Preset = Field("modern", description="Definition of the rewards: paper, official_code or modern.")
    workers: int = Field(2, ge=1, description="Judge processes.")
    cpu_limit: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="Seconds of CPU time per answer; beyond it the answer scores 0."
    )
    load: list[str] = Field([], description="Verifiers of your own, as module:function (docs/own_verifier.md).")
    remotes: dict[str, str] = Field({}, description="Names and URLs of services that the verifier `remote` may ask.")
    servers: list[str] = Field(
        [], description="URLs of reward servers (`vtriune serve`); empty: judge on this machine, with the keys above."
    )
    token_file: Path | None = Field(None, description="File with the token that the servers want.")
    deadline: float = Field(
        600, gt=0, allow_inf_nan=False, description="Seconds that servers have for a group, all repetitions included."
    )
    patience: float = Field(
        150,
        gt=0,
        allow_inf_nan=False,
        description="Seconds to wait for one reply before another server is asked; more than the servers' --deadline.",
    )

    @model_validator(mode="after")
    def _here_or_there(self) -> Self:
        for key in ("workers", "cpu_limit", "load", "remotes"):
            # What is only the default may stand there: a run keeps its recipe with every key.
            if self.servers and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"reward.{key}: the servers judge; leave it out and start them with it (vtriune serve)"
                )
        if self.token_file and not self.servers:
            raise ValueError("reward.token_file: is for reward.servers; add them or leave it out")
        return self
