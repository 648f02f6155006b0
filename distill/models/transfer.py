"""Small values between host and GPU, without the GPU's queue running dry: the fewer times a host waits, the better.

Lengths, counts and tokens live on the host, where they decide shapes; a GPU gets copies of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``. Values of the host are copied from pinned memory, so that the host need not wait."""
    if values.device == device or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of whole numbers (int64) on the host; those of a GPU in one copy, for which the host waits once."""
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if not away:
        return list(tensors)
    flat = torch.cat([tensor.flatten().long() for tensor in away]).cpu()
    parts = iter(flat.split([tensor.numel() for tensor in away]))
    return [tensor if tensor.device.type == "cpu" else next(parts).view(tensor.shape) for tensor in tensors]
