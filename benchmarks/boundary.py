"""Two noisy moons and a small network, trained with and without adversarial smoothness: accuracy and decision boundary.

Run: boundary.py [--seeds 20]. Per seed: 60 training points of which a tenth has the wrong label, 2,000 test points with the
right ones, one network from the same weights plain and smooth. Radius and weight are chosen beforehand by accuracy on 60
held-out points (noisy labels too) of other seeds. Prints the accuracies and the paired difference with its 95 % interval;
writes results/boundary.json and, where matplotlib is, docs/images/boundary.svg.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from environments import HERE, python_of, why_missing
from harness import RESULTS, progress, save, settings_of
from intervals import paired_difference
from smoothtune.smoothness import Smoothness

TRAIN, TEST, NOISE, WRONG, STEPS, WIDTH = 60, 2000, 0.25, 0.1, 500, 100
RADII, WEIGHTS = (0.1, 0.2, 0.3, 0.4), (0.5, 1.0, 3.0)
TUNING_SEEDS = 5
EDGE, CELLS = ((-2.0, 3.0), (-1.6, 2.1)), 100


def points(count: int, seed: int, wrong: float) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and labels (count,), a share `wrong` of which is turned over."""
    x, labels = make_moons(count, noise=NOISE, random_state=seed)
    turned = np.random.default_rng(seed).permutation(count)[: round(wrong * count)]
    labels[turned] = 1 - labels[turned]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def network(seed: int) -> nn.Module:
    """Two hidden layers; the seed names the weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)
    )  # fmt: skip


def trained(seed: int, x: Tensor, labels: Tensor, smooth: Smoothness | None) -> nn.Module:
    """A network after `STEPS` steps of AdamW on all points at once."""
    model = network(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(STEPS):
        logits, term = (model(x), 0.0) if smooth is None else smooth(model, x)
        optimiser.zero_grad()
        (cross_entropy(logits, labels) + term).backward()
        optimiser.step()
    return model


def smoothness(radius: float, weight: float) -> Smoothness:
    """The preset `exact` at a radius that fits these features; noise and step have its proportions."""
    return Smoothness(
        "classification", preset="exact", weight=weight, radius=radius, noise=radius / 10, step_size=radius
    )


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Share of points on the right side."""
    with torch.no_grad():
        return float((model(x).argmax(-1) == labels).float().mean())


def tuned() -> tuple[float, float]:
    """Radius and weight of the best mean accuracy on held-out points of seeds that are not reported."""
    found: dict[tuple[float, float], float] = {}
    for radius, weight in product(RADII, WEIGHTS):
        scores = []
        for seed in range(1000, 1000 + TUNING_SEEDS):
            model = trained(seed, *points(TRAIN, seed, WRONG), smoothness(radius, weight))
            scores.append(accuracy(model, *points(TRAIN, seed + 500, WRONG)))
        found[radius, weight] = statistics.fmean(scores)
        progress(f"radius {radius}, weight {weight}: held-out accuracy {found[radius, weight]:.3f}")
    return max(found, key=lambda pair: found[pair])


def surface(model: nn.Module) -> list[str]:
    """The chance of class 1 on a grid of CELLS x CELLS points, in thousandths; a line per row, from below."""
    across, up = (torch.linspace(*edge, CELLS) for edge in EDGE)
    grid = torch.cartesian_prod(up, across).flip(-1)
    with torch.no_grad():
        chance = model(grid).softmax(-1)[:, 1]
    return [" ".join(str(round(1000 * float(value))) for value in row) for row in chance.view(CELLS, CELLS)]


def compared(seeds: Sequence[int], radius: float, weight: float) -> dict[str, Any]:
    """Test accuracy of both by seed, their difference, and what the figure needs of the first seed."""
    found: dict[str, Any] = {"plain": [], "smooth": [], "figure": {}}
    for seed in seeds:
        x, labels = points(TRAIN, seed, WRONG)
        test = points(TEST, seed + 500, 0.0)
        for side, term in (("plain", None), ("smooth", smoothness(radius, weight))):
            model = trained(seed, x, labels, term)
            found[side].append(accuracy(model, *test))
            if seed == seeds[0]:
                found["figure"][side] = surface(model)
                found["figure"] |= {
                    "points": [[round(float(value), 3) for value in point] for point in x],
                    "labels": labels.tolist(),
                    "edge": EDGE,
                }
    difference = paired_difference(found["smooth"], found["plain"]).to_json() if len(seeds) > 1 else None
    return {**found, "difference": difference, "radius": radius, "weight": weight}


def draw() -> None:
    """Draw the figure of the saved results, where matplotlib is."""
    python = python_of("plot")
    if python is None:
        progress(f"no figure: {why_missing('plot')}")
        return
    out = HERE.parent / "docs" / "images" / "boundary.svg"
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([python, str(HERE / "boundary_plot.py"), str(RESULTS / "boundary.json"), str(out)], check=True)


def main() -> None:
    """Tune, compare, print, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="networks per side that are reported")
    seeds = list(range(parser.parse_args().seeds))
    torch.set_num_threads(1)  # the network is far too small for more
    radius, weight = tuned()
    found = compared(seeds, radius, weight)
    print(f"radius {radius}, weight {weight}, {len(seeds)} seeds")
    for side in ("plain", "smooth"):
        print(f"{side}: mean test accuracy {statistics.fmean(found[side]):.3f}")
    if found["difference"] is not None:
        print("smooth - plain: {value:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}".format(**found["difference"]))
    save("boundary", {**settings_of(), **found})
    draw()


if __name__ == "__main__":
    main()
