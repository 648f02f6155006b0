"""A device that is not there: tensors that lie on the CPU but say they do not, and count what waits for their device.

Code that runs on them takes the branches that it takes on a GPU, with the CPU's numbers. What would make the host wait
for a GPU is counted with the line of the project that asked for it:

- a value or a tensor is brought to the host (``item``, ``tolist``, ``bool``, ``cpu``);
- a shape depends on values (``nonzero``, boolean indices);
- a tensor is sent to the device, unless it is small and not waited for (``non_blocking``).

What torch's ``ctc_loss`` copies inside CUDA code is not seen: lengths and offsets to the device in the forward pass and
again in the backward pass, and lengths that lie on the device to the host.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).parents[2]
SHAPE_FROM_VALUES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
SMALL = 2**16  # bytes that CUDA takes along with the command, pinned or not
ONE_VALUE = ("_local_scalar_dense", "equal", "is_nonzero")


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("far", _Backend())
FAR = torch.device("far", 0)


class FarTensor(Tensor):
    """A tensor whose values are those of ``near``, and whose device is FAR."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:
        return f"FarTensor({self.near})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("a tensor of the far device is used outside of far_device()")


class _Mode(TorchDispatchMode):
    """Runs every operation on the CPU, wraps results that would lie on FAR, and counts waits by line."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, inputs = function.overloadpacket.__name__, []
        tree_map(lambda x: inputs.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
        far_inputs = [x for x in inputs if isinstance(x, FarTensor)]
        device = kwargs.get("device")
        to = torch.device(device) if device is not None else None
        is_far = bool(far_inputs) if to is None else to.type == "far"
        self._look(name, args, kwargs, inputs, bool(far_inputs), is_far, to)
        wrappers = {id(x.near): x for x in far_inputs}
        near_args, near_kwargs = tree_map(lambda x: x.near if isinstance(x, FarTensor) else x, (args, kwargs))
        if to is not None:
            near_kwargs["device"] = torch.device("cpu")
        near_kwargs.pop("pin_memory", None)
        result = function(*near_args, **near_kwargs)
        if not is_far:
            return result

        def wrap(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return wrappers[id(x)] if id(x) in wrappers else FarTensor(x)  # in place: the same tensor again

        return tree_map(wrap, result)

    def _look(
        self, name: str, args: Any, kwargs: Any, inputs: list[Tensor], from_far: bool, to_far: bool, to: Any
    ) -> None:
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            target_far = isinstance(args[0], FarTensor) if name == "copy_" else to_far
            if isinstance(source, FarTensor) and not target_far:
                self._wait("to host")
            elif not isinstance(source, FarTensor) and target_far:
                non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
                if not (non_blocking and source.nbytes <= SMALL):
                    self._wait("to device")
            return
        if not from_far:
            return
        if name == "_ctc_loss":
            for length in args[2:4]:
                if isinstance(length, FarTensor):
                    self._wait("to host")
        elif name in ONE_VALUE or name in SHAPE_FROM_VALUES:
            self._wait(name)
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self._wait(name)
        elif name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self._wait("boolean index")
            if any(not isinstance(index, FarTensor) for index in indices):
                self._wait("index to device")
        elif any(not isinstance(x, FarTensor) and x.dim() > 0 for x in inputs) and name != "_ctc_loss_backward":
            raise RuntimeError(f"{name}: tensors of two devices")

    def _wait(self, what: str) -> None:
        stack = [frame for frame in traceback.extract_stack() if frame.filename.startswith(f"{ROOT}/distill/")]
        where = f"{Path(stack[-1].filename).relative_to(ROOT)}:{stack[-1].lineno}" if stack else "elsewhere"
        self.waits[f"{where} {what}"] += 1


class _Constructors(TorchFunctionMode):
    """torch.tensor and its like, which never reach the other mode: made on the host, then sent."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            of = args[0] if function is torch.Tensor.new_tensor else None
            device = torch.device(kwargs.pop("device", None) or (of.device if of is not None else "cpu"))
            if of is not None:
                kwargs.setdefault("dtype", of.dtype)
            if device.type == "far" and not isinstance(args[-1], FarTensor):
                return torch.tensor(*args[of is not None :], **kwargs).to(device)
            kwargs["device"] = device
        one_number = function is Tensor.__setitem__ and isinstance(args[2], int | float)
        if one_number and isinstance(args[1], FarTensor) and args[1].dtype == torch.bool:
            return args[0].masked_fill_(args[1], args[2])  # as torch does on CUDA
        return function(*args, **kwargs)


@contextmanager
def far_device() -> Iterator[Counter[str]]:
    """Context in which FAR tensors can be used; the counter holds what waited for the device, by line."""
    mode, pin = _Mode(), Tensor.pin_memory

    Tensor.pin_memory = lambda self: self  # type: ignore[method-assign, assignment]
    try:
        with _Constructors(), mode:
            yield mode.waits
    finally:
        Tensor.pin_memory = pin  # type: ignore[method-assign]


def to_far(x: Any) -> Any:
    """A tensor, or all parameters and buffers of a module in place, on FAR; gradients are theirs to collect."""
    if isinstance(x, Tensor):
        return FarTensor(x)
    assert isinstance(x, nn.Module)
    for module in x.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(FarTensor(parameter.data), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FarTensor(buffer)
    return x
