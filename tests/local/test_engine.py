"""The engine's face: bad rows, answers without a verdict, saving, and going on exactly where a checkpoint was taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vtriune.data.images import FilePicture
from vtriune.grpo.advantages import advantages
from vtriune.local import model as model_module
from vtriune.local.engine import LocalEngine
from vtriune.local.model import Features, ModelConfig, PictureCache, Pictures, VisionLanguageModel
from vtriune.local.parts import Part
from vtriune.local.update import Learner, Lesson
from vtriune.types import Group, JudgedGroup, Sample, Status, UserError, Verdict

Engine = Callable[..., LocalEngine]
MakeSample = Callable[..., Sample]
Watch = Callable[..., list[dict[str, Tensor]]]


def judged(group: Group, rewards: Sequence[float | Status]) -> JudgedGroup:
    """The group with these rewards; a Status stands for an answer without one."""
    verdicts = tuple(
        Verdict(reward) if isinstance(reward, Status) else Verdict(Status.SCORED, reward, reward, 0.0, reward == 1)
        for reward in rewards
    )
    return JudgedGroup(group, verdicts, advantages([verdict.reward for verdict in verdicts]))


def judged_by_tokens(groups: Sequence[Group]) -> list[JudgedGroup]:
    """A reward that can be computed from any answer: the share of its tokens with an even number."""
    return [judged(group, [float(np.mean(one.token_ids % 2 == 0)) for one in group.rollouts]) for group in groups]


def one_step(engine: LocalEngine, samples: Sequence[Sample], step: int) -> tuple[list[Group], dict[str, float]]:
    """Sample, judge and learn, as the loop does."""
    good, _ = engine.encode(samples)
    groups = list(engine.generate(good, step, engine.rollout.responses_per_prompt))
    return groups, engine.update(judged_by_tokens(groups), step, 10)


def assert_equal_weights(a: LocalEngine, b: LocalEngine) -> None:
    """Bit for bit, the optimizer's moments included."""
    for (name, one), (_, other) in zip(a.vlm.model.named_parameters(), b.vlm.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    one, other = a.learner.optimizer.state_dict(), b.learner.optimizer.state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for key, moments in one["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, other["state"][key][name]), (key, name)


def test_rows_that_cannot_be_encoded_are_returned_with_the_reason_and_the_others_are_asked(
    folder: Path, engine: Engine, ragged: list[Sample], tmp_path: Path
) -> None:
    broken = replace(ragged[0], id="rows.jsonl#3", images=(FilePicture(tmp_path / "gone.png", "rows.jsonl row 3"),))
    tiny = engine(folder)
    good, bad = tiny.encode([ragged[1], broken, ragged[0]])
    assert good == [ragged[1], ragged[0]]
    ((sample, reason),) = bad
    assert sample is broken
    assert "rows.jsonl row 3" in reason
    assert {group.sample.id for group in tiny.generate(good, 0, 2)} == {ragged[0].id, ragged[1].id}


def test_a_row_that_exceeds_the_models_context_is_set_aside(folder: Path, engine: Engine, ragged: list[Sample]) -> None:
    tiny = engine(folder, max_new_tokens=1)
    room = tiny.vlm.context - len(tiny.vlm.encode(ragged[1]).ids)  # for the shortest prompt's answer
    good, bad = engine(folder, max_new_tokens=room).encode(ragged)
    assert good == [ragged[1]]
    assert [sample for sample, _ in bad] == [ragged[0], *ragged[2:]]
    assert all(f"an answer of up to {room} exceed" in reason for _, reason in bad)


@dataclass
class CountedPicture:
    """A picture that counts how often it is decoded."""

    picture: Any
    where: str
    decoded: int = 0

    def load(self) -> PIL.Image.Image:
        self.decoded += 1
        image: PIL.Image.Image = self.picture.load()
        return image


def test_a_picture_is_decoded_once_for_all_answers_and_the_update(
    folder: Path, engine: Engine, ragged: list[Sample]
) -> None:
    counted = CountedPicture(ragged[0].images[0], "here")
    one_step(engine(folder), [replace(ragged[0], images=(counted,)), ragged[1]], 0)
    assert counted.decoded == 1


def test_a_group_holds_its_sample_its_prompt_and_its_answers(
    folder: Path, engine: Engine, ragged: list[Sample]
) -> None:
    tiny = engine(folder)
    tiny.encode(ragged)
    groups = {group.sample.id: group for group in tiny.generate(ragged, 0, 3)}
    for sample in ragged:
        group, encoded = groups[sample.id], tiny.vlm.encode(sample)
        assert group.sample is sample
        assert (group.prompt, group.image_sizes) == (encoded.prompt, encoded.pictures.sizes)
        assert group.prompt_ids.tolist() == encoded.ids.tolist()
        assert len(group.rollouts) == 3
        assert len({one.token_ids.tobytes() for one in group.rollouts}) > 1
    for group in tiny.generate(ragged, 0, None):
        assert len(group.rollouts) == 1


def test_another_step_or_seed_samples_other_answers(folder: Path, engine: Engine, ragged: list[Sample]) -> None:
    def answers(seed: int, step: int) -> list[bytes]:
        tiny = engine(folder, seed=seed)
        tiny.encode(ragged[:1])
        return [one.token_ids.tobytes() for group in tiny.generate(ragged[:1], step, 4) for one in group.rollouts]

    assert answers(0, 0) == answers(0, 0)
    assert answers(0, 0) != answers(0, 1)
    assert answers(0, 0) != answers(1, 0)


def test_on_policy_the_recomputed_log_probs_are_the_sampled_ones(
    folder: Path, engine: Engine, ragged: list[Sample]
) -> None:
    for temperature in (1.0, 0.6):
        _, figures = one_step(engine(folder, temperature=temperature), ragged, 0)
        assert figures["logprob_gap"] < 1e-5
        assert figures["clip_fraction"] == 0


@pytest.mark.parametrize("status", [Status.UNSCORABLE, Status.FAILED])
def test_answers_without_a_verdict_move_neither_the_gradient_nor_its_normaliser(
    folder: Path, engine: Engine, ragged: list[Sample], watch: Watch, status: Status
) -> None:
    def learn(keep: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
        tiny = engine(folder)
        seen = watch(tiny.vlm, tiny.learner)
        tiny.encode(ragged[:3])
        first, second, third = tiny.generate(ragged[:3], 0, 4)
        if keep:
            groups = [judged(first, [1.0, status, 0.0, 0.5]), judged(second, [0.0, 1.0, status, status])]
            groups.append(judged(third, [status] * 4))
        else:
            kept = [first.rollouts[k] for k in (0, 2, 3)]
            groups = [judged(replace(first, rollouts=tuple(kept)), [1.0, 0.0, 0.5])]
            groups.append(judged(replace(second, rollouts=second.rollouts[:2]), [0.0, 1.0]))
        figures = tiny.update(groups, 0, 10)
        return figures, seen[0]

    figures, gradients = learn(keep=True)
    expected_figures, expected_gradients = learn(keep=False)
    assert figures == pytest.approx(expected_figures, abs=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-6, rtol=1e-6)


def test_a_step_whose_answers_all_lack_a_verdict_changes_nothing(
    folder: Path, engine: Engine, ragged: list[Sample]
) -> None:
    tiny, untouched = engine(folder), engine(folder)
    tiny.encode(ragged[:2])
    groups = [judged(group, [Status.FAILED] * 4) for group in tiny.generate(ragged[:2], 0, 4)]
    assert tiny.update(groups, 0, 10) == {}
    assert_equal_weights(tiny, untouched)


def test_every_off_policy_step_sees_the_sources_as_the_mixture_gave_them_out(
    folders: dict[str, Path], engine: Engine, sample: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three sources whose prompts differ in length, so that sampling puts them one after the other.
    texts = {"ocr": "Read.", "count": "How many of the red shapes are there?", "chart": "Which bar is higher? " * 4}
    samples = [replace(sample(f"{name}#{k}", text), source=name) for k in range(4) for name, text in texts.items()]
    source_of = {text: name for name, text in texts.items()}
    seen: list[list[str]] = []
    original = Learner._optimizer_step

    def noting(self: Learner, lessons: Sequence[Lesson], step: int, total_steps: int) -> dict[str, float] | None:
        prompts = [one.prompt.prompt for one in lessons]
        seen.append([name for prompt in prompts for text, name in source_of.items() if text in prompt])
        return original(self, lessons, step, total_steps)

    monkeypatch.setattr(Learner, "_optimizer_step", noting)
    groups, _ = one_step(engine(folders["qwen2_5_vl"], prompts_per_update=3), samples, 0)
    assert [group.sample.source for group in groups] != [sample.source for sample in samples]  # as they finished
    assert seen == [["ocr", "count", "chart"]] * 4


def test_learning_makes_rewarded_answers_more_likely(folder: Path, engine: Engine, ragged: list[Sample]) -> None:
    tiny = engine(folder, responses_per_prompt=16, learning_rate=3e-3)
    means = []
    for step in range(12):
        good, _ = tiny.encode(ragged)
        lessons = judged_by_tokens(list(tiny.generate(good, step, 16)))
        means.append(fmean(verdict.reward or 0.0 for one in lessons for verdict in one.verdicts))
        tiny.update(lessons, step, 12)
    assert fmean(means[-3:]) > fmean(means[:3]) + 0.2


def test_a_checkpoint_is_an_ordinary_transformers_folder(
    folder: Path, engine: Engine, ragged: list[Sample], tmp_path: Path
) -> None:
    tiny = engine(folder)
    one_step(tiny, ragged, 0)
    tiny.save(tmp_path)
    ordinary = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    for name, value in tiny.vlm.model.state_dict().items():
        assert torch.equal(ordinary[name], value), name
    again = VisionLanguageModel(ModelConfig(path=str(tmp_path), device="cpu"))
    assert again.eos_ids == tiny.vlm.eos_ids
    assert again.encode(ragged[2]).ids.tolist() == tiny.vlm.encode(ragged[2]).ids.tolist()


@pytest.mark.parametrize("settings", [{}, {"prompts_per_update": 2, "warmup_ratio": 0.9}])
def test_going_on_from_a_checkpoint_equals_never_having_stopped_bit_for_bit(
    folder: Path, engine: Engine, ragged: list[Sample], tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight = engine(folder, **settings)
    for step in range(2):
        one_step(straight, ragged, step)
    straight.save(tmp_path)
    generator = torch.get_rng_state()
    resumed = engine(folder, **settings)
    torch.rand(5)
    resumed.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_equal_weights(resumed, straight)
    for step in range(2, 4):
        expected, expected_figures = one_step(straight, ragged, step)
        found, figures = one_step(resumed, ragged, step)
        assert figures == expected_figures
        for group, other in zip(found, expected, strict=True):
            for one, original in zip(group.rollouts, other.rollouts, strict=True):
                assert one.token_ids.tobytes() == original.token_ids.tobytes()
                assert one.logprobs.tobytes() == original.logprobs.tobytes()
    assert_equal_weights(resumed, straight)


def test_a_loaded_model_keeps_its_parts_frozen(
    folder: Path, engine: Engine, ragged: list[Sample], tmp_path: Path
) -> None:
    engine(folder).save(tmp_path)
    tiny = engine(folder)
    tiny.load(tmp_path)
    before = {name: value.clone() for name, value in tiny.vlm.model.named_parameters()}
    one_step(tiny, ragged, 0)
    changed = {name for name, value in tiny.vlm.model.named_parameters() if not torch.equal(value, before[name])}
    assert {tiny.vlm.places[name].part for name in changed} == {"llm"}


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["cut off", "zeros", "empty", "gone"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(
    folders: dict[str, Path], engine: Engine, ragged: list[Sample], tmp_path: Path, file: str, damage: str
) -> None:
    tiny = engine(folders["qwen2_5_vl"])
    one_step(tiny, ragged[:2], 0)
    tiny.save(tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut off": content[:-1000], "zeros": bytes(len(content)), "empty": b""}[damage])
    with pytest.raises(
        UserError, match=rf"{path}: damaged \(.+\); delete the folder {tmp_path} to resume from the check"
    ):
        tiny.load(tmp_path)


def test_a_checkpoint_that_lacks_a_weight_is_damaged(folders: dict[str, Path], engine: Engine, tmp_path: Path) -> None:
    tiny = engine(folders["qwen2_5_vl"])
    tiny.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[next(name for name in tensors if "up_proj" in name)]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors: damaged \(lacks .*up_proj\.weight, 1 in all\); delete"):
        tiny.load(tmp_path)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_a_checkpoint_from_elsewhere_cannot_run_code(
    folders: dict[str, Path], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = engine(folders["qwen2_5_vl"])
    tiny.save(tmp_path)
    torch.save({"optimizer": Trap(), "rng": torch.get_rng_state()}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt: damaged \(Weights only load failed"):
        tiny.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_an_engine_set_to_the_plain_way_samples_and_learns_the_same(
    folder: Path, engine: Engine, ragged: list[Sample]
) -> None:
    fast, reference = engine(folder), engine(folder, plain=True)
    for step in range(2):
        one_step(fast, ragged, step)
        one_step(reference, ragged, step)
    assert_close_weights(fast, reference)


def assert_close_weights(a: LocalEngine, b: LocalEngine) -> None:
    """As close as two orders of summing let Adam's steps of 1e-3 be, which only the sign of a tiny gradient decides."""
    differences = [
        (one - other).abs().flatten()
        for one, other in zip(a.vlm.model.parameters(), b.vlm.model.parameters(), strict=True)
    ]
    assert torch.cat(differences).quantile(0.999) < 1e-5


@pytest.mark.parametrize(
    ("freeze", "alone"), [(("vision", "connector"), 1024), (("vision", "connector"), 0), (("vision",), 0)]
)
def test_a_frozen_vision_tower_runs_once_per_picture_however_often_the_row_comes(
    folder: Path,
    engine: Engine,
    ragged: list[Sample],
    freeze: tuple[Part, ...],
    alone: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_module, "ALONE", alone)
    tiny = engine(folder, freeze=freeze)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    tiny.vlm.model.model.visual.register_forward_hook(count)
    seen = []
    for step in range(2):
        calls = 0
        one_step(tiny, ragged, step)
        tiny.encode(ragged)
        list(tiny.generate(ragged, 7, None))
        seen.append(calls)
    if "connector" in freeze:
        assert seen == [1 if alone else 3, 0]
    else:
        assert min(seen) >= 3 * 3  # it learns, so nothing that it made before is good any more


def test_pictures_that_do_not_fit_the_cache_are_run_again_and_change_nothing(
    folder: Path, engine: Engine, ragged: list[Sample]
) -> None:
    roomy, narrow = engine(folder), engine(folder)
    narrow._pictures = PictureCache(1)
    for step in range(2):
        one_step(roomy, ragged, step)
        one_step(narrow, ragged, step)
    assert_equal_weights(roomy, narrow)


def test_pictures_run_together_are_what_they_are_alone(folder: Path, engine: Engine, ragged: list[Sample]) -> None:
    tiny = engine(folder)
    together = tiny.vlm.look(ragged, PictureCache(2**20))
    for sample, found in zip(ragged, together, strict=True):
        (alone,) = tiny.vlm.look([sample], PictureCache(2**20))
        assert isinstance(found, Pictures) and isinstance(alone, Pictures)
        assert found.sizes == alone.sizes and bool(found.features) == bool(alone.features) == bool(sample.images)
        if found.features and alone.features:
            for one, other in zip(
                (found.features.embeds, *found.features.deepstack),
                (alone.features.embeds, *alone.features.deepstack),
                strict=True,
            ):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_picture_that_cannot_be_read_leaves_those_beside_it_alone(
    folder: Path, engine: Engine, ragged: list[Sample], sample: MakeSample
) -> None:
    tiny, cache = engine(folder), PictureCache(2**20)
    narrow = sample("narrow", "?", (900, 3))
    for _ in range(2):
        first, bad, *others = tiny.vlm.look([ragged[0], narrow, *ragged[1:]], cache)
        assert isinstance(bad, UserError) and "narrow" in str(bad)
        for found, expected in zip((first, *others), tiny.vlm.look(ragged, PictureCache(2**20)), strict=True):
            assert isinstance(found, Pictures) and isinstance(expected, Pictures)
            assert found.sizes == expected.sizes
            if found.features and expected.features:
                assert torch.equal(found.features.embeds, expected.features.embeds)


def test_the_picture_cache_keeps_to_its_bytes_and_forgets_what_was_not_asked_for_longest() -> None:
    def pictures(*rows: int) -> list[Pictures]:
        zeros = [torch.zeros(count, 25) for count in rows]
        return [Pictures(None, None, (), Features(each, (each,))) for each in zeros]

    cache = PictureCache(2000)
    cache.put(("a",), pictures(4))
    cache.put(("b", "c"), pictures(2, 2))
    assert cache.get(("a",)) and cache.get(("b", "c")) and cache.get(("a",))
    assert not cache.get(("b",))
    cache.put(("d",), pictures(4))
    assert [bool(cache.get(names)) for names in (("a",), ("b", "c"), ("d",))] == [True, False, True]
    cache.put(("too large",), pictures(24))
    assert not any(cache.get((name,)) for name in ("a", "d", "too large"))
