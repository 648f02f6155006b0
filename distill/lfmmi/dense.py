"""A bigram as one dense matrix: the plainest form, and for small vocabularies the fastest by torch's operations.

In a bigram s.v = v, so a repetition that needs a blank and a token that goes on meet in the same state. With
M[s, v] = P(v | s) the arrivals are one product and no repetition has to be taken out of it:

    arrivals = M^T all + token * (1 - diag M)
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.lfmmi.backoff import States
from distill.lfmmi.ngram_automaton import Automaton


class Dense(States):
    """A bigram's :class:`distill.lfmmi.topology.Transitions` by a (V, V) matrix."""

    def __init__(self, automaton: Automaton, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(automaton, device, dtype)
        log_p, _ = automaton.dense()
        matrix = torch.from_numpy(log_p).exp()
        matrix[:, 0] = 0
        self._from = matrix.to(device, dtype)  # (from, to)
        self._to = self._from.t().contiguous()
        self._goes_on = (1 - matrix.diagonal())[:, None].to(device, dtype)

    def arrive(self, token: Tensor, blank: Tensor, all_: Tensor) -> Tensor:
        return torch.mm(self._to, all_).addcmul_(token, self._goes_on)

    def depart(self, emitted: Tensor, stay: Tensor, token: Tensor, blank: Tensor) -> None:
        torch.addmm(stay, self._from, emitted, out=blank)
        torch.addcmul(blank, emitted, self._goes_on, out=token)
