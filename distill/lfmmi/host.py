"""What the host has to know of tensors on a device. Each reading waits for the device, so there are few."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def read(*tensors: Tensor) -> list[np.ndarray]:
    """Values of integer or Boolean tensors, by one transfer for all that are not in the host's memory."""
    on_device = [tensor for tensor in tensors if not tensor.is_cpu]
    if on_device:
        joined = torch.cat([tensor.detach().flatten().long() for tensor in on_device])
        values = iter(joined.cpu().split([*map(torch.numel, on_device)]))
        tensors = tuple(t if t.is_cpu else next(values).view(t.shape) for t in tensors)
    return [tensor.detach().numpy() for tensor in tensors]
