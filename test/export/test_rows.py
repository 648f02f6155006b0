"""One row for each encoder frame: greedy decoding finds the same tokens, at the same times to 40 ms."""

import numpy as np
import pytest
import torch

from distill.decode.greedy import greedy
from distill.export.rows import RowState, one_row_per_frame


def random_ids(generator: np.random.Generator, streams: int, rows: int, rate: float, gap: int = 0) -> np.ndarray:
    """(streams, rows) best tokens of 4, where a run of a token begins with this probability; runs last 1 to 4 rows.

    There are ``gap`` rows of blank between two runs at least.
    """
    ids = np.zeros((streams, rows), np.int64)
    for stream in ids:
        at = 0
        while at < rows:
            if generator.random() < rate:
                length = generator.integers(1, 5)
                stream[at : at + length] = generator.integers(1, 5)
                at += length + gap
            else:
                at += 1
    return ids


def thinned(ids: np.ndarray, per_frame: int, chunk: int) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Rows of each stream, chunk by chunk in one batch, and how many each chunk had."""
    log_probs = (torch.nn.functional.one_hot(torch.from_numpy(ids), 5) * 5.0).log_softmax(-1)
    zeros = torch.zeros(len(ids), dtype=torch.long)
    state, pieces = RowState(zeros, zeros), []
    for part in log_probs.split(chunk * per_frame, 1):
        rows, state = one_row_per_frame(part, per_frame, state)
        pieces.append(rows)
    return list(torch.cat(pieces, 1)), [piece.shape[1] for piece in pieces]


@pytest.mark.parametrize("chunk", [1, 2, 6, 12])
@pytest.mark.parametrize("per_frame", [1, 2, 4])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.4, 0.9])
def test_no_token_is_lost_or_added(chunk, per_frame, rate):
    generator = np.random.default_rng(chunk)
    for streams in (1, 3):
        ids = random_ids(generator, streams, 40 * chunk * per_frame, rate)
        rows, _ = thinned(ids, per_frame, chunk)
        for stream, chosen in zip(ids, rows, strict=True):
            original = torch.nn.functional.one_hot(torch.from_numpy(stream), 5).float()
            assert [token.id for token in greedy(chosen)] == [token.id for token in greedy(original)]


@pytest.mark.parametrize("chunk", [4, 12])
def test_times_are_those_of_the_frames(chunk):
    ids = random_ids(np.random.default_rng(0), 1, 400 * chunk, 0.2, gap=2)
    (rows,), counts = thinned(ids, 2, chunk)
    original = greedy(torch.nn.functional.one_hot(torch.from_numpy(ids[0]), 5).float())
    assert len(original) > 50
    late = [new.start_frame - old.start_frame / 2 for new, old in zip(greedy(rows), original, strict=True)]
    assert max(map(abs, late)) <= 1 and sum(counts) == 200 * chunk


def test_a_burst_of_tokens_gets_more_rows_and_the_time_is_right_again_afterwards():
    ids = np.zeros((2, 4 * 12), np.int64)
    ids[0, :12] = [1, 2, 3, 4] * 3
    ids[0, 40], ids[1, 40] = 1, 2
    rows, counts = thinned(ids, 2, 6)
    assert counts == [12, 1, 5, 6]
    assert [greedy(stream)[-1].start_frame for stream in rows] == [20, 20]
