"""Listed n-grams and back-off as sparse products: the work of a frame grows with what is listed, not with S * V."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from distill.lfmmi.backoff_factors import Factors, Sparse
from distill.lfmmi.ngram_automaton import Automaton


class States:
    """What all kinds of transitions hold: number format, number of states, their last tokens and sentence ends."""

    def __init__(self, automaton: Automaton, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype, self.states = dtype, automaton.states
        final = torch.from_numpy(automaton.final)
        self.log_final_scale = float(final.max())
        self.final = (final - self.log_final_scale).exp().to(device, dtype)
        same = self.states == automaton.vocab_size and bool((automaton.last == np.arange(self.states)).all())
        self.last = None if same else torch.from_numpy(automaton.last).to(device)


class RankOne(States):
    """A bigram: listed excess E, and one pool that all back off to, whose share is a product of two vectors.

    With w the weights, u(v) = P(v) and E[s, v] = P(v | s) - w(s) u(v) for the listed bigrams:

        arrivals = E^T all + u (w . all) + token * (1 - P(v | v))

    Args:
        automaton: for which :func:`is_rank_one` holds.
    """

    def __init__(self, automaton: Automaton, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(automaton, device, dtype)
        states = automaton.states
        unigram, weight, excess = rank_one(automaton)
        goes_on = goes_on_beside(automaton)
        to = lambda a: torch.from_numpy(a)[:, None].to(device, dtype)  # noqa: E731
        self._unigram, self._weight, self._goes_on = to(unigram), to(weight), to(goes_on)
        # The products with w and u are a row more each of the sparse matrices
        source, token = automaton.arc_node, automaton.arc_token
        listed = (source < states) & (excess > 0)
        source, token, excess = source[listed], token[listed], excess[listed]
        dense = np.arange(states)
        extra = np.full(states, states)
        size = (states + 1, states)
        self._to = csr(
            np.append(token, extra), np.append(source, dense), np.append(excess, weight), size, device, dtype
        )
        self._from = csr(
            np.append(source, extra), np.append(token, dense), np.append(excess, unigram), size, device, dtype
        )

    def arrive(self, token: Tensor, blank: Tensor, all_: Tensor) -> Tensor:
        product = torch.mm(self._to, all_)
        arrivals = product[:-1]
        return arrivals.addcmul_(self._unigram, product[-1]).addcmul_(token, self._goes_on)

    def depart(self, emitted: Tensor, stay: Tensor, token: Tensor, blank: Tensor) -> None:
        product = torch.mm(self._from, emitted)
        torch.addcmul(stay.add_(product[:-1]), self._weight, product[-1], out=blank)
        torch.addcmul(blank, emitted, self._goes_on, out=token)


def rank_one(automaton: Automaton) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u (V,), w (S,) and the excess (A,) of every arc over w u, below 0 where the bigram is not interpolated."""
    states = automaton.states
    unigram = np.zeros(automaton.vocab_size)
    weight = np.zeros(states)
    if automaton.nodes > states:
        pool = automaton.arc_node == states
        unigram[automaton.arc_token[pool]] = np.exp(automaton.arc_log_p[pool])
        weight = np.exp(automaton.log_weight[:states])
    source = np.minimum(automaton.arc_node, states - 1)
    excess = np.exp(automaton.arc_log_p) - weight[source] * unigram[automaton.arc_token]
    return unigram, weight, excess


def goes_on_beside(automaton: Automaton) -> np.ndarray:
    """(S,) 1 - P(v | v) of a bigram: what a token that goes on adds beside the product, which takes it to repeat."""
    states = np.arange(automaton.states)
    again, _ = automaton.resolve(states, states)
    goes_on: np.ndarray = 1 - np.exp(again)
    goes_on[0] = 0  # no token is 0
    return goes_on


