"""Against the real k2, on random cases. Runs in the environment that holds it (make env-k2)."""

import numpy as np
import pytest
import torch
from small_graphs import random_bigram, random_text, written_out

from distill.lfmmi import DenominatorGraph, LFMMILoss

k2 = pytest.importorskip("k2", reason="k2 is not in this environment; make test runs these in its own (make env-k2)")
from distill.bench.lfmmi import both_ways  # noqa: E402
from distill.lfmmi.k2_backend import K2Denominator, icefall_graph  # noqa: E402

EXACT = 1e4  # an output beam that leaves no path out


def random_case(seed: int):
    """A graph, emissions (some peaky, some flat, some not normalised), ragged lengths and tokens."""
    rng = np.random.default_rng(seed)
    vocab_size, order = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    if rng.random() < 0.3:
        graph = random_bigram(vocab_size, seed, absent=float(rng.choice([0.0, 0.3])))
    else:
        text = random_text(vocab_size, int(rng.integers(1, 20)), seed)
        graph = DenominatorGraph.from_text(text, order=order, vocab_size=vocab_size)
    batch, frames = int(rng.integers(1, 5)), int(rng.integers(1, 30))
    x = torch.from_numpy(rng.standard_normal((batch, frames, vocab_size)) * rng.choice([0.1, 1.0, 10.0])).float()
    if rng.random() < 0.7:
        x = x.log_softmax(2)
    lengths = torch.from_numpy(rng.integers(1, frames + 1, batch))
    token_lengths = torch.from_numpy(rng.integers(0, 5, batch))
    tokens = torch.from_numpy(rng.integers(1, vocab_size, (batch, 4)))
    return graph, x, lengths, tokens, token_lengths


def assert_scores(actual, reference):
    both_impossible = (actual == float("-inf")) & (reference == float("-inf"))
    assert (both_impossible | ((actual - reference).abs() <= 1e-4 + 1e-6 * reference.abs())).all(), (actual, reference)


def k2_numerator(x, lengths, tokens, token_lengths):
    """Score and gradient of all alignments of the tokens, by k2's own CTC graphs."""
    order = torch.argsort(lengths, descending=True, stable=True)
    graphs = k2.ctc_graph([tokens[b, : token_lengths[b]].tolist() for b in order.tolist()], modified=False)
    x = x.clone().requires_grad_()
    segments = torch.stack([order, torch.zeros_like(order), lengths[order]], 1).int()
    lattice = k2.intersect_dense(graphs, k2.DenseFsaVec(x, segments), EXACT)
    totals = lattice.get_tot_scores(log_semiring=True, use_double_scores=True)
    scores = torch.empty_like(totals).index_copy(0, order, totals)
    (gradient,) = torch.autograd.grad(totals[totals > -1e9].sum(), x)
    return scores.detach(), gradient


@pytest.mark.parametrize("seed", range(200))
def test_random_case(seed):
    graph, x, lengths, tokens, token_lengths = random_case(seed)
    reference, their_occupancies = K2Denominator.exact(graph.automaton, EXACT)(x, lengths)
    scores, occupancies = graph.native(x, lengths)
    assert_scores(scores, reference)
    torch.testing.assert_close(occupancies.float(), their_occupancies, rtol=0, atol=1e-5)

    numerator, their_gradient = k2_numerator(x, lengths, tokens, token_lengths)
    possible = torch.isfinite(numerator)
    prior = graph.log_prob(tokens, token_lengths)
    x.requires_grad_()
    losses = LFMMILoss(graph, reduction="none")(x, lengths, tokens, token_lengths)
    expected = torch.where(possible & torch.isfinite(prior), reference - numerator - prior, torch.zeros_like(reference))
    assert_scores(losses.detach(), expected)
    losses.sum().backward()
    used = (possible & torch.isfinite(prior))[:, None, None]
    wanted = torch.where(used, their_occupancies - their_gradient, torch.zeros_like(their_gradient))
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["transcript", "posterior"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_backends_give_the_same_loss(target, order):
    graph = DenominatorGraph.from_text(random_text(6, 30), order=order, vocab_size=6)
    x, teacher = torch.randn(3, 20, 6).log_softmax(2), torch.randn(3, 20, 6).log_softmax(2)
    lengths, tokens = torch.tensor([7, 20, 0]), torch.tensor([[1, 2, 2], [3, -1, -1], [-1, -1, -1]])
    rest = (
        {"teacher_log_probs": teacher}
        if target == "posterior"
        else {"tokens": tokens, "token_lengths": torch.tensor([3, 1, 0])}
    )
    results = []
    for backend in ("native", "k2"):
        x = x.detach().requires_grad_()
        loss = LFMMILoss(graph, target=target, backend=backend)(x, lengths, **rest)
        loss.backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-5)


def test_k2_reads_what_we_write(tmp_path):
    graph = DenominatorGraph.from_text(random_text(6, 30), order=3, vocab_size=6)
    written_out(graph).to_openfst(tmp_path / "P.fst.txt")
    reference = k2.arc_sort(k2.Fsa.from_openfst((tmp_path / "P.fst.txt").read_text(), acceptor=False))
    for tokens in random_text(6, 20, seed=1):
        line = k2.intersect(reference, k2.linear_fsa(tokens), treat_epsilons_specially=False)
        total = k2.create_fsa_vec([line]).get_tot_scores(log_semiring=True, use_double_scores=True)[0]
        assert abs(float(total) - float(graph.log_prob(torch.tensor([tokens]), torch.tensor([len(tokens)])))) < 1e-5


def test_k2_does_without_an_utterance_that_no_path_fits():
    graph = random_bigram(4)
    x = torch.randn(2, 5, 4)
    x[1, 3] = float("-inf")
    scores, occupancies = K2Denominator.exact(graph.automaton)(x, torch.tensor([5, 5]))
    assert scores[1] == float("-inf") and (occupancies[1] == 0).all() and torch.isfinite(scores[0])


def test_icefalls_graph_counts_a_listed_token_both_ways(tmp_path):
    graph = DenominatorGraph.from_text(random_text(6, 30), order=2, vocab_size=6)
    graph.to_openfst(tmp_path / "P.fst.txt")
    peer = K2Denominator(icefall_graph((tmp_path / "P.fst.txt").read_text(), 6), EXACT)
    x, lengths = torch.randn(2, 15, 6).log_softmax(2), torch.tensor([15, 8])
    scores, occupancies = peer(x, lengths)
    expected, expected_occupancies = both_ways(graph.automaton).native(x.double(), lengths)
    assert_scores(scores, expected)
    torch.testing.assert_close(occupancies.double(), expected_occupancies, rtol=0, atol=1e-5)
    assert (graph.native(x, lengths)[0] < expected - 0.1).all()
