"""Loads a vision-language model, splits its parameters into parts and encodes prompts for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtriune.local.attention import ATTENTION
from vtriune.local.lora import LoraConfig, add_adapters
from vtriune.local.parts import PARTS, Part, places
from vtriune.types import ImageSize, Sample, UserError

transformers.utils.logging.disable_progress_bar()  # the loop shows its own

IMAGE_MARK = "<image>"

TOGETHER, ALONE = 32, 1024
"""The pictures of so many samples are run through vision together, three times faster if they are small; a sample with
more patches than that is run alone."""

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class ModelConfig(BaseModel):
    """Which model is trained, and where."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="A transformers folder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes the GPU if there is one.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Type of computation. Weights and optimizer stay float32: bfloat16 ones would round updates away.",
    )
    freeze: list[Part] = Field(
        ["vision", "connector"], description="Parts that are not trained; the paper freezes vision and connector (4)."
    )
    lora: LoraConfig | None = Field(
        None, description="Adapters that are trained in place of the parts' own weights; null: none."
    )
    plain: bool = Field(
        False, description="Run everything the plain way, nothing shared or cached: far slower, to compare with."
    )
    picture_cache: int = Field(
        1024,
        ge=0,
        description="MiB kept of what a frozen vision tower made of earlier steps' pictures, which may come again.",
    )
    min_pixels: int | None = Field(None, description="Override of the image processor's lower bound.", ge=784)
    max_pixels: int | None = Field(None, description="Override of the image processor's upper bound.", ge=784)


@dataclass(frozen=True, slots=True)
class Features:
    """A sample's pictures as the language model reads them, N tokens in all."""

    embeds: Tensor
    """(N, H)"""
    deepstack: tuple[Tensor, ...] = ()
    """(N, H) each: what Qwen3-VL adds behind its first layers."""

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(one.nbytes for one in (self.embeds, *self.deepstack))

    def cpu(self) -> Features:
        """In the host's memory, of which there is more."""
        return Features(self.embeds.cpu(), tuple(level.cpu() for level in self.deepstack))

    def split(self, sizes: list[int]) -> list[Features]:
        """Of samples with so many tokens one after the other, each on its own."""
        levels = zip(*(torch.split(level, sizes) for level in (self.embeds, *self.deepstack)), strict=True)
        return [Features(embeds.clone(), tuple(one.clone() for one in deepstack)) for embeds, *deepstack in levels]


@dataclass(frozen=True, slots=True)
class Pictures:
    """A sample's pictures, read; all None without pictures."""

    pixel_values: Tensor | None
    """(patches, channels * time * patch * patch). None where `features` are known."""
    grid_thw: Tensor | None
    """(pictures, 3) patches in time, height, width."""
    sizes: tuple[ImageSize, ...]
    features: Features | None
    """What a frozen vision tower makes of them. None if it learns, or was not run yet."""


NO_PICTURES = Pictures(None, None, (), None)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as the model reads it."""

    prompt: str
    """The rendered chat template, one mark per picture."""
    ids: np.ndarray
    """(P,) int64, picture placeholders expanded."""
    pictures: Pictures = NO_PICTURES


class PictureCache:
    """Features of the pictures read last, at most so many bytes of them, by the ids of the samples run together.

    Not by one id: in another company the last bits differ, and a run that goes on with an empty cache would, too.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._known: OrderedDict[tuple[str, ...], list[Pictures]] = OrderedDict()

    def get(self, names: tuple[str, ...]) -> list[Pictures] | None:
        """Those of samples that were run together, if they are known."""
        if names in self._known:
            self._known.move_to_end(names)
        return self._known.get(names)

    def put(self, names: tuple[str, ...], pictures: list[Pictures]) -> None:
        """Remember, and forget what has not been asked for longest."""
        self._known[names] = pictures
        self._held += _size(pictures)
        while self._held > self._limit:
            _, oldest = self._known.popitem(last=False)
            self._held -= _size(oldest)


def _size(pictures: Sequence[Pictures]) -> int:
    return sum(one.features.nbytes for one in pictures if one.features)


