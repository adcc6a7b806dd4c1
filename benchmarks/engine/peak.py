"""What a device can do at best: the rate of one large matrix product."""

from __future__ import annotations

import time

import torch


def matrix_rate(device: str, dtype: str, threads: int) -> float:
    """FLOP/s of the fastest of some products of square matrices."""
    torch.set_num_threads(threads)
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
