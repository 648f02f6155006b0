"""Scores and occupancies: exact, safe for any emissions, the same whatever surrounds an utterance."""

from importlib.util import find_spec

import pytest
import torch
from small_graphs import enumerate_paths, random_bigram, random_text

from distill.lfmmi import DenominatorGraph, denominator_score, topology

MINUS_INFINITY = float("-inf")


@pytest.fixture(autouse=True, params=["numba", None] if find_spec("numba") else [None])
def compiler(request, monkeypatch):
    """Of the loop over frames."""
    monkeypatch.setattr(denominator_score, "compiler", lambda device: request.param)
    return request.param


def emissions(batch, frames, vocab_size, scale=1.0, dtype=torch.double, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(batch, frames, vocab_size, generator=generator, dtype=torch.double)).to(dtype)


def score_and_occupancies(graph, x, lengths):
    x = x.clone().requires_grad_()
    scores = graph.score(x, torch.as_tensor(lengths))
    (occupancies,) = torch.autograd.grad(scores.sum(), x)
    return scores.detach(), occupancies


def log_domain(graph, x, lengths):
    return graph.native.log_domain(x.device)(x, torch.as_tensor(lengths), True)


GRAPHS = {
    "bigram": lambda: random_bigram(3),
    "sparse bigram": lambda: random_bigram(3, seed=4, absent=0.5),
    "order 1": lambda: DenominatorGraph.from_text(random_text(3), order=1, vocab_size=3),
    "order 2": lambda: DenominatorGraph.from_text(random_text(3), order=2, vocab_size=3),
    "order 3": lambda: DenominatorGraph.from_text(random_text(3), order=3, vocab_size=3),
    "order 4": lambda: DenominatorGraph.from_text(random_text(3), order=4, vocab_size=3),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_equals_the_sum_over_all_paths(name, frames):
    graph, x = GRAPHS[name](), emissions(1, frames, 3)
    score, occupancies = enumerate_paths(graph, x[0])
    for result in (score_and_occupancies(graph, x, [frames]), log_domain(graph, x, [frames])):
        torch.testing.assert_close(result[0][0], score, rtol=0, atol=1e-10)
        torch.testing.assert_close(result[1][0], occupancies, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", GRAPHS)
def test_gradient_is_that_of_finite_differences(name):
    graph = GRAPHS[name]()
    x = emissions(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: graph.score(y, torch.tensor([4, 3])), (x,), eps=1e-5, atol=1e-7)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("vocab_size", [6, 80])  # 80 states are computed in float32
def test_occupancies_of_a_frame_sum_to_one_and_padding_gets_none(order, vocab_size):
    graph = DenominatorGraph.from_text(random_text(vocab_size, 60), order=order, vocab_size=vocab_size)
    x = emissions(3, 37, vocab_size, scale=4, dtype=torch.float32)
    lengths = [37, 1, 20]
    _, occupancies = score_and_occupancies(graph, x, lengths)
    assert (occupancies >= 0).all()
    for b, length in enumerate(lengths):
        torch.testing.assert_close(occupancies[b, :length].sum(1), torch.ones(length), rtol=0, atol=1e-5)
        assert (occupancies[b, length:] == 0).all()


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("junk", [0.0, 1e4, float("nan"), float("inf"), MINUS_INFINITY])
def test_neither_padding_nor_neighbours_nor_order_matter(order, junk):
    graph = DenominatorGraph.from_text(random_text(5), order=order, vocab_size=5)
    lengths = torch.tensor([9, 4, 1, 13])
    x = emissions(4, 13, 5, scale=3)
    for b, length in enumerate(lengths.tolist()):
        x[b, length:] = junk
    scores, occupancies = score_and_occupancies(graph, x, lengths)
    permutation = torch.tensor([2, 0, 3, 1])
    permuted = score_and_occupancies(graph, x[permutation], lengths[permutation])
    torch.testing.assert_close(permuted[0], scores[permutation])
    torch.testing.assert_close(permuted[1], occupancies[permutation])
    for b, length in enumerate(lengths.tolist()):
        alone = score_and_occupancies(graph, x[b : b + 1, :length], [length])
        torch.testing.assert_close(alone[0][0], scores[b])
        torch.testing.assert_close(alone[1][0], occupancies[b, :length])


@pytest.mark.parametrize("vocab_size", [8, 80])
def test_float32_agrees_with_double(vocab_size):
    graph = random_bigram(vocab_size)
    for scale in (0.1, 3.0, 15.0):
        x = emissions(2, 300, vocab_size, scale=scale, dtype=torch.float32).log_softmax(-1)
        scores, occupancies = score_and_occupancies(graph, x, [300, 211])
        exact, exact_occupancies = score_and_occupancies(graph, x.double(), [300, 211])
        assert ((scores - exact).abs() <= 1e-4 + 1e-6 * exact.abs()).all()
        torch.testing.assert_close(occupancies.double(), exact_occupancies, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [8, 80])
@pytest.mark.parametrize("absent", [0.0, 0.6])
def test_peaky_emissions(vocab_size, absent):
    """One emission of a frame 200 nats above all others, whatever the n-gram thinks of it."""
    graph = random_bigram(vocab_size, absent=absent)
    x = torch.full((2, 120, vocab_size), -200.0)
    generator = torch.Generator().manual_seed(1)
    x.scatter_(2, torch.randint(vocab_size, (2, 120, 1), generator=generator), 0.0)
    scores, occupancies = score_and_occupancies(graph, x, [120, 77])
    exact, exact_occupancies = log_domain(graph, x, [120, 77])
    assert ((scores - exact).abs() <= 1e-4 + 1e-6 * exact.abs()).all()
    torch.testing.assert_close(occupancies.double(), exact_occupancies, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [300.0, 900.0, 5000.0])
@pytest.mark.parametrize("order", [2, 3])
def test_any_range_of_emissions_and_of_the_n_gram(spread, order):
    """What the probability domain loses may be all that has a future; the log domain then takes over."""
    if order == 2:
        log_p = spread * torch.rand(5, 5, dtype=torch.double) * -0.18
        log_p[2, 3] = -900.0
        log_p[3, 3] = log_p[1, 4] = log_p[4, 4] = MINUS_INFINITY
        graph = DenominatorGraph.from_bigram(log_p, check=False)
    else:
        graph = DenominatorGraph.from_text(random_text(5), order=3, vocab_size=5)
        graph = DenominatorGraph.from_dense(graph.log_p * spread / 10, graph.next_state, graph.last)
    for seed in range(5):
        x = -spread * torch.rand(2, 12, 5, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) ** 3
        scores, occupancies = score_and_occupancies(graph, x, [12, 7])
        exact, exact_occupancies = log_domain(graph, x, [12, 7])
        torch.testing.assert_close(scores, exact, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(occupancies, exact_occupancies, rtol=0, atol=1e-7)


def test_a_path_that_was_lost_for_900_nats_comes_back():
    """Frame 0 prefers token 1, from which only token 2 follows, and that is 800 nats down in frame 1."""
    log_p = torch.full((4, 4), MINUS_INFINITY)
    log_p[0, 1] = log_p[0, 3] = log_p[1, 2] = log_p[3, 3] = 0.0
    log_p[2, 0] = log_p[3, 0] = 0.0
    graph = DenominatorGraph.from_bigram(log_p, check=False)
    x = torch.full((1, 3, 4), MINUS_INFINITY, dtype=torch.double)
    x[0, 0, 1], x[0, 0, 3] = 0.0, -800.0
    x[0, 1, 2], x[0, 1, 3] = -500.0, 0.0
    x[0, 2, 2], x[0, 2, 3] = -500.0, 0.0
    scores, occupancies = score_and_occupancies(graph, x, [3])
    assert scores[0].item() == pytest.approx(-800.0)  # by token 1 it is -1000
    torch.testing.assert_close(occupancies[0, :, 3], torch.ones(3, dtype=torch.double))


@pytest.mark.parametrize("order", [2, 3])
def test_minus_infinity(order):
    graph = DenominatorGraph.from_text(random_text(4), order=order, vocab_size=4)
    x = emissions(3, 6, 4)
    x[0, 2, 1:] = x[0, 3, 0] = MINUS_INFINITY  # still possible
    x[1, 3] = MINUS_INFINITY  # nothing can be emitted
    scores, occupancies = score_and_occupancies(graph, x, [6, 6, 6])
    exact, _ = enumerate_paths(graph, x[0])
    assert scores[0].item() == pytest.approx(exact.item())
    assert scores[1] == MINUS_INFINITY and (occupancies[1] == 0).all()
    assert occupancies[0, 2, 0] == 1 and occupancies[0, 3, 0] == 0
    assert torch.isfinite(scores[2]) and torch.isfinite(occupancies).all()


@pytest.mark.parametrize("order", [2, 3])
def test_what_is_not_a_number_shows_in_its_own_utterance_only(order):
    graph = DenominatorGraph.from_text(random_text(4), order=order, vocab_size=4)
    x = emissions(2, 6, 4)
    x[0, 2, 1] = float("nan")
    scores = graph.score(x, torch.tensor([6, 6]))
    assert scores[0].isnan() and scores[1].isfinite()


@pytest.mark.parametrize("order", [2, 3])
def test_no_frames(order):
    graph = DenominatorGraph.from_text(random_text(4), order=order, vocab_size=4)
    scores, occupancies = score_and_occupancies(graph, emissions(2, 3, 4), [0, 3])
    assert scores[0].item() == pytest.approx(graph.log_p[0, 0].item())
    assert (occupancies[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [8, 80])
def test_half_precision_in_is_only_rounded_on_the_way_in(dtype, vocab_size):
    graph = random_bigram(vocab_size)
    x = emissions(2, 50, vocab_size, scale=3, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, occupancies = score_and_occupancies(graph, x, [50, 31])
    exact, exact_occupancies = score_and_occupancies(graph, x.double(), [50, 31])
    assert occupancies.dtype == dtype
    assert ((scores - exact).abs() <= 1e-4 + 1e-6 * exact.abs()).all()
    torch.testing.assert_close(occupancies.double(), exact_occupancies, rtol=0, atol=0.005)


def test_three_thousand_frames():
    graph = random_bigram(70)
    x = emissions(1, 3000, 70, scale=8, dtype=torch.float32).log_softmax(-1)
    scores, occupancies = score_and_occupancies(graph, x, [3000])
    exact, exact_occupancies = score_and_occupancies(graph, x.double(), [3000])
    assert (scores - exact).abs() <= 1e-4 + 1e-6 * exact.abs()
    torch.testing.assert_close(occupancies.double(), exact_occupancies, rtol=0, atol=1e-5)


def test_scores_without_gradient_are_the_same():
    for graph in (random_bigram(6), DenominatorGraph.from_text(random_text(6), order=3, vocab_size=6)):
        x = emissions(2, 20, 6)
        torch.testing.assert_close(graph.score(x, torch.tensor([20, 9])), score_and_occupancies(graph, x, [20, 9])[0])


@pytest.mark.parametrize("absent", [0.0, 0.5])
@pytest.mark.parametrize("block", [1, 2, 7, 16, 49])
def test_sums_kept_block_by_block_change_nothing(monkeypatch, block, absent):
    graph = DenominatorGraph.from_text(random_text(6, 30), 3, 6) if not absent else random_bigram(6, absent=absent)
    x, lengths = emissions(3, 50, 6, scale=3), torch.tensor([50, 31, 1])
    whole = graph.native(x, lengths)
    monkeypatch.setattr(topology, "KEPT_BYTES", block * 4 * graph.states * 3 * 8)
    for kept, apart in zip(whole, graph.native(x, lengths), strict=True):
        torch.testing.assert_close(apart, kept, rtol=1e-12, atol=1e-12)
