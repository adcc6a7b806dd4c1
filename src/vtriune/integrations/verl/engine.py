"""verl's FSDP engine with frozen parts, warm-up and figures as the local engine has them, gradients measured by part.

Importing it puts the engine in the place of verl's own; verl does so in every process through `model.external_lib`.
(`actor.freeze_vision_tower` is read by nothing in verl 0.9.)
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from verl.utils import tensordict_utils
from verl.utils.device import get_device_id, get_device_name, get_vendor
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from vtriune.integrations.verl.settings import BAN
from vtriune.local.lora import layers_with_adapters
from vtriune.local.parts import PARTS, Place, gradient_figures, places
from vtriune.types import UserError

FREEZE = "VTRIUNE_FREEZE"
"""Environment variable that names the frozen parts, separated by commas: the engine is given nothing of the recipe."""
BACKEND = "fsdp2"
NORMS = "gradient/"
"""Before the names of the norms among verl's figures of an update."""


@EngineRegistry.register(model_type="language_model", backend=[BACKEND], device=get_device_name(), vendor=get_vendor())
class PartFreezingEngine(FSDPEngineWithLMHead):  # type: ignore[misc]
    """Which parameter belongs to which part is read off the model (local/parts.py), before FSDP divides it."""

    model_config: Any  # of verl

    def _build_module(self) -> Any:
        """Raises UserError if a part of the model can't be told, or all of them are frozen."""
        model = super()._build_module()
        frozen = frozen_parts()
        trained = 0
        self._places = places(model)
        for name, place in self._places.items():
            parameter = model.get_parameter(name)
            parameter.requires_grad_(place.part not in frozen)
            trained += parameter.numel() if place.part not in frozen else 0
        if not trained:
            raise UserError(f"model.freeze: {sorted(frozen)} freezes every part; take at least one out, usually llm")
        return model

    def _build_lora_module(self, module: Any) -> Any:
        """Adapters where the local engine has them; verl can only leave out names, and `visual` holds the connector.

        Raises UserError if a target is no linear layer of the trained parts.
        """
        parts = set(PARTS) - frozen_parts()
        target = self.model_config.target_modules
        layers = layers_with_adapters(module, "all" if target == "all-linear" else list(target), self._places, parts)
        # verl's configurations refuse to be changed, and others hold this one, too.
        self.model_config = copy.copy(self.model_config)
        object.__setattr__(self.model_config, "target_modules", layers)
        with torch.random.fork_rng(devices=[]):  # nothing else seeds them, and no run could be repeated
            torch.manual_seed(self.engine_config.seed)
            return super()._build_lora_module(module)

    def train_batch(self, data: Any, loss_function: Any) -> Any:
        """verl's, with the norms among the figures."""
        outputs = super().train_batch(data, loss_function)
        if self.is_mp_src_rank_with_outputs():
            outputs["metrics"] |= {f"{NORMS}{name}": Metric("mean", norm) for name, norm in self._norms.items()}
        return outputs

    def _build_lr_scheduler(self, optimizer: Any) -> Any:
        """verl's warm-up begins with a rate of 0, which wastes a step, and rounds its length down."""
        config = self.optimizer_config
        if config.lr_scheduler_type != "constant" or config.lr_warmup_steps > 0:
            return super()._build_lr_scheduler(optimizer)
        length = max(1.0, config.lr_warmup_steps_ratio * config.total_training_steps)
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / length))

    def prepare_model_outputs(self, output: Any, *args: Any, **kwargs: Any) -> Any:
        """The policy has no placeholder tokens, as when answers were sampled; else their rows of the head are trained.

        verl's fused kernels keep logits to themselves: with them the placeholders stay.
        """
        logits = getattr(output, "logits", None)
        if logits is not None:
            found = (getattr(self.model_config.hf_config, f"{kind}_token_id", None) for kind in ("image", "video"))
            ban = logits.new_zeros(logits.shape[-1])
            ban[[token for token in found if token is not None]] = BAN
            logits.add_(ban)  # a sum in place: the backward pass needs no copy of the logits
        return super().prepare_model_outputs(output, *args, **kwargs)

    def forward_backward_batch(self, data: Any, loss_function: Any, forward_only: bool = False) -> Any:
        """verl divides a mean over answers by all of an optimizer step, those without a verdict too."""
        if not forward_only:
            answers = sum(bool(mask.any()) for mask in data["loss_mask"].unbind())
            total = torch.tensor(answers, device=get_device_name())
            torch.distributed.all_reduce(total, group=self.get_data_parallel_group())
            tensordict_utils.assign_non_tensor(data, global_batch_size=max(1, total.item()))
        return super().forward_backward_batch(data, loss_function, forward_only)

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        """verl takes the plain mean of means over the tokens of micro-batches, such as the share that was clipped.

        And where no answer of an optimizer step has a verdict, it divides a loss of 0 by 0 tokens.
        """
        tensordict_utils.assign_non_tensor(micro_batch, batch_num_tokens=max(1, micro_batch["batch_num_tokens"]))
        loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        for name, metric in output["metrics"].items():
            if isinstance(metric, Metric) and metric.aggregation is AggregationType.MEAN:
                share = micro_batch["response_mask"].values().sum().item() / micro_batch["batch_num_tokens"]
                # The sum over ranks, of which verl takes the mean.
                value = metric.aggregate() * share * micro_batch["dp_size"]
                output["metrics"][name] = Metric(AggregationType.SUM, value)
        return loss, output

    def optimizer_step(self) -> Any:
        """Where nothing was learned nothing changes; AdamW would go on with its momentum and its decay.

        Norms are taken before verl clips.
        """
        self._norms = self._gradient_norms()
        gradients = [one.grad for one in self.module.parameters() if one.grad is not None]
        shards = [one.to_local() if isinstance(one, DTensor) else one for one in gradients]
        learned = torch.stack([shard.any() for shard in shards]).any().int()
        torch.distributed.all_reduce(learned, op=torch.distributed.ReduceOp.MAX)
        if not learned:
            self.optimizer.zero_grad(set_to_none=True)
        return super().optimizer_step()

    def _gradient_norms(self) -> dict[str, float]:
        """Of the whole gradients, of which each rank holds a shard; named as the local engine's."""
        shards: defaultdict[Place, list[Tensor]] = defaultdict(list)
        for name, parameter in self.module.named_parameters():
            if isinstance(parameter, DTensor) and parameter.requires_grad:
                mesh, gradient = parameter.device_mesh, cast(DTensor | None, parameter.grad)
                # peft's names: base_model.model.<layer>.lora_A.default.weight
                layer, adapter, _ = name.removeprefix("base_model.model.").partition(".lora_")
                place = self._places[f"{layer}.weight" if adapter else layer]
                shards[place].append(torch.zeros(()) if gradient is None else gradient.to_local().float().norm())
        device = get_device_id()
        squares = torch.stack(
            [torch.stack([one.to(device) for one in norms]).square().sum() for norms in shards.values()]
        )
        torch.distributed.all_reduce(squares, group=mesh.get_group(len(mesh.shape) - 1))
        return gradient_figures(dict(zip(shards, squares.sqrt().tolist(), strict=True)))


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


if EngineRegistry.get_engine_cls("language_model", BACKEND) is not PartFreezingEngine:
    raise RuntimeError(f"verl would use another engine than {PartFreezingEngine.__name__} for {BACKEND}")
