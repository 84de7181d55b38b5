"""How far gradients are from float64 beside large scores, by kernels and by torch alone: a table of docs/kernels.md.

Run: python benchmarks/kernel_errors.py [--before FOLDER]. FOLDER is a checkout of an earlier commit, whose kernels are a side
too. Writes results/kernel_errors.json.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from environments import HERE
from harness import Side, progress, run_side, save, settings_of
from tables import table, where

OUT = HERE.parent / "docs" / "kernels.md"
PLACE = r"(<!-- table: {name} -->\n).*?(<!-- end -->)"
SPEC = {"scales": [1.0, 10.0, 100.0, 1e3, 1e4], "spreads": [0.02, 0.2], "seeds": 10}
WORKER = "gradient_errors.py"


def sides(before: Path | None) -> list[Side]:
    """Kernels, torch alone, and the kernels of an earlier commit."""
    now = [
        Side("kernels", WORKER, variables={"SMOOTHTUNE_KERNELS": "auto"}),
        Side("torch alone", WORKER, variables={"SMOOTHTUNE_KERNELS": "plain"}),
    ]
    if before is None:
        return now
    source = str(before.resolve() / "src")
    return [*now, Side("kernels before", WORKER, variables={"SMOOTHTUNE_KERNELS": "auto", "PYTHONPATH": source})]


def fill(name: str, text: str) -> None:
    """Put `text` between the marks of a table of docs/kernels.md."""
    page = OUT.read_text(encoding="utf-8")
    place = re.compile(PLACE.format(name=name), re.DOTALL)
    OUT.write_text(place.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page), encoding="utf-8")


def page_of(result: dict[str, Any]) -> str:
    """A line for each deviation of the weights and scale, a column for each side."""
    names = list(result["sides"])
    lines = [
        [
            f"{float(scale):,.0f}, weights of N(0, {spread})",
            *(f"{result['sides'][name][spread][scale]:.1e}" for name in names),
        ]
        for spread in result["sides"][names[0]]
        for scale in result["sides"][names[0]][spread]
    ]
    head = ("scale", *names)
    return f"{table(head, lines)}\n\nMedians of {SPEC['seeds']} encoders. {where(result)}"


def main() -> None:
    """Measure, save and fill the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    errors = {}
    for side in sides(parser.parse_args().before):
        report = run_side(side, SPEC, threads=1)
        progress(f"{side.name}: kernels {'used' if report['kernels'] else 'not used'}")
        errors[side.name] = report["errors"]
    result = {**settings_of(threads=1), "sides": errors}
    save("kernel_errors", result)
    fill("kernel errors", page_of(result))


if __name__ == "__main__":
    main()
