"""Verifiers of a user's own: one that breaks on some answers, and one that tells any two answers apart."""

from __future__ import annotations

import zlib


def unreliable(response: str, gold: str) -> float:
    if zlib.crc32(response.encode()) % 3 == 1:
        raise RuntimeError("broken on purpose")
    return float(len(response) % 2)


def checksum(response: str, gold: str) -> float:
    return zlib.crc32(response.encode()) % 1000 / 1000
