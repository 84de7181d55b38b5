"""The sections of the page on LoRA and adapters: each makes Markdown of one part's result."""

from __future__ import annotations

from typing import Any

from tables import milliseconds, ratio, table


def efficient_stage(result: dict[str, Any]) -> str:
    """A step and the memory of an efficient stage and of full fine-tuning, a table per trunk."""
    text = (
        "The same SST batches: LoRA of rank 4, adapters of size 64, trunk and output beside the frozen encoder, against "
        "encoder, trunk and output. A ratio is full over efficient."
    )
    return "\n\n".join(
        [text, *(f"### {trunk}\n\n{step_and_memory(found)}" for trunk, found in result["trunks"].items())]
    )


def step_and_memory(found: dict[str, Any]) -> str:
    """The table of one trunk."""
    seconds, memory = found["median_seconds"], {side: f"{value:,.0f} MiB" for side, value in found["median_mb"].items()}
    lines = [
        ["efficient", milliseconds(seconds["efficient"]), "", memory["efficient"], ""],
        [
            "full",
            milliseconds(seconds["full"]),
            ratio(found["time_ratio"]),
            memory["full"],
            ratio(found["memory_ratio"]),
        ],
    ]
    return table(("what learns", "step", "over efficient", "peak anonymous memory", "over efficient"), lines)


def mixed_batch(result: dict[str, Any]) -> str:
    """One mixed batch of three tasks against three batches."""
    lines = [
        [row["precision"], str(row["tokens"]), row["level"], f"{row['one_ms']:.1f} ms", f"{row['three_ms']:.1f} ms",
         ratio(row["times_as_fast"])]
        for row in result["rows"]
    ]  # fmt: skip
    text = (
        "Three tasks, each with LoRA and adapters of its own, 32 texts each: one batch that mixes them against three. `pass` is "
        "the network alone, `predict` tokenises too. What three small batches waste is fixed cost (Python, reading the weights); "
        "the arithmetic of both is the same, so longer texts gain less."
    )
    head = ("precision", "tokens of a text", "level", "one mixed batch", "three batches", "times as fast")
    return f"{text}\n\n{table(head, lines)}"
