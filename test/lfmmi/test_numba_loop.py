"""The loop over frames as numba compiles it: its sums are those of torch's operations, and no less exact."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import assert_same, by, emissions
from small_graphs import odd_automaton, random_bigram, random_text

from distill.lfmmi import DenominatorGraph, lanes, numba_loop, topology
from distill.lfmmi.lanes import LANES

MINUS_INFINITY = float("-inf")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, LANES, LANES + 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_the_sums_of_torch(order, batch, threads):
    graph = DenominatorGraph.from_text(random_text(12, 40), order=order, vocab_size=12)
    torch.set_num_threads(threads)
    try:
        assert_same(graph, emissions(batch, 37, 12), [37, *((7 * b) % 38 for b in range(1, batch))], "numba")
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("absent", [0.0, 0.5])
def test_bigram_without_back_off(absent):
    assert_same(random_bigram(30, absent=absent), emissions(2, 25, 30), [25, 11], "numba")


def test_any_automaton_with_back_off():
    assert_same(odd_automaton(), emissions(3, 20, 4), [20, 13, 1], "numba")


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames_and_none(frames):
    graph = DenominatorGraph.from_text(random_text(4, 5), order=2, vocab_size=4)
    assert_same(graph, emissions(3, frames, 4), [1, 0, frames], "numba")


@pytest.mark.parametrize("order", [2, 3])
def test_peaky_emissions(order):
    """One emission of a frame 200 nats above all others, whatever the n-gram thinks of it."""
    graph = DenominatorGraph.from_text(random_text(6, 20), order=order, vocab_size=6)
    x = torch.full((2, 60, 6), -200.0, dtype=torch.double)
    x.scatter_(2, torch.randint(6, (2, 60, 1), generator=torch.Generator().manual_seed(1)), 0.0)
    assert_same(graph, x, [60, 41], "numba")


def test_minus_infinity():
    graph = DenominatorGraph.from_text(random_text(4, 5), order=2, vocab_size=4)
    x = emissions(3, 9, 4)
    x[0, 2, 1:] = x[0, 3, 0] = MINUS_INFINITY  # still possible
    x[1, 3] = MINUS_INFINITY  # nothing can be emitted
    assert_same(graph, x, [9, 9, 5], "numba")


def test_any_layout_and_type_of_the_input():
    graph = by(DenominatorGraph.from_text(random_text(6, 20), order=2, vocab_size=6), "numba")
    x, lengths = emissions(3, 14, 6), torch.tensor([14, 9, 2], dtype=torch.int32)
    expected = graph.native(x, lengths)
    for other in (x.transpose(0, 1).contiguous().transpose(0, 1), x.repeat(1, 1, 2)[:, :, :6]):
        for found, whole in zip(graph.native(other, lengths), expected, strict=True):
            torch.testing.assert_close(found, whole)
    half = x.bfloat16()
    torch.testing.assert_close(graph.native(half, lengths)[0], graph.native(half.double(), lengths)[0])


@pytest.mark.parametrize("order,block", [(2, 1), (2, 5), (3, 3), (3, 100)])
@pytest.mark.parametrize("batch", [2, LANES + 1])
def test_sums_kept_block_by_block_change_nothing(monkeypatch, order, block, batch):
    graph = DenominatorGraph.from_text(random_text(5, 20), order=order, vocab_size=5)
    x, lengths = emissions(batch, 31, 5), torch.arange(31, 31 - batch, -1)
    whole = by(graph, None).native(x, lengths)
    monkeypatch.setattr(topology, "KEPT_BYTES", block * 2 * (2 * graph.states * LANES * 8))
    for kept, apart in zip(whole, by(graph, "numba").native(x, lengths), strict=True):
        torch.testing.assert_close(apart, kept, rtol=1e-12, atol=1e-12)


def test_scores_without_gradient_are_the_same():
    for graph in (odd_automaton(), DenominatorGraph.from_text(random_text(4, 20), order=3, vocab_size=4)):
        graph, x, lengths = by(graph, "numba"), emissions(9, 20, 4), torch.arange(12, 21)
        torch.testing.assert_close(graph.native(x, lengths, False)[0], graph.native(x, lengths)[0])


def test_sums_over_thousands_of_states_keep_their_digits():
    """Occupancies are divided by the sum over all states; added up one by one in float32 it would lose three digits."""
    graph = by(DenominatorGraph.from_text(random_text(3000, 4000), order=2, vocab_size=3000), "numba")
    x = emissions(1, 20, 3000, scale=1.0).float().log_softmax(2)
    exact = graph.native._by(torch.float64, x, torch.tensor([20]), True)[1]
    found = graph.native._by(torch.float32, x, torch.tensor([20]), True)[1]
    assert ((found - exact).abs() <= 3e-6 * exact + 1e-9).all()


def test_compiled_code_that_is_kept_belongs_to_these_vectors():
    """numba compiles anew when numba_loop.py changes, not when lanes.py does: so the one names the other."""
    content = Path(lanes.__file__).read_bytes()
    assert hashlib.sha1(content).hexdigest() == numba_loop.LANES_SHA1, "lanes.py has changed: set numba_loop.LANES_SHA1"


def test_compiles_where_nothing_can_be_kept():
    """numba says so when it is to keep the code of a function that lies, as this one does, in no file at all."""
    names: dict = {}
    exec("def twice(x):\n    return 2 * x", names)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba_loop.njit(cache=True)(names["twice"])
    assert numba_loop.compiled(names["twice"])(2) == 4


def test_refuses_another_vocabulary():
    graph = by(DenominatorGraph.from_text(random_text(6, 20), order=2, vocab_size=6), "numba")
    with pytest.raises(ValueError, match="6 tokens"):
        graph.native(emissions(1, 4, 5), torch.tensor([4]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), max_size=7), min_size=1, max_size=15),
    st.integers(1, 4),
    st.lists(st.integers(0, 9), min_size=1, max_size=10),
    st.floats(0.1, 60.0),
    st.integers(0, 99),
)
def test_sums_of_any_text(lines, order, lengths, scale, seed):
    graph = DenominatorGraph.from_text(lines, order=order, vocab_size=6)
    assert_same(graph, emissions(len(lengths), max(1, *lengths, 1), 6, scale, seed), lengths, "numba")
