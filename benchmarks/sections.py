"""The sections of the page: each makes Markdown of one part's result."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

from environments import HERE
from harness import part_name
from tables import milliseconds, quoted, ratio, runs, table, versions_note
from targets import WORKLOADS


def training(result: dict[str, Any]) -> str:
    """Training: a table per workload, what every side is, versions."""
    parts = []
    for workload, rows in result["workloads"].items():
        parts.append(f"### {WORKLOADS.get(workload, workload)}\n\n{_training_table(rows)}")
    every = [row for rows in result["workloads"].values() for row in rows]
    told = {row["side"]: row for row in every}.values()
    notes = "\n".join(f"- {row['side']}: {row['note']}" for row in told)
    return "\n\n".join([*parts, f"{notes}\n\nVersions:\n\n{versions_note(told)}"])


def over_ours(row: dict[str, Any]) -> str:
    """A side's time over ours; nothing for our own, whose ratio to itself says nothing."""
    return ratio(row["ratio"]) if "ratio" in row and row["side"] != "smoothtune" else ""


def _training_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if "median" not in row:
            lines.append([row["side"], f"not run: {row['failure']}", "", "", ""])
            continue
        lines.append(
            [
                row["side"], milliseconds(row["median"]), over_ours(row),
                f"{row['first_pass_seconds']:.1f} s", f"{row['peak_anonymous_mb']:,.0f} MiB",
            ]
        )  # fmt: skip
    return table(("side", "step", "over ours", "first pass", "peak anonymous memory"), lines)


def floor(result: dict[str, Any]) -> str:
    """The floor of a step, and what ours is over it."""
    lines = []
    for workload, found in result["workloads"].items():
        measured = "ratio" in found
        share = (
            f"{100 * found['best_rate_seconds'] / found['ours_seconds']:.1f} %" if measured else str(found["failure"])
        )
        lines.append(
            [
                WORKLOADS.get(workload, workload), f"{found['tokens']:.0f}", f"{found['flops'] / 1e9:.1f}",
                milliseconds(found["products_seconds"]), milliseconds(found["ours_seconds"]) if measured else "",
                ratio(found["ratio"]) if measured else "", milliseconds(found["best_rate_seconds"]), share,
            ]
        )  # fmt: skip
    head = (
        "workload",
        "tokens",
        "GFLOP",
        "its products",
        "our step",
        "step over products",
        "at the best rate",
        "ours: share of it",
    )
    text = (
        "The floor of a step: nothing but its matrix products (forward and both backward, linear layers and attention) at "
        "the shapes of the timed batches, bf16, contiguous, preallocated, by torch; and its operations over the best rate a "
        f"square bf16 product reached here, {result['best_rate'] / 1e12:.2f} TFLOP/s. "
        f"Ours and the products take turns, {result['repetitions']} times."
    )
    return f"{text}\n\n{table(head, lines)}"


def step_profile(result: dict[str, Any]) -> str:
    """Milliseconds of a step by kind of work, a column per workload."""
    found = [json.loads(line) for line in result["lines"]]
    kinds = list(dict.fromkeys(kind for row in found for kind in row if kind not in ("workload", "step")))
    kinds.append(kinds.pop(kinds.index("the rest")))
    lines = [[kind, *(f"{row[kind]:.1f} ms" if kind in row else "" for row in found)] for kind in kinds]
    lines.append(["the whole step", *(f"{row['step']:.0f} ms" for row in found)])
    text = (
        "A clock around every call of a kernel of ours; the rest is making batches, Python, and what torch computes itself "
        "(pooling, head, loss)."
    )
    head = ("work", *(WORKLOADS.get(row["workload"], row["workload"]) for row in found))
    return f"{text}\n\n{table(head, lines)}"


def tuning(result: dict[str, Any]) -> str:
    """Every setting of Trainer that was tried."""
    lines = [
        (
            row["note"],
            milliseconds(row["median"]) if row["median"] else str(row["failure"]),
            "chosen" * (number == result["chosen"]),
        )
        for number, row in enumerate(result["tried"])
    ]
    return table(("settings", "step", ""), lines)


