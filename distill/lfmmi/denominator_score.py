"""The denominator's score and occupancies: which products and which number format compute them."""

from __future__ import annotations

import math
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from distill.lfmmi import host, precision
from distill.lfmmi import topology as topo
from distill.lfmmi.backoff import Factored, RankOne, bigram_factors, is_rank_one
from distill.lfmmi.backoff_factors import Factors, factorise
from distill.lfmmi.dense import Dense
from distill.lfmmi.log_domain import LogDomain
from distill.lfmmi.ngram_automaton import Automaton
from distill.lfmmi.recursions import Recursions, TorchRecursions
from distill.lfmmi.topology import Sums, Transitions

# A bigram is a dense matrix up to so many tokens; above, sparse products take less time (docs/lfmmi.md has the times)
DENSE_VOCAB = 128


def in_one_kernel(device: torch.device) -> bool:
    """Whether the loop over frames is a kernel of its own there."""
    return device.type == "cuda" and torch.version.cuda is not None and find_spec("triton") is not None


class NativeDenominator:
    """Exact sums over all paths through the topology and one n-gram, on any device."""

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        self._recursions: dict[tuple[torch.device, torch.dtype], Recursions] = {}
        self._unreachable: dict[torch.device, Tensor | None] = {}
        self._log_domain: dict[torch.device, LogDomain] = {}

    @cached_property
    def factors(self) -> Factors:
        return factorise(self.automaton)

    @cached_property
    def advantage(self) -> float:
        """D of :mod:`distill.lfmmi.precision`."""
        return precision.advantage(self.automaton)

    @cached_property
    def _extreme(self) -> bool:
        values = torch.from_numpy(self.automaton.arc_log_p)
        return bool((values[values.isfinite()] < -60).any()) or bool((self.automaton.log_weight < -60).any())

    def transitions(self, device: torch.device, dtype: torch.dtype) -> Transitions:
        """The n-gram as torch's products."""
        a = self.automaton
        if a.is_bigram and a.vocab_size <= DENSE_VOCAB:
            return Dense(a, device, dtype)
        return RankOne(a, device, dtype) if is_rank_one(a) else Factored(a, self.factors, device, dtype)

    def recursions(self, device: torch.device, dtype: torch.dtype) -> Recursions:
        """The recursions for one device and precision, made when first asked for."""
        key = (device, dtype)
        if key not in self._recursions:
            if in_one_kernel(device):
                from distill.lfmmi.triton_recursions import TritonRecursions

                a = self.automaton
                factors, goes_on = bigram_factors(a) if is_rank_one(a) else (self.factors, np.ones(a.states))
                self._recursions[key] = TritonRecursions(a, factors, goes_on, device, dtype)
            else:
                self._recursions[key] = TorchRecursions(self.transitions(device, dtype))
        return self._recursions[key]

    def log_domain(self, device: torch.device) -> LogDomain:
        if device not in self._log_domain:
            self._log_domain[device] = LogDomain(self.automaton, self.factors, device)
        return self._log_domain[device]

    def _masked(self, device: torch.device) -> Tensor | None:
        if device not in self._unreachable:
            mask = torch.from_numpy(~precision.reachable(self.automaton))
            self._unreachable[device] = mask.to(device) if bool(mask.any()) else None
        return self._unreachable[device]

    def _limit(self, dtype: torch.dtype, frames: int) -> float:
        a = self.automaton
        terms = 4 * (len(a.arc_node) + a.nodes)
        return precision.smallest_total(dtype, self.advantage, terms, frames, a.vocab_size)

    def __call__(self, log_probs: Tensor, lengths: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor]:
        """Total score and occupancies of every utterance.

        Args:
            log_probs: (B, T, V) of any floating type, need not be normalised; -inf is allowed. Frames beyond
                ``lengths`` may hold anything.
            lengths: (B,) frames.
            gradient: False leaves the occupancies out (an empty tensor).

        Returns:
            scores (B,) double, ``log sum over paths of exp(sum_t x_t[path_t] + log P(tokens of the path))``, and the
            occupancies (B, T, V), float32 or double, the gradient of their sum; -inf and 0 where no path is possible,
            not a number where an emission is not.
        """
        device = log_probs.device
        lengths = lengths.to(device, non_blocking=True)
        ways: list[torch.dtype | None] = [torch.float64] if self.advantage < math.inf else [torch.float64, None]
        if log_probs.dtype != torch.float64 and self._limit(torch.float32, log_probs.shape[1]) < 0:
            ways.insert(0, torch.float32)
        with torch.autocast(device.type, enabled=False):
            scores, occupancies, doubtful = self._by(ways[0], log_probs, lengths, gradient)
            rows = np.arange(len(scores))
            for way in ways[1:]:  # again for the utterances that need it
                rows = rows[host.read(doubtful)[0].astype(bool)]
                if not len(rows):
                    break
                at = torch.from_numpy(rows).to(device)
                scores[at], again, doubtful = self._by(way, log_probs[at], lengths[at], gradient)
                if gradient:
                    occupancies[at] = again.to(occupancies.dtype)
        return scores, occupancies

    def _by(
        self, dtype: torch.dtype | None, log_probs: Tensor, lengths: Tensor, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, occupancies and (B,) whether they are doubtful, in one precision; None: in the log domain."""
        if dtype is None:
            scores, occupancies = self.log_domain(log_probs.device)(log_probs, lengths, gradient)
            return scores, occupancies, torch.zeros_like(scores, dtype=torch.bool)
        loop = self.recursions(log_probs.device, dtype)
        bounded = self.advantage < math.inf
        x = topo.emissions(log_probs, lengths, self._masked(log_probs.device), dtype, not bounded)
        frames, batch = log_probs.shape[1], len(log_probs)
        end = loop.final[:, None].expand(-1, batch)
        entry = topo.start(loop.final, batch)
        a_frame = 4 * loop.states * batch * x.token.element_size()
        block = max(1, topo.KEPT_BYTES // a_frame)
        lowest = x.lowest
        if not gradient:
            alpha, state = loop.forward(x, 0, frames, entry, False)
            scales, result = [alpha.scales], x.token.new_empty(0)
            lowest = torch.zeros_like(lowest)  # not looked at
        elif block >= frames:
            (alpha, state), (beta, _) = loop.both(x, entry, (end, end))
            scales = [alpha.scales, beta.scales]
            if not bounded:
                lowest = torch.minimum(lowest, _smallest_positive(alpha, beta))
            state = (state[0].clone(), state[1].clone())  # the occupancies overwrite it
            result = topo.occupancies(loop.last, alpha, beta, log_probs.shape[2])
        else:
            scales, state, result, met = _in_blocks(loop, x, block, entry, (end, end))
            lowest = torch.minimum(lowest, met)
        ended = (loop.final[:, None] * (state[0] + state[1])).double().sum(0)
        scores = ended.log() + scales[0].double().log().sum(0) + x.log_scale + loop.log_final_scale
        if bounded:
            doubtful = precision.below_bound(scores, scales, self._limit(dtype, frames))
        else:
            doubtful = precision.lost_and_sunk(scores, scales, ended, lowest.double(), self._extreme)
        if gradient:
            inside = torch.arange(frames, device=scores.device)[:, None] < lengths
            keep = inside & (scores != topo.MINUS_INFINITY)
            result.masked_fill_(~keep[:, None], 0.0)
            result = result.permute(2, 0, 1).contiguous()
        return scores, result, doubtful


def _in_blocks(
    loop: Recursions,
    x: topo.Emissions,
    block: int,
    entry: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
) -> tuple[list[Tensor], tuple[Tensor, Tensor], Tensor, Tensor]:
    """Forward once to the end, then back block by block, each computed forward again: the sums of one block are kept.

    Returns:
        scales, (token, blank) after the last frame, occupancies (T, V, B), and the (B,) smallest sum above 0.
    """
    frames, vocab_size = x.token.shape[:2]
    firsts = list(range(0, frames, block))
    entries, forward_scales = [], []
    state = entry
    for first in firsts:
        entries.append((state[0].clone(), state[1].clone()))
        alpha, state = loop.forward(x, first, min(first + block, frames), state, False)
        forward_scales.append(alpha.scales)
    result = torch.empty_like(x.token)
    lowest, backward_scales = x.lowest, []
    for first, at in zip(reversed(firsts), reversed(entries), strict=True):
        last = min(first + block, frames)
        alpha, _ = loop.forward(x, first, last, at, True)
        beta, after = loop.backward(x, first, last, after)
        backward_scales.append(beta.scales)
        lowest = torch.minimum(lowest, _smallest_positive(alpha, beta))
        result[first:last] = topo.occupancies(loop.last, alpha, beta, vocab_size)
    return [torch.cat(forward_scales), torch.cat(backward_scales)], state, result, lowest


def _smallest_positive(alpha: Sums, beta: Sums) -> Tensor:
    """(B,) smallest sum above 0 of the forward and the backward recursion."""
    sums = (alpha.token, alpha.blank, beta.token)
    return torch.stack([each.masked_fill(each == 0, 1.0).amin((0, 1)) for each in sums]).amin(0)
