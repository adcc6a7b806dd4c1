"""Lets verl run on a CPU for tests: loaded into every process through VERL_USE_EXTERNAL_MODULES.

A platform without a device, a sampling engine around transformers, and a processor without videos (which would need
torchvision). Nothing here is part of a real run.
"""

from __future__ import annotations

from typing import Any

import verl.utils.distributed
from transformers import AutoProcessor, ProcessorMixin, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl import processing_qwen2_5_vl as stock
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry

from .platform import CpuPlatform

ROLLOUT = "transformers_cpu"

PlatformRegistry.register(platform="vtriune_cpu")(CpuPlatform)

_original = verl.utils.distributed.initialize_global_process_group_ray


def _gloo(timeout_second: Any = None, backend: str | None = None) -> Any:
    # verl makes it "cpu:gloo,cpu:gloo", a device named twice, which torch refuses.
    return _original(timeout_second, backend or "cpu:gloo")


verl.utils.distributed.initialize_global_process_group_ray = _gloo

base._ROLLOUT_REGISTRY[(ROLLOUT, "async")] = f"{__package__}.rollout.ServerAdapter"


def _replica() -> Any:
    from .rollout import Replica

    return Replica


RolloutReplicaRegistry.register(ROLLOUT, _replica)


class Qwen2_5_VLProcessor(stock.Qwen2_5_VLProcessor):  # type: ignore[misc]  # noqa: N801 - verl goes by this name
    """Without the video processor."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> Qwen2_5_VLProcessor:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        return cls(Qwen2VLImageProcessorPil.from_pretrained(path), tokenizer, tokenizer.chat_template)


AutoProcessor.register(Qwen2_5_VLConfig, Qwen2_5_VLProcessor, exist_ok=True)
