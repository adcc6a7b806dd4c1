"""What all tests share: hypothesis without deadlines, real tiny models, playground rows and the real command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import settings

# Verdicts must not depend on the machine's load, so that no test may have a deadline.
# In CI the same examples every time: a new counterexample is found by whoever develops, not by whoever pushes.
settings.register_profile("vtriune", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("vtriune")

TEACHING = 120
"""Steps that `taught_model` is taught; at temperature 0.6 it makes few mistakes after them."""

BOX = '[{{"bbox_2d": [0, 1, 8, {}], "label": "box"}}]'
"""An answer whose IoU with the gold of `rows` is 0.75, 0.875 or 1 if it is filled with 7, 8 or 9."""

Vtriune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of recorded data."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def vtriune() -> Vtriune:
    """The command itself, in a process of its own: `vtriune("judge", "--help", cwd=folder)`."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vtriune.cli", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env=environment, check=False)

    return run


@dataclass
class RunningServer:
    """`vtriune serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait()


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def judge_workers(pid: int) -> list[int]:
    """Process ids of the judge workers of a training or a server: the children of its fork server."""
    forks = [one for one in children(pid) if b"vtriune.reward.forkserver" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return [worker for fork_server in forks for worker in children(fork_server)]


StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="module")
def reward_server() -> Iterator[StartServer]:
    """`reward_server("--workers", "1")` starts one on a free port or the given `--port`; all end with the module."""
    running = []

    def start(*arguments: str, headers: dict[str, str] | None = None) -> RunningServer:
        port = () if "--port" in arguments else ("--port", "0")
        command = [sys.executable, "-m", "vtriune.cli", "serve", *port, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        running.append(process)
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        server = RunningServer(process, found.group())
        while httpx.get(server.url + "/readyz", headers=headers).status_code == httpx.codes.SERVICE_UNAVAILABLE:
            time.sleep(0.02)
        return server

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Qwen2.5-VL of the playground's size and random weights."""
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from vtriune.playground.base import build_model, build_tokenizer

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = build_tokenizer(0)
    torch.manual_seed(0)
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        min_pixels=112 * 112,
        max_pixels=112 * 112,
        image_mean=[0.92] * 3,
        image_std=[0.25] * 3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `test`: two rows of every task of the playground each, one of each source."""
    from vtriune.playground.dataset import write_playground

    folder = tmp_path_factory.mktemp("playground")
    write_playground(folder, seed=3, train=2, test=2)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows that `taught_model` answers: `{train,test}_dots.jsonl` and `{train,test}_boxes.parquet`.

    Dots are counted in pictures beside the file, and once without any picture. The gold box is always the same.
    """
    import orjson
    from PIL import Image, ImageDraw

    from vtriune.data.schema import Row, write_rows

    folder = tmp_path_factory.mktemp("rows")
    for split, first in (("train", 0), ("test", 8)):
        lines = []
        boxes: list[Row] = []
        for number in range(first, first + 8):
            file, dots = folder / f"dots_{number}.png", number % 4 + 1
            picture = Image.new("RGB", (112, 112), "white")
            for dot in range(dots):
                ImageDraw.Draw(picture).ellipse((28 * dot, 7 * number, 28 * dot + 14, 7 * number + 14), fill="black")
            picture.save(file)
            text_only = number == first
            lines.append(
                {
                    "data_source": "dots",
                    "images": [] if text_only else [file.name],
                    "prompt": [
                        {"role": "user", "content": "What is 0 + 1?" if text_only else "<image>Count the dots."}
                    ],
                    "ability": "counting",
                    "reward_model": {"ground_truth": str(dots), "verifier": "mathverify"},
                }
            )
            boxes.append(
                {
                    "data_source": "boxes",
                    "images": [{"bytes": file.read_bytes(), "path": None}],
                    "prompt": [{"role": "user", "content": "<image>Detect every box."}],
                    "ability": "detection",
                    "reward_model": {
                        "answer": None,
                        "ground_truth": BOX.format(9),
                        "accuracy_ratio": 1.0,
                        "format_ratio": 0.1,
                        "verifier": "detection",
                    },
                }
            )
        (folder / f"{split}_dots.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        write_rows(boxes, folder / f"{split}_boxes.parquet")
    return folder


@pytest.fixture(scope="session")
def taught_model(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""The tiny model, taught by rote what it needs for answers that are short and rewarded differently.

    It answers the boxes of `rows` with BOX filled with 7, 8 or 9, each about as often, and instructions to box the
    answer with \boxed{1} to \boxed{4}.
    """
    import random

    import torch

    from vtriune.data.prompts import with_prompt_pool
    from vtriune.data.sources import SourceConfig, load_samples
    from vtriune.local.logprobs import response_logprobs
    from vtriune.local.model import ModelConfig, VisionLanguageModel

    torch.set_num_threads(1)
    vlm = VisionLanguageModel(ModelConfig(path=str(tiny_model), freeze=["vision", "connector"]))
    loaded = load_samples(
        SourceConfig(path="train_*"), preset="modern", base=rows, check=lambda *_: lambda: None
    ).samples
    samples = [with_prompt_pool(sample, epoch, seed=0) for epoch in range(4) for sample in loaded]
    prompts = [(vlm.encode(sample), sample.source == "boxes") for sample in samples]
    rng = random.Random(0)
    optimizer = torch.optim.AdamW([one for one in vlm.model.parameters() if one.requires_grad], lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, TEACHING)
    for _ in range(TEACHING):
        batch = rng.sample(prompts, 4)
        texts = [
            [BOX.format(rng.choice((7, 8, 9))) if boxes else f"\\boxed{{{rng.randint(1, 4)}}}" for _ in range(4)]
            for _, boxes in batch
        ]
        answers = [
            [np.array(vlm.tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)) for text in group]
            for group in texts
        ]
        lengths = [len(ids) for group in answers for ids in group]
        # Between every token and every answer counting alike: boxes are long, numbers are short.
        weights = torch.tensor(np.repeat(np.array(lengths) ** -0.5, lengths), dtype=torch.float32)
        loss = -(response_logprobs(vlm, [prompt for prompt, _ in batch], answers, 1.0) * weights).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    folder = tmp_path_factory.mktemp("taught_model")
    vlm.model.save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)
    vlm.image_processor.save_pretrained(folder)
    return folder
