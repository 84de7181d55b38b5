"""A state as plain values for JSON and tensors by name, and back. Knows nothing of files or of what a state means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = dict[str, Any]
_TENSOR = "tensor:"
_TEXT = "text:"  # before a text that begins like either


def taken_apart(state: Any, place: str = "") -> tuple[Any, dict[str, Tensor]]:
    """`state`, nested dicts and lists, with the path of each tensor in its place, and the tensors by path.

    Keys become texts and tuples lists. Raises `TypeError` for a value that JSON does not have.
    """
    if isinstance(state, Tensor):
        return _TENSOR + place, {place: state}
    if isinstance(state, Mapping):
        parts = {str(key): taken_apart(value, f"{place}/{key}") for key, value in state.items()}
        return {key: plain for key, (plain, _) in parts.items()}, _joined(found for _, found in parts.values())
    if isinstance(state, list | tuple):
        items = [taken_apart(value, f"{place}/{number}") for number, value in enumerate(state)]
        return [plain for plain, _ in items], _joined(found for _, found in items)
    if isinstance(state, str) and state.startswith((_TENSOR, _TEXT)):
        return _TEXT + state, {}
    if not isinstance(state, str | int | float | bool | None):
        raise TypeError(f"{place}: {state!r} cannot be kept")
    return state, {}


def bytes_of(state: Any) -> int:
    """What the tensors of a state take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in taken_apart(state)[1].values())


def put_together(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state again. Raises `KeyError` for a tensor that is not there."""
    if isinstance(plain, dict):
        return {key: put_together(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [put_together(value, tensors) for value in plain]
    if isinstance(plain, str) and plain.startswith(_TEXT):
        return plain.removeprefix(_TEXT)
    if isinstance(plain, str) and plain.startswith(_TENSOR):
        return tensors[plain.removeprefix(_TENSOR)]
    return plain


def _joined(parts: Any) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for part in parts:
        joined |= part
    return joined
