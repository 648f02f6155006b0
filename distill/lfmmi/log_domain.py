"""The same sums in the log domain, an utterance at a time: slow, and right for any range of numbers.

Products with the matrices of :mod:`distill.lfmmi.backoff_factors` become sums of logs, and sums become logs of sums of
exponentials.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.lfmmi.backoff_factors import Factors, Sparse
from distill.lfmmi.ngram_automaton import Automaton

MINUS_INFINITY = float("-inf")


class _LogMatrix:
    """A sparse matrix of logs and its transpose, applied to vectors of logs."""

    def __init__(self, matrix: Sparse, device: torch.device) -> None:
        self.size = matrix.size
        self._row, self._column, self._value = (
            torch.from_numpy(a).to(device) for a in (matrix.row, matrix.column, matrix.log_value)
        )

    def times(self, vector: Tensor) -> Tensor:
        return _log_sums(self._value + vector[self._column], self._row, self.size[0])

    def transposed_times(self, vector: Tensor) -> Tensor:
        return _log_sums(self._value + vector[self._row], self._column, self.size[1])


def _log_sums(values: Tensor, place: Tensor, count: int) -> Tensor:
    """(count,) logs of the sums of exp(values) that fall on each place."""
    top = values.new_full((count,), MINUS_INFINITY).scatter_reduce(0, place, values, "amax")
    top = top.masked_fill(top == MINUS_INFINITY, 0.0)
    return top + torch.zeros_like(top).index_add_(0, place, (values - top[place]).exp()).log()


class LogDomain:
    """Scores and occupancies of an n-gram on one device, in double precision."""

    def __init__(self, automaton: Automaton, factors: Factors, device: torch.device) -> None:
        self._last = torch.from_numpy(automaton.last).to(device)
        self._final = torch.from_numpy(automaton.final).to(device)
        self._pools, self._groups, self._arrivals = (_LogMatrix(matrix, device) for matrix in factors)
        self._ends = [automaton.states, automaton.states, factors.pools.size[0], factors.groups.size[0]]

    def _arrive(self, token: Tensor, blank: Tensor) -> Tensor:
        all_ = torch.logaddexp(token, blank)
        pools = self._pools.times(all_)
        return self._arrivals.times(torch.cat([blank, all_, pools, self._groups.times(pools)]))

    def _depart(self, emitted: Tensor) -> tuple[Tensor, Tensor]:
        """What follows by a new token: from any state, and from a blank alone."""
        blank, all_, pools, groups = self._arrivals.transposed_times(emitted).split(self._ends)
        pools = torch.logaddexp(pools, self._groups.transposed_times(groups))
        return torch.logaddexp(all_, self._pools.transposed_times(pools)), blank

    def __call__(self, log_probs: Tensor, lengths: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        """Scores (B,) and occupancies (B, T, V), double, of (B, T, V) log-probabilities with (B,) lengths."""
        x = log_probs.detach().double()
        scores, occupancies = x.new_full((len(x),), MINUS_INFINITY), torch.zeros_like(x)
        for b, length in enumerate(lengths.tolist()):
            frames = x[b, :length]
            into = frames[:, self._last].masked_fill(self._last == 0, MINUS_INFINITY)
            token = torch.full_like(self._final, MINUS_INFINITY)
            blank = token.clone()
            blank[0] = 0
            kept = []
            for t in range(length):
                arrivals = torch.logaddexp(token, self._arrive(token, blank))
                token, blank = into[t] + arrivals, frames[t, 0] + torch.logaddexp(blank, token)
                kept.append((token, blank))
            total = torch.logsumexp(torch.cat([token + self._final, blank + self._final]), 0)
            scores[b] = total
            if not gradient or not torch.isfinite(total):
                continue
            beta_token = beta_blank = self._final
            for t in range(length - 1, -1, -1):
                if t < length - 1:
                    emitted, stay = into[t + 1] + beta_token, frames[t + 1, 0] + beta_blank
                    fresh, repeated = self._depart(emitted)
                    fresh = torch.logaddexp(fresh, stay)
                    beta_token, beta_blank = torch.logaddexp(fresh, emitted), torch.logaddexp(fresh, repeated)
                token, blank = kept[t]
                occupancies[b, t].index_add_(0, self._last, (token + beta_token - total).exp())
                occupancies[b, t, 0] = (torch.logsumexp(blank + beta_blank, 0) - total).exp()
        return scores, occupancies if gradient else x.new_empty(0)
