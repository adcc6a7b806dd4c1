"""What all tests share: hypothesis without deadlines, real tiny models, playground rows and the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Verdicts must not depend on the machine's load, so that no test may have a deadline.
settings.register_profile("vtriune", deadline=None)
settings.load_profile("vtriune")

Vtriune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def vtriune() -> Vtriune:
    """The command itself, in a process of its own: `vtriune("judge", "--help", cwd=folder)`."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vtriune.cli", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env=environment, check=False)

    return run


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
