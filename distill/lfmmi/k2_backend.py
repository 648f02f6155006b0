"""The denominator computed by k2 (https://github.com/k2-fsa/k2), to compare with. The only file that needs k2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.lfmmi.ngram_automaton import Automaton

NEVER = -1e10  # stands for -inf in log probabilities, of which k2's gradients are not numbers


def exact_graph(automaton: Automaton) -> Any:
    """Topology and n-gram composed, every token after every history written out: what the native sums mean."""
    log_p, next_state = (torch.from_numpy(table) for table in automaton.dense())
    return _composed(_k2().arc_sort(_acceptor(log_p, next_state)), automaton.vocab_size)


def icefall_graph(fst: str, vocab_size: int) -> Any:
    """Topology and n-gram composed as icefall does: back-off arcs become epsilons, which are then removed.

    A listed token thus counts twice, by its own arc and by back-off.

    Args:
        fst: in OpenFst's text format, as :func:`distill.lfmmi.openfst.write` writes it.
    """
    k2 = _k2()
    grammar = k2.Fsa.from_openfst(fst, acceptor=False)
    del grammar.aux_labels
    labels = grammar.labels.clone()
    labels[labels >= vocab_size] = 0
    grammar.labels = labels
    return _composed(k2.arc_sort(k2.remove_epsilon(grammar)), vocab_size)


def _k2() -> Any:
    try:
        import k2
    except ImportError:
        raise UserError('backend "k2": k2 is not installed beside this torch; use "native"') from None
    return k2


def _composed(grammar: Any, vocab_size: int) -> Any:
    k2 = _k2()
    topology = k2.arc_sort(k2.ctc_topo(vocab_size - 1, modified=False).invert_())
    return k2.intersect(topology, k2.add_epsilon_self_loops(grammar), treat_epsilons_specially=False).invert_()


def _acceptor(log_p: Tensor, next_state: Tensor) -> Any:
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
    return _k2().Fsa(torch.cat([arcs, bits[:, None]], 1).contiguous())


class K2Denominator:
    """The sums of :class:`distill.lfmmi.denominator_score.NativeDenominator`, by k2's ``intersect_dense``.

    Args:
        graph: :func:`exact_graph` or :func:`icefall_graph`.
        output_beam: paths this many nats below the best are left out; icefall trains with 8. What 30 leaves out is
            lost in rounding.
        log_p_of_nothing: log P of the empty sequence, the score of an utterance without frames.
    """

    def __init__(self, graph: Any, output_beam: float = 30.0, log_p_of_nothing: float = float("-inf")) -> None:
        self.k2, self.graph = _k2(), graph
        self.output_beam, self.log_p_of_nothing = output_beam, log_p_of_nothing
        self._on: dict[torch.device, Any] = {}

    @classmethod
    def exact(cls, automaton: Automaton, output_beam: float = 30.0) -> K2Denominator:
        return cls(exact_graph(automaton), output_beam, float(automaton.final[0]))

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
