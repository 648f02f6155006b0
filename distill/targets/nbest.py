"""A teacher's n-best token sequences and their weights: search, and the format in which they are stored.

The weights are the posteriors of the sequences under CTC topology and token n-gram, among the n: ``w_n`` proportional
to ``exp(num(y_n))``, num the exact score of all alignments of y_n plus log P(y_n). The beam search may miss a sequence,
but the weights of those it finds are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distill.decode.beam import BeamSearch, Fusion
from distill.lfmmi import DenominatorGraph
from distill.lfmmi.loss import sequence_scores
from distill.models.transfer import send

# Hypotheses kept in each frame for each one wanted, and at least
BEAM_FACTOR, LEAST_BEAM = 2, 8


def best_sequences(
    graph: DenominatorGraph, log_probs: Tensor, lengths: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best sequences of (B, T, V) log-probabilities with (B,) lengths.

    Returns:
        tokens (B, N, U) padded with -1 and their lengths (B, N), on the host, and weights (B, N) that sum to 1 for each
        utterance (to 0 where the n-gram allows none of them), on the device of ``log_probs``; N is at most ``count``.
    """
    vocab_size = log_probs.shape[2]
    names = ["<blank>", *map(str, range(1, vocab_size))]
    sequences: list[list[list[int]]] = []
    for row, length in zip(log_probs.detach().cpu(), lengths.tolist(), strict=True):
        search = BeamSearch(Fusion(names, "word"), max(LEAST_BEAM, BEAM_FACTOR * count), count)
        search.accept(row[:length])
        sequences.append([[token.id for token in hypothesis.tokens] for hypothesis in search.finish()])
    tokens, token_lengths, valid = pad(sequences)
    scores = sequence_scores(graph, log_probs.detach(), lengths, tokens, token_lengths)
    scores = scores.masked_fill(~send(valid, scores.device), float("-inf"))
    return tokens, token_lengths, scores.softmax(1).nan_to_num(0.0)


def pad(sequences: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Lists of token lists -> (B, N, U) padded with -1, (B, N) lengths, and (B, N) bool: False for padding."""
    count = max(1, max(len(row) for row in sequences))
    longest = max([1, *(len(tokens) for row in sequences for tokens in row)])
    padded = torch.full((len(sequences), count, longest), -1, dtype=torch.long)
    lengths = torch.zeros(len(sequences), count, dtype=torch.long)
    valid = torch.zeros(len(sequences), count, dtype=torch.bool)
    for b, row in enumerate(sequences):
        for n, tokens in enumerate(row):
            padded[b, n, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            lengths[b, n], valid[b, n] = len(tokens), True
    return padded, lengths, valid


def pack(tokens: Tensor | np.ndarray, lengths: Tensor | np.ndarray, weights: Tensor | np.ndarray) -> np.ndarray:
    """One utterance's (N, U), (N,), (N,) as an (L, 1) matrix: weight, length and tokens of each sequence in turn."""
    values: list[float] = []
    for row, length, weight in zip(tokens.tolist(), lengths.tolist(), weights.tolist(), strict=True):
        if weight > 0 or not values:
            values += [weight, length, *row[:length]]
    return np.array(values, dtype=np.float32)[:, None]


def unpack(packed: Tensor, packed_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of :func:`pack` for a batch (B, L, 1) with (B,) lengths; returns what :func:`best_sequences` returns."""
    sequences: list[list[list[int]]] = []
    weights: list[list[float]] = []
    for row, length in zip(packed[:, :, 0].tolist(), packed_lengths.tolist(), strict=True):
        sequences.append([])
        weights.append([])
        position = 0
        while position < length:
            weight, count = row[position], int(row[position + 1])
            weights[-1].append(weight)
            sequences[-1].append([int(token) for token in row[position + 2 : position + 2 + count]])
            position += 2 + count
    tokens, token_lengths, valid = pad(sequences)
    padded = torch.zeros(valid.shape)
    padded[valid] = torch.tensor([weight for row in weights for weight in row])
    return tokens, token_lengths, send(padded, packed.device)
