"""What must be equal for a run to go on as if it had never stopped: configuration, data, encoder, device.

Knows nothing of checkpoints' files, nor of what is kept beside this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from smoothtune.config.experiment import Experiment
from smoothtune.data.task_data import TaskData
from smoothtune.errors import UsageError
from smoothtune.runtime.device import has_bfloat16
from smoothtune.runtime.kernels.building import told

KINDS = ("data", "configuration", "encoder", "device", "format")
_SHOWN = 4  # differences
_WHAT = {
    "data": "the data are not those that the run began with",
    "configuration": "the experiment is not the one that the run began with",
    "encoder": "the pretrained encoder is not the one that the run began with",
    "device": "the run began on another kind of device or number of processes",
    "format": "the checkpoint is of another release's format",
}

Identity = dict[str, Any]


def identity_of(
    experiment: Experiment,
    data: Mapping[str, TaskData],
    encoder: Mapping[str, str],
    device: torch.device,
    processes: int = 1,
) -> Identity:
    """Plain values by kind. `encoder` names its content before any training, and its tokenizer's; `processes` train."""
    return {
        "data": {name: data_of(part) for name, part in data.items()},
        "configuration": configuration_of(experiment),
        "encoder": dict(encoder),
        "device": {
            "kind": _kind_of(device),
            "kernels": told(device.type),
            "bfloat16": has_bfloat16(device),
            "processes": processes,
        },
    }


def data_of(data: TaskData) -> dict[str, Any]:
    """The content of a task's splits, rows and labels."""
    splits = {
        split: {"rows": len(part), "content": part.table.source.fingerprint()} for split, part in data.splits.items()
    }
    return {**splits, "labels": None if data.labels is None else list(data.labels)}


def configuration_of(experiment: Experiment) -> dict[str, Any]:
    """All keys that change what a run computes: not how often it writes, where its files are or how it is called."""
    table = experiment.model_dump(mode="json", by_alias=True)
    if table["hold_out"] == "hashed":
        del table["hold_out"]  # a checkpoint that is older than the key does not have it
    if table["class_labels"] == "numbers":
        del table["class_labels"]
    if table["encoder"]["special_tokens"] == "tokens":
        del table["encoder"]["special_tokens"]  # nor this one
    del table["runtime"]["checkpoint_every"], table["name"], table["refit"]
    del table["encoder"]["name"], table["encoder"]["revision"]  # its content is compared
    _drop_younger_keys(table)
    for task in table["tasks"].values():
        for split in ("train", "dev", "test"):
            if isinstance(task.get(split), str):
                del task[split]  # its content is compared
        if task.get("class_weights") is None:
            task.pop("class_weights", None)  # nor this one
        task.pop("temperature", None)  # read once the run is trained
    return table


_YOUNGER: dict[str, dict[str, Any]] = {
    "stages": {"init": None},
    "stop": {"keep": "best", "no_task_below_start": False},
    "trunks": {"layers": None, "scaling": "none", "cosine": False},
}
"""Keys that checkpoints of earlier releases do not have, and the values that stand for what those did."""


def _drop_younger_keys(table: dict[str, Any]) -> None:
    """Leave out of a configuration the keys that change nothing and that older checkpoints lack."""
    del table["recipe"]  # what it chose stands in the stages, trunks and tasks
    parts = [(stage, "stages") for stage in table["stages"]] + [(stage["stop"], "stop") for stage in table["stages"]]
    for part, kind in [*parts, *((trunk, "trunks") for trunk in table["trunks"].values())]:
        for key, default in _YOUNGER[kind].items():
            if key in part and part[key] == default:
                del part[key]


def compare(
    kept: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str], run: str, again: str
) -> list[str]:
    """What differs, one sentence for each kind. Raises `UsageError` where a kind is not `allowed`; `again` is what goes on."""
    found = {kind: _sentence(kind, kept.get(kind), now[kind]) for kind in now if kept.get(kind) != now[kind]}
    refused = [kind for kind in found if kind not in allowed]
    if refused:
        options = " ".join(f"--allow {kind}" for kind in found)
        raise UsageError(
            f"{run}: {'; '.join(found[kind] for kind in refused)}. Put that back, or go on all the same, no longer exactly, "
            f"with: {again} {options}"
        )
    return list(found.values())


def check_alike(first: Mapping[str, Any], mine: Identity, rank: int) -> None:
    """Raise `UsageError` where process `rank` reads or computes otherwise than the `first` of the run."""
    differences = list(_differences(first, mine, "", ("in process 0", "here")))
    if differences:
        raise UsageError(
            f"process {rank}: not all processes of the run have the same files and the same kind of device "
            f"({'; '.join(differences[:_SHOWN])}); see that each machine has what the first has"
        )


def check_kinds(allowed: str | Collection[str]) -> tuple[str, ...]:
    """The kinds, of which one may stand alone. Raises `UsageError` for a kind that there is not."""
    kinds = (allowed,) if isinstance(allowed, str) else tuple(allowed)
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--allow {kind}: there is no such kind; take one of {', '.join(KINDS)}")
    return kinds


def _sentence(kind: str, kept: Any, now: Any) -> str:
    differences = list(_differences(kept, now, ""))
    shown = "; ".join(differences[:_SHOWN]) + ("; ..." if len(differences) > _SHOWN else "")
    return f"{_WHAT[kind]} ({shown})"


def _differences(kept: Any, now: Any, path: str, when: tuple[str, str] = ("then", "now")) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*kept, *now]):
            yield from _differences(kept.get(key), now.get(key), f"{path}.{key}" if path else str(key), when)
    elif isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        for number, (was, is_now) in enumerate(zip(kept, now, strict=True)):
            yield from _differences(was, is_now, f"{path}.{number}", when)
    elif kept != now:
        yield f"{path}: " * bool(path) + f"{_short(kept)} {when[0]}, {_short(now)} {when[1]}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def _kind_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
