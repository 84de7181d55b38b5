"""Options of smoothness outside our trainer: the same as inside it, less those that mean nothing there.

It knows nothing of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat, get_args

from pydantic import ValidationError

from smoothtune.config.problems import near, problems_of
from smoothtune.config.regularisers import SmoothnessOptions
from smoothtune.errors import ConfigurationError, Problem, UsageError
from smoothtune.types import Kind

_HEADLINE = "smoothness: these options cannot be used:"
_ENDS = "expected two finite numbers, the lower first, such as (0, 5)"
_NOT_HERE = {
    "name": "the term is returned, not stored under a name; leave it out",
    "tasks": "there is one task here; leave it out, and call it for the batches that it is for",
    "precision": "the passes run as the loop runs them; leave it out, and for float32 call it outside torch.autocast",
}
_FIXED = {
    "layer": (0, "what is perturbed is the tensor that you pass; set layer = 0"),
    "fraction": (1.0, "dropout masks fit whole batches only; set fraction = 1, and every = 2 to save time"),
}  # fmt: skip


def checked(given: Mapping[str, Any]) -> SmoothnessOptions:
    """The options. Raises `ConfigurationError` with every problem at once."""
    try:
        options = SmoothnessOptions.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigurationError(_HEADLINE, problems_of(error, SmoothnessOptions)) from error
    problems = [Problem(key, why) for key, why in _NOT_HERE.items() if key in given]
    for key, (only, why) in _FIXED.items():
        got = getattr(options, key)
        if got != only:
            problems.append(Problem(key, f"{why}; got {got!r}"))
    if options.dropout == "off":
        why = "a function has no dropout to switch off; 'shared' or 'independent', or put the model in eval mode"
        problems.append(Problem("dropout", f"got 'off', but {why}"))
    if problems:
        raise ConfigurationError(_HEADLINE, problems)
    return options


def checked_span(kind: Kind, given: tuple[float, float] | None) -> float:
    """Width of the label range, 1 where there is none. Raises `UsageError` for a wrong kind or range."""
    kinds = get_args(Kind)
    if kind not in kinds:
        raise UsageError(f"kind: got {kind!r}, expected one of {', '.join(kinds)}.{near(str(kind), kinds)}")
    if kind != "regression":
        if given is not None:
            raise UsageError(f"range: got {given!r} for kind {kind!r}; only regression has a range, leave it out")
        return 1.0
    if given is None:
        raise UsageError("range: is missing; regression needs the lowest and highest label, such as range=(0, 5)")
    if not (
        isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(end, SupportsFloat) for end in given)
    ):
        raise UsageError(f"range: got {given!r}, {_ENDS}")
    low, high = float(given[0]), float(given[1])
    if not (-math.inf < low < high < math.inf):
        raise UsageError(f"range: got {given!r}, {_ENDS}")
    return high - low


def checked_progress(given: float | None, warmup: float) -> float:
    """The share of training that is done, 0 to 1; 0 where nothing reads it and none is given. Raises `UsageError`."""
    if given is None and warmup > 0:
        raise UsageError("progress: is missing; with `warmup` pass the share of training that is done, 0 to 1")
    if given is None:
        return 0.0
    if not isinstance(given, SupportsFloat) or not 0 <= float(given) <= 1:
        raise UsageError(f"progress: got {given!r}, expected the share of training that is done, 0 to 1: step / steps")
    return float(given)
