"""The real tokens of a padded batch, one after another. Knows nothing of what a token's state means.

`N` is the number of real tokens of all rows: packed states are (N, D), so that no work is done for padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Where packed tokens stand in the padded batch of `rows` x `width`.

    `starts` (rows + 1,) int32: row r holds the packed tokens starts[r] to starts[r + 1]. `places` (N,) int64 are their
    places in the flat padded batch, `within` (N,) int64 their positions in their rows.
    """

    starts: Tensor
    places: Tensor
    within: Tensor
    rows: int
    width: int

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """The packing of a batch with `mask` (R, T) bool."""
        rows, width = mask.shape
        places = mask.flatten().nonzero().flatten()
        starts = torch.zeros(rows + 1, dtype=torch.int32, device=mask.device)
        torch.cumsum(mask.sum(dim=1, dtype=torch.int32), 0, dtype=torch.int32, out=starts[1:])
        return cls(starts, places, places % width, rows, width)

    def pack(self, padded: Tensor) -> Tensor:
        """(R, T, ...) to (N, ...)."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def unpack(self, packed: Tensor) -> Tensor:
        """(N, D) to (R, T, D), 0 at padding."""
        flat = packed.new_zeros(self.rows * self.width, packed.shape[1]).index_copy(0, self.places, packed)
        return flat.view(self.rows, self.width, packed.shape[1])
