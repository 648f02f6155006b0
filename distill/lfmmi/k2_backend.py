"""The denominator computed by k2 (https://github.com/k2-fsa/k2), to compare with. The only file that needs k2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.lfmmi.automaton import Automaton

NEVER = -1e10  # stands for -inf in log probabilities, of which k2's gradients are not numbers


class K2Denominator:
    """The sums of :class:`distill.lfmmi.native.NativeDenominator`, by k2's ``intersect_dense``.

    Args:
        automaton: the n-gram, written out: every token after every history is an arc.
        output_beam: paths this many nats below the best are left out; icefall trains with 8. What 30 leaves out is
            lost in rounding.
    """

    def __init__(self, automaton: Automaton, output_beam: float = 30.0) -> None:
        try:
            import k2
        except ImportError:
            raise UserError('backend "k2": k2 is not installed beside this torch; use "native"') from None
        log_p, next_state = (torch.from_numpy(table) for table in automaton.dense())
        self.k2: Any = k2
        self.output_beam = output_beam
        self.log_p_of_nothing = float(log_p[0, 0])
        grammar = k2.arc_sort(self._acceptor(log_p, next_state))
        topology = k2.ctc_topo(log_p.shape[1] - 1, modified=False)
        self.graph = k2.intersect(
            k2.arc_sort(topology.invert_()), k2.add_epsilon_self_loops(grammar), treat_epsilons_specially=False
        ).invert_()
        self._on: dict[torch.device, Any] = {}

    def _acceptor(self, log_p: Tensor, next_state: Tensor) -> Any:
        """The n-gram: an arc for every token after every history, and arcs with label -1 into the final state."""
        states = len(log_p)
        present = torch.isfinite(log_p)
        present[:, 0] = False
        source, token = torch.nonzero(present, as_tuple=True)
        ends = torch.nonzero(torch.isfinite(log_p[:, 0])).flatten()
        source = torch.cat([source, ends])
        target = torch.cat([next_state[source[: len(token)], token], torch.full_like(ends, states)])
        label = torch.cat([token, torch.full_like(ends, -1)])
        score = torch.cat([log_p[source[: len(token)], token], log_p[ends, 0]])
        order = torch.argsort(source * (states + 1) + target)  # k2 wants the arcs of a state together
        arcs = torch.stack([source, target, label], 1)[order].int()
        bits = score[order].float().view(torch.int32)  # an arc is three numbers and the bits of its score
        return self.k2.Fsa(torch.cat([arcs, bits[:, None]], 1).contiguous())

    def __call__(self, log_probs: Tensor, lengths: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor]:
        """Scores (B,) double and occupancies (B, T, V) float32, as the native sums give them."""
        device = log_probs.device
        if device not in self._on:
            self._on[device] = self.k2.index_fsa(
                self.k2.create_fsa_vec([self.graph]).to(device), torch.zeros(1, dtype=torch.int32, device=device)
            )
        x = log_probs.detach().float().clamp(min=NEVER)
        scores = torch.full((len(x),), float("-inf"), dtype=torch.double, device=device)
        occupancies = torch.zeros_like(x) if gradient else x.new_empty(0)
        # k2 takes utterances by falling length, and none that is empty.
        order = torch.argsort(lengths.cpu(), descending=True, stable=True)
        order = order[lengths.cpu()[order] > 0]
        empty = (lengths == 0).nonzero().flatten()
        if len(empty):
            scores[empty] = self.log_p_of_nothing
        if not len(order):
            return scores, occupancies
        segments = torch.stack([order, torch.zeros_like(order), lengths.cpu()[order]], 1).int()
        with torch.enable_grad():
            x.requires_grad_(gradient)
            dense = self.k2.DenseFsaVec(x, segments)
            graphs = self.k2.index_fsa(self._on[device], torch.zeros(len(order), dtype=torch.int32, device=device))
            lattice = self.k2.intersect_dense(graphs, dense, self.output_beam)
            totals = lattice.get_tot_scores(log_semiring=True, use_double_scores=True)
            reached = totals.detach() > NEVER / 2
            if gradient and bool(reached.any()):
                (occupancies,) = torch.autograd.grad(totals[reached].sum(), x)
        order = order.to(device)
        scores[order] = totals.detach().masked_fill(~reached, float("-inf"))
        if gradient:
            occupancies = occupancies.clone()
            occupancies[order[~reached]] = 0.0
        return scores, occupancies
