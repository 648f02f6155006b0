"""Back-off computed as back-off: the sums of the same n-gram written out, by work that grows with what is listed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import dense_witten_bell, enumerate_paths, random_text, written_out

from distill.decode.estimate_lm import write_arpa
from distill.lfmmi import DenominatorGraph, denominator_score
from distill.lfmmi.backoff import Factored, RankOne
from distill.lfmmi.backoff_factors import _tree_nodes
from distill.lfmmi.dense import Dense
from distill.lfmmi.ngram_automaton import Automaton

DOUBLE = torch.device("cpu"), torch.float64


def score_and_occupancies(graph, x, lengths):
    x = x.clone().requires_grad_()
    scores = graph.score(x, lengths)
    (occupancies,) = torch.autograd.grad(scores.sum(), x)
    return scores.detach(), occupancies


def assert_same(graph, reference, vocab_size, frames=23, scale=2.0, seed=0):
    x = scale * torch.randn(3, frames, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    lengths = torch.tensor([frames, 1, frames // 2])
    scores, occupancies = score_and_occupancies(graph, x, lengths)
    expected, expected_occupancies = score_and_occupancies(reference, x, lengths)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(occupancies, expected_occupancies, rtol=0, atol=1e-10)


def random_automaton(seed: int, vocab_size: int, states: int) -> Automaton:
    """No n-gram: any targets, listed probabilities above and below the back-off's, two levels of back-off."""
    rng = np.random.default_rng(seed)
    nodes = states + 2
    last = np.concatenate([[0], rng.integers(1, vocab_size, states - 1)])
    of_token = {v: np.nonzero(last == v)[0] for v in range(1, vocab_size)}
    rows = []
    for node in range(nodes):
        for token in range(1, vocab_size):
            if len(of_token[token]) and (node == nodes - 1 or rng.random() < 0.4):
                rows.append((node, token, rng.choice(of_token[token]), float(np.log(rng.random() + 1e-3))))
    backoff = np.concatenate([rng.integers(states, nodes, states), [nodes - 1, -1]])
    columns = tuple(np.array(column) for column in zip(*rows, strict=True))
    return Automaton.make(vocab_size, last, rng.standard_normal(states), columns, backoff, -rng.random(nodes), 0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("vocab_size,lines", [(4, 6), (12, 40), (40, 150)])
def test_equals_the_dense_sums(monkeypatch, order, vocab_size, lines):
    monkeypatch.setattr(denominator_score, "DENSE_VOCAB", 0)
    graph = DenominatorGraph.from_text(random_text(vocab_size, lines), order=order, vocab_size=vocab_size)
    assert_same(graph, written_out(graph), vocab_size)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_sum_over_all_paths(monkeypatch, order):
    monkeypatch.setattr(denominator_score, "DENSE_VOCAB", 0)
    graph = DenominatorGraph.from_text(random_text(4, 9, seed=order), order=order, vocab_size=4)
    x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    score, occupancies = enumerate_paths(graph, x[0])
    found = score_and_occupancies(graph, x, torch.tensor([6]))
    torch.testing.assert_close(found[0][0], score, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1][0], occupancies, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_real_sizes_equal_the_dense_sums(order):
    graph = DenominatorGraph.from_text(random_text(150, 1200), order=order, vocab_size=150)
    assert isinstance(graph.native.transitions(*DOUBLE), RankOne if order == 2 else Factored)
    assert_same(graph, written_out(graph), 150, frames=40)


@pytest.mark.parametrize("seed", range(12))
def test_any_automaton_with_back_off(seed):
    graph = DenominatorGraph(random_automaton(seed, 5, 4 + seed))
    assert isinstance(graph.native.transitions(*DOUBLE), Factored)
    assert_same(graph, written_out(graph), 5, seed=seed)
    x = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    torch.testing.assert_close(graph.score(x, torch.tensor([4]))[0], enumerate_paths(graph, x[0])[0])


@pytest.mark.parametrize("order", [2, 3, 4])
def test_log_domain_equals_the_dense_sums(order):
    graph = DenominatorGraph.from_text(random_text(6, 30), order=order, vocab_size=6)
    x, lengths = torch.randn(2, 11, 6, dtype=torch.double), torch.tensor([11, 7])
    scores, occupancies = graph.native.log_domain(x.device)(x, lengths, True)
    expected = score_and_occupancies(written_out(graph), x, lengths)
    torch.testing.assert_close(scores, expected[0])
    torch.testing.assert_close(occupancies, expected[1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), max_size=7), min_size=1, max_size=15), st.integers(1, 4), st.integers(0, 99)
)
def test_estimates_and_sums_of_any_text(lines, order, seed):
    graph = DenominatorGraph.from_text(lines, order=order, vocab_size=6)
    reference = dense_witten_bell(lines, order, 6)
    rows = np.stack([reference[h] for h in sorted(reference, key=lambda h: (len(h) > 1, h[::-1] if len(h) > 1 else h))])
    np.testing.assert_allclose(graph.log_p.numpy(), rows, atol=1e-12)
    assert_same(graph, written_out(graph), 6, frames=9, seed=seed)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_an_arpa_file_is_the_estimate_that_wrote_it(tmp_path, order):
    names = ["<blank>", "a", "b", "c", "<unk>"]
    lines = random_text(4, 20, seed=order)
    write_arpa([[names[token] for token in line] for line in lines], order, tmp_path / "lm.arpa")
    graph = DenominatorGraph.from_arpa(tmp_path / "lm.arpa", names[:-1])
    assert_same(graph, written_out(graph), 4)


def test_work_of_a_frame_grows_with_what_is_listed():
    """V = 2000: a bigram of 30,000 tokens lists 1 % of V^2, and the matrices hold that and not V^2."""
    rng = np.random.default_rng(0)
    lines = [(rng.zipf(1.3, 30) % 1999 + 1).tolist() for _ in range(1000)]
    for order in (2, 3):
        graph = DenominatorGraph.from_text(lines, order=order, vocab_size=2000)
        transitions = graph.native.transitions(*DOUBLE)
        listed = len(graph.automaton.arc_node)
        matrices = [
            m for m in vars(transitions).values() if isinstance(m, torch.Tensor) and m.layout == torch.sparse_csr
        ]
        entries = sum(len(m.values()) for m in matrices) / 2  # each is there transposed as well
        assert 0.5 * listed < entries < 12 * listed < 2000 * 2000


@pytest.mark.parametrize("seed", range(5))
def test_tree_nodes_cover_what_is_not_left_out_once(seed):
    rng = np.random.default_rng(seed)
    low, high = np.array([0, 3, 10, 5]), np.array([16, 9, 37, 5])
    out = [
        sorted(rng.choice(np.arange(a, b), min(b - a, k), replace=False))
        for a, b, k in zip(low, high, (3, 0, 5, 0), strict=True)
    ]
    row = np.concatenate([np.full(len(o), r) for r, o in enumerate(out)]).astype(int)
    rows, levels, indices = _tree_nodes(row, np.concatenate(out).astype(int), low, high)
    for r in range(4):
        nodes = [(j, i) for k, j, i in zip(rows, levels, indices, strict=True) if k == r]
        covered = sorted(itertools.chain(*(range((i << j) - 1, (i + 1 << j) - 1) for j, i in nodes)))
        assert covered == [leaf for leaf in range(low[r], high[r]) if leaf not in out[r]]


def test_small_vocabularies_are_dense():
    assert isinstance(DenominatorGraph.from_text(random_text(9), 2, 9).native.transitions(*DOUBLE), Dense)
