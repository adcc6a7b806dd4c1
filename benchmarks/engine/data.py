"""What is asked: random pictures, and one question about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

QUESTION = "Which shape is not like the others? Think it through, then answer."


def pictures(folder: Path, side: int, count: int) -> list[Path]:
    """Files of random coloured cells, made when they are first asked for."""
    folder = folder / "pictures"
    folder.mkdir(exist_ok=True)
    found = []
    for number in range(count):
        path = folder / f"{side}-{number}.png"
        if not path.exists():
            cells = np.random.default_rng([side, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            PIL.Image.fromarray(cells).resize((side, side), PIL.Image.Resampling.NEAREST).save(path)
        found.append(path)
    return found