def bigram_factors(automaton: Automaton) -> tuple[Factors, np.ndarray]:
    """The products of :class:`RankOne` as matrices G (w) and F (E^T and u), without groups, and ``goes_on``."""
    states = automaton.states
    unigram, weight, excess = rank_one(automaton)
    drawn = np.nonzero(unigram)[0]
    listed = (automaton.arc_node < states) & (excess > 0)
    source, token = automaton.arc_node[listed], automaton.arc_token[listed]
    pools = 1 if len(drawn) else 0
    weighted = np.nonzero(weight)[0] if pools else np.zeros(0, dtype=int)
    nothing = np.zeros(0, dtype=int)
    factors = Factors(
        Sparse(np.zeros_like(weighted), weighted, np.log(weight[weighted]), (pools, states)),
        Sparse(nothing, nothing, np.zeros(0), (0, pools)),
        Sparse(
            np.append(token, drawn),
            np.append(states + source, np.full(len(drawn), 2 * states)),
            np.append(np.log(excess[listed]), np.log(unigram[drawn])),
            (states, 2 * states + pools),
        ),
    )
    return factors, goes_on_beside(automaton)


def is_rank_one(automaton: Automaton) -> bool:
    """Whether it is a bigram of listed excess and one pool: all that interpolation, or no back-off, makes."""
    a = automaton
    if not a.is_bigram or a.nodes > a.states + 1:
        return False
    if (a.backoff[: a.states] != (a.states if a.nodes > a.states else -1)).any():
        return False
    listed = a.arc_node < a.states
    return bool((rank_one(a)[2][listed] >= -1e-12 * np.exp(a.arc_log_p[listed])).all())


class Factored(States):
    """Any n-gram, by the three matrices of :mod:`distill.lfmmi.backoff_factors`."""

    def __init__(self, automaton: Automaton, factors: Factors, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(automaton, device, dtype)
        self._pools, self._groups, self._arrivals = (
            csr(m.row, m.column, np.exp(m.log_value), m.size, device, dtype) for m in factors
        )
        self._pools_t, self._groups_t, self._arrivals_t = (
            csr(m.column, m.row, np.exp(m.log_value), m.size[::-1], device, dtype) for m in factors
        )
        ends = [0, self.states, 2 * self.states, 2 * self.states + factors.pools.size[0], factors.arrivals.size[1]]
        self._blank, self._all, self._pool, self._group = (slice(*pair) for pair in zip(ends, ends[1:], strict=False))
        self._has_groups = factors.groups.size[0] > 0

    def arrive(self, token: Tensor, blank: Tensor, all_: Tensor) -> Tensor:
        parts = [blank, all_, torch.mm(self._pools, all_)]
        if self._has_groups:
            parts.append(torch.mm(self._groups, parts[-1]))
        return torch.mm(self._arrivals, torch.cat(parts)).add_(token)

    def depart(self, emitted: Tensor, stay: Tensor, token: Tensor, blank: Tensor) -> None:
        through = torch.mm(self._arrivals_t, emitted)
        pools = through[self._pool]
        if self._has_groups:
            pools.add_(torch.mm(self._groups_t, through[self._group]))
        torch.add(through[self._all].add_(stay), torch.mm(self._pools_t, pools), out=token)
        torch.add(token, through[self._blank], out=blank)
        token.add_(emitted)


def csr(
    row: np.ndarray,
    column: np.ndarray,
    values: np.ndarray,
    size: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """A matrix in compressed rows with 32-bit indices, which take less time than 64-bit ones."""
    order = np.lexsort((column, row))
    starts = np.zeros(size[0] + 1, dtype=np.int32)
    starts[1:] = np.bincount(row, minlength=size[0]).cumsum()
    parts = (torch.from_numpy(a) for a in (starts, column[order].astype(np.int32), values[order]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its sparse tensors are new
        starts_, columns, entries = (part.to(device) for part in parts)
        return torch.sparse_csr_tensor(starts_, columns, entries.to(dtype), tuple(size))
