"""The mask cell by cell, against its definition in words."""

import pytest
import torch

from distill.models.chunk_mask import chunk_mask, copied_frames


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 5, 40])
@pytest.mark.parametrize("left", [None, 0, 1, 4])
def test_every_cell(chunk, left):
    lengths, frames = [13, 7, 1], 13
    mask = chunk_mask(torch.tensor(lengths), frames, chunk, left)
    assert mask.shape == (3, 1, frames, frames)
    for b, length in enumerate(lengths):
        for query in range(frames):
            for key in range(frames):
                if query >= length or key >= length:
                    visible = query == key  # padding sees itself, so that no row is empty, and nothing sees padding
                elif chunk is None:
                    visible = True
                else:
                    first = query // chunk * chunk
                    visible = key < first + chunk and (left is None or key >= first - left)
                assert mask[b, 0, query, key].item() == visible, (b, query, key)


@pytest.mark.parametrize("chunk,lookahead", [(1, 1), (2, 3), (5, 2), (40, 4)])
@pytest.mark.parametrize("left", [None, 0, 4])
def test_every_cell_with_look_ahead(chunk, lookahead, left):
    lengths, frames = [13, 7, 1], 13
    chunks = -(-frames // chunk)
    # (frame number, chunk it is computed with, whether it is a copy)
    cells = [(t, t // chunk, False) for t in range(frames)]
    cells += [((c + 1) * chunk + r, c, True) for c in range(chunks) for r in range(lookahead)]
    mask = chunk_mask(torch.tensor(lengths), frames, chunk, left, lookahead)
    assert mask.shape == (3, 1, len(cells), len(cells))
    assert copied_frames(frames, chunk, lookahead).flatten().tolist() == [t for t, _, copy in cells if copy]
    for b, length in enumerate(lengths):
        for i, (query, own, _) in enumerate(cells):
            for j, (key, other, copy) in enumerate(cells):
                if query >= length or key >= length:
                    visible = i == j
                elif copy:
                    visible = other == own
                else:
                    visible = key < (own + 1) * chunk and (left is None or key >= own * chunk - left)
                assert mask[b, 0, i, j].item() == visible, (b, cells[i], cells[j])


def test_a_frame_sees_history_and_the_future_of_its_own_chunk():
    row = chunk_mask(torch.tensor([12]), 12, 4, 2)[0, 0, 5]
    assert row.int().tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
