"""The two recursions of :mod:`distill.lfmmi.topology`, and what they leave, as torch computes it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.lfmmi import topology as topo
from distill.lfmmi.topology import Emissions, Sums, Transitions

State = tuple[Tensor, Tensor]


class Totals(NamedTuple):
    """What an utterance's score, its gradient and their check need.

    ``scales`` of the forward and the backward direction, (k, B) each in the order they were met; ``ended`` (B,) double,
    final probability of what was kept; ``log_scale`` and ``lowest`` (B,) of the emissions, the latter also of the sums
    above 0; ``occupancies`` (B, T, V), 0 beyond lengths, or empty.
    """

    scales: list[Tensor]
    ended: Tensor
    log_scale: Tensor
    lowest: Tensor
    occupancies: Tensor


class Loop(Protocol):
    """Both recursions of one n-gram on one device and in one precision."""

    log_final_scale: float

    def totals(
        self, log_probs: Tensor, lengths: Tensor, unreachable: Tensor | None, gradient: bool, want_lowest: bool
    ) -> Totals:
        """Of (B, T, V) log-probabilities with (B,) lengths; ``unreachable`` as in :func:`topology.emissions`."""
        ...


class Recursions:
    """Totals from recursions over any part of the frames, whose sums are kept whole or block by block.

    Attributes are those of :class:`distill.lfmmi.topology.Transitions`.
    """

    dtype: torch.dtype
    states: int
    last: Tensor | None
    final: Tensor
    log_final_scale: float

    def forward(self, x: Emissions, first: int, last: int, entry: State, keep: bool) -> tuple[Sums, State]:
        """As :func:`topology.forward`."""
        raise NotImplementedError

    def backward(self, x: Emissions, first: int, last: int, after: State) -> tuple[Sums, State]:
        """As :func:`topology.backward`."""
        raise NotImplementedError

    def both(self, x: Emissions, entry: State, after: State) -> tuple[tuple[Sums, State], tuple[Sums, State]]:
        """Forward and backward over all frames."""
        raise NotImplementedError

    def totals(
        self, log_probs: Tensor, lengths: Tensor, unreachable: Tensor | None, gradient: bool, want_lowest: bool
    ) -> Totals:
        x = topo.emissions(log_probs, lengths, unreachable, self.dtype, want_lowest)
        frames, vocab_size, batch = x.token.shape
        end = self.final[:, None].expand(-1, batch)
        entry = topo.start(self.final, batch)
        block = max(1, topo.KEPT_BYTES // (4 * self.states * batch * x.token.element_size()))
        lowest = x.lowest
        if not gradient:
            alpha, state = self.forward(x, 0, frames, entry, False)
            scales, result = [alpha.scales], x.token.new_empty(0)
            lowest = torch.zeros_like(lowest)  # not looked at
        elif block >= frames:
            (alpha, state), (beta, _) = self.both(x, entry, (end, end))
            scales = [alpha.scales, beta.scales]
            if want_lowest:
                lowest = torch.minimum(lowest, _smallest_positive(alpha, beta))
            state = (state[0].clone(), state[1].clone())  # the occupancies overwrite it
            result = topo.occupancies(self.last, alpha, beta, vocab_size)
        else:
            scales, state, result, met = self._in_blocks(x, block, entry, (end, end))
            lowest = torch.minimum(lowest, met)
        ended = (self.final[:, None] * (state[0] + state[1])).double().sum(0)
        if gradient:
            inside = torch.arange(frames, device=result.device)[:, None] < lengths
            result = result.masked_fill_(~inside[:, None], 0.0).permute(2, 0, 1).contiguous()
        return Totals(scales, ended, x.log_scale, lowest, result)

    def _in_blocks(
        self, x: Emissions, block: int, entry: State, after: State
    ) -> tuple[list[Tensor], State, Tensor, Tensor]:
        """Forward once to the end, then back block by block, each computed forward again; keeps the sums of one.

        Returns:
            scales, (token, blank) after the last frame, occupancies (T, V, B), and the (B,) smallest sum above 0.
        """
        frames, vocab_size = x.token.shape[:2]
        firsts = list(range(0, frames, block))
        entries, forward_scales = [], []
        state = entry
        for first in firsts:
            entries.append((state[0].clone(), state[1].clone()))
            alpha, state = self.forward(x, first, min(first + block, frames), state, False)
            forward_scales.append(alpha.scales)
        result = torch.empty_like(x.token)
        lowest, backward_scales = x.lowest, []
        for first, at in zip(reversed(firsts), reversed(entries), strict=True):
            last = min(first + block, frames)
            alpha, _ = self.forward(x, first, last, at, True)
            beta, after = self.backward(x, first, last, after)
            backward_scales.append(beta.scales)
            lowest = torch.minimum(lowest, _smallest_positive(alpha, beta))
            result[first:last] = topo.occupancies(self.last, alpha, beta, vocab_size)
        return [torch.cat(forward_scales), torch.cat(backward_scales)], state, result, lowest


class TorchRecursions(Recursions):
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
        return self.forward(x, 0, frames, entry, True), self.backward(x, 0, frames, after)


def _smallest_positive(alpha: Sums, beta: Sums) -> Tensor:
    """(B,) smallest sum above 0 of the forward and the backward recursion."""
    sums = (alpha.token, alpha.blank, beta.token)
    return torch.stack([each.masked_fill(each == 0, 1.0).amin((0, 1)) for each in sums]).amin(0)
