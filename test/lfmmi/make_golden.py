"""Reference values of LF-MMI, computed by k2 without any code of this package.

    PYTHONPATH=. $(make -s python-k2) test/lfmmi/make_golden.py

writes test/lfmmi/golden.npz. Its arrays, for each case NAME of CASES (B utterances, T frames, V tokens, U tokens of the
longest transcript; token 0 is blank):

    NAME/log_probs      (B, T, V) float32; need not be normalised
    NAME/lengths        (B,) frames
    NAME/tokens         (B, U) padded with -1
    NAME/token_lengths  (B,)
    NAME/log_p          (V, V) float32, natural logarithms of the bigram: row = the token before (0: start),
                        column = the next token (0: end), -inf = no such pair
    NAME/den, NAME/num  (B,) float64, log of the sum over all label sequences, and over those of the transcript;
                        -inf where no path exists. Both contain log P of the token sequence and of its end
    NAME/occ_den, NAME/occ_num  (B, T, V) float32, their derivatives with respect to log_probs: expected counts of
                        each token in each frame; 0 beyond an utterance's length and where there is no path

Scores of arcs are float32 in k2, sums are double; nothing is pruned (output_beam 1e4). For the divergence between two
sets of log-probabilities under one graph, the cases in PAIRS share everything but log_probs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOLDEN = Path(__file__).with_name("golden.npz")
NO_PRUNING = 1e4


class Case(NamedTuple):
    """What a case is drawn from: sizes, lengths, transcripts, spread of the emissions, and the kind of bigram."""

    vocab_size: int
    lengths: list[int]
    tokens: list[list[int]]
    spread: float = 1.0
    bigram: str = "dense"
    normalised: bool = True


CASES = {
    "tiny": Case(3, [4, 3], [[1], [2, 1]]),
    "repeated tokens need a blank": Case(4, [7, 7], [[1, 1, 1], [2, 2, 3]]),
    "ragged and unsorted": Case(6, [5, 12, 9, 12], [[1, 2], [3, 4, 5, 1], [2], [5, 5]]),
    "no weights": Case(5, [9, 6], [[1, 2, 3], [4]], bigram="ones"),
    "unigram": Case(8, [15, 10], [[1, 7, 2, 2], [3, 4]], bigram="unigram"),
    "missing bigrams": Case(10, [20, 14], [[1, 2, 3, 4], [9, 8]], bigram="sparse"),
    "too few frames": Case(6, [6, 2, 3], [[1, 2], [1, 2, 3], [4, 4, 4]]),
    "impossible bigram": Case(6, [8, 8], [[1, 2], [3, 3]], bigram="no 1 2"),
    "a frame for each token": Case(5, [3, 3], [[1, 2, 3], [4, 3, 4]]),
    "empty transcript": Case(5, [6, 4], [[], [1]]),
    "not normalised": Case(7, [14, 11], [[1, 2, 6], [5]], spread=2.0, normalised=False),
    "wide range": Case(7, [30, 22], [[1, 2, 3, 4, 5, 6], [6, 6]], spread=40.0),
    "peaky": Case(30, [60, 44, 60], [[1, 29, 3, 3, 17], [20, 21], [5, 6, 7, 8, 9, 10]], spread=6.0),
    "one frame": Case(4, [1, 1], [[1], [3]]),
    "long": Case(5, [300], [[1, 2, 3, 4] * 8], spread=3.0),
    "teacher": Case(12, [25, 18, 25], [[1, 2], [3], [4, 5, 6]], spread=3.0),
    "student": Case(12, [25, 18, 25], [[1, 2], [3], [4, 5, 6]], spread=1.5),
    "sparse teacher": Case(8, [30, 16], [[1, 2], [3]], spread=4.0, bigram="sparse"),
    "sparse student": Case(8, [30, 16], [[1, 2], [3]], spread=1.0, bigram="sparse"),
}
PAIRS = {"teacher": "student", "sparse teacher": "sparse student"}


def bigram(kind: str, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """(V, V) float32 log-probabilities of a kind of bigram."""
    weights = rng.standard_normal((vocab_size, vocab_size))
    if kind == "ones":
        return np.zeros_like(weights, dtype=np.float32)
    if kind == "unigram":
        weights[:] = weights[0]
    if kind == "sparse":
        missing = rng.random(weights.shape) < 0.4
        missing[:, 0] = missing[0] = False  # every token can be first and last
        missing[[1, 2, 3, 9 % vocab_size], [2, 3, 4, 8 % vocab_size]] = False  # bigrams of the transcripts
        weights[missing] = -np.inf
    if kind == "no 1 2":
        weights[1, 2] = -np.inf
    return (weights - np.log(np.exp(weights).sum(1, keepdims=True))).astype(np.float32)


def inputs(name: str, case: Case) -> dict[str, np.ndarray]:
    """What the values of a case are computed from; the cases of a pair have the same bigram."""
    number = list(CASES).index({student: teacher for teacher, student in PAIRS.items()}.get(name, name))
    log_p = bigram(case.bigram, case.vocab_size, np.random.default_rng([0, number]))
    rng = np.random.default_rng([1, list(CASES).index(name)])
    log_probs = case.spread * rng.standard_normal((len(case.lengths), max(case.lengths), case.vocab_size))
    if case.normalised:
        log_probs -= np.log(np.exp(log_probs).sum(2, keepdims=True))
    tokens = np.full((len(case.tokens), max(map(len, case.tokens))), -1)
    for row, sequence in zip(tokens, case.tokens):  # noqa: B905 (k2's Python is older than strict's use here)
        row[: len(sequence)] = sequence
    return {
        "log_probs": log_probs.astype(np.float32),
        "lengths": np.array(case.lengths),
        "tokens": tokens,
        "token_lengths": np.array(list(map(len, case.tokens))),
        "log_p": log_p,
    }


def values(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """den, num, occ_den and occ_num of a case, by k2."""
    import k2

    vocab_size = len(data["log_p"])
    grammar = k2.arc_sort(k2.Fsa.from_str("\n".join(acceptor(data["log_p"]))))
    denominator = k2.compose(k2.ctc_topo(vocab_size - 1, modified=False), grammar)
    sequences = [row[:n].tolist() for row, n in zip(data["tokens"], data["token_lengths"])]  # noqa: B905
    results: dict[str, list[Any]] = {"den": [], "num": [], "occ_den": [], "occ_num": []}
    for log_probs, frames, tokens in zip(data["log_probs"], data["lengths"], sequences):  # noqa: B905
        prior = sum(float(data["log_p"][a, b]) for a, b in zip([0, *tokens], [*tokens, 0]))  # noqa: B905
        for kind, graph in (("den", denominator), ("num", k2.ctc_graph([tokens], modified=False)[0])):
            score, occupancies = forward_backward(graph, log_probs, int(frames))
            if kind == "num":
                score += prior
            possible = np.isfinite(score)
            results[kind].append(score)
            results[f"occ_{kind}"].append(occupancies if possible else np.zeros_like(occupancies))
    dtypes = {"den": np.float64, "num": np.float64, "occ_den": np.float32, "occ_num": np.float32}
    return {name: np.array(rows, dtype=dtypes[name]) for name, rows in results.items()}


def acceptor(log_p: np.ndarray) -> Iterator[str]:
    """Lines of k2's text format: state h is "the last token was h", state V the end."""
    size = len(log_p)
    for history in range(size):
        arcs = [(token, token, log_p[history, token]) for token in range(1, size)]
        for target, label, score in [*arcs, (size, -1, log_p[history, 0])]:
            if np.isfinite(score):
                yield f"{history} {target} {label} {float(score)!r}"
    yield str(size)


def forward_backward(graph: Any, log_probs: np.ndarray, frames: int) -> tuple[float, np.ndarray]:
    """Log of the sum over the paths of ``graph`` in the first ``frames`` of (T, V), and its gradient."""
    import k2
    import torch

    emissions = torch.from_numpy(log_probs)[None].requires_grad_()
    segment = torch.tensor([[0, 0, frames]], dtype=torch.int32)
    lattice = k2.intersect_dense(k2.create_fsa_vec([graph]), k2.DenseFsaVec(emissions, segment), NO_PRUNING)
    score = lattice.get_tot_scores(log_semiring=True, use_double_scores=True)[0]
    if not torch.isfinite(score) or float(score) < -1e9:
        return -np.inf, np.zeros_like(log_probs)
    (gradient,) = torch.autograd.grad(score, emissions)
    return float(score), gradient[0].numpy()


def compute() -> dict[str, np.ndarray]:
    """All arrays of the file."""
    arrays = {}
    for name, case in CASES.items():
        data = inputs(name, case)
        arrays.update({f"{name}/{key}": value for key, value in {**data, **values(data)}.items()})
    return arrays


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **compute())
