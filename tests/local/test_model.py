"""Loading, encoding and padding: what the model sees of a sample, and every model folder that can't be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from vtriune.data.images import FilePicture
from vtriune.local.decoder import run_prompts
from vtriune.local.logprobs import response_logprobs
from vtriune.local.model import ModelConfig, VisionLanguageModel
from vtriune.local.rollout import generate, uniforms
from vtriune.local.update import Learner, Lesson, UpdateConfig
from vtriune.types import Message, RewardSpec, Sample, UserError

Load = Callable[..., VisionLanguageModel]
MakeSample = Callable[..., Sample]


def test_a_prompt_shows_one_mark_per_picture_and_its_ids_one_token_per_merged_patch(
    vlm: VisionLanguageModel, ragged: list[Sample]
) -> None:
    patch = vlm.image_processor.patch_size
    for sample in ragged:
        encoded = vlm.encode(sample)
        assert encoded.prompt.count("<|image_pad|>") == len(sample.images) == len(encoded.pictures.sizes)
        merged = sum(size.resized[0] * size.resized[1] // (2 * patch) ** 2 for size in encoded.pictures.sizes)
        assert np.isin(encoded.ids, vlm.placeholder_ids).sum() == merged
        unexpanded = [int(k) for k in encoded.ids if k not in vlm.placeholder_ids]
        assert vlm.tokenizer.decode(unexpanded) == encoded.prompt.replace("<|image_pad|>", "")
        assert encoded.prompt.endswith("<|im_start|>assistant\n")


def test_sizes_are_width_and_height_as_stored_and_as_resized(vlm: VisionLanguageModel, sample: MakeSample) -> None:
    step = 2 * vlm.image_processor.patch_size
    encoded = vlm.encode(sample("sizes", "?", (3 * step + 5, step), (step, 2 * step - 3)))
    assert [size.original for size in encoded.pictures.sizes] == [(3 * step + 5, step), (step, 2 * step - 3)]
    assert [size.resized for size in encoded.pictures.sizes] == [(3 * step, step), (step, 2 * step)]
    assert encoded.pictures.grid_thw is not None
    assert encoded.pictures.grid_thw.tolist() == [[1, 2, 6], [1, 4, 2]]


def test_marks_stand_where_the_message_has_them(vlm: VisionLanguageModel, sample: MakeSample) -> None:
    one = sample("order", "", (60, 60), (60, 60))
    turns = (Message("system", "Be brief."), Message("user", "Left: <image> right: <image> Which is red?"))
    encoded = vlm.encode(Sample(one.id, one.source, one.task, turns, one.images, one.reward))
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert "<|im_start|>system\nBe brief.<|im_end|>" in encoded.prompt
    assert f"<|im_start|>user\nLeft: {picture} right: {picture} Which is red?<|im_end|>" in encoded.prompt


def test_padding_a_batch_moves_no_position(vlm: VisionLanguageModel, ragged: list[Sample]) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    ids, mask, positions = vlm.prompt_inputs(prompts)
    assert mask.sum(1).tolist() == [len(prompt.ids) for prompt in prompts]
    next_position = run_prompts(vlm, prompts).next_position
    for row, prompt in enumerate(prompts):
        _, _, alone = vlm.prompt_inputs([prompt])
        length = len(prompt.ids)
        assert ids[row, -length:].tolist() == prompt.ids.tolist()
        assert torch.equal(positions[:, row, -length:], alone[:, 0])
        assert next_position[row] == alone.max() + 1
        # A picture's tokens share positions, so that a prompt with pictures is shorter in positions than in tokens.
        assert (int(next_position[row]) < length) == bool(prompt.pictures.sizes)


def test_pixel_bounds_of_the_recipe_override_the_processors(folder: Path, load: Load, sample: MakeSample) -> None:
    picture = sample("bounds", "?", (300, 300))
    small = load(folder, max_pixels=4096).encode(picture).pictures.sizes[0].resized
    large = load(folder, min_pixels=160_000, max_pixels=300_000).encode(picture).pictures.sizes[0].resized
    assert small[0] * small[1] <= 4096
    assert large[0] * large[1] >= 160_000


def test_every_parameter_of_the_vision_tower_is_vision_or_connector(vlm: VisionLanguageModel) -> None:
    parts: dict[str, set[str]] = {"vision": set(), "connector": set(), "llm": set()}
    for name, _ in vlm.model.named_parameters():
        parts[vlm.places[name].part].add(name)
    tower = {f"model.visual.{name}" for name, _ in vlm.model.model.visual.named_parameters()}
    assert parts["vision"] | parts["connector"] == tower
    mergers = {
        f"model.visual.{module}.{name}"
        for module, child in vlm.model.model.visual.named_children()
        if module in ("merger", "deepstack_merger_list")
        for name, _ in child.named_parameters()
    }
    assert parts["connector"] == mergers
    assert parts["llm"]


def test_freezing_leaves_exactly_the_other_parts_trainable(folder: Path, load: Load) -> None:
    vlm = load(folder, freeze=["vision", "llm"])
    for name, parameter in vlm.model.named_parameters():
        assert parameter.requires_grad == (vlm.places[name].part == "connector")


def test_bfloat16_samples_and_learns_as_float32_does(folder: Path, load: Load, ragged: list[Sample]) -> None:
    def learned(dtype: str) -> tuple[float, float]:
        """Share of the weights that three optimizer steps at the paper's rate move, and by how much in the mean."""
        vlm = load(folder, dtype=dtype)
        prompts = [vlm.encode(sample) for sample in ragged]
        draws = np.stack([uniforms(0, 0, sample.id, 2, 5) for sample in ragged])
        groups = [group for _, group in sorted(generate(vlm, prompts, draws.__getitem__, group=2, max_new_tokens=5))]
        assert {one.logprobs.dtype for group in groups for one in group} == {np.dtype(np.float32)}
        before = {name: value.detach().clone() for name, value in vlm.model.named_parameters()}
        learner = Learner(vlm, UpdateConfig(learning_rate=1e-6, warmup_ratio=0.0), 1.0)
        for step in range(3):
            lessons = [
                Lesson(prompt, [one.token_ids for one in group], [one.logprobs for one in group], np.array([1.0, -1.0]))
                for prompt, group in zip(prompts, groups, strict=True)
            ]
            gap = learner.update(lessons, step, 3)["logprob_gap"]
            assert step > 0 or gap < (0.3 if dtype == "bfloat16" else 1e-5)  # bfloat16 keeps 8 bits
        assert all(value.dtype == torch.float32 for value in vlm.model.parameters())
        moved = torch.cat([(v.detach() - before[name]).abs().flatten() for name, v in vlm.model.named_parameters()])
        return (moved > 0).double().mean().item(), moved.double().mean().item()

    share, distance = learned("bfloat16")
    expected_share, expected_distance = learned("float32")
    assert expected_share > 0.5
    assert share == pytest.approx(expected_share, abs=0.01)
    assert distance == pytest.approx(expected_distance, rel=0.1)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(folder: Path, load: Load, ragged: list[Sample]) -> None:
    logprobs = {}
    for dtype in ("float32", "bfloat16"):
        vlm = load(folder, dtype=dtype)
        answers = [[np.arange(9) + k] for k in range(len(ragged))]
        logprobs[dtype] = response_logprobs(vlm, [vlm.encode(sample) for sample in ragged], answers, 1.0).detach()
    assert logprobs["bfloat16"].dtype == torch.float32
    gap = (logprobs["bfloat16"] - logprobs["float32"]).abs()
    assert 1e-4 < gap.mean() < 0.1


