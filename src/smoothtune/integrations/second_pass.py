"""One more pass through a model of transformers, with a perturbation of what its embeddings module returns.

Knows nothing of trainers, losses or dropout masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from smoothtune.errors import UsageError
from smoothtune.smoothness import compute_dtype


class SecondPass:
    """Runs `model` on `inputs` (without labels), which a clean pass has read under `watching`."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self._model = model
        self._inputs = inputs
        self._site = embeddings_of(model)
        self._seen: list[tuple[Tensor, torch.dtype]] = []

    def __call__(self, perturbation: Tensor | None, *, learn: bool) -> Tensor:
        """Logits with `perturbation` (B, T, D) added; without `learn` no gradient goes below the perturbed place."""

        def moved(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            start = output if learn else output.detach()
            return start if perturbation is None else (start + perturbation).to(output.dtype)

        handle = self._site.register_forward_hook(moved)
        try:
            outputs = self._model(**self._inputs)
        finally:
            handle.remove()
        return logits_in(outputs)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A clean pass runs inside; `states` then knows what it perturbs."""

        def seen(module: nn.Module, arguments: Any, output: Tensor) -> None:
            self._seen.append((output.detach(), compute_dtype(output)))

        handle = self._site.register_forward_hook(seen)
        try:
            yield
        finally:
            handle.remove()

    def states(self) -> tuple[Tensor, torch.dtype]:
        """What the embeddings module returned in the clean pass, (B, T, D), detached, and the dtype that was computed in."""
        if len(self._seen) != 1:
            raise UsageError(
                f"smoothness: the model ran its embeddings {len(self._seen)} times in one pass; it has to be once"
            )
        return self._seen[0]


def logits_in(outputs: Any, *, after: int = 0) -> Tensor:
    """The logits of a model's answer; `after` says how many entries come before them where it is a tuple."""
    return cast(Tensor, outputs["logits"] if isinstance(outputs, Mapping) else outputs[after])


def embeddings_of(model: nn.Module) -> nn.Module:
    """The module whose output is perturbed. Raises `UsageError` for a model that has none of the known form."""
    inside: Any = getattr(model, "get_base_model", None)  # of a PeftModel, whose own `base_model` is something else
    bare = model if inside is None else inside()
    base = getattr(bare, "base_model", None)
    # ELECTRA and its kin bring narrow embeddings to the width of the layers in a module of their own.
    for name in ("embeddings_project", "embeddings"):
        found = getattr(base, name, None)
        if isinstance(found, nn.Module):
            return found
    raise UsageError(
        f"smoothness: {type(bare).__name__} has no module base_model.embeddings; "
        "choose an encoder with a classification head, such as BERT, RoBERTa, DeBERTa or DistilBERT"
    )
