"""Writes docs/results.md from results/wang_pipeline.json and results/packaged_learn. Measures nothing; says what is missing.

Run: python benchmarks/results_page.py. `notes/wang_pipeline.md`, where there is one, stands between the introduction and the
tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from environments import HERE
from harness import RESULTS, progress, read
from tables import table, where

OUT = HERE.parent / "docs" / "results.md"
INTRODUCTION = """# The papers' pipeline on real data

`wang/full` is Wang's last row: all tasks together with the encoder and adversarial smoothness of weight 5; then, task after task,
LoRA, adapters, trunk and output beside the frozen encoder, the PWIM trunk trained on Quora and frozen for STS. `wang/efficient`
is the same without the joint stage, on the bundled encoder as it was pre-trained. That encoder is all-MiniLM-L6-v2, where the
paper has BERT-base, and it saw Quora duplicates in its own pre-training: Quora figures say how well it remembers, too.

`make bench-wang` trains and scores (hours; stopped, it goes on where it was), `make bench-results-page` writes this page."""
LEARNING = """## Do the packaged rows with smoothness learn?

`make bench-packaged`: 200 steps of every stage on the real data, Quora cut to 5,000 training rows. The mean unweighted loss of a
task's first and last 50 steps (of halves where it had fewer than 100)."""
GAINS = {
    "efficient": "the efficient stages, after the joint one",
    "joint": "the joint stage, before the efficient ones",
    "instead": "the joint stage alone, against the efficient ones alone",
}
Found = Mapping[str, float]


def main() -> None:
    """Write the page."""
    OUT.write_text(page(), encoding="utf-8")
    progress(f"wrote {OUT.relative_to(HERE.parent)}")


def page() -> str:
    """The whole page."""
    return "\n\n".join(_parts(read("wang_pipeline"))) + "\n"


def _parts(result: dict[str, Any] | None) -> Iterator[str]:
    yield INTRODUCTION
    if result is None:
        yield "Not measured."
    else:
        yield from _pipeline(result)
    yield LEARNING
    kept = [json.loads(path.read_text()) for path in sorted((RESULTS / "packaged_learn").glob("*.json"))]
    yield _learning(kept) if kept else "Not measured."


def _pipeline(result: dict[str, Any]) -> Iterator[str]:
    yield _changes(result["changes"])
    note = HERE / "notes" / "wang_pipeline.md"
    if note.exists():
        yield note.read_text(encoding="utf-8").strip()
    for seed, found in result["seeds"].items():
        yield from _seed(seed, found)
    together = (
        "" if result["jobs"] == 1 else f"{result['jobs']} runs at once, each on {result['threads']} thread(s).\n\n"
    )
    yield together + where(result)


def _learning(kept: list[dict[str, Any]]) -> str:
    lines = [
        [found["name"], part, str(end["steps"]), f"{end['first']:.3f}", f"{end['last']:.3f}"]
        for found in kept
        for part, end in found["parts"].items()
    ]
    head = ("experiment", "stage/task", "steps", "first", "last")
    return "\n\n".join([table(head, lines), *dict.fromkeys(where(found) for found in kept)])


def _changes(changes: Mapping[str, list[str]]) -> str:
    lines = [f"- `{name}`: {', '.join(f'`{change}`' for change in given)}" for name, given in changes.items()]
    return "As packaged, but\n\n" + "\n".join(lines)


def _seed(seed: str, found: dict[str, Any]) -> Iterator[str]:
    yield f"## Seed {seed}"
    for name, run in found["runs"].items():
        yield f"### {name}\n\n{stages(run)}"
    tasks = [task for task in next(iter(found["differences"].values())) if task != "mean"]
    lines = [
        [GAINS[name], *(_difference(gain[figure]) for figure in (*tasks, "mean"))]
        for name, gain in found["differences"].items()
    ]
    yield (
        "### What each part gave\n\nDifferences on the same dev rows, with 95 % paired bootstrap intervals; the mean "
        "is that of the three metrics. Intervals speak of the rows alone, not of other training seeds.\n\n"
        + table(("gain of", *tasks, "mean"), lines)
    )


def stages(run: dict[str, Any]) -> str:
    """The model after every stage: what trained, for how long, and every main metric with its interval on the whole dev sets."""
    metrics = run["metrics"]
    lines = [
        [
            stage["name"],
            f"{100 * stage['trained'] / stage['parameters']:.1f} % of {stage['parameters'] / 1e6:.1f} M",
            f"{stage['epochs']} ({stage['best_epoch']})",
            f"{stage['train_seconds'] / 60:.0f} min",
            *(_value(stage["scores"].get(task)) for task in metrics),
            _value(stage["score"]),
        ]
        for stage in run["stages"]
    ]
    head = (
        "after",
        "trained",
        "epochs (best)",
        "time",
        *(f"{task}, {name}" for task, name in metrics.items()),
        "score",
    )
    return table(head, lines)


def _value(found: Found | None) -> str:
    return "" if found is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _difference(found: Found) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


if __name__ == "__main__":
    main()
