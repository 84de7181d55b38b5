"""A state as plain values for JSON and tensors by name, and back. Knows nothing of files or of what a state means.

What a part of a state cannot be is a `ValueError` whose text begins with the key path inside the part, `waited: got -1, ...`, or
with `: got ...` where the part itself is wrong; `under` puts the part's key before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError
from torch import Tensor

from smoothtune.bounded import reason_of
from smoothtune.errors import Problem

State = dict[str, Any]
_TENSOR = "tensor:"
_TEXT = "text:"  # before a text that begins like either
_SHOWN = 60
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class KeptState(dict[str, Any]):
    """A state that was read from the checkpoint in the folder `where`."""

    def __init__(self, state: Mapping[str, Any], where: Path) -> None:
        super().__init__(state)
        self.where = where


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


def put_together(plain: Any, tensors: Mapping[str, Tensor], place: str = "") -> Any:
    """The state again. Raises `KeyError` for a tensor that is not there, `ValueError` where one stands in another's place."""
    if isinstance(plain, dict):
        return {key: put_together(value, tensors, f"{place}/{key}") for key, value in plain.items()}
    if isinstance(plain, list):
        return [put_together(value, tensors, f"{place}/{number}") for number, value in enumerate(plain)]
    if isinstance(plain, str) and plain.startswith(_TEXT):
        return plain.removeprefix(_TEXT)
    if isinstance(plain, str) and plain.startswith(_TENSOR):
        if plain != _TENSOR + place:
            raise ValueError(f"{place or '/'}: got {shown(plain)}, expected the tensor of that name")
        return tensors[place]
    return plain


def refusal(state: Mapping[str, Any], part: str, error: ValueError) -> str:
    """The text of an error about a state: where it was read, what is wrong in which `part`, what to do."""
    text = reason_of(ValueError(first_of(error)) if isinstance(error, ValidationError) else error)
    what = f"the checkpoint does not fit: {text.removeprefix(': ')}"
    if not isinstance(state, KeptState):
        return str(Problem(part, f"{what}; give the state of a run of this stage"))
    folder = state.where
    advice = f"remove {folder} to go on from the checkpoint before it, or {folder.parent} to start over"
    return str(Problem(f"{folder}: {part}", f"{what}; {advice}"))


@contextmanager
def under(key: str) -> Iterator[None]:
    """What is wrong inside is told under `key`. Raises `ValueError`."""
    try:
        yield
    except ValidationError as error:
        raise ValueError(joined(key, first_of(error))) from None
    except ValueError as error:
        raise ValueError(joined(key, str(error))) from None


def joined(key: str, text: str) -> str:
    """The text of an error inside `key`, under `key`."""
    return f"{key}{text}" if text.startswith(":") else f"{key}.{text}"


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong with a part, as a text under its key path."""
    found = error.errors(include_url=False, include_context=False)[0]
    if found["type"] == "value_error":  # ours, from a validator
        return ".".join(map(str, found["loc"])) + ": " + found["msg"].removeprefix("Value error, ")
    got = "" if found["type"] == "missing" else f"got {shown(found['input'])}: "
    return ".".join(map(str, found["loc"])) + f": {got}{found['msg'][:1].lower()}{found['msg'][1:]}"


def shown(value: object) -> str:
    """A value of a stranger in a message: what it is where it is long."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping | list | tuple):
        return f"{'a table' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def tensors_like(found: object, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found` as the tensors that `wanted` names. Raises `ValueError` for other names, shapes, dtypes, and what is not finite.

    Cost: one pass over the values.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f": got {shown(found)}, expected a table of tensors")
    if found.keys() != wanted.keys():
        name = min(map(str, found.keys() ^ wanted.keys()))
        raise ValueError(f"{name}: is in one of the model and the state, not in both")
    for name, like in wanted.items():
        with under(name):
            _check_like(found[name], like)
    return dict(found)


def _check_like(found: object, like: Tensor) -> None:
    if not isinstance(found, Tensor) or found.shape != like.shape or found.dtype != like.dtype:
        raise ValueError(f": got {shown(found)}, expected {shown(like)}")
    if not found.isfinite().all() and like.isfinite().all():  # a mask that is kept may be infinite
        raise ValueError(": holds values that are not finite, expected finite ones")


def _joined(parts: Any) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for part in parts:
        joined |= part
    return joined
