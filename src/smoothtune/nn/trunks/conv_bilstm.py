"""Wang's trunk for one text: convolution, BiLSTM, pooling over real tokens. Knows nothing of its task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothtune.config import trunks as config
from smoothtune.errors import ConfigurationError, Problem
from smoothtune.nn.bilstm import Bilstm
from smoothtune.nn.dropout import Dropout
from smoothtune.nn.masked_pool import masked_max, masked_mean


class ConvBilstmTrunk(nn.Module):
    """Conv1d over D channels that keeps the shape, BiLSTM of width D, max (or mean) over real tokens, F = D.

    The kernel's width, the ReLU after the convolution and the dropout on the features are ours; the paper names none.
    Raises `ConfigurationError` for an even kernel or an odd width. Source: Wang, section 3.2.
    """

    def __init__(self, options: config.ConvBilstmTrunk, width: int) -> None:
        super().__init__()
        _check(width)
        self.features = width
        self.convolution = nn.Conv1d(width, width, options.kernel, padding=options.kernel // 2)
        self.bilstm = Bilstm(width, options.layers)
        self.pool = masked_max if options.pool == "max" else masked_mean
        self.dropout = Dropout(options.dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (B, T, D), `mask` (B, T) to (B, F)."""
        clean = states.masked_fill(~mask.unsqueeze(2), 0)
        read = self.bilstm(F.relu(self._convolved(clean)), mask)
        features: Tensor = self.dropout(self.pool(read, mask))
        return features

    def _convolved(self, states: Tensor) -> Tensor:
        """`states` (B, T, D) convolved along the tokens: one matrix product, on the CPU twice as fast as `nn.Conv1d`."""
        side, tokens = self.convolution.kernel_size[0], states.shape[1]
        framed = F.pad(states, [0, 0, side // 2, side // 2])
        windows = torch.cat([framed[:, start : start + tokens] for start in range(side)], dim=2)
        return F.linear(windows, self.convolution.weight.permute(0, 2, 1).flatten(1), self.convolution.bias)


def _check(width: int) -> None:
    if width % 2:
        what = f"its width {width} is odd and has no two halves for the BiLSTM; take another trunk kind"
        raise ConfigurationError('A trunk of kind "conv_bilstm" cannot be built.', [Problem("encoder", what)])
