"""Where the time of a training step goes: seconds inside each kernel of ours, and what is left outside of them.

Run: python benchmarks/captured.py step_profile [sst siamese joint] [--steps 24]. Kernels run one after another in the calling
thread, so a clock around each call adds up; the rest is Python, torch's own operations (pooling, loss, head) and making batches.
Prints a line per workload: milliseconds a step, by kind of work. The first pass over the rows is not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from options import parser_of
from training import WORKLOADS, write_workload

sys.path.insert(0, str(Path(__file__).parent / "workers"))

KINDS = {
    "gemm": {
        "multiply": "products, forward and input gradient",
        "weight_gradient": "products, weight gradient",
        "pack": "packing changed weights",
    },
    "attention": {"attention_forward": "attention, forward", "attention_backward": "attention, backward"},
    "layers": {
        "residual_norm": "dropout, residual sum, norm",
        "residual_norm_gradient": "dropout, residual sum, norm",
        "activation": "bias and activation",
        "activation_gradient": "bias and activation",
        "embed": "embedding",
        "embed_gradient": "embedding",
        "add_rows": "embedding",
    },
    "adamw": {"step_dense": "AdamW", "step_rows": "AdamW", "sum_of_squares": "norm of the gradients"},
}


class Clock:
    """Seconds by kind of work, while `running`."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.running = False

    def around(self, module: ModuleType, name: str, kind: str) -> None:
        """Time every call of a module's function."""
        inner: Callable[..., Any] = getattr(module, name)

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = inner(*given, **named)
            if self.running:
                self.spent[kind] += time.perf_counter() - began
            return found

        setattr(module, name, timed)


def profile(workload: str, steps: int, data_dir: Path | None, clock: Clock) -> dict[str, Any]:
    """Milliseconds a step by kind of work, in the second pass over `steps` batches of a workload."""
    from ours_train import experiment

    import smoothtune
    from smoothtune.training.loop import StepReport
    from smoothtune.training.stage_events import StageEpoch

    clock.spent.clear()
    seconds, first = 0.0, 0.0

    def listen(event: object) -> None:
        nonlocal seconds, first
        if isinstance(event, StepReport):
            seconds = event.seconds
            clock.running = event.epoch == 1 and event.step < event.of_steps  # evaluation comes after
        elif isinstance(event, StageEpoch):
            clock.running = False
            first = event.report.train_seconds if event.report.epoch == 0 else first

    with tempfile.TemporaryDirectory() as folder:
        spec = write_workload(workload, data_dir, steps, Path(folder)) | {"device": "cpu", "passes": 2}
        smoothtune.train(experiment(spec), run_dir=Path(folder) / "run", listen=listen)
    counted = steps - 1  # the clock starts after the second pass's first step
    kinds = {kind: round(1000 * spent / counted, 2) for kind, spent in clock.spent.most_common()}
    whole = 1000 * (seconds - first) / steps
    return {"workload": workload, "step": round(whole, 1), **kinds, "the rest": round(whole - sum(kinds.values()), 1)}


def main() -> None:
    """Profile each workload that is asked for."""
    from importlib import import_module

    parser = parser_of(__doc__, repetitions=1)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    clock = Clock()
    for part, names in KINDS.items():
        for name, kind in names.items():
            clock.around(import_module(f"smoothtune.runtime.kernels.{part}"), name, kind)
    for workload in options.workloads:
        print(json.dumps(profile(workload, options.steps, options.data_dir, clock)), flush=True)


if __name__ == "__main__":
    main()
