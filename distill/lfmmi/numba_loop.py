"""The loop over frames for a CPU, compiled by numba: eight utterances side by side, a frame's sums in the caches.

The sums, their scaling and the emissions are those of :mod:`distill.lfmmi.topology`; the n-gram's part of a frame is
three sparse products, as in :mod:`distill.lfmmi.triton_loop`:

    pools = G all,   groups = H pools,   arrivals = F [blank; all; pools; groups] + goes_on * token

A vector holds a number of each of LANES utterances. Sums of frames are arrays (slots, 2, S, LANES), of tokens and of
blanks; a recursion over frames ``first`` to ``last - 1`` has the sums of frame t in slot ``t - first + 1`` modulo the
number of slots: all of them, or two that take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from distill.lfmmi.lanes import LANES, add, at, load, maximum, plus_times, smallest, store, times, wide, zero


class Matrix(NamedTuple):
    """Compressed rows: ``start`` (rows + 1,) and ``column`` of each entry, int32, and its ``value``."""

    start: np.ndarray
    column: np.ndarray
    value: np.ndarray


class Model(NamedTuple):
    """G, H, F and their transposes, goes_on (S,), and the last token (S,) int32 of each state."""

    pools: Matrix
    groups: Matrix
    arrivals: Matrix
    pools_t: Matrix
    groups_t: Matrix
    arrivals_t: Matrix
    goes_on: np.ndarray
    last: np.ndarray


class Frames(NamedTuple):
    """Input and output of the utterances ``offset`` to ``offset + LANES - 1``, of which some may not be there.

    ``emission`` (B, T, V) probabilities, to be multiplied by ``factor`` (B, T); ``lengths`` (B,) int64; ``occupancy``
    (B, T, V), written; ``lowest`` (B,) smallest sum above 0 that was met, or (0,) if nobody asks.
    """

    emission: np.ndarray
    factor: np.ndarray
    lengths: np.ndarray
    occupancy: np.ndarray
    lowest: np.ndarray
    offset: int


# Of lanes.py, whose code is part of what numba keeps for this file: a test fails when it is another
LANES_SHA1 = "958930c628e818bcddea30377ed360ed4e372c76"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile when first called, for each number format; the code is kept on the disk where there is a place for it."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        kernel: Callable[..., Any] = njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        kernel = njit(**options)(function)
    return kernel


@compiled
def row_sum(matrix, row, vectors):
    """Sum of value * vectors[column] over the entries of a row; four sums at a time, as each waits for its last."""
    start, column, value = matrix
    a = b = c = d = zero(vectors)
    k, end = np.intp(at(start, row)), np.intp(at(start, row + 1))
    while k + 4 <= end:
        a = plus_times(a, at(value, k), load(vectors, np.intp(at(column, k))))
        b = plus_times(b, at(value, k + 1), load(vectors, np.intp(at(column, k + 1))))
        c = plus_times(c, at(value, k + 2), load(vectors, np.intp(at(column, k + 2))))
        d = plus_times(d, at(value, k + 3), load(vectors, np.intp(at(column, k + 3))))
        k += 4
    while k < end:
        a = plus_times(a, at(value, k), load(vectors, np.intp(at(column, k))))
        k += 1
    return add(add(a, b), add(c, d))


@compiled
def emit(frames, t, scale, emission):
    """Emissions (V + 1, LANES) of frame t, divided by (LANES,) scales; row 0 is 0, and the blank's come last."""
    vocab = frames.emission.shape[2]
    for lane in range(LANES):
        b = frames.offset + lane
        if b < len(frames.lengths) and t < frames.lengths[b]:
            row, factor = frames.emission[b, t], frames.factor[b, t] / scale[lane]
            for v in range(vocab):
                emission[v, lane] = row[v] * factor
        else:  # a blank with probability 1
            emission[:, lane] = 0
            emission[0, lane] = 1 / scale[lane]
        emission[vocab, lane] = emission[0, lane]
        emission[0, lane] = 0


@compiled
def occupy(frames, t, last, alpha, beta, gamma):
    """Share of all paths that emit each token in frame t, of sums (2, S, LANES).

    ``gamma``: (V + 1, LANES) double to work in: thousands of states may share a token, and all share the total.
    """
    vocab = frames.occupancy.shape[2]
    gamma[:] = 0
    blank = total = zero(gamma)
    for s in range(len(last)):
        path = times(wide(load(alpha[0], s)), wide(load(beta[0], s)))
        label = np.intp(at(last, s))
        store(gamma, label, add(load(gamma, label), path))
        total = add(total, path)
        blank = add(blank, times(wide(load(alpha[1], s)), wide(load(beta[1], s))))
    store(gamma, 0, blank)
    store(gamma, vocab, add(total, blank))
    for lane in range(min(LANES, len(frames.lengths) - frames.offset)):
        row = frames.occupancy[frames.offset + lane, t]
        if t < frames.lengths[frames.offset + lane]:
            share = gamma[vocab, lane]
            tiny = np.finfo(np.float64).tiny
            share = 1 / (tiny if share < tiny else share)
            for v in range(vocab):
                row[v] = gamma[v, lane] * share
        else:
            row[:] = 0


