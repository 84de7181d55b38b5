"""Which network answers for a model in this context: the model's own, or one with a task's LoRA in its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from smoothtune.nn.model import MultiTaskModel

# By the `id` of the network that is merged in this context.
_merged: ContextVar[Mapping[int, MultiTaskModel]] = ContextVar("smoothtune_merged", default=MappingProxyType({}))


def network_here(network: MultiTaskModel) -> MultiTaskModel:
    """`network`, or inside `merged_here` the one that takes its place."""
    return _merged.get().get(id(network), network)


@contextmanager
def merged_here(network: MultiTaskModel, task: str) -> Iterator[None]:
    """Inside, `network` answers with the LoRA of `task` in its weights; in this context alone.

    Raises `UsageError` for a task without LoRA, and while one is merged.
    """
    merged = network_here(network).merge(task)
    _merged.set({**_merged.get(), id(network): merged})
    try:
        yield
    finally:
        _merged.set({key: other for key, other in _merged.get().items() if key != id(network)})