def test_a_picture_that_cannot_be_read_is_named(vlm: VisionLanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    for picture in (
        FilePicture(tmp_path / "a.png", "row 7 picture 0"),
        FilePicture(tmp_path / "b.png", "row 7 picture 0"),
    ):
        broken = Sample("x#7", "s", "math", (Message("user", "<image>?"),), (picture,), RewardSpec("mathverify", "4"))
        with pytest.raises(UserError, match="row 7 picture 0"):
            vlm.encode(broken)


def test_a_picture_that_is_too_narrow_for_the_model_is_the_rows_fault(
    vlm: VisionLanguageModel, sample: MakeSample
) -> None:
    with pytest.raises(UserError, match=r"narrow: a picture doesn't suit the model .*aspect ratio"):
        vlm.encode(sample("narrow", "?", (900, 3)))


def test_a_prompt_that_writes_the_models_own_mark_is_refused(vlm: VisionLanguageModel, sample: MakeSample) -> None:
    with pytest.raises(UserError, match="own: the prompt shows 2 pictures, the row holds 1"):
        vlm.encode(sample("own", "What is <|image_pad|>?", (60, 60)))


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused_with_the_lengths(
    vlm: VisionLanguageModel, sample: MakeSample
) -> None:
    long = sample("row 7", "Count. " * 10, (60, 60))
    prompt = len(vlm.encode(long).ids)
    room = vlm.model.config.text_config.max_position_embeddings - prompt
    assert len(vlm.encode(long, room).ids) == prompt
    expected = (
        rf"row 7: the prompt's {prompt} tokens \(4 of pictures\) and an answer of up to {room + 1} exceed the model's "
    )
    with pytest.raises(
        UserError, match=expected + r"context of \d+; shorten the row or remove it, or lower model.max_p"
    ):
        vlm.encode(long, room + 1)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"model.path: {path} is not a transformers folder"):
            VisionLanguageModel(ModelConfig(path=str(path)))


