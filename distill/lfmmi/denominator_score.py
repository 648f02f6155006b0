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
from distill.lfmmi.recursions import Loop, TorchRecursions
from distill.lfmmi.topology import Transitions

# A bigram is a dense matrix up to so many tokens; above, sparse products take less time (docs/lfmmi.md has the times)
DENSE_VOCAB = 128


def compiler(device: torch.device) -> str | None:
    """What compiles the loop over frames there: triton, numba, or nothing; torch's operations then take its place."""
    if device.type == "cuda" and torch.version.cuda is not None and find_spec("triton") is not None:
        return "triton"
    return "numba" if device.type == "cpu" and find_spec("numba") is not None else None


class NativeDenominator:
    """Exact sums over all paths through the topology and one n-gram, on any device."""

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        self._loops: dict[tuple[torch.device, torch.dtype], Loop] = {}
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

    def loop(self, device: torch.device, dtype: torch.dtype) -> Loop:
        """The loop over frames for one device and precision, made when first asked for."""
        key = (device, dtype)
        if key not in self._loops:
            self._loops[key] = self._make_loop(device, dtype)
        return self._loops[key]

    def _make_loop(self, device: torch.device, dtype: torch.dtype) -> Loop:
        a, compiled = self.automaton, compiler(device)
        if compiled is None:
            return TorchRecursions(self.transitions(device, dtype))
        factors, goes_on = bigram_factors(a) if is_rank_one(a) else (self.factors, np.ones(a.states))
        if compiled == "triton":
            from distill.lfmmi.triton_recursions import TritonRecursions

            return TritonRecursions(a, factors, goes_on, device, dtype)
        from distill.lfmmi.numba_recursions import NumbaRecursions

        return NumbaRecursions(a, factors, goes_on, dtype)

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
        if log_probs.shape[2] != self.automaton.vocab_size:
            raise ValueError(f"made for {self.automaton.vocab_size} tokens, not {log_probs.shape[2]}")
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
        bounded = self.advantage < math.inf
        loop = self.loop(log_probs.device, dtype)
        totals = loop.totals(log_probs, lengths, self._masked(log_probs.device), gradient, not bounded)
        scales, ended = totals.scales, totals.ended
        scores = ended.log() + scales[0].double().log().sum(0) + totals.log_scale + loop.log_final_scale
        if bounded:
            doubtful = precision.below_bound(scores, scales, self._limit(dtype, log_probs.shape[1]))
        else:
            doubtful = precision.lost_and_sunk(scores, scales, ended, totals.lowest.double(), self._extreme)
        result = totals.occupancies
        if gradient:
            impossible = scores == topo.MINUS_INFINITY
            if not scores.is_cpu or bool(impossible.any()):  # on a device, to look would take longer
                result.masked_fill_(impossible[:, None, None], 0.0)
        return scores, result, doubtful
