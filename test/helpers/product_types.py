"""Types in which matrix products are computed."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ProductTypes(TorchDispatchMode):
    """Types of the factors of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.dtype] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "bmm"):
            self.found.append(args[-1].dtype)
        return function(*args, **(kwargs or {}))
