"""How large a vision-language model is, part by part, from its config.json alone: no weights, no torch.

What that means for a cluster is `plan_formulas.py`'s. The counts equal those of transformers' models
(tests/test_shapes.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from vtriune.types import UserError

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
BUILT_IN = ("qwen2.5-vl-7b", "qwen2.5-vl-32b")
"""Models whose public numbers lie in vtriune/plans/, for who has no folder yet."""
PARTS = ("vision", "connector", "llm")


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear layers of one kind."""

    part: str
    name: str
    """End of their names, as in `model.lora.target`."""
    inputs: int
    outputs: int
    bias: bool
    count: int

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return self.count * self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that memory depends on. H = hidden, V = vocabulary."""

    family: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    context: int
    patch: int
    merge: int
    """Patches of a side that become one token."""
    patch_values: int
    """Numbers of a patch as the vision tower reads it: channels * time * patch * patch."""
    linears: tuple[Linear, ...]
    others: Mapping[str, int]
    """Parameters per part that are in no linear layer: embeddings, norms, the patch embedding."""
    embedding: int
    """Those of the embedding and, if it has weights of its own, of lm_head."""

    @property
    def parameters(self) -> dict[str, int]:
        """Per part."""
        found = Counter(self.others)
        for one in self.linears:
            found[one.part] += one.parameters
        return {part: found[part] for part in PARTS}

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        return (self.parameters["llm"] - self.embedding - self.hidden) // self.layers

    def adapters(self, rank: int, target: str | Sequence[str], parts: Sequence[str]) -> dict[str, int]:
        """LoRA's parameters per part: rank * (inputs + outputs) of each target, lm_head never among `all`."""
        found: Counter[str] = Counter()
        for one in self.linears:
            wanted = one.name != "lm_head" and (
                target == "all" or any(f".{one.name}".endswith(f".{end}") for end in target)
            )
            if wanted and one.part in parts:
                found[one.part] += one.count * rank * (one.inputs + one.outputs)
        return {part: found[part] for part in PARTS}


def read_shape(source: str | Path) -> Shape:
    """The shape of a built-in name (`BUILT_IN`), or of a config.json.

    Raises:
        UserError: the file is missing, no JSON, of another family, or lacks a number.
    """
    where = str(source)
    try:
        if where in BUILT_IN:
            text = (files("vtriune") / "plans" / f"{where}.json").read_bytes()
        else:
            text = Path(source).read_bytes()
        config = orjson.loads(text)
    except OSError as error:
        raise UserError(
            f"{where}: can't be read ({error.strerror}); give a config.json, or one of {', '.join(BUILT_IN)}"
        ) from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error}); give a model's config.json") from error
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in FAMILIES:
        raise UserError(f"{where}: model_type is {family!r}; {', '.join(FAMILIES)} can be planned for")
    return _shape(_Numbers(config, where), family)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A config.json, and what to say where a number is missing. Files of transformers 4 have the text's on top."""

    config: Mapping[str, Any]
    where: str

    def _get(self, section: str, name: str, default: int | None) -> int:
        known = self.config.get(f"{section}_config", self.config if section == "text" else {})
        if not isinstance(known, dict):
            raise UserError(f"{self.where}: {section}_config is no section of keys; correct it")
        value = known.get(name, default)
        if not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{self.where}: {section}_config.{name} is {value!r}, not a number above 0; correct it")
        return int(value)

    def text(self, name: str, default: int | None = None) -> int:
        return self._get("text", name, default)

    def vision(self, name: str, default: int | None = None) -> int:
        return self._get("vision", name, default)

    def vision_list(self, name: str) -> list[int]:
        found: list[int] = self.config.get("vision_config", {}).get(name, [])
        return found


