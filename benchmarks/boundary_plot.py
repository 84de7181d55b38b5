"""Draws results/boundary.json: the decision boundary of the first seed's networks, plain beside smooth.

Run: boundary_plot.py RESULTS OUT; needs matplotlib.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt


def draw(results: Path, out: Path) -> None:
    """One panel per network: chance of class 1 as shade, the boundary as a line, the training points as it saw them."""
    plt.rcParams["svg.hashsalt"] = "boundary"  # the same numbers give the same file
    found = json.loads(results.read_text())
    figure = found["figure"]
    extent = [*figure["edge"][0], *figure["edge"][1]]
    drawn, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    for panel, side in zip(panels, ("plain", "smooth"), strict=True):
        chance = [[int(value) / 1000 for value in row.split()] for row in figure[side]]
        panel.imshow(
            chance,
            origin="lower",
            extent=extent,
            aspect="auto",
            cmap="RdBu",
            alpha=0.6,
            vmin=0,
            vmax=1,
            interpolation="none",
        )
        panel.contour(chance, levels=[0.5], extent=extent, colors="black", linewidths=1.2)
        for label, colour in ((0, "tab:red"), (1, "tab:blue")):
            chosen = [point for point, own in zip(figure["points"], figure["labels"], strict=True) if own == label]
            panel.scatter(*zip(*chosen, strict=True), s=14, color=colour, edgecolors="white", linewidths=0.5)
        mean = statistics.fmean(found[side])
        panel.set_title(f"{side}: {100 * mean:.1f} % right, mean of {len(found[side])} seeds", fontsize=10)
    drawn.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
