"""Early stopping by threshold and patience. Knows nothing of models: it is told values and says what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from smoothtune.training.state import STRICT


class StoppingState(BaseModel):
    """What a `Stopping` keeps; `best` is None while there is none."""

    model_config = STRICT

    best: Annotated[float, Field(allow_inf_nan=False)] | None
    waited: Annotated[int, Field(ge=0)]


class Stopping:
    """Follows one value over the epochs.

    A value improves when it beats the best by more than `threshold`; after `patience` epochs in a row without
    improvement the value has finished (Wang, section 4.3, item 1). Without patience it never finishes. With
    `keep_last` the last value is the best one.
    """

    def __init__(self, *, patience: int | None, threshold: float, keep_last: bool = False) -> None:
        self.patience = patience
        self.threshold = threshold
        self.keep_last = keep_last
        self.best = -math.inf
        self.waited = 0

    def start(self, value: float) -> None:
        """Begin with `value` as the best to beat; one that is not a number is none."""
        if math.isfinite(value):
            self.best = value

    def improves(self, value: float) -> bool:
        """Take the value of one epoch; whether it is the new best. A value that is not a number never is.

        With `keep_last` each state takes the place of the one before, whatever its value.
        """
        if self.keep_last:
            self.best = value if math.isfinite(value) else -math.inf
            return True
        if math.isfinite(value) and value > self.best + self.threshold:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def finished(self) -> bool:
        """Whether patience is spent."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Best value and epochs waited."""
        return {"best": self.best if math.isfinite(self.best) else None, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any], *, epochs: int) -> None:
        """Go on from the `state` after `epochs` epochs. Raises `ValueError` for what is none."""
        found = StoppingState.model_validate(state)
        if found.waited > epochs:
            raise ValueError(f"waited: got {found.waited} after {epochs} epochs")
        self.best = -math.inf if found.best is None else float(found.best)
        self.waited = found.waited
