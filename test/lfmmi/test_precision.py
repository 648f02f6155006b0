"""The bound under which float32 is safe, and which utterances are computed again."""

import math

import numpy as np
import pytest
import torch
from small_graphs import random_bigram, random_text, written_out

from distill.lfmmi import DenominatorGraph, precision
from distill.lfmmi.denominator_score import NativeDenominator


def futures(graph: DenominatorGraph, x: torch.Tensor) -> np.ndarray:
    """(S, 2) log of what may follow each state after a token and after a blank, over the frames of x (T, V)."""
    log_p, next_state, last = graph.log_p.numpy(), graph.next_state.numpy(), graph.last.numpy()
    states, vocab_size = log_p.shape
    token = blank = log_p[:, 0]
    for frame in x.numpy()[::-1]:
        new_token, new_blank = np.full(states, -np.inf), np.full(states, -np.inf)
        for s in range(states):
            ways = [log_p[s, v] + frame[v] + token[next_state[s, v]] for v in range(1, vocab_size)]
            stay = frame[0] + blank[s]
            new_blank[s] = np.logaddexp.reduce([stay, *ways])
            ways = [stay, *(way for v, way in enumerate(ways, 1) if v != last[s])]
            new_token[s] = np.logaddexp.reduce([*ways, frame[last[s]] + token[s]] if last[s] else ways)
        token, blank = new_token, new_blank
    return np.stack([token, blank])[:, 1:]  # not the start, which has no token


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("scale", [0.5, 5.0, 60.0])
def test_no_future_is_better_than_another_by_more_than_the_bound(order, scale):
    for seed in range(4):
        graph = DenominatorGraph.from_text(random_text(4, 8, seed), order=order, vocab_size=4)
        generator = torch.Generator().manual_seed(seed)
        for frames in (1, 2, 5, 9):
            all_ = futures(graph, scale * torch.randn(frames, 4, generator=generator, dtype=torch.double))
            assert all_.max() - all_.min() <= precision.advantage(graph.automaton) + 1e-9


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_smallest_probability_is_bounded(order):
    graph = DenominatorGraph.from_text(random_text(9, 20), order=order, vocab_size=9)
    bound = precision.smallest_log_p(graph.automaton)
    assert bound <= graph.log_p.min() and bound > graph.log_p.min() - 3
    assert precision.smallest_log_p(written_out(graph).automaton) == pytest.approx(float(graph.log_p.min()))


def test_missing_arcs_have_no_bound():
    assert precision.advantage(random_bigram(6, absent=0.4).automaton) == math.inf


def precisions(monkeypatch) -> list:
    """The number formats that are used from here on, each with how many utterances."""
    used = []
    original = NativeDenominator._by

    def recorded(self, dtype, log_probs, lengths, gradient):
        used.append((dtype, len(log_probs)))
        return original(self, dtype, log_probs, lengths, gradient)

    monkeypatch.setattr(NativeDenominator, "_by", recorded)
    return used


def test_only_the_utterance_that_needs_it_is_computed_in_float64(monkeypatch):
    """Emissions that allow, frame by frame, nothing but a bigram of probability e^-30."""
    log_p = torch.full((150, 150), -30.0, dtype=torch.double)
    log_p[torch.arange(150), (torch.arange(150) + 1) % 150] = 0.0
    graph = DenominatorGraph.from_bigram(log_p)
    x = torch.randn(3, 40, 150, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    x[1] = -200.0
    x[1, torch.arange(40), 100 + 2 * (torch.arange(40) % 2)] = 0.0
    used = precisions(monkeypatch)
    scores, occupancies = graph.native(x, torch.tensor([40, 40, 40]))
    assert used == [(torch.float32, 3), (torch.float64, 1)]
    exact, exact_occupancies = graph.native(x.double(), torch.tensor([40, 40, 40]))
    assert ((scores - exact).abs() <= 1e-4 + 1e-6 * exact.abs()).all()
    torch.testing.assert_close(occupancies.double(), exact_occupancies, rtol=0, atol=1e-5)


def test_text_of_millions_of_tokens_is_computed_in_float32(monkeypatch):
    """The smallest probability is then about e^-22, and tokens that never occur have less."""
    rng = np.random.default_rng(0)
    lines = [(rng.zipf(1.2, 60) % 400 + 1).tolist() for _ in range(700)] * 20
    graph = DenominatorGraph.from_text(lines, order=2, vocab_size=500)
    assert precision.smallest_log_p(graph.automaton) < -18
    x = 3 * torch.randn(2, 100, 500, generator=torch.Generator().manual_seed(0))
    used = precisions(monkeypatch)
    scores, occupancies = graph.native(x, torch.tensor([100, 80]))
    assert used == [(torch.float32, 2)]
    exact, exact_occupancies = graph.native(x.double(), torch.tensor([100, 80]))
    assert ((scores - exact).abs() <= 1e-4 + 1e-6 * exact.abs()).all()
    torch.testing.assert_close(occupancies.double(), exact_occupancies, rtol=0, atol=1e-5)