def _shape(numbers: _Numbers, family: str) -> Shape:
    hidden, layers = numbers.text("hidden_size"), numbers.text("num_hidden_layers")
    heads, key_heads = numbers.text("num_attention_heads"), numbers.text("num_key_value_heads")
    size = numbers.text("head_dim", hidden // heads)
    intermediate, vocabulary = numbers.text("intermediate_size"), numbers.text("vocab_size")
    third = family == "qwen3_vl"
    tied = bool(numbers.config.get("tie_word_embeddings", False))
    linears = [
        Linear("llm", "q_proj", hidden, heads * size, not third, layers),
        Linear("llm", "k_proj", hidden, key_heads * size, not third, layers),
        Linear("llm", "v_proj", hidden, key_heads * size, not third, layers),
        Linear("llm", "o_proj", heads * size, hidden, False, layers),
        Linear("llm", "gate_proj", hidden, intermediate, False, layers),
        Linear("llm", "up_proj", hidden, intermediate, False, layers),
        Linear("llm", "down_proj", intermediate, hidden, False, layers),
    ]
    if not tied:
        linears.append(Linear("llm", "lm_head", hidden, vocabulary, False, 1))
    norms = layers * 2 * hidden + hidden + (layers * 2 * size if third else 0)
    depth = numbers.vision("depth")
    patch, merge = numbers.vision("patch_size", 16 if third else 14), numbers.vision("spatial_merge_size", 2)
    values = (
        numbers.vision("in_channels", 3) * numbers.vision("temporal_patch_size", 2) * patch * patch
    )  # what transformers 4 calls in_chans is 3 everywhere
    width = numbers.vision("embed_dim" if family == "qwen2_vl" else "hidden_size")
    out = numbers.vision("hidden_size" if family == "qwen2_vl" else "out_hidden_size")
    joined = width * merge * merge
    linears += [
        Linear("vision", "qkv", width, 3 * width, True, depth),
        Linear("vision", "attn.proj", width, width, True, depth),
    ]
    other = {"vision": width * values, "connector": 0, "llm": vocabulary * hidden + norms}
    if family == "qwen2_5_vl":
        inner = numbers.vision("intermediate_size")
        linears += [
            Linear("vision", "gate_proj", width, inner, True, depth),
            Linear("vision", "up_proj", width, inner, True, depth),
            Linear("vision", "down_proj", inner, width, True, depth),
            Linear("connector", "mlp.0", joined, joined, True, 1),
            Linear("connector", "mlp.2", joined, out, True, 1),
        ]
        other["vision"] += depth * 2 * width
        other["connector"] += width
    elif family == "qwen2_vl":
        inner = width * numbers.vision("mlp_ratio", 4)
        linears += [
            Linear("vision", "fc1", width, inner, True, depth),
            Linear("vision", "fc2", inner, width, True, depth),
            Linear("connector", "mlp.0", joined, joined, True, 1),
            Linear("connector", "mlp.2", joined, out, True, 1),
        ]
        other["vision"] += depth * 4 * width
        other["connector"] += 2 * width
    else:
        inner = numbers.vision("intermediate_size")
        deep = len(numbers.vision_list("deepstack_visual_indexes"))
        linears += [
            Linear("vision", "linear_fc1", width, inner, True, depth),
            Linear("vision", "linear_fc2", inner, width, True, depth),
            Linear("connector", "linear_fc1", joined, joined, True, 1 + deep),
            Linear("connector", "linear_fc2", joined, out, True, 1 + deep),
        ]
        other["vision"] += width + numbers.vision("num_position_embeddings") * width + depth * 4 * width
        other["connector"] += 2 * width + deep * 2 * joined
    return Shape(
        family=family,
        hidden=hidden,
        layers=layers,
        heads=heads,
        key_heads=key_heads,
        head_size=size,
        intermediate=intermediate,
        vocabulary=vocabulary,
        context=numbers.text("max_position_embeddings"),
        patch=patch,
        merge=merge,
        patch_values=values,
        linears=tuple(linears),
        others=other,
        embedding=vocabulary * hidden * (1 if tied else 2),
    )