@compiled
def see_lowest(frames, alpha, beta):
    """Lower ``frames.lowest`` to the smallest sum above 0 of a frame."""
    least = np.full((1, LANES), np.inf, alpha.dtype)
    low = load(least, 0)
    for s in range(alpha.shape[1]):
        low = smallest(smallest(smallest(low, load(alpha[0], s)), load(alpha[1], s)), load(beta[0], s))
    store(least, 0, low)
    for lane in range(min(LANES, len(frames.lengths) - frames.offset)):
        b = frames.offset + lane
        frames.lowest[b] = min(frames.lowest[b], least[0, lane])


@compiled
def forward(model, frames, first, last, alpha, beta, scales, every, tiny):
    """Sums over all beginnings of paths; where ``beta`` has slots, occupancies with the sums that it holds.

    Args:
        alpha: (slots, 2, S, LANES), slot 0 holds the sums before frame ``first``.
        scales: (T // every, LANES), what frame ``every * k + every - 1`` is divided by.
    """
    states, pools = len(model.last), len(model.pools.start) - 1
    vocab = frames.emission.shape[2]
    work = np.empty((len(model.arrivals_t.start) - 1, LANES), alpha.dtype)
    all_, pool, group = work[states : 2 * states], work[2 * states : 2 * states + pools], work[2 * states + pools :]
    emission, gamma = np.empty((vocab + 1, LANES), alpha.dtype), np.empty((vocab + 1, LANES), np.float64)
    scale = np.empty(LANES, alpha.dtype)
    for t in range(first, last):
        now, after = alpha[(t - first) % len(alpha)], alpha[(t - first + 1) % len(alpha)]
        total = zero(work)
        for s in range(states):
            blank = load(now[1], s)
            both = add(load(now[0], s), blank)
            total = add(total, both)
            store(work, s, blank)
            store(all_, s, both)
        scale[:] = 1
        if t % every == every - 1:
            store(scales, t // every, total)
            for lane in range(LANES):
                if scales[t // every, lane] < tiny:
                    scales[t // every, lane] = tiny
            scale[:] = scales[t // every]
        emit(frames, t, scale, emission)
        for row in range(pools):
            store(pool, row, row_sum(model.pools, row, all_))
        for row in range(len(group)):
            store(group, row, row_sum(model.groups, row, pool))
        blank = load(emission, vocab)
        for s in range(states):
            arrivals = plus_times(row_sum(model.arrivals, s, work), at(model.goes_on, s), load(now[0], s))
            store(after[0], s, times(arrivals, load(emission, np.intp(at(model.last, s)))))
            store(after[1], s, times(load(all_, s), blank))
        if len(beta):
            occupy(frames, t, model.last, after, beta[t - first + 1], gamma)
            if len(frames.lowest):
                see_lowest(frames, after, beta[t - first + 1])


@compiled
def backward(model, frames, first, last, beta, alpha, scales, every, tiny):
    """Sums over all ends of paths; where ``alpha`` has slots, occupancies with the sums that it holds.

    Args:
        beta: (slots, 2, S, LANES), the slot of frame ``last - 1`` holds its sums; slot 0: those of frame ``first - 1``.
        scales: as in :func:`forward`.
    """
    states, pools = len(model.last), len(model.pools.start) - 1
    vocab = frames.emission.shape[2]
    work, emitted = np.empty((len(model.arrivals_t.start) - 1, LANES), beta.dtype), np.empty_like(beta[0, 0])
    all_, pool, group = work[states : 2 * states], work[2 * states : 2 * states + pools], work[2 * states + pools :]
    emission, gamma = np.empty((vocab + 1, LANES), beta.dtype), np.empty((vocab + 1, LANES), np.float64)
    scale = np.empty(LANES, beta.dtype)
    from_blank = model.arrivals_t.start[states] > 0
    for t in range(last - 1, first - 1, -1):
        now, before = beta[(t - first + 1) % len(beta)], beta[(t - first) % len(beta)]
        if len(alpha):
            occupy(frames, t, model.last, alpha[t - first + 1], now, gamma)
            if len(frames.lowest):
                see_lowest(frames, alpha[t - first + 1], now)
        if t == 0:
            break
        scale[:] = 1
        if t % every == every - 1:
            largest = zero(work)
            for s in range(states):
                largest = maximum(maximum(largest, load(now[0], s)), load(now[1], s))
            store(scales, t // every, largest)
            for lane in range(LANES):
                if scales[t // every, lane] < tiny:
                    scales[t // every, lane] = tiny
            scale[:] = scales[t // every]
        emit(frames, t, scale, emission)
        for s in range(states):
            store(emitted, s, times(load(now[0], s), load(emission, np.intp(at(model.last, s)))))
        for row in range(0 if from_blank else states, len(work)):
            store(work, row, row_sum(model.arrivals_t, row, emitted))
        if len(group):
            for row in range(pools):
                store(pool, row, add(load(pool, row), row_sum(model.groups_t, row, group)))
        blank = load(emission, vocab)
        for s in range(states):
            follows = add(row_sum(model.pools_t, s, pool), add(load(all_, s), times(load(now[1], s), blank)))
            store(before[0], s, plus_times(follows, at(model.goes_on, s), load(emitted, s)))
            store(before[1], s, add(follows, load(work, s)) if from_blank else follows)
