"""The prompt pool (paper, section 4): 10 "step by step" x 10 "box the answer" sentences for math-verified samples.

Whether the pool is used at all is the recipe's choice. Chat templates belong to the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vtriune.data.seeds import stable_hash
from vtriune.types import Message, Sample

STEP_BY_STEP: Final = (
    "Reason step by step before you answer.",
    "Think the question through one step at a time.",
    "Work towards the answer in small steps and write each of them down.",
    "Show how you reach your answer, step after step.",
    "Lay out your reasoning in order, from what you see to what follows from it.",
    "Take the problem apart and settle its parts one by one.",
    "Explain every step of your thinking on the way to the answer.",
    "First look closely, then reason step by step.",
    "Let each step of your reasoning follow from the one before.",
    "Go through the problem slowly and justify each step.",
)
BOX_THE_ANSWER: Final = (
    r"Write your final answer in \boxed{}.",
    r"Give the final answer inside \boxed{}.",
    r"At the end, state only the answer in \boxed{}.",
    r"Once you are sure, put the result in \boxed{}.",
    r"Your last line should hold the answer in \boxed{}.",
    r"Close with the answer, enclosed by \boxed{}.",
    r"When you are done, box the answer as \boxed{}.",
    r"The answer itself belongs in \boxed{}.",
    r"Mark your final result with \boxed{}.",
    r"Finish by writing the solution within \boxed{}.",
)
NAME_THE_TAGS: Final = (
    "Put the reasoning between <think> and </think>, and the boxed answer after it between <answer> and </answer>."
)
"""Added where the sample also weighs the format reward (eq. 4): what is rewarded is asked for."""


def with_prompt_pool(sample: Sample, epoch: int, seed: int) -> Sample:
    """Return the training prompt: the sample with one of the 100 pairs, drawn by (seed, sample, epoch).

    Samples that are not verified by mathverify are returned as they are: their rows hold their instructions.
    """
    drawn = stable_hash(seed, sample.id, epoch)
    return _instructed(sample, STEP_BY_STEP[drawn % 10], BOX_THE_ANSWER[drawn // 10 % 10])


def with_fixed_prompt(sample: Sample) -> Sample:
    """Return the test prompt: always the first pair, so that tests ask as training does but never vary."""
    return _instructed(sample, STEP_BY_STEP[0], BOX_THE_ANSWER[0])


def _instructed(sample: Sample, *sentences: str) -> Sample:
    if sample.reward.verifier != "mathverify":
        return sample
    if sample.reward.format_weight > 0:
        sentences = (*sentences, NAME_THE_TAGS)
    *before, question = sample.messages
    asked = Message(question.role, question.content + "\n\n" + " ".join(sentences))
    return replace(sample, messages=(*before, asked))
