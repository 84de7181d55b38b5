"""Similarities between every token of one text and every token of another. Knows nothing of what reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothtune.nn.grid import cell_mask

CHANNELS = 3
EPS = 1e-6  # inside the roots: at equal tokens, or at a zero state, the gradient is finite


def unit(vectors: Tensor) -> Tensor:
    """`vectors` (..., D) scaled to length 1; near 0 they stay short, and at 0 the gradient is finite."""
    return vectors * torch.rsqrt(vectors.square().sum(dim=-1, keepdim=True) + EPS)


def similarity_cube(states_a: Tensor, mask_a: Tensor, states_b: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
    """The cube (B, 3, Ta, Tb) of cosine, L2 distance and dot product, and its real cells (B, 1, Ta, Tb).

    `states_a` (B, Ta, D), `mask_a` (B, Ta), `states_b` (B, Tb, D), `mask_b` (B, Tb). Every real token takes part,
    [CLS] and [SEP] included; other cells are 0. Float32 or better under autocast too, and laid out channels last.
    Distances below about 1e-3 of a state's length are rounding noise, being differences of squares.
    Source: Wang, section 3.3, after He and Lin (2016), section 4.
    """
    with torch.autocast(states_a.device.type, enabled=False):
        a, b = _clean(states_a, mask_a), _clean(states_b, mask_b)
        cells = cell_mask(mask_a, mask_b)
        cube = torch.stack(_similarities(a, b), dim=1).masked_fill(~cells, 0)
        return cube.contiguous(memory_format=torch.channels_last), cells


def _clean(states: Tensor, mask: Tensor) -> Tensor:
    """`states` (B, T, D) in float32 or better, 0 at padding (B, T)."""
    wide = torch.promote_types(states.dtype, torch.float32)
    return states.to(wide).masked_fill(~mask.unsqueeze(2), 0)


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine, L2 distance and dot product of `a` (B, Ta, D) with `b` (B, Tb, D), each (B, Ta, Tb)."""
    dot = a @ b.mT
    of_a, of_b = a.square().sum(dim=2).unsqueeze(2), b.square().sum(dim=2).unsqueeze(1)
    cosine = dot * torch.rsqrt(of_a + EPS) * torch.rsqrt(of_b + EPS)
    return cosine, torch.sqrt((of_a + of_b - 2 * dot).clamp(min=0) + EPS), dot
