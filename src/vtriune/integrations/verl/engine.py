"""verl's FSDP engine with the parts of the model frozen that the recipe freezes.

Importing it puts the engine in the place of verl's own; verl does so in every process through `model.external_lib`.
(`actor.freeze_vision_tower` is read by nothing in verl 0.9.)
"""

from __future__ import annotations

import os
from typing import Any

from verl.utils.device import get_device_name, get_vendor
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from vtriune.local.parts import PARTS, places
from vtriune.types import UserError

FREEZE = "VTRIUNE_FREEZE"
"""Environment variable that names the frozen parts, separated by commas: the engine is given nothing of the recipe."""
BACKENDS = ("fsdp", "fsdp2")


@EngineRegistry.register(
    model_type="language_model", backend=list(BACKENDS), device=get_device_name(), vendor=get_vendor()
)
class PartFreezingEngine(FSDPEngineWithLMHead):  # type: ignore[misc]
    """Which parameter belongs to which part is read off the model (local/parts.py), before FSDP divides it."""

    def _build_module(self) -> Any:
        """Raises UserError if a part of the model can't be told, or all of them are frozen."""
        model = super()._build_module()
        frozen = frozen_parts()
        trained = 0
        for name, place in places(model).items():
            parameter = model.get_parameter(name)
            parameter.requires_grad_(place.part not in frozen)
            trained += parameter.numel() if place.part not in frozen else 0
        if not trained:
            raise UserError(f"model.freeze: {sorted(frozen)} freezes every part; take at least one out, usually llm")
        return model


def frozen_parts() -> set[str]:
    """What `model.freeze` says.

    Raises:
        RuntimeError: the variable is missing or names no part: the workers didn't get the run's environment.
    """
    text = os.environ.get(FREEZE)
    frozen = set(text.split(",")) - {""} if text is not None else {"?"}
    if not frozen <= set(PARTS):
        raise RuntimeError(f"{FREEZE} is {text!r} in a worker: it did not get the run's environment (ray runtime_env)")
    return frozen


for _backend in BACKENDS:
    if EngineRegistry.get_engine_cls("language_model", _backend) is not PartFreezingEngine:
        raise RuntimeError(f"verl would use another engine than {PartFreezingEngine.__name__} for {_backend}")
