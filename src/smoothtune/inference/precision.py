"""Which number format answers are computed in: asked for, that of training, or the fastest whose answers agree.

A measurement is made once per machine and model, on the first texts, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from smoothtune.data.batching import Examples
from smoothtune.files import WriteError, cache_folder, write_text
from smoothtune.inference.answering import answer_tasks, probabilities
from smoothtune.nn.model import MultiTaskModel
from smoothtune.runtime.device import has_bfloat16

PrecisionName = Literal["float32", "bfloat16"]
PRECISIONS = ("auto", *get_args(PrecisionName))
# Answers agree when they differ by no more on average: of a probability's 1, of a regression's range (ours).
AGREEMENT = 0.02
_TOKENS = 1024
_REPETITIONS = 2


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format and why it was chosen.

    After a measurement `speeds` are relative to float32, by format, and `difference` is the mean difference of bfloat16
    answers from float32 ones: of the largest probability, or as a share of a regression's range.
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


def measured(model: MultiTaskModel, examples: Examples, tasks: Sequence[str], identity: str) -> Precision:
    """The fastest format whose answers agree, for the model that `identity` names: from the cache, or measured now."""
    key = hashlib.sha256(json.dumps([identity, *_machine(model.device)]).encode()).hexdigest()[:32]
    path = cache_folder() / f"precision-{key}.json"
    known = _read(path)
    if known is None:
        known = measure(model, _sample(examples), tasks)
        _keep(path, known)
    return known


def measure(model: MultiTaskModel, examples: Examples, tasks: Sequence[str]) -> Precision:
    """Times both formats on the examples, in turn, and compares their answers to `tasks`."""
    formats: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    answers = {name: answer_tasks(model, examples, tasks, dtype=dtype) for name, dtype in formats.items()}
    seconds = dict.fromkeys(formats, float("inf"))
    for _ in range(_REPETITIONS):
        for name, dtype in formats.items():
            began = time.perf_counter()
            answer_tasks(model, examples, tasks, dtype=dtype)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    difference = max(_difference(model, task, answers["float32"][task], answers["bfloat16"][task]) for task in tasks)
    return choice({name: seconds["float32"] / took for name, took in seconds.items()}, difference)


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


def _machine(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.__version__]
    capability = torch.backends.cpu.get_cpu_capability()
    return [platform.node(), platform.machine(), capability, str(torch.get_num_threads()), torch.__version__]


def _read(path: Path) -> Precision | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return choice(
            {name: float(found["speeds"][name]) for name in get_args(PrecisionName)}, float(found["difference"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: measured again


def _keep(path: Path, found: Precision) -> None:
    with suppress(WriteError):  # a cache that cannot be written costs the next run its measurement, no more
        write_text(path, json.dumps({"speeds": found.speeds, "difference": found.difference}) + "\n")