class VisionLanguageModel:
    """A model with its tokenizer and image processor, frozen as configured, on its device."""

    def __init__(self, config: ModelConfig) -> None:
        self.device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
        if config.device == "cuda" and self.device.type == "cpu":
            raise UserError("model.device: cuda was asked for, but torch sees no GPU; use device=auto or device=cpu")
        self.path = config.path
        self.plain = config.plain
        self.bfloat16 = config.dtype == "bfloat16"
        model, self.tokenizer, self.image_processor = _load(config)
        self.model: Any = model.to(self.device).eval()
        self.lora = config.lora is not None
        self.places = places(self.model)
        if config.lora is not None:
            trained = [part for part in PARTS if part not in config.freeze]
            add_adapters(self.model, config.lora, self.places, trained)
            self.model.eval()
            self.places = places(self.model)
        for name, parameter in self.model.named_parameters():
            trains = ".lora_" in name or not self.lora
            parameter.requires_grad_(trains and self.places[name].part not in config.freeze)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UserError(f"model.freeze: {config.freeze} freezes every part; take at least one out, usually llm")
        self.vision_learns = any(
            parameter.requires_grad and self.places[name].part != "llm"
            for name, parameter in self.model.named_parameters()
        )
        self.language_model: Any = self.model.model.language_model
        self.language_model.set_attn_implementation(ATTENTION)
        self.placeholder_ids = (self.model.config.image_token_id, self.model.config.video_token_id)
        self.image_token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        eos = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.eos_ids: tuple[int, ...] = tuple(eos) if isinstance(eos, list) else (eos,)
        self.context: int = self.model.config.get_text_config().max_position_embeddings
        self.pad_id: int = self.tokenizer.pad_token_id

    def encode(self, sample: Sample, max_new_tokens: int = 0, pictures: Pictures | None = None) -> Encoded:
        """Render the prompt, which must leave room for `max_new_tokens` of an answer.

        Args:
            sample: what is asked.
            max_new_tokens: of an answer.
            pictures: the sample's, from `look`; None: they are read here, and run through vision whenever needed.

        Raises:
            UserError: a picture is missing, corrupt or too narrow for the model; the row's marks and pictures differ;
                prompt and answer can exceed the model's context.
        """
        if pictures is None:
            pictures = self._read_pictures(sample)
        grid_thw = pictures.grid_thw
        tokens_per_picture: list[int] = []
        if grid_thw is not None:
            tokens_per_picture = (grid_thw.prod(-1) // self.image_processor.merge_size**2).tolist()
        messages = [{"role": turn.role, "content": _parts(turn.content)} for turn in sample.messages]
        prompt: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pieces = prompt.split(self.image_token)
        if len(pieces) != len(sample.images) + 1:
            shown = f"the prompt shows {len(pieces) - 1} pictures, the row holds {len(sample.images)}"
            raise UserError(f"{sample.id}: {shown}")
        expanded = pieces[0] + "".join(
            self.image_token * count + piece for count, piece in zip(tokens_per_picture, pieces[1:], strict=True)
        )
        ids = np.array(self.tokenizer.encode(expanded, add_special_tokens=False), dtype=np.int64)
        if len(ids) + max_new_tokens > self.context:
            raise UserError(
                f"{sample.id}: the prompt's {len(ids)} tokens ({sum(tokens_per_picture)} of pictures) and an answer of "
                f"up to {max_new_tokens} exceed the model's context of {self.context}; shorten the row or remove it, "
                "or lower model.max_pixels or rollout.max_new_tokens"
            )
        return Encoded(prompt, ids, pictures)

    def look(self, samples: Sequence[Sample], seen: PictureCache) -> list[Pictures | UserError]:
        """Read the pictures of samples and, if vision is frozen, run it, once. What can't be read is an error.

        What comes of a sample depends on these samples alone, to the last bit, not on what is in `seen`.
        """
        found: dict[str, Pictures | UserError] = {}
        for sample in samples:
            if not sample.images:
                found[sample.id] = NO_PICTURES
            elif known := seen.get((sample.id,)):
                found[sample.id] = known[0]
        rest = [sample for sample in samples if sample.id not in found]
        if (known := seen.get(tuple(sample.id for sample in rest))) is not None:
            found |= {sample.id: pictures for sample, pictures in zip(rest, known, strict=True)}
            rest = []
        small: dict[str, Pictures] = {}
        for sample in rest:
            try:
                pictures = found[sample.id] = self._read_pictures(sample)
            except UserError as error:
                found[sample.id] = error
                continue
            if pictures.pixel_values is None or self.vision_learns or self.plain:
                continue
            if len(pictures.pixel_values) <= ALONE:
                small[sample.id] = pictures
            else:
                found[sample.id] = self._run_vision({sample.id: pictures}, seen)[0]
        if small:
            found |= zip(small, self._run_vision(small, seen), strict=True)
        return [found[sample.id] for sample in samples]

    def _run_vision(self, together: dict[str, Pictures], seen: PictureCache) -> list[Pictures]:
        """The pictures of samples with their features, which are remembered."""
        everything = Pictures(
            torch.cat([one.pixel_values for one in together.values() if one.pixel_values is not None]),
            torch.cat([one.grid_thw for one in together.values() if one.grid_thw is not None]),
            (),
            None,
        )
        with torch.no_grad():
            features = self.features(everything)
        assert features is not None
        merge = self.image_processor.merge_size**2
        sizes = [int(one.grid_thw.prod(-1).sum()) // merge for one in together.values() if one.grid_thw is not None]
        result = [
            replace(one, pixel_values=None, features=each)
            for one, each in zip(together.values(), features.cpu().split(sizes), strict=True)
        ]
        seen.put(tuple(together), result)
        return result

    def _read_pictures(self, sample: Sample) -> Pictures:
        if not sample.images:
            return NO_PICTURES
        pictures = [image.load() for image in sample.images]
        try:
            read = self.image_processor(images=pictures, return_tensors="pt")
        except ValueError as error:  # sides that differ by more than a factor of 200
            raise UserError(f"{sample.id}: a picture doesn't suit the model ({error}); remove the row") from error
        grid_thw, patch = read["image_grid_thw"], self.image_processor.patch_size
        sizes = tuple(
            ImageSize(picture.size, (int(width) * patch, int(height) * patch))
            for picture, (_, height, width) in zip(pictures, grid_thw, strict=True)
        )
        return Pictures(read["pixel_values"], grid_thw, sizes, None)

    def features(self, pictures: Pictures) -> Features | None:
        """What vision tower and connector make of pictures; None without any."""
        if pictures.features is not None or pictures.pixel_values is None or pictures.grid_thw is None:
            return pictures.features
        with self.autocast():
            found = self.model.model.get_image_features(
                pictures.pixel_values.to(self.device), pictures.grid_thw.to(self.device), return_dict=True
            )
        return Features(torch.cat(found.pooler_output), tuple(getattr(found, "deepstack_features", None) or ()))

    def save(self, folder: Path) -> None:
        """Write an ordinary transformers folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def prompt_inputs(self, prompts: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
        """Left-padded token ids (B, L), their mask (B, L) bool and their positions (3, B, L).

        Positions are given explicitly: without them transformers keeps state on the model, or falls back to
        one-dimensional positions without a word.
        """
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), length), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt.ids) :] = torch.from_numpy(prompt.ids)
            mask[row, length - len(prompt.ids) :] = 1
        grids = [one.pictures.grid_thw for one in prompts if one.pictures.grid_thw is not None]
        positions, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.placeholder_ids[0]).long(),
            image_grid_thw=torch.cat(grids) if grids else None,
            attention_mask=mask,
        )
        return ids.to(self.device), mask.bool().to(self.device), positions.to(self.device)

    def autocast(self) -> torch.autocast:
        """The context in which the model runs: matrix products in bfloat16 if the recipe says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """(N, H) -> (N, V) float32 logits of the sampling policy: placeholders are never part of it."""
        logits: Tensor = self.model.lm_head(hidden).float()
        logits[:, list(self.placeholder_ids)] = -torch.inf
        return logits / temperature


def check_folder(path: str) -> None:
    """Raises UserError if no model is there."""
    if not (Path(path) / "config.json").is_file():
        raise UserError(
            f"model.path: {path} is not a transformers folder (it has no config.json); put the model there, or correct "
            "the path"
        )


def _load(config: ModelConfig) -> tuple[Any, Any, Any]:
    """The model, its tokenizer and its image processor. Raises UserError if they are not all there and of a family."""
    path = config.path
    check_folder(path)
    bounds = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    try:
        family = AutoConfig.from_pretrained(path).model_type
        if family not in FAMILIES:
            raise UserError(f"model.path: {path} holds a {family} model; {', '.join(FAMILIES)} can be trained")
        tokenizer = AutoTokenizer.from_pretrained(path)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(
            path, **{name: value for name, value in bounds.items() if value is not None}
        )
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or missing file leads transformers to
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.path: {path} can't be loaded: {reason}; copy the model's folder again") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model.path: {path} lacks weights ({missing[0]}, {len(missing)} in all); copy the folder again"
        )
    if "sliding_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        raise UserError(
            f"model.path: {path} attends within sliding windows; set use_sliding_window to false in its config"
        )
    # Where its files are missing, transformers makes up a tokenizer that knows nothing of the model's tokens.
    image_id = model.config.image_token_id
    image_token = tokenizer.convert_ids_to_tokens(image_id) or ""
    if tokenizer.encode(image_token, add_special_tokens=False) != [image_id] or tokenizer.chat_template is None:
        raise UserError(
            f"model.path: {path} lacks the model's tokenizer or its chat template; copy the model's folder again"
        )
    return model, tokenizer, image_processor


def _parts(content: str) -> list[dict[str, str]]:
    """A message's text with `<image>` marks as the list of parts that chat templates expect."""
    parts: list[dict[str, str]] = []
    for k, text in enumerate(content.split(IMAGE_MARK)):
        if k:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return parts
