"""What is changed in verl's engine, as far as the runs of test_parity.py don't show it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

if find_spec("verl") is None:
    pytest.skip("verl isn't installed here: make test-verl", allow_module_level=True)

from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from vtriune.integrations.verl import engine as engine_module
from vtriune.integrations.verl.engine import PartFreezingEngine


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_a_mean_over_answers_counts_those_with_a_verdict_only(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(engine_module, "get_device_name", lambda: "cpu")  # verl takes a machine without any for CUDA
    monkeypatch.setattr(FSDPEngineWithLMHead, "forward_backward_batch", lambda _, data, *__: seen.append(data))
    monkeypatch.setattr(FSDPEngineWithLMHead, "get_data_parallel_group", lambda _: group)
    engine = object.__new__(PartFreezingEngine)
    masks = [torch.ones(3), torch.zeros(5), torch.ones(1), torch.zeros(2)]
    data = TensorDict({"loss_mask": torch.nested.as_nested_tensor(masks, layout=torch.jagged)}, batch_size=4)
    tensordict_utils.assign_non_tensor(data, global_batch_size=4)
    engine.forward_backward_batch(data, None)
    assert seen[0]["global_batch_size"] == 2
