"""The recursions on a GPU: memory for :mod:`distill.lfmmi.triton_loop`, laid out as a program of that kernel reads it.

Tensors have the shapes of :mod:`distill.lfmmi.topology`, (frames, states, utterances), but lie in memory utterance by
utterance. Nothing is read back to the host.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
from torch import Tensor

from distill.lfmmi.backoff import States
from distill.lfmmi.backoff_factors import Factors
from distill.lfmmi.ngram_automaton import Automaton
from distill.lfmmi.recursions import Recursions
from distill.lfmmi.tiles import GROUP, table
from distill.lfmmi.topology import RESCALE, TINY, Emissions, Sums
from distill.lfmmi.triton_loop import recursion

TILE = {torch.float32: 8192, torch.float64: 4096}  # entries at a time at most, which 16 warps hold in registers
WARPS = 16
BLOCK = 1024  # states at a time where nothing is multiplied


class TritonRecursions(States, Recursions):
    """Both recursions of one n-gram on one device and in one precision, on a GPU.

    Args:
        automaton: the n-gram; ``factors`` and ``goes_on`` (S,): its products.
    """

    def __init__(
        self,
        automaton: Automaton,
        factors: Factors,
        goes_on: np.ndarray,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(automaton, device, dtype)
        self._pools, self._groups = factors.pools.size[0], factors.groups.size[0]
        transposed = [m._replace(row=m.column, column=m.row, size=m.size[::-1]) for m in factors]
        self._from_blank = bool((factors.arrivals.column < self.states).any())
        entries = GROUP * self.states + len(factors.arrivals.row)
        tile = min(TILE[dtype], max(256, triton.next_power_of_2(entries)))
        through = np.arange(0 if self._from_blank else self.states, factors.arrivals.size[1])
        rows = [np.arange(m.size[0]) for m in factors]
        rows += [through, np.arange(self._pools if self._groups else 0), np.arange(self.states)]
        # The order in which the backward direction multiplies
        pools_t, groups_t, arrivals_t = transposed
        laid = table([*factors, arrivals_t, groups_t, pools_t], rows, tile)
        self._tile, self._first = tile, laid.first
        to = lambda a: torch.from_numpy(a).to(device)  # noqa: E731
        self._table = to(laid.columns), to(laid.values).to(dtype), to(laid.groups)
        self._goes_on = to(goes_on).to(dtype)
        self._label = to(automaton.last.astype(np.int32))

    def forward(
        self, x: Emissions, first: int, last: int, entry: tuple[Tensor, Tensor], keep: bool
    ) -> tuple[Sums, tuple[Tensor, Tensor]]:
        alpha = self._slots(x, last - first + 1 if keep else 2, entry, 0)
        scales = self._scales(x, first, last)
        self._run(x, first, last, alpha, alpha, scales, scales, 0, 1)
        return self._forward_sums(x, first, last, alpha, scales, keep)

    def backward(
        self, x: Emissions, first: int, last: int, after: tuple[Tensor, Tensor]
    ) -> tuple[Sums, tuple[Tensor, Tensor]]:
        beta = self._slots(x, last - first + 1, after, last - first)
        scales = self._scales(x, first, last)
        self._run(x, first, last, beta, beta, scales, scales, 1, 1)
        return self._backward_sums(first, beta, scales)

    def both(
        self, x: Emissions, entry: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Sums, tuple[Tensor, Tensor]], tuple[Sums, tuple[Tensor, Tensor]]]:
        frames = len(x.token)
        alpha, beta = self._slots(x, frames + 1, entry, 0), self._slots(x, frames + 1, after, frames)
        alpha_scales, beta_scales = self._scales(x, 0, frames), self._scales(x, 0, frames)
        self._run(x, 0, frames, alpha, beta, alpha_scales, beta_scales, 0, 2)
        return self._forward_sums(x, 0, frames, alpha, alpha_scales, True), self._backward_sums(0, beta, beta_scales)

    def _slots(self, x: Emissions, slots: int, state: tuple[Tensor, Tensor], at: int) -> tuple[Tensor, Tensor]:
        """Memory for the (token, blank) sums (B, slots, S) of some frames, with those of one frame in it."""
        shape = (x.token.shape[2], slots, self.states)
        sums = self.final.new_empty(shape), self.final.new_empty(shape)
        for memory, given in zip(sums, state, strict=True):
            memory[:, at] = given.t()
        return sums

    def _scales(self, x: Emissions, first: int, last: int) -> Tensor:
        every = RESCALE[self.dtype]
        return self.final.new_empty(last // every - first // every, x.token.shape[2])

    def _run(
        self,
        x: Emissions,
        first: int,
        last: int,
        alpha: tuple[Tensor, Tensor],
        beta: tuple[Tensor, Tensor],
        alpha_scales: Tensor,
        beta_scales: Tensor,
        direction: int,
        directions: int,
    ) -> None:
        batch = x.token.shape[2]
        token, blank = x.token.permute(2, 0, 1), x.blank.permute(2, 0, 1)
        scratch = token.new_empty(directions * batch * (3 * self.states + self._pools + self._groups))
        recursion[(batch, directions)](
            *self._table,
            self._goes_on,
            self._label,
            token,
            blank,
            *alpha,
            *beta,
            alpha_scales,
            beta_scales,
            scratch,
            first,
            last,
            alpha[0].shape[1],
            direction,
            batch,
            self.states,
            self._pools,
            self._groups,
            token.stride(1),
            token.stride(0),
            token.stride(2),
            blank.stride(1),
            blank.stride(0),
            *self._first,
            EVERY=RESCALE[self.dtype],
            TINY=TINY[self.dtype],
            FROM_BLANK=self._from_blank,
            TILE=self._tile,
            GROUP=GROUP,
            BLOCK=min(BLOCK, triton.next_power_of_2(self.states)),
            num_warps=min(WARPS, max(1, self._tile // 256)),
        )

    def _forward_sums(
        self, x: Emissions, first: int, last: int, alpha: tuple[Tensor, Tensor], scales: Tensor, keep: bool
    ) -> tuple[Sums, tuple[Tensor, Tensor]]:
        token, blank = (sums[:, (last - first) % sums.shape[1]].t() for sums in alpha)
        if last == len(x.token):
            scale = (token + blank).sum(0, keepdim=True).clamp_(min=TINY[self.dtype])
            token, blank = token.div_(scale), blank.div_(scale)
            scales = torch.cat([scales, scale])
        tokens, blanks = (sums[:, 1 if keep else sums.shape[1] :].permute(1, 2, 0) for sums in alpha)
        return Sums(tokens, blanks, scales), (token, blank)

    def _backward_sums(
        self, first: int, beta: tuple[Tensor, Tensor], scales: Tensor
    ) -> tuple[Sums, tuple[Tensor, Tensor]]:
        tokens, blanks = (sums[:, 1:].permute(1, 2, 0) for sums in beta)
        if first == 0:
            scale = torch.maximum(tokens[0].amax(0, keepdim=True), blanks[0].amax(0, keepdim=True))
            scales = torch.cat([scales, scale.clamp_(min=TINY[self.dtype])])
        return Sums(tokens, blanks, scales), (beta[0][:, 0].t(), beta[1][:, 0].t())
