"""What a run depends on beside its recipe and its data."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path


def versions(threads: int) -> dict[str, str | int | None]:
    """Versions of python and of packages, source commit, platform; `threads` as the engine computes with."""
    packages = ["vtriune", "torch", "transformers", "numpy", "pyarrow", "math-verify"]
    if "verl" in sys.modules:  # which this run is on
        installed = {package.name for package in distributions()}
        packages += [
            name for name in ("verl", "ray", "tensordict", "TransferQueue", "vllm", "sglang") if name in installed
        ]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "commit": _commit(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
    }


def _commit() -> str | None:
    """The git commit of this source tree, `-dirty` if it was changed since; None if it is not under git."""
    here = Path(__file__)
    try:
        # An installed package may lie in somebody else's repository: ask whether this very file is tracked.
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, check=True, capture_output=True
        )
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here.parent,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
