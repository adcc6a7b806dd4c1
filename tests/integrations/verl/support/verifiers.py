"""Verifiers of a user's own: one that breaks on some answers, one on all, and one that tells any two answers apart."""

from __future__ import annotations

import zlib

from vtriune.session import TRIAL_ANSWERS


def unreliable(response: str, gold: str) -> float:
    if zlib.crc32(response.encode()) % 3 == 1:
        raise RuntimeError("broken on purpose")
    return float(len(response) % 2)


def broken(response: str, gold: str) -> float:
    if response in TRIAL_ANSWERS:  # else the rows would be refused before the run
        return 0.0
    raise RuntimeError("broken on purpose")


def checksum(response: str, gold: str) -> float:
    return zlib.crc32(response.encode()) % 1000 / 1000
