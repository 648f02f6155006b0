"""Small values of the host, sent to a GPU without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``. Values of the host are copied from pinned memory, so that the host need not wait."""
    if values.device == device or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
