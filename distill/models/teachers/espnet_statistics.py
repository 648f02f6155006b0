"""Statistics of features over a whole corpus."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GlobalStatistics(nn.Module):
    """ESPnet's global_mvn, whose statistics are weights here: (B, T, D) and (B,) frames -> normalised, zero beyond."""

    mean: Tensor
    std: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bins))
        self.register_buffer("std", torch.ones(bins))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return (x - self.mean) * inside[:, :, None] / self.std, lengths
