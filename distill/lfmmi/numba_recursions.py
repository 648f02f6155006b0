"""The recursions on a CPU: memory and threads for :mod:`distill.lfmmi.numba_loop`.

Both directions run at the same time and meet in the middle. Up to there each keeps its sums; from there on each turns
the sums that the other kept into occupancies, and keeps none. Where even half of the sums are too many, only those at
the borders of blocks of frames are kept, and the others computed again, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from distill.lfmmi import topology as topo
from distill.lfmmi.backoff import States
from distill.lfmmi.backoff_factors import Factors, Sparse
from distill.lfmmi.lanes import LANES
from distill.lfmmi.ngram_automaton import Automaton
from distill.lfmmi.numba_loop import Frames, Matrix, Model, backward, forward
from distill.lfmmi.recursions import Totals


class NumbaRecursions(States):
    """Both recursions of one n-gram in one precision, with :class:`distill.lfmmi.recursions.Recursions`'s ``totals``.

    Args:
        automaton: the n-gram; ``factors`` and ``goes_on`` (S,): its products.
    """

    def __init__(self, automaton: Automaton, factors: Factors, goes_on: np.ndarray, dtype: torch.dtype) -> None:
        super().__init__(automaton, torch.device("cpu"), dtype)
        number = np.float32 if dtype == torch.float32 else np.float64
        transposed = (m._replace(row=m.column, column=m.row, size=m.size[::-1]) for m in factors)
        g, h, f, g_t, h_t, f_t = (_rows(matrix, number) for matrix in (*factors, *transposed))
        self._model = Model(g, h, f, g_t, h_t, f_t, goes_on.astype(number), automaton.last.astype(np.int32))

    def totals(
        self, log_probs: Tensor, lengths: Tensor, unreachable: Tensor | None, gradient: bool, want_lowest: bool
    ) -> Totals:
        batch, frames, vocab_size = log_probs.shape
        inside = torch.arange(frames) < lengths[:, None]  # (B, T)
        x = log_probs.detach().to(self.dtype)
        if unreachable is not None:
            x = x.masked_fill(unreachable, topo.MINUS_INFINITY)
        top = x.amax(2)
        top.masked_fill_(~inside | (top == topo.MINUS_INFINITY), 0.0)
        x = torch.sub(x, top[:, :, None], out=_empty(x))
        lowest = x.new_ones(batch)
        if want_lowest:
            lowest = x.masked_fill((x == topo.MINUS_INFINITY) | ~inside[:, :, None], 0.0).amin((1, 2)).exp()
        mean = x.exp_().mean(2)
        mean.masked_fill_((mean == 0) | ~inside, 1.0)
        log_scale = (top.double() + mean.double().log()).sum(1)
        occupancies = _empty(x) if gradient else x.new_empty(0, 0, 0)
        runs = [
            _Lanes(self._model, x, mean.reciprocal(), lengths, occupancies, offset, self.final, want_lowest)
            for offset in range(0, batch, LANES)
        ]
        if gradient:
            threads = max(1, min(torch.get_num_threads(), 2 * len(runs)))
            slot = runs[0].slot_bytes
            block = frames if frames * slot * len(runs) <= topo.KEPT_BYTES else topo.KEPT_BYTES // (2 * slot * threads)
            for run in runs:
                run.divide(max(1, block))
            _at_once([way for run in runs for way in (run.ahead, run.back)])
            _at_once([way for run in runs for way in (run.ahead_from_half, run.back_from_half)])
        else:
            _at_once([run.ahead_alone for run in runs])
        scales = [
            torch.from_numpy(np.concatenate(of_runs, 1)[:, :batch])
            for of_runs in zip(*(run.scales(gradient) for run in runs), strict=True)
        ]
        ended = torch.from_numpy(np.concatenate([run.ended for run in runs])[:batch])
        for run in runs:
            lowest = torch.minimum(lowest, torch.from_numpy(run.lowest))
        return Totals(scales, ended, log_scale, lowest, occupancies)


class _Lanes:
    """The recursions of up to LANES utterances, from ``offset`` on.

    Attributes:
        slot_bytes: of the sums of a frame.
        ended: (LANES,) final probability of what was kept, double.
        lowest: (B,) smallest sum above 0, 1 for other utterances and where not asked for.
    """

    def __init__(
        self,
        model: Model,
        emission: Tensor,
        factor: Tensor,
        lengths: Tensor,
        occupancies: Tensor,
        offset: int,
        final: Tensor,
        want_lowest: bool,
    ) -> None:
        self._model, self._final = model, final.numpy()
        x, factors, counts, result = (each.numpy() for each in (emission, factor, lengths.long(), occupancies))
        low = [np.ones(len(x) if want_lowest else 0, x.dtype) for _ in range(2)]  # each direction has its own
        self._ahead, self._back = (Frames(x, factors, counts, result, low_of_way, offset) for low_of_way in low)
        self._frames = emission.shape[1]
        self._scaling = topo.RESCALE[emission.dtype], topo.TINY[emission.dtype]
        shape = (self._frames // self._scaling[0], LANES)
        self._alpha_scales, self._beta_scales = np.ones(shape, x.dtype), np.ones(shape, x.dtype)
        self._alpha = np.zeros((2, *final.shape, LANES), x.dtype)  # token and blank, (S, LANES) each
        self._alpha[1, 0] = 1
        self._beta = np.empty_like(self._alpha)
        self._beta[:] = self._final[:, None]
        self._nothing = self._slots(0)
        self.slot_bytes = self._alpha.nbytes

    def divide(self, block: int) -> None:
        """Blocks of so many frames at most, those of the first and those of the second half."""
        half = self._frames // 2
        self._keep = block >= self._frames
        self._first_half, self._second_half = (
            [(first, min(first + block, end)) for first in range(begin, end, block)]
            for begin, end in ((0, half), (half, self._frames))
        )
        self._kept_alpha: dict[int, np.ndarray] = {}  # by a block's first frame: its sums, or those it starts from
        self._kept_beta: dict[int, np.ndarray] = {}

    def ahead(self) -> None:
        for first, last in self._first_half:
            entry = self._alpha
            sums = self._forward(first, last, self._keep)
            self._kept_alpha[first] = sums if self._keep else entry

    def back(self) -> None:
        for first, last in reversed(self._second_half):
            entry = self._beta
            sums = self._backward(first, last, self._keep)
            self._kept_beta[first] = sums if self._keep else entry

    def ahead_from_half(self) -> None:
        for first, last in self._second_half:
            beta = self._kept_beta.pop(first)
            if not self._keep:
                beta = self._run_backward(first, last, beta, True, self._nothing, self._ahead)
            self._forward(first, last, False, beta)

    def back_from_half(self) -> None:
        for first, last in reversed(self._first_half):
            alpha = self._kept_alpha.pop(first)
            if not self._keep:
                alpha = self._run_forward(first, last, alpha, True, self._nothing, self._back)
            self._backward(first, last, False, alpha)

    def ahead_alone(self) -> None:
        self._forward(0, self._frames, False)

    def scales(self, both: bool) -> list[np.ndarray]:
        """Of the forward and of the backward direction, (k, LANES) in the order they were met, with the last sums'."""
        token, blank = self._alpha
        last = _not_0((token + blank).sum(0, keepdims=True), self._scaling[1])
        self.ended = (self._final[:, None] * (token + blank) / last).sum(0).astype(np.float64)
        alpha = np.concatenate([self._alpha_scales, last])
        if not both:
            return [alpha]
        first = _not_0(self._beta_0.max((0, 1))[None], self._scaling[1])
        return [alpha, np.concatenate([self._beta_scales[::-1], first])]

    @property
    def lowest(self) -> np.ndarray:
        return np.minimum(self._ahead.lowest, self._back.lowest) if len(self._ahead.lowest) else np.ones(1, np.float32)

    def _slots(self, count: int) -> np.ndarray:
        return np.empty((count, *self._alpha.shape), self._alpha.dtype)

    def _forward(self, first: int, last: int, keep: bool, beta: np.ndarray | None = None) -> np.ndarray:
        sums = self._run_forward(first, last, self._alpha, keep, self._nothing if beta is None else beta, self._ahead)
        self._alpha = sums[(last - first) % len(sums)].copy()
        return sums

    def _backward(self, first: int, last: int, keep: bool, alpha: np.ndarray | None = None) -> np.ndarray:
        sums = self._run_backward(first, last, self._beta, keep, self._nothing if alpha is None else alpha, self._back)
        self._beta = sums[0].copy()
        if first == 0:
            self._beta_0 = sums[1].copy()
        return sums

    def _run_forward(
        self, first: int, last: int, entry: np.ndarray, keep: bool, beta: np.ndarray, frames: Frames
    ) -> np.ndarray:
        sums = self._slots(last - first + 1 if keep else 2)
        sums[0] = entry
        forward(self._model, frames, first, last, sums, beta, self._alpha_scales, *self._scaling)
        return sums

    def _run_backward(
        self, first: int, last: int, after: np.ndarray, keep: bool, alpha: np.ndarray, frames: Frames
    ) -> np.ndarray:
        sums = self._slots(last - first + 1 if keep else 2)
        sums[(last - first) % len(sums)] = after
        backward(self._model, frames, first, last, sums, alpha, self._beta_scales, *self._scaling)
        return sums


def _empty(x: Tensor) -> Tensor:
    """Memory for a tensor of that shape. numpy asks for large pages, and where millions of sums are written once, the
    first touch of a page is what takes the time."""
    return torch.from_numpy(np.empty(tuple(x.shape), np.float32 if x.dtype == torch.float32 else np.float64))


def _rows(matrix: Sparse, number: type) -> Matrix:
    order = np.lexsort((matrix.column, matrix.row))
    start = np.zeros(matrix.size[0] + 1, dtype=np.int32)
    start[1:] = np.bincount(matrix.row, minlength=matrix.size[0]).cumsum()
    return Matrix(start, matrix.column[order].astype(np.int32), np.exp(matrix.log_value[order]).astype(number))


def _not_0(scale: np.ndarray, tiny: float) -> np.ndarray:
    return np.where(scale < tiny, np.asarray(tiny, scale.dtype), scale)  # what is not a number stays


def _at_once(ways: list[Callable[[], None]]) -> None:
    """Run them, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), len(ways))
    if threads < 2:
        for way in ways:
            way()
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(way) for way in ways]:
            done.result()
