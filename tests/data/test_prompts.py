import re
import subprocess
import sys
from collections import Counter

import pytest

from vtriune.data.prompts import BOX_THE_ANSWER, NAME_THE_TAGS, STEP_BY_STEP, with_fixed_prompt, with_prompt_pool
from vtriune.types import Message, RewardSpec, Sample

SAMPLE = Sample(
    id="train.parquet#7",
    source="mm_math",
    task="math",
    messages=(Message("system", "Be brief."), Message("user", "<image>How many?")),
    images=(),
    reward=RewardSpec("mathverify", "4"),
)


def renamed(number: int) -> Sample:
    return Sample(f"train.parquet#{number}", "s", "t", SAMPLE.messages, (), SAMPLE.reward)


def added(sample: Sample) -> str:
    question = sample.messages[-1].content
    assert question.startswith("<image>How many?\n\n")
    return question.removeprefix("<image>How many?\n\n")


def test_the_pool_is_ten_by_ten_different_sentences_and_no_mark_or_tag_among_them() -> None:
    assert len(set(STEP_BY_STEP)) == len(set(BOX_THE_ANSWER)) == 10
    assert all(sentence.count(r"\boxed{}") == 1 for sentence in BOX_THE_ANSWER)
    assert not any("boxed" in sentence or "<" in sentence for sentence in STEP_BY_STEP)
    assert all(re.fullmatch(r"[A-Z].*\.", sentence) for sentence in STEP_BY_STEP + BOX_THE_ANSWER)


def test_the_draw_is_a_function_of_seed_sample_and_epoch() -> None:
    assert with_prompt_pool(SAMPLE, epoch=0, seed=1) == with_prompt_pool(SAMPLE, epoch=0, seed=1)
    assert len({added(with_prompt_pool(SAMPLE, epoch, seed=1)) for epoch in range(50)}) > 25
    assert len({added(with_prompt_pool(SAMPLE, 0, seed)) for seed in range(50)}) > 25
    assert len({added(with_prompt_pool(renamed(n), 0, seed=1)) for n in range(50)}) > 25


def test_all_hundred_pairs_are_drawn_about_equally_often() -> None:
    pairs = Counter(added(with_prompt_pool(renamed(n), 0, seed=1)) for n in range(10_000))
    assert set(pairs) == {f"{first} {second}" for first in STEP_BY_STEP for second in BOX_THE_ANSWER}
    assert all(55 < n < 150 for n in pairs.values())  # 100 +- 4.5 standard deviations


def test_only_the_last_turn_changes_and_the_rest_of_the_sample_stays() -> None:
    asked = with_prompt_pool(SAMPLE, 0, 1)
    assert asked.messages[0] == SAMPLE.messages[0]
    assert (asked.id, asked.source, asked.task, asked.reward) == (SAMPLE.id, "mm_math", "math", SAMPLE.reward)


def test_test_prompts_are_always_the_first_pair() -> None:
    assert {added(with_fixed_prompt(renamed(n))) for n in range(20)} == {f"{STEP_BY_STEP[0]} {BOX_THE_ANSWER[0]}"}


@pytest.mark.parametrize("verifier", ["detection", "something of the user's"])
def test_samples_of_other_verifiers_keep_their_prompts(verifier: str) -> None:
    sample = Sample("a#1", "s", "t", SAMPLE.messages, (), RewardSpec(verifier, "[]", 1.0, 0.5))
    assert with_prompt_pool(sample, 0, 1) is sample
    assert with_fixed_prompt(sample) is sample


def test_where_the_format_is_rewarded_its_tags_are_asked_for() -> None:
    weighed = Sample("a#1", "s", "t", SAMPLE.messages, (), RewardSpec("mathverify", "4", 1.0, 0.1))
    for asked in (with_prompt_pool(weighed, 0, 1), with_fixed_prompt(weighed)):
        assert added(asked).endswith(f" {NAME_THE_TAGS}")
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert NAME_THE_TAGS.count(tag) == 1


def test_another_process_draws_the_same_sentences() -> None:
    code = (
        "from vtriune.data.prompts import *; from vtriune.types import *;"
        "asked = (Message('user', 'How many?'),);"
        "sample = Sample('train.parquet#7', 's', 't', asked, (), RewardSpec('mathverify', '4'));"
        "print(with_prompt_pool(sample, 3, 1).messages[0].content)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"How many?\n\n{added(with_prompt_pool(SAMPLE, 3, 1))}\n".encode()}
