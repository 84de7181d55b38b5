"""Writes docs/benchmarks.md from results/*.json and notes/*.md. Measures nothing; a part that was not measured says so.

Run: python benchmarks/page.py. `notes/PART.md`, where there is one, is put at the end of the part's section.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import adapted_sections
import sections
from environments import HERE
from harness import part_name, progress, read
from tables import table, where
from targets import all_targets

OUT = HERE.parent / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

This page is written by `make bench-page` from `benchmarks/results/`. `make bench` measures anew all but what takes long or needs
a GPU, which is run by name: `make bench-quality`, `make bench-train-memory`, `make bench-cuda`. Every section names the command
that measures it alone, and how many runs its times come from.

Each side is a process of its own; sides take turns, so that a slow minute of the machine meets all of them. All have the same
rows, the same encoder (all-MiniLM-L6-v2, real weights), batches of 32 rows, at most 128 tokens. In each process one pass over
the rows pays every first-time cost, and the next pass is timed. A ratio is the median time of a side over the median of ours,
with a 95 % bootstrap interval. The bundled encoder saw Quora questions in its own pre-training: only times, not scores, are
compared on them.
"""


class Section(NamedTuple):
    """A section of the page: the part whose result it shows, the command that measures it, the Markdown of the result."""

    title: str
    part: str
    command: str
    body: Callable[[dict[str, Any]], str]


def main() -> None:
    """Write the page."""
    OUT.write_text(page(), encoding="utf-8")
    progress(f"wrote {OUT.relative_to(HERE.parent)}")


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _targets(), *map(_shown, SECTIONS), *_cuda()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _shown(section: Section) -> str:
    result, note = read(section.part), HERE / "notes" / f"{section.part}.md"
    text = "Not measured." if result is None else f"{section.body(result)}\n\n{where(result)}"
    extra = f"\n\n{note.read_text(encoding='utf-8').strip()}" if note.exists() else ""
    return f"## {section.title}\n\n`{section.command}`\n\n{text}{extra}"


def _targets() -> str:
    rows = [(found.aim, found.measured, "yes" if found.reached else "no") for found in all_targets()]
    return "## Aims\n\n" + (table(("aim", "measured", "reached"), rows) if rows else "Nothing was measured.")


def _cuda() -> list[str]:
    measured = [section for section in CUDA if read(section.part) is not None]
    if not measured:
        why = "" if _has_cuda() else ": no CUDA device was at hand"
        return [f"## CUDA\n\n`{BENCH_CUDA}`\n\nNot measured{why}."]
    return [_shown(section) for section in CUDA if section in measured or section.command == BENCH_CUDA]


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


SECTIONS = (
    Section("Training", "training", "make bench-training", sections.training),
    Section("The floor", "floor", "make bench-floor", sections.floor),
    Section("Where the time of a step goes", "step_profile", "make bench-step", sections.step_profile),
    Section("How Trainer was tuned", "trainer_best", "make bench-tune", sections.tuning),
    Section("Training by another method: setfit", "setfit", "make bench-setfit", sections.setfit),
    Section("Same quality", "quality", "make bench-quality", sections.quality),
    Section("Training with pwim_resnet", "pwim_resnet", "make bench-pwim", sections.training),
    Section("Three tasks", "three_tasks", "make bench-three-tasks", sections.three_tasks),
    Section("A frozen encoder", "frozen", "make bench-frozen", sections.printed),
    Section("An efficient stage", "efficient_stage", "make bench-efficient", adapted_sections.efficient_stage),
    Section("Checkpoints", "checkpoint_cost", "make bench-checkpoints", sections.checkpoints),
    Section(
        "What one checkpoint costs", "checkpoint_blocks", "make bench-checkpoint-blocks", sections.checkpoint_blocks
    ),
    Section("The sums of the cache", "cache_sums", "make bench-cache-sums", sections.cache_sums),
    Section("Prediction", "prediction", "make bench-prediction", sections.prediction),
    Section("A mixed batch", "mixed_batch", "make bench-mixed", adapted_sections.mixed_batch),
    Section("How cost grows", "growth", "make bench-growth", sections.growth),
    Section("Memory against training rows", "train_memory", "make bench-train-memory", sections.printed),
    Section("Start", "start", "make bench-start", sections.printed),
)
BENCH_CUDA = "make bench-cuda"
_BY_NAME = {"quality", "pwim_resnet", "three_tasks", "growth"}  # measured by `--device cuda`, but not by bench-cuda
CUDA = tuple(
    section._replace(
        title=f"{section.title} on CUDA",
        part=part_name(section.part, "cuda"),
        command=f"python benchmarks/{section.part}.py --device cuda" if section.part in _BY_NAME else BENCH_CUDA,
    )
    for section in SECTIONS
    if section.part in {"training", "floor", "prediction", *_BY_NAME}
)

if __name__ == "__main__":
    main()
