"""A verifier of a user's own that breaks on some answers: what becomes of them in a run on verl."""

from __future__ import annotations

import zlib


def unreliable(response: str, gold: str) -> float:
    if zlib.crc32(response.encode()) % 3 == 1:
        raise RuntimeError("broken on purpose")
    return float(len(response) % 2)
