"""The words of `train`: what each names, and which name the same. Knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_LAYERS = re.compile(r"encoder\.layers\.(?P<first>[0-9]+)(-(?P<last>[0-9]+))?")


def layers_of(selector: str) -> tuple[int, int] | None:
    """The first and last layer that `encoder.layers.A` or `encoder.layers.A-B` names; None for other selectors."""
    layers = _LAYERS.fullmatch(selector)
    return None if layers is None else (int(layers["first"]), int(layers["last"] or layers["first"]))


def repetitions(selectors: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each selector that adds nothing, and another that names all of it."""
    for number, selector in enumerate(selectors):
        later = [other for other in selectors[number + 1 :] if not _covers(selector, other)]
        others = [*selectors[:number], *later]
        whole = next((other for other in others if _covers(other, selector)), None)
        if whole is not None:
            yield selector, whole


def _covers(other: str, selector: str) -> bool:
    inside, outside = layers_of(selector), layers_of(other)
    if inside is not None and outside is not None:
        return outside[0] <= inside[0] and inside[1] <= outside[1]
    return other == selector or ("." not in other and selector.startswith(f"{other}."))
