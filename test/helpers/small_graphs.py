"""Small graphs and a reference that enumerates every path."""

import itertools

import numpy as np
import torch

from distill.lfmmi import DenominatorGraph


def random_bigram(vocab_size: int, seed: int = 0, absent: float = 0.0) -> DenominatorGraph:
    """A bigram of which a share of arcs is missing."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.double)
    missing = torch.rand(vocab_size, vocab_size, generator=generator) < absent
    missing[:, 0] = missing[0] = False  # so that every token has a way in and every history a way out
    return DenominatorGraph.from_bigram(weights.masked_fill(missing, float("-inf")).log_softmax(1))


def random_text(vocab_size: int, lines: int = 12, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, vocab_size, generator.integers(1, 6)).tolist() for _ in range(lines)]


def collapse(path) -> list[int]:
    return [k for t, k in enumerate(path) if k and (t == 0 or k != path[t - 1])]


def enumerate_paths(graph: DenominatorGraph, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score of one utterance (T, V) and its occupancies, by adding up all V^T paths."""
    x = x.double()
    frames, vocab_size = x.shape
    paths = list(itertools.product(range(vocab_size), repeat=frames))
    weights = []
    for path in paths:
        tokens = torch.tensor([collapse(path)], dtype=torch.long).reshape(1, -1)
        prior = graph.log_prob(tokens, torch.tensor([tokens.shape[1]]))[0]
        weights.append(prior + sum(x[t, k] for t, k in enumerate(path)))
    weights = torch.stack(weights)
    score = torch.logsumexp(weights, 0)
    occupancies = torch.zeros_like(x)
    for path, probability in zip(paths, (weights - score).exp().tolist(), strict=True):
        for t, k in enumerate(path):
            occupancies[t, k] += probability
    return score, occupancies
