"""Our side of prediction: `smoothtune.load(run).predict(task, texts)`."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the command line does so too

from predict_clock import Texts, timed
from worker import Report, Spec, run_worker


def predict(spec: Spec) -> Report:
    """Answer as the spec says."""

    def load() -> Callable[[Texts], list[int]]:
        import smoothtune

        model = smoothtune.load(spec["model"], device=spec.get("device", "cpu"))
        return lambda texts: [int(label) for label in model.predict(spec["task"], texts)]

    return timed(spec, load)


if __name__ == "__main__":
    run_worker(predict, ("texts", "model", "task"))
