"""Small graphs and a reference that enumerates every path."""

import itertools
from collections import defaultdict

import numpy as np
import torch

from distill.lfmmi import DenominatorGraph
from distill.lfmmi.ngram_automaton import Automaton


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


def dense_witten_bell(lines, order, vocab_size):
    """The estimate of DenominatorGraph.from_text written out: a row for each history, nothing shared."""
    counts = defaultdict(lambda: defaultdict(int))
    for line in lines:
        padded = (-1, *line)
        for position, token in enumerate((*line, 0)):
            for length in range(min(order, position + 2)):
                counts[padded[position + 1 - length : position + 1]][token] += 1

    def row(history):
        lower = row(history[1:]) if history else np.full(vocab_size, 1 / vocab_size)
        if history not in counts:
            return lower
        seen = np.zeros(vocab_size)
        for token, count in counts[history].items():
            seen[token] = count
        different = np.count_nonzero(seen)
        return (seen + different * lower) / (seen.sum() + different)

    longer = sorted(h for h in counts if 2 <= len(h) < order)
    histories = [(-1,), *((token,) for token in range(1, vocab_size)), *longer]
    return {h: np.log(row(h if order > 1 else ())) for h in histories}


def written_out(graph: DenominatorGraph) -> DenominatorGraph:
    """The same n-gram with an arc for every token after every history and no back-off."""
    return DenominatorGraph.from_dense(graph.log_p, graph.next_state, graph.last)


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


def odd_automaton() -> DenominatorGraph:
    """Targets and probabilities that no n-gram has: all three products, and arcs from blanks alone; V = 4."""
    rng = np.random.default_rng(0)
    last, rows = np.array([0, 1, 2, 3, 1, 2]), []
    for node in range(8):
        for token in (1, 2, 3):
            if node == 7 or rng.random() < 0.5:
                rows.append((node, token, rng.choice(np.nonzero(last == token)[0]), np.log(rng.random())))
    arcs = tuple(np.array(column) for column in zip(*rows, strict=True))
    backoff = np.array([6, 7, 6, 7, 6, 7, 7, -1])
    return DenominatorGraph(Automaton.make(4, last, rng.standard_normal(6), arcs, backoff, -rng.random(8), 0))
