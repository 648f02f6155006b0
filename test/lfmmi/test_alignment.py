"""When tokens begin on the best alignment, and numerators whose tokens may not be put out before a frame."""

import itertools

import pytest
import torch

from distill.lfmmi.alignment import first_frames
from distill.lfmmi.numerator import CTCScore

SEQUENCES = ([1, 2], [1, 1], [2], [1, 2, 1], [3, 3, 3], [1, 2, 2, 3], [])
FRAMES = 7


def alignments(tokens):
    """Every path of FRAMES frames that means these tokens, and the frame where each token begins."""
    for path in itertools.product([0, *sorted(set(tokens))], repeat=FRAMES):
        starts = [t for t, k in enumerate(path) if k and (t == 0 or path[t - 1] != k)]
        if [path[t] for t in starts] == tokens:
            yield path, starts


def emissions(seed, dtype=torch.double):
    return torch.randn(FRAMES, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def score(x, path):
    return sum(x[t, k] for t, k in enumerate(path))


def padded(sequences, width=5):
    tokens = torch.full((len(sequences), width), -1)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return tokens, torch.tensor([len(s) for s in sequences])


@pytest.mark.parametrize("seed", range(20))
def test_tokens_begin_where_the_best_of_all_alignments_has_them(seed):
    batch = torch.stack([emissions(seed + 100 * row) for row in range(len(SEQUENCES))])
    beyond = torch.randn(len(SEQUENCES), 3, 4, generator=torch.Generator().manual_seed(seed)).double()
    tokens, token_lengths = padded(SEQUENCES)
    lengths = torch.full((len(SEQUENCES),), FRAMES)
    frames = first_frames(torch.cat([batch, 9 * beyond], 1), lengths, tokens[:, None], token_lengths[:, None])[:, 0]
    for x, sequence, row in zip(batch, SEQUENCES, frames.tolist(), strict=True):
        best, starts = max(alignments(sequence), key=lambda found: score(x, found[0]))  # noqa: B023
        assert row[: len(sequence)] == starts, best


@pytest.mark.parametrize("bounds", [[0, 3, 4, 5], [2, 2, 2, 2], [4, 0, 0, 0], [0, 1, 6, 6]])
@pytest.mark.parametrize("tokens", [s for s in SEQUENCES if s], ids=str)
def test_a_bounded_numerator_sums_over_the_alignments_that_keep_to_the_bounds(tokens, bounds):
    """Of equal tokens in a row the bound of the first is that of all."""
    x = emissions(0).requires_grad_()
    of_run = list(bounds)
    for u in range(1, len(tokens)):
        of_run[u] = of_run[u - 1] if tokens[u] == tokens[u - 1] else bounds[u]
    kept = [
        path
        for path, starts in alignments(tokens)
        if all(start >= bound for start, bound in zip(starts, of_run, strict=False))
    ]
    ids = torch.tensor([[tokens]])
    arguments = torch.tensor([FRAMES]), ids, torch.tensor([[len(tokens)]]), torch.tensor([[bounds[: len(tokens)]]])
    actual = CTCScore.apply(x[None], *arguments)[0, 0]
    if not kept:
        assert actual == float("-inf")
        return
    expected = torch.stack([score(x, path) for path in kept]).logsumexp(0)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(s, x)[0] for s in (actual, expected)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(lambda y: CTCScore.apply(y[None], *arguments), (x,), eps=1e-5, atol=1e-7)


def test_an_utterances_sequences_are_aligned_one_by_one():
    x = torch.stack([emissions(0), emissions(1)])
    tokens, token_lengths = padded([[1, 2], [3], [1, 1, 2], []], 3)
    lengths = torch.tensor([FRAMES, FRAMES - 1])
    together = first_frames(x, lengths, tokens.reshape(2, 2, 3), token_lengths.reshape(2, 2)).reshape(4, 3)
    for n in range(4):
        row = n // 2
        alone = first_frames(
            x[row : row + 1], lengths[row : row + 1], tokens[n][None, None], token_lengths[n][None, None]
        )
        assert alone[0, 0].tolist()[: token_lengths[n]] == together[n].tolist()[: token_lengths[n]]
    assert torch.equal(
        together,
        first_frames(x.log_softmax(-1), lengths, tokens.reshape(2, 2, 3), token_lengths.reshape(2, 2)).reshape(4, 3),
    )


def test_every_sequence_of_an_utterance_has_bounds_of_its_own():
    x = emissions(1)
    tokens, token_lengths = padded([[1, 2], [1, 2]], 2)
    bounds = torch.tensor([[[0, 0], [3, 5]]])
    both = CTCScore.apply(x[None], torch.tensor([FRAMES]), tokens[None], token_lengths[None], bounds)[0]
    for n, expected in enumerate(bounds[0].tolist()):
        kept = [p for p, starts in alignments([1, 2]) if all(a >= b for a, b in zip(starts, expected, strict=True))]
        torch.testing.assert_close(both[n], torch.stack([score(x, p) for p in kept]).logsumexp(0))
