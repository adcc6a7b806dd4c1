"""A checkpoint as an ordinary transformers folder, adapters merged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vtriune.local.checkpoint import OPTIMIZER_FILE, STATE_FILE, UNFINISHED, damaged
from vtriune.local.lora import WEIGHTS_FILE, load_adapters, merge_adapters
from vtriune.local.model import ModelConfig, VisionLanguageModel
from vtriune.types import UserError


def export(config: ModelConfig, checkpoint: Path, out: Path) -> None:
    """Write a checkpoint of a model trained as `config` says into the new folder `out`, which appears whole or not.

    Raises:
        UserError: `out` exists or can't be written, adapters are damaged, or their base is gone.
    """
    with new_folder(out) as unfinished:
        if config.lora is None:
            copy_files(checkpoint, unfinished, without=(STATE_FILE, OPTIMIZER_FILE))
        else:
            _merged(config, checkpoint).save(unfinished)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `out` at the end unless an error comes before.

    Raises:
        UserError: `out` exists or can't be written.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; delete it, or give a new folder")
    unfinished = out.with_name(f".{out.name}{UNFINISHED}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(out)
    except OSError as error:
        raise UserError(f"{out}: can't be written ({error.strerror or error}); give another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def copy_files(source: Path, target: Path, *, without: Sequence[str]) -> None:
    """Copy a folder's content, but for names of these patterns."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)


def _merged(config: ModelConfig, checkpoint: Path) -> VisionLanguageModel:
    vlm = VisionLanguageModel(config.model_copy(update={"device": "cpu"}))
    try:
        load_adapters(vlm.model, checkpoint)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file leads safetensors to
        raise damaged(checkpoint / WEIGHTS_FILE, error) from error
    merge_adapters(vlm.model)
    return vlm
