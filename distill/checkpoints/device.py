"""Where and how trained networks compute: the choice of a GPU, precision, and copies to the host without waiting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.models.student import Student
from distill.models.teacher import Teacher

DEVICES = ("auto", "cpu", "cuda")
BATCH_SECONDS = {"cpu": 60.0, "cuda": 300.0}  # padded audio of a batch: enough to keep the device busy
MOST_READERS = 8

Key = TypeVar("Key", bound=Hashable)


def pick_device(name: str = "auto", job: int = 1) -> torch.device:
    """The device that an option names: auto (a GPU if there is one), cpu, or cuda.

    Args:
        name: one of :data:`DEVICES`.
        job: number of a parallel job, from 1; jobs on one machine take its GPUs by turns.

    Raises:
        UserError: there is no GPU, or no such device.
    """
    if name not in DEVICES:
        raise UserError(f"--device {name}: must be {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; leave the option out, or give --ngpu 0 to a recipe")
    return torch.device("cuda", (job - 1) % torch.cuda.device_count())


def batch_seconds_on(device: torch.device, wanted: float | None) -> float:
    """Seconds of padded audio in a batch: what is wanted, or by default what suits the device."""
    return BATCH_SECONDS.get(device.type, BATCH_SECONDS["cuda"]) if wanted is None else wanted


def readers_for(device: torch.device) -> int:
    """Threads that read audio: one beside computation on the CPU, several to keep a GPU busy."""
    return 1 if device.type == "cpu" else min(MOST_READERS, os.cpu_count() or 1)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them it would be slower than float32."""
    present = torch.cpu.get_capabilities()
    return any(present.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def half_precision(network: Student | Teacher) -> bool:
    """Whether :func:`inference` computes a network in bfloat16: a teacher on a GPU."""
    return isinstance(network, Teacher) and next(network.parameters()).device.type == "cuda"


@contextlib.contextmanager
def inference(network: Student | Teacher) -> Iterator[None]:
    """Compute without gradients: teachers on a GPU in bfloat16, everything else in full float32 (no TF32)."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half_precision(network)):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def padding_matters(network: Student | Teacher) -> bool:
    """Whether padding changes a network's outputs, as with the group norm of wav2vec 2.0 Base, a mean over time."""
    return isinstance(network, Teacher) and network.sees_padding


class HostCopies(Generic[Key]):
    """Copies of tensors on the host. A GPU computes on meanwhile; :meth:`get` waits for all of them at once."""

    def __init__(self, tensors: Mapping[Key, Tensor]) -> None:
        self._copies = {key: tensor.to("cpu", non_blocking=True) for key, tensor in tensors.items()}
        self._event = None
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> dict[Key, np.ndarray]:
        """The copies, as arrays."""
        if self._event is not None:
            self._event.synchronize()
        return {key: tensor.numpy() for key, tensor in self._copies.items()}
