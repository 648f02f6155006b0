"""The mask cell by cell, against its definition in words."""

import pytest
import torch

from distill.models.chunk_mask import chunk_mask


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


def test_a_frame_sees_history_and_the_future_of_its_own_chunk():
    row = chunk_mask(torch.tensor([12]), 12, 4, 2)[0, 0, 5]
    assert row.int().tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
