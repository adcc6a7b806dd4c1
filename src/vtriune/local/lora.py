"""LoRA by peft: small adapters beside the linear layers of the parts that are trained; everything else stays as it is.

The adapters are injected in place, so that the model's modules keep their names. On the disk they are as peft writes
them, and `peft.PeftModel.from_pretrained(base, folder)` loads them. peft is imported where it is needed: it takes a
second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import nn

from vtriune.local.parts import Part, Place
from vtriune.types import UserError

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX, _ADAPTER = "base_model.model.", "default"
"""What peft puts before names in a file; and the name of the adapter, which it leaves out there."""


class LoraConfig(BaseModel):
    """Train adapters of low rank instead of the weights of the parts that aren't frozen.

    Without dropout: it would make the log-probs of the update differ from those of sampling.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(16, ge=1, description="Of the two matrices of an adapter.")
    alpha: float = Field(32, gt=0, allow_inf_nan=False, description="An adapter's output is scaled by alpha / rank.")
    target: Literal["all"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all",
        description="`all` linear layers of the trained parts but lm_head, or ends of names, e.g. [q_proj, v_proj].",
    )


def add_adapters(model: nn.Module, config: LoraConfig, places: Mapping[str, Place], parts: Iterable[Part]) -> None:
    """Put an adapter beside each target in `parts`, in the weights' own type. They start as no change at all.

    Raises:
        UserError: a target is no linear layer there.
    """
    import peft  # noqa: PLC0415

    targets = layers_with_adapters(model, config.target, places, parts)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets), model, _ADAPTER
    )


def layers_with_adapters(
    model: nn.Module, target: Literal["all"] | list[str], places: Mapping[str, Place], parts: Iterable[Part]
) -> list[str]:
    """Names of the layers in `parts` that `LoraConfig.target` means.

    Raises:
        UserError: a target is no linear layer there.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and places[f"{name}.weight"].part in parts
    ]
    if target == "all":
        return layers
    wanted = {end: [one for one in layers if f".{one}".endswith(f".{end}")] for end in target}
    if absent := [end for end, found in wanted.items() if not found]:
        known = ", ".join(sorted({one.rpartition(".")[2] for one in layers}))
        raise UserError(
            f"model.lora.target: {', '.join(absent)} is no linear layer of the parts that are trained; they have "
            f"{known}. Correct it, or take the part out of model.freeze"
        )
    return sorted({one for found in wanted.values() for one in found})


def save_adapters(model: nn.Module, folder: Path, base: str) -> None:
    """Write the adapters of a model, which is on the base in the folder `base`."""
    tensors = {_name_in_file(name): value.detach().cpu().contiguous() for name, value in _adapters(model).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config: Any = model.peft_config[_ADAPTER]  # type: ignore[index]
    config.base_model_name_or_path = base
    config.save_pretrained(folder)


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Read adapters that `save_adapters` wrote into a model that has such.

    Raises:
        ValueError, OSError and others: the file is damaged, missing or of other adapters.
    """
    tensors, adapters = load_file(folder / WEIGHTS_FILE), _adapters(model)
    names = {_name_in_file(name): name for name in adapters}
    if different := sorted(names.keys() ^ tensors.keys()):
        raise ValueError(f"lacks {different[0]}, or is of other adapters")
    for name, value in tensors.items():
        own = adapters[names[name]]
        if own.shape != value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, not {tuple(own.shape)}")
        own.data.copy_(value)


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside, and take them away."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    for name, module in [*model.named_modules()]:
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    del model.peft_config


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if ".lora_" in name}


def _name_in_file(name: str) -> str:
    return _PREFIX + name.replace(f".{_ADAPTER}.", ".")
