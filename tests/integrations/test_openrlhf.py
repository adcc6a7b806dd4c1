"""OpenRLHF's own client asks a real server of ours, and OpenRLHF's own code makes of the reply what it trains on.

Runs where openrlhf is installed: `make test-adapters`. Its sampling engine (vLLM, Ray) isn't there: it alone is
replaced, by one that answers with the tokens of a given text.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image
from tests.reward.conftest import Server
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vtriune.playground
from vtriune.reward.label import write_label
from vtriune.types import ImageSize, RewardSpec, Sample

MODEL = Path(vtriune.playground.__file__).parent / "base_model"
PICTURE = Image.new("RGB", (168, 112))
BOX = RewardSpec(
    "detection",
    '<answer>[{"bbox_2d": [0, 0, 80, 80], "label": "box"}]</answer>',
    accuracy_weight=0.9,
    format_weight=0.1,
    parameters={"gold_space": "absolute_original", "answer_space": "absolute_resized", "iou_threshold": 0.5},
)
HALF = '<think>\n?\n</think>\n<answer>[{"bbox_2d": [0, 0, 40, 24], "label": "box"}]</answer>'
"""IoU 0.6 with gold, in pixels of the resized picture."""

Sampled = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def processor() -> Any:
    pytest.importorskip("openrlhf", reason="openrlhf isn't installed here: make test-adapters")
    from benchmarks.engine.peer import Processor

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return Processor(Qwen2VLImageProcessorPil.from_pretrained(MODEL), tokenizer, chat_template=tokenizer.chat_template)


@pytest.fixture
def sampled(server: Server, processor: Any) -> Sampled:
    """A row through OpenRLHF's data set and its executor, as its sampling engine's actor calls it."""
    from openrlhf.datasets.prompts_dataset import PromptDataset
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    data = SimpleNamespace(input_key="input", label_key="reward_label", apply_chat_template=True, image_key="images")
    strategy = SimpleNamespace(args=SimpleNamespace(data=data), is_rank_0=lambda: True)

    def sample(answer: str, spec: RewardSpec, question: str = "<image>2 + 2?") -> dict[str, Any]:
        pictures = question.count("<image>")
        sizes = [ImageSize((168, 112), (84, 56))] * pictures
        label = write_label(Sample("a#0", "gsm", "", (), (), spec), "train", sizes)
        rows = [{"input": question, "images": [PICTURE] * pictures or None, "reward_label": label}]
        _, prompt, label, images = PromptDataset(rows, processor, strategy)[0]
        ids = processor.tokenizer(answer + processor.tokenizer.eos_token)["input_ids"]

        class Engine:
            async def generate(self, *_: Any, **__: Any) -> Any:
                return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])

        executor = SingleTurnAgentExecutor([f"{server.url}/openrlhf"])
        parameters = SimpleNamespace(max_tokens=96, logprobs=None)
        told: dict[str, Any] = asyncio.run(
            executor.execute(prompt, label, parameters, 2048, processor, Engine(), images=images)
        )
        return told

    return sample


@pytest.fixture
def experience(monkeypatch: pytest.MonkeyPatch, processor: Any) -> Callable[[dict[str, Any]], Any]:
    """What OpenRLHF trains on: `SamplesGenerator._process_response_into_experience`, which needs no Ray, no vLLM."""
    for name in ("ray", "ray.util", "ray.util.placement_group", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    for name in ("vllm", "vllm.inputs", "vllm.utils"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    strategy = SimpleNamespace(args=None)
    made: Callable[[dict[str, Any]], Any] = SamplesGenerator(
        strategy, None, None, processor, []
    )._process_response_into_experience
    return made


@pytest.mark.parametrize("question", ["2 + 2?", "<image>2 + 2?", "<image><image>2 + 2?"])
@pytest.mark.parametrize(("answer", "reward"), [(r"It is \boxed{4}.", 1.0), (r"\boxed{5}", 0.0)])
def test_its_client_is_told_our_verdict_with_and_without_pictures(
    sampled: Sampled, experience: Callable[[dict[str, Any]], Any], question: str, answer: str, reward: float
) -> None:
    told = sampled(answer, RewardSpec("mathverify", "4"), question)
    assert (told["reward"], told["scores"]) == (reward, reward)
    assert told["extra_logs"] == {"accuracy": reward, "format": 0.0, "correct": reward}
    learned = experience(told)
    assert (learned.rewards.tolist(), learned.scores.tolist()) == ([reward], [reward])
    assert {key: learned.info[key].tolist() for key in ("reward", "accuracy", "format", "correct")} == {
        "reward": [reward],
        "accuracy": [reward],
        "format": [0.0],
        "correct": [reward],
    }


def test_boxes_are_judged_by_the_pictures_sizes(sampled: Sampled) -> None:
    told = sampled(HALF, BOX)
    assert told["reward"] == pytest.approx(0.9 * 0.6 + 0.1)
    assert told["extra_logs"]["format"] == 1.0


@pytest.mark.parametrize("question", [r"Write \boxed{4}.", r"<image>Write \boxed{4}."])
def test_what_the_prompt_says_is_no_part_of_the_answer(sampled: Sampled, question: str) -> None:
    assert sampled("No.", RewardSpec("mathverify", "4"), question)["reward"] == 0.0


def test_without_a_verdict_its_client_asks_five_times_and_its_batch_cannot_be_made(
    sampled: Sampled, experience: Callable[[dict[str, Any]], Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openrlhf.utils.agent

    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    with monkeypatch.context() as patched:
        patched.setattr(openrlhf.utils.agent, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
        told = sampled("4", RewardSpec("no such verifier", "4"))
    assert len(waited) == 5
    assert (told["reward"], told["scores"], told["extra_logs"]) == (None, None, {})
    good, bad = experience(sampled(r"\boxed{4}", RewardSpec("mathverify", "4"))), experience(told)
    assert bad.rewards is None
    with pytest.raises(AttributeError):
        type(good).concat_experiences([good, bad], pad_token_id=0)
    assert type(good).concat_experiences([bad, good], pad_token_id=0).rewards is None