def setfit(result: dict[str, Any]) -> str:
    """Whole trainings."""
    lines = [
        [row["side"], f"{row['median']:.1f} s", over_ours(row)] if "ratio" in row
        else [row["side"], f"not run: {row['failure']}", ""]
        for row in result["rows_of_table"]
    ]  # fmt: skip
    text = (
        f"SetFit trains by a method of its own: two contrastive pairs per row (its smallest setting), then a head. Both sides "
        f"train once on the same {result['rows']:,} SST rows, first-time costs included."
    )
    return (
        f"{text}\n\n{table(('side', 'whole training', 'over ours'), lines)}\n\n{versions_note(result['rows_of_table'])}"
    )


def quality(result: dict[str, Any]) -> str:
    """Accuracies and the interval of their difference."""
    accuracy, difference = result["accuracy"], result["difference"]
    lines = [
        [side, f"{sum(values) / len(values):.4f}", f"{min(values):.4f} to {max(values):.4f}", str(len(values)),
         f"{sorted(result['epoch_seconds'][side])[len(values) // 2]:.1f} s", f"{result['peak_anonymous_mb'][side]:,.0f} MiB"]
        for side, values in accuracy.items()
    ]  # fmt: skip
    text = (
        f"One epoch on {result['rows']:,} SST rows, the same model and hyper-parameters. Difference of the mean "
        f"accuracies on dev: {difference['value']:+.4f}, 95 % interval {difference['low']:+.4f} to "
        f"{difference['high']:+.4f} (Welch). "
        f"Trainer's whole epoch over ours: {ratio(result['epoch_ratio'])}."
    )
    head = ("side", "mean accuracy", "range", "seeds", "epoch", "peak anonymous memory")
    return f"{text}\n\n{table(head, lines)}"


def prediction(result: dict[str, Any]) -> str:
    """Prediction: a table per workload."""
    parts = []
    for workload, rows in result["workloads"].items():
        lines = []
        for row in rows:
            if "per_second" not in row:
                lines.append([row["side"], f"not run: {row['failure']}", "", "", "", ""])
                continue
            agreement = f"{100 * row['agreement']:.1f} %" if "agreement" in row else "no labels"
            lines.append(
                [
                    row["side"], f"{row['per_second']:,.0f}", over_ours(row),
                    agreement, f"{row['load_seconds']:.1f} s", f"{row['peak_anonymous_mb']:,.0f} MiB",
                ]
            )  # fmt: skip
        head = ("side", "rows per second", "over ours", "labels as the pipeline's", "loading", "peak anonymous memory")
        parts.append(f"### {workload}, {result['rows']:,} rows\n\n{table(head, lines)}")
    told = {row["side"]: row for rows in result["workloads"].values() for row in rows}.values()
    return "\n\n".join([*parts, "\n".join(f"- {row['side']}: {row['note']}" for row in told), versions_note(told)])


def growth(result: dict[str, Any]) -> str:
    """Step times along each axis, and the plot."""
    base = ", ".join(f"{name} {value:,}" for name, value in result["base"].items())
    lines = [
        [axis, f"{point['value']:,}", milliseconds(point["seconds_per_step"]), f"{point['other_seconds']:.1f} s",
         f"{point['peak_anonymous_mb']:,.0f} MiB"]
        for axis, points in result["axes"].items() for point in points
    ]  # fmt: skip
    head = ("axis", "value", "step", "the rest of the call", "peak anonymous memory")
    text = (
        f"One axis is changed at a time, the others are: {base}. A step is the median of the {result['steps']} steps that "
        f"follow {result['warm']} uncounted ones ({runs(result['repetitions'])}). The rest of the call is reading, "
        "tokenising, loading and evaluating."
    )
    image = f"images/{part_name('growth', result['device'])}.svg"
    shown = f"\n\n![Step time along each axis]({image})" if (HERE.parent / "docs" / image).exists() else ""
    return f"{text}\n\n{table(head, lines)}{shown}"


