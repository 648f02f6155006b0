import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.lfmmi import DenominatorGraph
from distill.lfmmi.loss import sequence_scores
from distill.targets import nbest

GRAPH = DenominatorGraph.from_text([[1, 2], [2, 1, 1], [2], [1, 2, 2, 1]], order=2, vocab_size=3)


@pytest.mark.parametrize("count", [2, 4])
def test_the_best_of_all_sequences_with_their_posteriors(count):
    """Against all sequences that five frames can hold."""
    torch.manual_seed(0)
    log_probs, lengths = (2 * torch.randn(2, 5, 3)).log_softmax(-1), torch.tensor([5, 4])
    tokens, token_lengths, weights = nbest.best_sequences(GRAPH, log_probs, lengths, count)
    torch.testing.assert_close(weights.sum(1), weights.new_ones(2))
    for b in range(2):
        every = [list(s) for n in range(6) for s in itertools.product((1, 2), repeat=n)]
        padded, padded_lengths, _ = nbest.pad([every])
        exact = sequence_scores(GRAPH, log_probs[b : b + 1], lengths[b : b + 1], padded, padded_lengths)[0]
        acoustic = {tuple(s): x for s, x in zip(every, exact.tolist(), strict=True)}
        found = [tuple(row[:n]) for row, n in zip(tokens[b].tolist(), token_lengths[b].tolist(), strict=True)]
        assert len(set(found)) == count
        scores = torch.tensor([acoustic[s] for s in found], dtype=torch.double)
        torch.testing.assert_close(weights[b], scores.softmax(0))
        best = max(acoustic, key=acoustic.__getitem__)
        assert best in found


WEIGHTED = st.tuples(st.floats(2**-6, 1, width=32), st.lists(st.integers(1, 500), max_size=9))


@given(st.lists(st.lists(WEIGHTED, min_size=1, max_size=5), min_size=1, max_size=4))
@settings(deadline=None)
def test_what_is_unpacked_is_what_was_packed(batch):
    sequences = [[tokens for _, tokens in row] for row in batch]
    tokens, lengths, there = nbest.pad(sequences)
    weights = torch.zeros(there.shape)
    weights[there] = torch.tensor([weight for row in batch for weight, _ in row])
    rows = [torch.from_numpy(nbest.pack(*parts)) for parts in zip(tokens, lengths, weights, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found = nbest.unpack(padded, torch.tensor([len(row) for row in rows]))
    for one, other in zip(found, (tokens, lengths, weights), strict=True):
        assert torch.equal(one, other)