def damage(folder: Path, how: str) -> None:
    """Make a model's folder one that can't be used."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    match how:
        case "no weights":
            weights.unlink()
        case "a weight missing":
            tensors = load_file(weights)
            del tensors[next(name for name in tensors if "up_proj" in name)]
            save_file(tensors, weights, metadata={"format": "pt"})
        case "weights cut off":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "weights of another size":
            fields = json.loads(config.read_text())
            fields["text_config"]["intermediate_size"] = 40
            config.write_text(json.dumps(fields))
        case "config damaged":
            config.write_text("{")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").unlink()
        case "no chat template":
            (folder / "chat_template.jinja").unlink()
        case "no image processor":
            (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", "can't be loaded: .*model.safetensors"),
        ("a weight missing", r"lacks weights \(.*up_proj.weight, 1 in all\)"),
        ("weights cut off", "can't be loaded"),
        ("weights of another size", "can't be loaded"),
        ("config damaged", "can't be loaded: .*config.json"),
        ("no tokenizer", "lacks the model's tokenizer"),
        ("no chat template", "lacks the model's tokenizer or its chat template"),
        ("no image processor", "can't be loaded: .*image processor"),
    ],
)
def test_a_damaged_model_folder_is_refused_with_the_reason(
    folders: dict[str, Path], tmp_path: Path, how: str, message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folders["qwen2_5_vl"], copy)
    damage(copy, how)
    with pytest.raises(UserError, match=rf"model.path: {copy} .*{message}"):
        VisionLanguageModel(ModelConfig(path=str(copy)))


def test_a_model_that_sees_no_pictures_is_refused_with_the_families_that_do(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 50}
    Qwen2ForCausalLM(Qwen2Config(num_attention_heads=1, num_key_value_heads=1, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a qwen2 model; qwen2_vl, qwen2_5_vl, qwen3_vl can be trained"):
        VisionLanguageModel(ModelConfig(path=str(tmp_path)))


def test_a_model_with_sliding_windows_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folders["qwen2_5_vl"], copy)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["layer_types"] = ["full_attention", "full_attention", "sliding_attention"]
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="sliding windows; set use_sliding_window to false"):
        VisionLanguageModel(ModelConfig(path=str(copy), device="cpu"))


def test_asking_for_a_gpu_that_is_not_there_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the check that reads the line above every time
    with pytest.raises(UserError, match=r"model\.device: cuda was asked for, but torch sees no GPU; use device=auto"):
        VisionLanguageModel(ModelConfig(path=str(folders["qwen2_5_vl"]), device="cuda"))
    assert VisionLanguageModel(ModelConfig(path=str(folders["qwen2_5_vl"]), device="auto")).device.type == "cpu"


def test_freezing_every_part_is_refused(folders: dict[str, Path], load: Load) -> None:
    with pytest.raises(UserError, match=r"model\.freeze: .* freezes every part; take at least one out"):
        load(folders["qwen2_5_vl"], freeze=["vision", "connector", "llm"])
