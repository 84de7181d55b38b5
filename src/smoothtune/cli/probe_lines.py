"""What a probe found, as lines for people. Knows nothing of how it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Record = Mapping[str, float]

_OWN_PARTS = ("unweighted", "task", "weight")


def loss_text(task: str, parts: Mapping[str, float]) -> str:
    """The mean loss of a task and, in brackets, what each regulariser added to it."""
    added = ", ".join(f"{name} {value:.2g}" for name, value in parts.items() if name not in _OWN_PARTS)
    return f"{task} {parts['unweighted']:.3f}" + (f" ({added})" if added else "")


def probe_lines(probe: Mapping[str, Mapping[str, Record]]) -> Iterator[str]:
    """One line for each regulariser; `probe` holds records by task and regulariser."""
    for name in dict.fromkeys(name for found in probe.values() for name in found):
        tasks = "; ".join(f"{task} {_told(found[name])}" for task, found in probe.items() if name in found)
        yield f"{name}: {tasks}"


def _told(record: Record) -> str:
    parts = {
        "dropout": "dropout",
        "random": "random",
        "adversarial": "adversarial",
        "as_used": "as used",
        "norm": "norm",
    }
    told = [f"{words} {record[part]:.2g}" for part, words in parts.items() if part in record]
    if "surviving" in record:
        told.append(f"{100 * record['surviving']:.0f} % survive")
    rarely = f" every {record['every']:.0f} batches" if "every" in record else ""
    told.append(f"step {record['seconds_with']:.2g} s{rarely} (plain {record['seconds_plain']:.2g} s)")
    return ", ".join(told)
