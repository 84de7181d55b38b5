"""Writes docs/benchmarks.md from results/*.json and notes/*.md. Measures nothing; a part that was not measured says so.

Run: python benchmarks/page.py. `notes/PART.md`, where there is one, is put at the end of the part's section.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sections
from environments import HERE
from harness import progress, read
from tables import table, where
from targets import all_targets, shares_of_peak

OUT = HERE.parent / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

This page is written by `make bench-page` from `benchmarks/results/`; `make bench` measures everything anew, and every section
names the command that measures it alone.

Each side is a process of its own; sides take turns, so that a slow minute of the machine meets all of them. All have the same
rows, the same encoder (all-MiniLM-L6-v2, real weights), batches of 32 rows, at most 128 tokens. In each process one pass over
the rows pays every first-time cost, and the next pass is timed. A ratio is the median time of a side over the median of ours,
with a 95 % bootstrap interval. The bundled encoder saw Quora questions in its own pre-training: only times, not scores, are
compared on them.
"""


def main() -> None:
    """Write the page."""
    parts = [INTRODUCTION, _targets()]
    for title, part, command, body in SECTIONS:
        parts.append(_section(title, part, command, body))
    OUT.write_text("\n\n".join(section.strip() for section in [*parts, _cuda()]) + "\n", encoding="utf-8")
    progress(f"wrote {OUT.relative_to(HERE.parent)}")


def _section(title: str, part: str, command: str, body: Callable[[dict[str, Any]], str]) -> str:
    result, note = read(part), HERE / "notes" / f"{part}.md"
    text = "Not measured." if result is None else f"{body(result)}\n\n{where(result)}"
    extra = f"\n\n{note.read_text(encoding='utf-8').strip()}" if note.exists() else ""
    return f"## {title}\n\n`{command}`\n\n{text}{extra}"


def _targets() -> str:
    rows = [(found.aim, found.measured, "yes" if found.reached else "no") for found in all_targets()]
    return "## Aims\n\n" + (table(("aim", "measured", "reached"), rows) if rows else "Nothing was measured.")


def _cuda() -> str:
    training, shares = read("training-cuda"), list(shares_of_peak())
    if training is None:
        return "## CUDA\n\n`make bench-cuda`\n\nNot measured: there was no CUDA device."
    share = table(("workload", "step", "share of the card's best bf16 rate"), shares)
    return f"## CUDA\n\n`make bench-cuda`\n\n{sections.training(training)}\n\n{share}\n\n{where(training)}"


SECTIONS: tuple[tuple[str, str, str, Callable[[dict[str, Any]], str]], ...] = (
    ("Training", "training", "make bench-training", sections.training),
    ("The floor", "floor", "make bench-floor", sections.floor),
    ("How Trainer was tuned", "trainer_best", "make bench-tune", sections.tuning),
    ("Training by another method: setfit", "setfit", "make bench-setfit", sections.setfit),
    ("Same quality", "quality", "make bench-quality", sections.quality),
    ("Training with pwim_resnet", "pwim_resnet", "make bench-pwim", sections.training),
    ("Three tasks", "three_tasks", "make bench-three-tasks", sections.three_tasks),
    ("A frozen encoder", "frozen", "make bench-frozen", sections.printed),
    ("Prediction", "prediction", "make bench-prediction", sections.prediction),
    ("How cost grows", "growth", "make bench-growth", sections.growth),
    ("Memory against training rows", "train_memory", "make bench-train-memory", sections.printed),
    ("Start", "start", "make bench-start", sections.printed),
)

if __name__ == "__main__":
    main()
