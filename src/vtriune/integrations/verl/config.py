"""The recipe's section `verl`: what a cluster has that one device doesn't. It is read if `engine: verl`.

How the other sections reach verl is in overrides.py.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VerlConfig(BaseModel):
    """Where and how verl runs."""

    model_config = ConfigDict(extra="forbid")

    nodes: int = Field(1, ge=1, description="Machines of the Ray cluster that are used.")
    gpus_per_node: int = Field(8, ge=1, description="GPUs used of each.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share one copy of the model while sampling.")
    rollout: str = Field(
        "vllm", min_length=1, description="Who samples: vllm, sglang, or the name of an engine registered with verl."
    )
    max_prompt_tokens: int = Field(
        8192,
        ge=1,
        description="Longest prompt, picture tokens included; a longer one fails. With rollout.max_new_tokens it is "
        "the context that the sampling engine reserves room for.",
    )
    overrides: list[str] = Field(
        [],
        description="Further Hydra overrides, e.g. actor_rollout_ref.rollout.gpu_memory_utilization=0.7.",
    )
