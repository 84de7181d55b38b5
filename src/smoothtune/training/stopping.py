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
    loss: Annotated[float, Field(allow_inf_nan=False)] | None = None


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
        self.loss = math.inf
        self.waited = 0

    def start(self, value: float, loss: float = math.nan) -> None:
        """Begin with `value` as the best to beat; one that is not a number is none."""
        if math.isfinite(value):
            self.best, self.loss = value, loss if math.isfinite(loss) else math.inf

    def improves(self, value: float, loss: float = math.nan) -> bool:
        """Take the value of one epoch; whether it is the new best. A value that is not a number never is.

        Of equal values, without a threshold, the one of the lower `loss` is the better, where losses are given.

        With `keep_last` each state takes the place of the one before, whatever its value.
        """
        if self.keep_last:
            self.best = value if math.isfinite(value) else -math.inf
            return True
        tied = value == self.best and self.threshold == 0 and loss < self.loss
        if math.isfinite(value) and (value > self.best + self.threshold or tied):
            self.start(value, loss)
            self.waited = 0
            return True
        self.waited += 1
        return False

    @property
    def finished(self) -> bool:
        """Whether patience is spent."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Best value and epochs waited."""
        best, loss = (number if math.isfinite(number) else None for number in (self.best, self.loss))
        return {"best": best, "waited": self.waited, "loss": loss}

    def load_state_dict(self, state: Mapping[str, Any], *, epochs: int) -> None:
        """Go on from the `state` after `epochs` epochs. Raises `ValueError` for what is none."""
        found = StoppingState.model_validate(state)
        if found.waited > epochs:
            raise ValueError(f"waited: got {found.waited} after {epochs} epochs")
        self.best = -math.inf if found.best is None else float(found.best)
        self.loss = math.inf if found.loss is None else float(found.loss)
        self.waited = found.waited
