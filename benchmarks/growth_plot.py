"""Draws results/growth.json: one panel per axis, both scales logarithmic.

Run: growth_plot.py RESULTS OUT; needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

LABELS = {"length": "tokens of a text", "batch": "rows of a batch", "tasks": "tasks", "rows": "training rows"}


def draw(results: Path, out: Path) -> None:
    """One panel per axis."""
    plt.rcParams["svg.hashsalt"] = "growth"  # the same numbers give the same file
    axes = json.loads(results.read_text())["axes"]
    figure, panels = plt.subplots(
        1, len(axes), figsize=(3.2 * len(axes), 2.8), layout="constrained", squeeze=False, sharey=True
    )
    for panel, (axis, points) in zip(panels[0], axes.items(), strict=True):
        values = [point["value"] for point in points]
        panel.plot(values, [1e3 * point["seconds_per_step"] for point in points], marker="o")
        panel.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel="ms per step")
        panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
