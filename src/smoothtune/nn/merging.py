"""An encoder with a task's LoRA written into its weights, beside the one that it came from. Knows nothing of passes."""

from __future__ import annotations

import copy

import torch

from smoothtune.nn.encoder import Encoder
from smoothtune.nn.lora import Lora


@torch.no_grad()
def merged(encoder: Encoder, lora: Lora) -> Encoder:
    """A copy of `encoder` with W + (alpha / r) B A in place of W in every product that `lora` changes.

    Every other tensor is that of `encoder`, which stays as it is: threads that use it meanwhile see nothing of the copy.
    Cost: the memory of the weights that change. Source: Hu et al. (2021), section 4.1.
    """
    products = [(layer, target) for layer in range(encoder.depth) for target in lora.options.targets]
    changed = {encoder.weight_of(*place).untyped_storage().data_ptr() for place in products}
    tensors = [*encoder.parameters(), *encoder.buffers()]
    shared = {id(tensor): tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in changed}
    twin = copy.deepcopy(encoder, shared)  # type: ignore[arg-type]
    for layer, target in products:
        part = lora.at(layer, target)
        assert part is not None
        twin.weight_of(layer, target).add_(part.change())
    return twin