def three_tasks(result: dict[str, Any]) -> str:
    """The epoch in a sentence."""
    rows = ", ".join(f"{name} {count:,}" for name, count in result["rows"].items())
    seconds = statistics.median(result["seconds"])
    return (
        f"One epoch, batches of 32, trunks mean, siamese and cosine; rows: {rows}; {runs(len(result['seconds']))}. "
        "Training took "
        f"{result['median']:.0f} s, the "
        f"whole call, with reading, tokenising and evaluation, {seconds:.0f} s; peak anonymous memory "
        f"{result['peak_anonymous_mb']:,.0f} MiB."
    )


def printed(result: dict[str, Any]) -> str:
    """What a benchmark printed itself."""
    # The machine is told below, and results that a line above says in words are not said again.
    return quoted(line for line in result["lines"] if '"platform"' not in line)


def checkpoint_blocks(result: dict[str, Any]) -> str:
    """What one checkpoint costs, and those of the default setting."""
    text = (
        f"The same run, with a checkpoint after every second block of {result['block']} steps: blocks with one against those "
        f"after them, {result['pairs']} pairs. A checkpoint costs {_seconds(result['difference'])} s "
        f"({result['writing']:.2f} s of it inside the writing); a block without one takes {result['without']:.2f} s."
    )
    of_default = result["of_default"]
    if of_default is None:
        return text
    share, low, high = (100 * of_default[key] for key in ("value", "low", "high"))
    return f"{text} So the checkpoints of the default setting above cost {share:.1f} % ({low:.1f} to {high:.1f} %) of the stage."


def _seconds(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def cache_sums(result: dict[str, Any]) -> str:
    """What the sums of the cache cost, a line per run."""
    text = (
        f"A run over {result['rows']:,} SST rows (drawn again and again), the encoder left alone, one epoch, "
        "with an empty cache, whose entries are summed and synced, and again with a whole one, whose sums are compared. "
        "`share` is the time inside the sums over the rest of the same run: the median, its interval and the largest."
    )
    lines = []
    for name, row in result["runs"].items():
        share = row["share"]
        shown = f"{100 * share['value']:.3f} % ({100 * share['low']:.3f} to {100 * share['high']:.3f} %)"
        shown += f", at most {100 * row['most']:.3f} %"
        seconds = [
            f"{statistics.median(row['seconds']):.1f} s",
            f"{row['sum_seconds']:.3f} s",
            f"{row['sync_seconds']:.2f} s",
        ]
        lines.append([name, str(len(row["seconds"])), f"{row['megabytes']:,.0f} MB", *seconds, shown])
    rates = ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in result["rates"].items())
    text += f" One thread sums by {rates}."
    return f"{text}\n\n{table(('run with', 'runs', 'summed', 'whole run', 'sums', 'syncing', 'share'), lines)}"


def checkpoints(result: dict[str, Any]) -> str:
    """What checkpoints cost, a line per setting."""
    text = (
        f"SST, {result['epochs']} epochs, {result['repetitions']} runs a setting in turn. `writing` is the time inside the "
        "writing over the rest of the stage, median and largest of the runs; a checkpoint holds weights, moments and the "
        "best state. Whole runs swing more than that by themselves: the next section compares within one run."
    )
    lines = []
    for name, row in result["rows"].items():
        share = f"{100 * row['writing']['median']:.1f} % (at most {100 * row['writing']['most']:.1f} %)"
        over = ratio(row["over_off"]) if "over_off" in row else ""
        lines.append([name, f"{row['writes']:g}", f"{row['megabytes']:,} MB" * bool(row["writes"]), share, over])
    return f"{text}\n\n{table(('checkpoints', 'written', 'size', 'writing', 'stage over that without'), lines)}"
