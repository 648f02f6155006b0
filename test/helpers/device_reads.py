"""What a program does with a device, seen without one: operations it starts, and results it waits for."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class OperationCount(TorchDispatchMode):
    """Counts torch's operations, and names those whose result the host would wait for."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "unique",
        "repeat_interleave.T",
    )

    def __init__(self) -> None:
        super().__init__()
        self.total, self.waiting = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += 1
        name = function.name().removeprefix("aten::")
        masks = name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple))
        masks = masks and any(isinstance(a, torch.Tensor) and a.dtype in (torch.bool, torch.uint8) for a in args[1])
        if masks or name.startswith(self.WAITING):
            self.waiting.append(name)
        return function(*args, **(kwargs or {}))


class OnDevice(torch.Tensor):
    """A tensor, and all that is computed with it, that counts as lying on a device: only ``cpu`` brings it here."""

    transfers = 0
    HERE = ("numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__array__")

    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in cls.HERE:
            raise AssertionError(f"{function.__name__} of a tensor on a device")
        return super().__torch_function__(function, types, args, kwargs)

    def cpu(self):
        OnDevice.transfers += 1
        return self.as_subclass(torch.Tensor)


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(OnDevice)
