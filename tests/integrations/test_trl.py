"""The real GRPOTrainer of TRL, sampling and learning with the playground's model, rewarded by our judge.

Runs where trl is installed: `make test-adapters`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vtriune.playground
from vtriune.data.schema import write_rows
from vtriune.data.sources import SourceConfig, load_samples
from vtriune.integrations.trl import JudgeReward
from vtriune.playground.dataset import rows
from vtriune.reward.label import write_label
from vtriune.reward.pool import JudgePool
from vtriune.types import RewardSpec, Sample

MODEL = Path(vtriune.playground.__file__).parent / "base_model"
GROUP = 4


def row(sample: Sample, reward: RewardSpec) -> dict[str, Any]:
    """A sample as a row of TRL's data set."""
    question = sample.messages[0].content.replace("<image>", "")
    labelled = Sample(sample.id, sample.source, sample.task, (), (), reward)
    return {
        "prompt": [{"role": "user", "content": question}],
        "image": sample.images[0].load(),
        "reward_label": write_label(labelled),
    }


@pytest.mark.heavy
def test_trl_learns_from_our_verdicts_and_logs_our_figures_of_each_source(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from benchmarks.engine.peer import Processor

    path = tmp_path / "train_math_math_2.parquet"
    write_rows(rows("math", "math", rare=False, split="train", count=2, seed=0), path)
    loaded = load_samples(SourceConfig(path=str(path)), preset="modern", base=tmp_path, check=lambda *_: lambda: None)
    good, bad = loaded.samples
    broken = Sample(bad.id, "broken", bad.task, bad.messages, bad.images, bad.reward)
    table = datasets.Dataset.from_list([row(good, good.reward), row(broken, RewardSpec("no such verifier", "4"))])
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(MODEL, attn_implementation="sdpa")
    model.model.visual.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with JudgePool(workers=1) as judge:
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=JudgeReward(judge, [tokenizer.eos_token_id]),
            args=trl.GRPOConfig(
                output_dir=str(tmp_path),
                use_cpu=True,
                bf16=False,
                per_device_train_batch_size=2 * GROUP,
                num_generations=GROUP,
                max_completion_length=96,
                temperature=1.5,
                max_steps=2,
                learning_rate=1e-3,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=table.cast_column("image", datasets.Image()),
            processing_class=Processor(
                Qwen2VLImageProcessorPil.from_pretrained(MODEL), tokenizer, chat_template=tokenizer.chat_template
            ),
        )
        trainer.train()
    lines = [one for one in trainer.state.log_history if "reward" in one]
    assert len(lines) == 2
    for line in lines:
        assert (line["math/rollouts"], line["broken/rollouts"], line["all/groups"]) == (GROUP, GROUP, 2)
        assert (line["math/unscorable"], line["broken/unscorable"]) == (0, 1)
        assert "broken/reward" not in line
        # TRL's own mean is that of the answers with a verdict.
        assert line["reward"] == pytest.approx(line["math/reward"], abs=1e-6)
        assert line["rewards/vtriune/mean"] == pytest.approx(line["math/reward"], abs=1e-6)
        assert line["all/length"] == pytest.approx(line["completions/mean_length"], abs=1e-6)
        assert line["all/truncated"] == pytest.approx(line["completions/clipped_ratio"], abs=1e-6)
        assert not any(math.isnan(line[name]) for name in line if name.startswith(("math/", "all/", "broken/")))
    logs = trainer._logs
    told = list(zip(logs["rewards"]["vtriune"], logs["extra"]["status"], logs["advantages"], strict=True))
    for reward, status, advantage in told:
        assert math.isnan(reward) == (status == "unscorable")
        assert advantage == 0 or status == "scored"
    assert {status for _, status, _ in told} == {"scored", "unscorable"}
    learned = any(advantage for _, _, advantage in told)
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert bool(changed) == learned
    assert not any("visual" in name for name in changed)
