"""What both systems are given: the cell to measure, the clock, the result. Imports nothing heavy."""

from __future__ import annotations

import json
import resource
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

System = Literal["ours", "trl", "trl by prompt"]
PARTS = ("sampling", "logprobs", "update")
TEMPERATURE = 1.0
LEARNING_RATE = 1e-6
BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
EPSILON = (0.2, 0.28)
TOKENS_PER_BATCH = 4096
"""`update.tokens_per_batch` of ours, at every size."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a process of its own."""

    system: System
    folder: str
    """Of the model; the pictures lie in `pictures` within."""
    side: int
    """Of a picture in pixels: (side / 28) ** 2 image tokens."""
    prompts: int = 8
    group: int = 8
    new_tokens: int = 64
    steps: int = 3
    """Measured, after one to warm up."""
    device: str = "cpu"
    threads: int = 2
    checkpointing: bool = False
    tokens_per_batch: int = TOKENS_PER_BATCH

    @property
    def image_tokens(self) -> int:
        return (self.side // 28) ** 2


@dataclass(frozen=True, slots=True)
class Result:
    """What a process measured."""

    prompt_tokens: int
    """Of one prompt, the picture's included: the same on both sides or the comparison is void."""
    answer_tokens: tuple[int, int]
    """The fewest and the most answer tokens of a step."""
    steps: list[dict[str, float]]
    """Seconds of each measured step: `step` and the parts of it."""
    loaded: float
    """MiB resident (on a GPU: allocated) when the model and, if eager, its optimizer were there."""
    peak: float
    """MiB at most."""
    flops: float | None = None
    """Of one update, estimated."""

    def seconds(self, part: str) -> float:
        """Median over the measured steps."""
        return statistics.median(step[part] for step in self.steps)

    @property
    def spread(self) -> str:
        """Fastest and slowest step."""
        times = [step["step"] for step in self.steps]
        return f"{min(times):.2f}-{max(times):.2f}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Result:
        fields: dict[str, Any] = json.loads(text)
        return Result(**{**fields, "answer_tokens": tuple(fields["answer_tokens"])})


@dataclass(slots=True)
class Memory:
    """Memory of this process, or of the GPU if it computes there."""

    device: str
    loaded: float = field(default=0.0, init=False)

    def mark_loaded(self) -> None:
        """The model is there, nothing has been computed."""
        if self.device == "cuda":
            import torch  # noqa: PLC0415 - the process that starts the others doesn't pay for it

            torch.cuda.reset_peak_memory_stats()
            self.loaded = torch.cuda.memory_allocated() / 2**20
        else:
            status = Path("/proc/self/status")
            held = next((line for line in status.read_text().splitlines() if line.startswith("VmRSS")), "0 0")
            self.loaded = int(held.split()[1]) / 1024

    @property
    def peak(self) -> float:
        if self.device == "cuda":
            import torch  # noqa: PLC0415

            return torch.cuda.max_memory_allocated() / 2**20
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 1024)


def reward(text: str) -> float:
    """Costs nothing and differs between answers, so that no group is without a lesson."""
    return float(sum(map(ord, text)) % 101)
