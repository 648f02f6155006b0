"""The two recursions of :mod:`distill.lfmmi.topology` as torch operations, a few for each frame."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.lfmmi import topology as topo
from distill.lfmmi.topology import Emissions, Sums, Transitions

# From so many numbers a frame on, the forward and the backward recursion run at the same time on half the threads each;
# smaller frames lose more to waiting for the interpreter than a second thread brings
SIDE_BY_SIDE = 4_000

State = tuple[Tensor, Tensor]


class Recursions(Protocol):
    """The recursions of one n-gram on one device and in one precision; attributes as :class:`topology.Transitions`."""

    dtype: torch.dtype
    states: int
    last: Tensor | None
    final: Tensor
    log_final_scale: float

    def forward(self, x: Emissions, first: int, last: int, entry: State, keep: bool) -> tuple[Sums, State]:
        """As :func:`topology.forward`."""
        ...

    def backward(self, x: Emissions, first: int, last: int, after: State) -> tuple[Sums, State]:
        """As :func:`topology.backward`."""
        ...

    def both(self, x: Emissions, entry: State, after: State) -> tuple[tuple[Sums, State], tuple[Sums, State]]:
        """Forward and backward over all frames."""
        ...


class TorchRecursions:
    """By the operations of :mod:`distill.lfmmi.topology`."""

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions
        self.dtype, self.states, self.last = transitions.dtype, transitions.states, transitions.last
        self.final, self.log_final_scale = transitions.final, transitions.log_final_scale

    def forward(self, x: Emissions, first: int, last: int, entry: State, keep: bool) -> tuple[Sums, State]:
        return topo.forward(self.transitions, x, first, last, entry, keep)

    def backward(self, x: Emissions, first: int, last: int, after: State) -> tuple[Sums, State]:
        return topo.backward(self.transitions, x, first, last, after)

    def both(self, x: Emissions, entry: State, after: State) -> tuple[tuple[Sums, State], tuple[Sums, State]]:
        frames = len(x.token)
        alpha, beta = both(
            lambda: self.forward(x, 0, frames, entry, True),
            lambda: self.backward(x, 0, frames, after),
            x.token.is_cpu and entry[0].numel() >= SIDE_BY_SIDE and torch.get_num_threads() > 1,
        )
        return alpha, beta


def both(first: Callable[[], Any], second: Callable[[], Any], at_once: bool) -> tuple[Any, Any]:
    """Both results: at the same time with half of torch's threads each, or one after the other with one thread.

    A product with a few columns gains little from a second thread, and loses much where the cores are busy; two
    recursions over frames at the same time gain all of it.
    """
    threads = torch.get_num_threads()

    def limited(work: Callable[[], Any]) -> Any:
        torch.set_num_threads(max(1, threads // 2) if at_once else 1)  # of the calling thread
        return work()

    try:
        if not at_once:
            return limited(first), limited(second)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(limited, second)
            return limited(first), other.result()
    finally:
        torch.set_num_threads(threads)
