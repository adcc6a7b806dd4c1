"""Which parameter belongs to which part of a vision-language model, and to which of its layers.

It is read off the model's modules. transformers names them alike in all of its image-text models: the outer class holds
an inner model and `lm_head`, the inner one a vision tower, a language model and what connects them. In the Qwen-VL and
GLM-V families the latter lies inside the tower, as one or more modules of a class `...PatchMerger`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vtriune.types import UserError

Part = Literal["vision", "connector", "llm"]
PARTS: tuple[Part, ...] = ("vision", "connector", "llm")

NAMES: dict[Part, tuple[str, ...]] = {
    "vision": ("visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "video_tower"),
    "connector": (
        "multi_modal_projector",
        "connector",
        "projector",
        "aligner",
        "merger",
        "vision_projection",
        "language_projection",
        "image_to_text_projection",
        "qformer",
        "query_tokens",
        "resampler_model",
        "vision_resampler",
        "image_newline",
    ),
    "llm": ("language_model", "text_model", "lm_head"),
}
"""What transformers calls the modules and bare parameters of image-text models, as of 5.10."""
_PART_OF: dict[str, Part] = {name: part for part, names in NAMES.items() for name in names}
_MERGER = "PatchMerger"
"""End of the names of the classes that are a connector inside a vision tower."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model a parameter is."""

    part: Part
    layer: int | None = None
    """Which decoder layer or vision block; None outside of them, and in the connector."""


def places(model: nn.Module) -> dict[str, Place]:
    """The place of every parameter, by the name that `named_parameters` gives it.

    Raises:
        UserError: a module can't be told, or a part is missing; it shows the names that the model has.
    """
    found: dict[str, Place] = {}
    unknown: list[str] = []
    for name, child in _children(model):
        part = _PART_OF.get(name.rpartition(".")[2])
        if part is None:
            unknown.append(name)
        elif isinstance(child, nn.Module):
            found |= _inside(name, child, part)
        else:
            found[name] = Place(part)
    missing = [part for part in PARTS if all(place.part != part for place in found.values())]
    if unknown or missing:
        kind = type(model).__name__
        shown = ", ".join(name for name, _ in _children(model))
        problem = f"it isn't known which part is {', '.join(unknown)}" if unknown else f"it has no {missing[0]} part"
        raise UserError(
            f"model.path: holds a {kind}, of which {problem}; its modules are {shown}. Take another model, or add "
            "their names to NAMES in vtriune/local/parts.py"
        )
    return {name: found[name] for name, _ in model.named_parameters()}


def gradient_norms(parameters: Mapping[Place, Sequence[Tensor]]) -> dict[Place, float]:
    """Norm of the gradients at each place, 0 where there are none: one pass, and one wait for the device."""
    gradients = [(place, one.grad) for place, list_ in parameters.items() for one in list_ if one.grad is not None]
    squares = dict.fromkeys(parameters, 0.0)
    if gradients:
        norms = torch.stack(torch._foreach_norm([gradient for _, gradient in gradients])).tolist()
        for (place, _), norm in zip(gradients, norms, strict=True):
            squares[place] += norm * norm
    return {place: square**0.5 for place, square in squares.items()}


def gradient_figures(norms: Mapping[Place, float]) -> dict[str, float]:
    """Norms by place as figures: `grad_norm`, `grad_norm_<part>` and `layer_<nn>/grad_norm_<part>` (Fig. 7)."""
    squares: defaultdict[str, float] = defaultdict(float)
    for (part, layer), norm in (((place.part, place.layer), norm) for place, norm in norms.items()):
        squares["grad_norm"] += norm * norm
        squares[f"grad_norm_{part}"] += norm * norm
        if layer is not None:
            squares[f"layer_{layer:02d}/grad_norm_{part}"] += norm * norm
    return {name: square**0.5 for name, square in squares.items()}


def _children(model: nn.Module) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """What holds parameters, where the model divides into its parts: children and bare parameters of the outer class
    and, in its place, of the inner one.
    """
    inner = getattr(model, "base_model_prefix", "")
    children: list[tuple[str, nn.Module | nn.Parameter]] = [*model.named_children()]
    children.extend(model.named_parameters(recurse=False))
    for name, child in children:
        if isinstance(child, nn.Module) and next(child.parameters(), None) is None:
            continue
        if name == inner and isinstance(child, nn.Module):
            yield from ((f"{name}.{below}", grandchild) for below, grandchild in _children(child))
        else:
            yield name, child


def _inside(root: str, module: nn.Module, part: Part) -> dict[str, Place]:
    """Places of the parameters of a module of one part, but for the mergers in a vision tower."""
    mergers = [name for name, one in module.named_modules() if type(one).__name__.endswith(_MERGER)]
    stack = None if part == "connector" else _stack(module, mergers)
    found = {}
    for name, _ in module.named_parameters(remove_duplicate=False):
        if part == "vision" and any(_is_below(name, merger) for merger in mergers):
            place = Place("connector")
        elif stack is not None and _is_below(name, stack):
            place = Place(part, int(name[len(stack) :].split(".")[1]))
        else:
            place = Place(part)
        found[f"{root}.{name}"] = place
    return found


def _stack(module: nn.Module, mergers: Sequence[str]) -> str | None:
    """Name of the outermost list of modules with the most members: the layers. None if there is none."""
    lists: dict[str, int] = {}
    for name, one in module.named_modules():
        if (
            isinstance(one, nn.ModuleList)
            and not any(_is_below(name, outer) for outer in lists)
            and not any(_is_below(merger, name) for merger in mergers)
        ):
            lists[name] = len(one)
    return max(lists, key=lambda name: lists[name], default=None)


def _is_below(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")
