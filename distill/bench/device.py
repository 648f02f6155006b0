"""Time, kernels, synchronisations and memory of a computation on a device."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = ("aten::_local_scalar_dense", "aten::nonzero")  # each of these waits for the device


class Counts(NamedTuple):
    """Of one run: kernels and copies on the device, and how often the host waited for it.

    On the CPU there are no kernels, and the operations count that would wait on a GPU, copies between devices left out.
    """

    kernels: int
    waits: int


class Device:
    """A device to measure on.

    Args:
        name: cuda or cpu.
        budget_s: seconds that are spent on repeating one measurement.
    """

    def __init__(self, name: str, budget_s: float) -> None:
        self.device = torch.device(name)
        self.budget_s = budget_s

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronise(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def name(self) -> str:
        """The card with its memory, or that it is the CPU."""
        if not self.on_gpu:
            return "CPU"
        card = torch.cuda.get_device_properties(0)
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median seconds of a run, after two that are not counted."""
        taken: list[float] = []
        stop = time.perf_counter() + self.budget_s
        for number in range(1000):
            self.synchronise()
            started = time.perf_counter()
            run()
            self.synchronise()
            taken.append(time.perf_counter() - started)
            if number >= 2 and time.perf_counter() > stop:
                break
        return statistics.median(taken[2:])

    def counts(self, run: Callable[[], Any]) -> Counts:
        """Kernels and waits of one run; call :meth:`seconds` before, as first runs allocate and compile."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        self.synchronise()
        with profile(activities=activities) as profiler:
            with record_function("measured"):
                run()
            self.synchronise()
        events = profiler.events()
        assert events is not None
        span = next(e.time_range for e in events if e.name == "measured" and e.device_type.name == "CPU")
        names = [e.name for e in events if e.device_type.name == "CPU" and span.start <= e.time_range.start <= span.end]
        kernels = sum(e.device_type.name == "CUDA" and not getattr(e, "is_user_annotation", False) for e in events)
        return Counts(kernels, sum(name in (WAITS if self.on_gpu else READS) for name in names))

    def reset_peak(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Largest memory in tensors since :meth:`reset_peak`, None on the CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else None


class Parts:
    """Seconds that parts of a computation take, waiting for the device at the ends of each."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}

    def begin(self, name: str) -> None:
        self.device.synchronise()
        self._started[name] = time.perf_counter()

    def end(self, name: str) -> None:
        self.device.synchronise()
        self.seconds[name] += time.perf_counter() - self._started.pop(name)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.begin(name)
        yield
        self.end(name)

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, whose calls count as a part."""

        def run(*arguments: Any) -> Any:
            with self.part(name):
                return function(*arguments)

        return run

    def watch(self, module: torch.nn.Module, name: str) -> list[Any]:
        """Count the forward passes of a module as a part; returns hooks, to be removed."""
        return [
            module.register_forward_pre_hook(lambda *_: self.begin(name)),
            module.register_forward_hook(lambda *_: self.end(name)),
        ]
