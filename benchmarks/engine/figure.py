"""The figure of the scaling section."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib import rcParams


def draw(curves: dict[str, dict[int, float]], lines: dict[str, tuple[float, float]], path: Path) -> None:
    """A panel per curve: what was measured, and the straight line through it."""
    rcParams["svg.fonttype"] = "none"
    rcParams["svg.hashsalt"] = "engine"
    figure, panels = plt.subplots(1, len(curves), figsize=(8, 3.2), layout="constrained")
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        slope, start = lines[name]
        ends = [0, max(curve)]
        panel.plot(ends, [start + slope * end for end in ends], color="0.6", linewidth=1)
        panel.plot(list(curve), list(curve.values()), "o", color="tab:blue")
        panel.set_xlabel(name)
        panel.set_ylabel("seconds per step")
        panel.set_xlim(0, None)
        panel.set_ylim(0, None)
        panel.set_title(f"{start:.2f} s + {slope:.3f} s each", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
