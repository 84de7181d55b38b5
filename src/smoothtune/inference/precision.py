"""Which number format answers are computed in: asked for, that of training, or the fastest whose answers agree.

A measurement is made on the first texts, once per machine, model and tasks that are asked together, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np
import torch

from smoothtune.cache import read_record, write_record
from smoothtune.data.batching import Examples
from smoothtune.files import NoCacheError, WriteError, cache_folder
from smoothtune.inference.answering import answer_tasks, probabilities
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.device import has_bfloat16
from smoothtune.runtime.kernels.building import told

PrecisionName = Literal["float32", "bfloat16"]
PRECISIONS = ("auto", *get_args(PrecisionName))
# Answers agree when they differ by no more on average: of a probability's 1, of a regression's range (ours).
AGREEMENT = 0.02
_FORMAT = 2
_TOKENS = 1024
_ROUNDS = 3
_FORMATS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Tasks that read the same examples, and those: once for each way of reading.
Groups = Sequence[tuple[Sequence[str], Examples]]


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format and why it was chosen.

    After a measurement `speeds` are relative to float32, by format, and `difference` is the mean difference of bfloat16
    answers from float32 ones, of the task where it is largest: of a probability, or as a share of a regression's range.
    """

    name: PrecisionName
    why: str
    speeds: dict[str, float] = field(default_factory=dict)
    difference: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32

    def __str__(self) -> str:
        return f"precision {self.name} ({self.why})"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def without_measuring(asked: str, trained_in: str | None, device: torch.device) -> Precision | None:
    """The choice where there is none to be made; None where a measurement decides. `asked` is one of `PRECISIONS`."""
    if asked != "auto":
        return Precision("bfloat16" if asked == "bfloat16" else "float32", "asked for")
    if trained_in == "float32":
        return Precision("float32", "as in training")
    if not has_bfloat16(device):
        return Precision("float32", f"this {device.type} has no bfloat16 products")
    return None


def measured(model: MultiTaskModel, groups: Groups, identity: str) -> Precision:
    """The fastest format in which all answers agree, for the model that `identity` names: from the cache, or measured now."""
    tasks = sorted(task for names, _ in groups for task in names)
    key = hashlib.sha256(json.dumps([_FORMAT, identity, tasks, *_setting(model.device)]).encode()).hexdigest()[:32]
    known = _read(f"precision-{key}.json")
    if known is not None:
        return known
    rounds, difference = measure(model, [(names, _sample(examples)) for names, examples in groups])
    found = choice(_speeds(rounds), difference)
    if _clear(rounds):
        _keep(f"precision-{key}.json", found)
    return found


def measure(model: MultiTaskModel, groups: Groups) -> tuple[list[dict[str, float]], float]:
    """Seconds that all groups together took, by format and round, and the largest difference of a task's answers."""
    answers = {name: _answers(model, groups, dtype) for name, dtype in _FORMATS.items()}
    rounds: list[dict[str, float]] = []
    for _ in range(_ROUNDS):
        seconds: dict[str, float] = {}
        for name, dtype in _FORMATS.items():
            began = time.perf_counter()
            _answers(model, groups, dtype)
            seconds[name] = time.perf_counter() - began
        rounds.append(seconds)
    wide, narrow = answers["float32"], answers["bfloat16"]
    return rounds, float(np.max([_difference(model, task, wide[task], narrow[task]) for task in wide]))


def _answers(model: MultiTaskModel, groups: Groups, dtype: torch.dtype) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for tasks, examples in groups:
        found.update(answer_tasks(model, examples, tasks, dtype=dtype))
    return found


def _speeds(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Speeds by format, relative to float32, in the fastest round of each."""
    fastest = {name: min(seconds[name] for seconds in rounds) for name in _FORMATS}
    return {name: fastest["float32"] / took for name, took in fastest.items()}


def _clear(rounds: Sequence[dict[str, float]]) -> bool:
    """Whether the same format was the faster in every round: where not, something else used the machine."""
    return len({min(seconds, key=seconds.__getitem__) for seconds in rounds}) == 1


def choice(speeds: dict[str, float], difference: float) -> Precision:
    """The choice that measured `speeds`, relative to float32, and the `difference` of answers lead to."""
    agree = difference <= AGREEMENT  # false for nan
    name: PrecisionName = "bfloat16" if agree and speeds["bfloat16"] > speeds["float32"] else "float32"
    times = ", ".join(f"{name} {speed:.2f}x" for name, speed in speeds.items())
    verdict = "agree" if agree else "do not agree"
    return Precision(
        name, f"measured: {times}; answers {verdict}, mean difference {difference:.4f}", speeds, difference
    )


def _difference(model: MultiTaskModel, task: str, wide: np.ndarray, narrow: np.ndarray) -> float:
    node = model.tasks[task]
    if node.kind == "regression":
        return float(np.abs(wide - narrow).mean() / node.span)
    shares = (probabilities(node.kind, logits) for logits in (wide, narrow))
    return float(np.abs(next(shares) - next(shares)).max(axis=1).mean())


def _sample(examples: Examples) -> Examples:
    """Rows from all over the examples, about `_TOKENS` tokens of them; repeated where there are fewer."""
    tokens = float(examples.lengths().mean()) * len(examples.columns)
    count = max(1, round(_TOKENS / tokens))
    spread = np.linspace(0, len(examples) - 1, num=min(count, len(examples)), dtype=np.int64)
    return replace(examples, chosen=examples.chosen[np.resize(spread, count)])


def _setting(device: torch.device) -> list[str]:
    """What a measurement depends on beside model and tasks."""
    versions = [version("smoothtune"), torch.__version__]
    if device.type == "cuda":  # where no kernels are used
        return [*versions, torch.cuda.get_device_name(device)]
    capability = torch.backends.cpu.get_cpu_capability()
    return [*versions, told(), platform.node(), platform.machine(), capability, str(torch.get_num_threads())]


def _read(name: str) -> Precision | None:
    """The choice of a record, None where there is none. A cache that cannot be had only costs a measurement."""
    with suppress(NoCacheError, WriteError):
        record = read_record(cache_folder() / name)
        return None if record is None else choice(record["speeds"], record["difference"])
    return None


def _keep(name: str, found: Precision) -> None:
    with suppress(NoCacheError, WriteError):
        write_record(cache_folder() / name, {"speeds": found.speeds, "difference": found.difference})
