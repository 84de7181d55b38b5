"""The term that makes a function smooth, with its options and its record. Knows nothing of how passes are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from smoothtune.errors import UsageError
from smoothtune.objective.measuring import dropout_part, perturbation_parts, search_of
from smoothtune.objective.regularisers import Term
from smoothtune.objective.smoothness import Smoothness as Measure
from smoothtune.runtime.generators import kept
from smoothtune.smoothness.measured import Measured
from smoothtune.smoothness.passes import Clean, clean_pass, looked, searching
from smoothtune.smoothness.settings import checked, checked_progress, checked_span
from smoothtune.smoothness.shapes import checked_x
from smoothtune.types import Kind


class Smoothness:
    """The worst change of the logits under a small perturbation of their input (Jiang et al., 2020; Wang, section 3.1).

    `kind` is `classification` (logits (B, C)), `binary` (one logit, (B,) or (B, 1)) or `regression` (the same shapes; with
    `range`, the lowest and highest label). `preset` and the keyword options are those of a stage's `smoothness`:
    `weight`, `radius`, `noise`, `step_size`, `steps`, `norm`, `per`, `direction`, `projection`, `dropout`, `every`,
    `warmup`, `detach_clean`. Noise and new dropout masks come from a stream of its own, named by torch's initial seed at
    construction. `last` is the record of the latest call, empty if `every` passed it over.

    By operations, with one step of the search, a training step costs 8/3 of a plain one. Running statistics of BatchNorm
    layers move in every pass. Raises `ConfigurationError` for options that are wrong or mean nothing for a function,
    `UsageError` for a wrong kind or range.
    """

    def __init__(
        self,
        kind: Kind = "classification",
        *,
        preset: str = "exact",
        range: tuple[float, float] | None = None,
        **options: Any,
    ) -> None:
        self.kind: Kind = kind
        self.options = checked({"preset": preset, **options})
        self.last: dict[str, float] = {}
        self._span = checked_span(kind, range)
        self._regulariser = Term(self.options, Measure(self.options, 0))
        self._seed = torch.initial_seed()
        self._calls = 0

    def __call__(
        self,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        mask: Tensor | None = None,
        *,
        progress: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of `forward(x)`, and the weighted term, a scalar; both with their gradient.

        `x` is (B, T, D), embeddings of which `mask` (B, T) tells the real tokens (True or 1), or (B, D), features. `forward`
        is called with tensors of this shape alone. `progress`, the share of training that is done (0 to 1), is needed with
        `warmup`. Raises `UsageError` for shapes that do not fit, a `forward` that returns no tensor or does not use what it is
        given, and a `progress` outside 0 to 1.
        """
        clean = clean_pass(forward, x)
        return clean.logits, self.term(clean, mask, progress=progress)

    def term(self, clean: Clean, mask: Tensor | None = None, *, progress: float | None = None) -> Tensor:
        """The weighted term beside a clean pass that has been made; see `__call__`. torch's generators are left as found."""
        done = checked_progress(progress, self.options.warmup)
        if not torch.is_grad_enabled():
            raise UsageError(
                "smoothness is searched along a gradient; under torch.no_grad call the model alone, or measure()"
            )
        self._calls += 1
        due = self._regulariser.due(self.kind)
        self._regulariser.count(self.kind)
        if not due:
            self.last = {}
            return clean.logits.new_zeros((), dtype=torch.float32)
        stream = ("smoothness", self._seed, self._calls)
        look = looked(clean, self.kind, self._span, mask=mask, stream=stream, progress=done)
        with kept(clean.generators.device), searching():
            term, self.last = self._regulariser(look)
        return term

    def measure(self, forward: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor | None = None) -> Measured:
        """What lies in the term on this batch; see `Measured`. Nothing is learned or counted, and no generator moves."""
        device = checked_x(x).device
        with kept(device), _no_cached_weights(device.type):
            with torch.no_grad():
                clean = clean_pass(forward, x)
            return self.parts(clean, mask)

    def parts(self, clean: Clean, mask: Tensor | None = None) -> Measured:
        """As `measure`, beside a clean pass that has been made."""
        device, stream = clean.generators.device, ("smoothness.parts", self._seed, self._calls)
        look = looked(clean, self.kind, self._span, mask=mask, stream=stream, progress=1.0)
        search = search_of(self._regulariser)
        assert search is not None  # smoothness has one
        with kept(device), torch.enable_grad(), _no_cached_weights(device.type), searching():
            found = {**dropout_part(look), **perturbation_parts(look, search, clean.dtype)}
        return Measured(**found, masks=search.masks, key=search.key_at(found["norm"]))

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on as if never stopped: its seed, its calls, and the batches that `every` has counted."""
        return {"seed": self._seed, "calls": self._calls, "regulariser": self._regulariser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take `state_dict` back. Raises `UsageError` for what is none."""
        _check_state(state)
        try:
            self._regulariser.load_state_dict(state["regulariser"])
        except ValueError as error:
            raise UsageError(f"state: regulariser.{error}; give what state_dict() of a Smoothness returned") from None
        self._seed, self._calls = state["seed"], state["calls"]


def _check_state(state: object) -> None:
    parts = {"seed": int, "calls": int, "regulariser": Mapping}
    if isinstance(state, Mapping) and all(isinstance(state.get(name), form) for name, form in parts.items()):
        return
    got = f"keys {', '.join(map(str, state)) or 'none'}" if isinstance(state, Mapping) else type(state).__name__
    raise UsageError(
        f"state: got {got}, expected what state_dict() of a Smoothness returned: "
        "the whole numbers seed and calls, and a mapping regulariser"
    )


def _no_cached_weights(device: str) -> AbstractContextManager[object]:
    """Weights that autocast casts and keeps during a pass without gradient would have none in the training pass either."""
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
