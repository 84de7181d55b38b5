"""Parts of a pass that are computed again in the backward pass instead of being kept. Knows nothing of what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from smoothtune.runtime import processes
from smoothtune.runtime.random import again, current_pass

KEPT_BYTES = 8 << 20


def called(module: nn.Module, *inputs: Tensor, each: int) -> Tensor:
    """`module(*inputs)`; where what it keeps is large and gradients are wanted, that is computed again for them.

    The backward pass then keeps `inputs` alone of a part with many steps (Chen et al., 2016, "Training deep nets with sublinear
    memory cost"). Outputs, gradients and running statistics are the same to the bit. `each` is the size of one of the tensors
    that are kept, in bytes; more than `KEPT_BYTES` is large. Only within a pass, whose masks can be drawn again, and in a
    process of its own, as sums over processes are not made twice.
    """
    again_pays = each > KEPT_BYTES and torch.is_grad_enabled()
    if not (again_pays and current_pass() is not None and processes.current().alone):
        return cast(Tensor, module(*inputs))
    # As they are in this call, which may have other weights than the module's own, learn none, or have its dropout off.
    weights = {name: part if part.requires_grad else part.detach() for name, part in module.named_parameters()}
    modes = {part: part.training for part in module.modules()}

    def compute(*given: Tensor) -> Tensor:
        with _in_modes(modes):
            return cast(Tensor, functional_call(module, weights, given))

    found = checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=again)
    return cast(Tensor, found)


@contextmanager
def _in_modes(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    before = {part: part.training for part in modes}
    try:
        for part, mode in modes.items():
            part.training = mode
        yield
    finally:
        for part, mode in before.items():
            part.training = mode
