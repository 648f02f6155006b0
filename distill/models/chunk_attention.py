"""Attention in chunks with a limited history, on blocks of frames instead of a mask over all pairs of frames.

Few of all pairs are visible: with chunks of 480 ms whose second half is look-ahead and 6 s of history, a tenth in an
utterance of 30 s. Here some chunks in a row form a block, which attends to itself, the ``left`` frames before it and
the copies that look ahead, under a mask of that size. What a frame sees is what
:func:`distill.models.chunk_mask.chunk_mask` says. Frames beyond an utterance's length get other values, to be ignored
as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The larger a block, the more of its own pairs are hidden; the smaller, the more often history is copied.
BLOCK_SHARE = 3  # frames of history for each frame of a block, about
# Most pairs, as a share of those under the mask over all, for which the copies pay. On a CPU a third of the pairs took
# 0.41 to 0.53 of the time, forward and backward, a sixth 0.21; above a half it was 0.8 to 1.1.
WORTH_IT = 0.5


class ChunkAttention:
    """Attention of a batch of (B, heads, L, dim) queries, keys and values; L = T + n lookahead for n chunks.

    Args:
        lengths: (B,) frames of each utterance, on the device.
        frames: T of the batch.
        chunk, left, lookahead: frames, as :func:`chunk_mask` has them.
    """

    def __init__(self, lengths: Tensor, frames: int, chunk: int, left: int, lookahead: int) -> None:
        self.frames, self.left, self.chunks = frames, left, -(-frames // chunk)
        group, self.blocks = _sizes(frames, chunk, left)
        self.group, self.copies, self.total = group * chunk, group * lookahead, self.chunks * lookahead
        device = lengths.device
        position, copy = (torch.arange(n, device=device) for n in (left + self.group, self.copies))
        begins = torch.arange(self.blocks, device=device)[:, None] * self.group
        # Chunk of each query and of each copy within the block, and times of the keys (blocks, K)
        of_block, ahead = torch.arange(self.group, device=device) // chunk, copy // max(1, lookahead)
        number = torch.cat((of_block, ahead))[:, None]
        window = (position >= number * chunk) & (position < (number + 1) * chunk + left)
        visible = torch.cat((window, number == ahead), 1)  # (Q, K), the same in every block
        times = torch.cat((begins - left + position, begins + (ahead + 1) * chunk + copy % max(1, lookahead)), 1)
        inside = (times >= 0) & (times < lengths[:, None, None])  # (B, blocks, K)
        mask = visible & inside[:, :, None]
        # A frame that sees nothing, beyond the length: everything, as attention over nothing is undefined
        self.mask = (mask | ~mask.any(-1, keepdim=True)).flatten(0, 1)[:, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, heads, L, dim) three times -> the same once."""
        batch, heads, _, dim = query.shape
        cut = self._cut(query, 0), self._cut(key, self.left), self._cut(value, self.left)
        context = F.scaled_dot_product_attention(*cut, attn_mask=self.mask)  # type: ignore[misc]
        context = context.view(batch, self.blocks, heads, -1, dim).transpose(1, 2)
        within, ahead = context.split((self.group, self.copies), 3)
        return torch.cat((within.flatten(2, 3)[:, :, : self.frames], ahead.flatten(2, 3)[:, :, : self.total]), 2)

    def _cut(self, x: Tensor, before: int) -> Tensor:
        """(B blocks, heads, K, dim): each block's frames with ``before`` earlier ones, and its copies."""
        of_block, ahead = x[:, :, : self.frames], x[:, :, self.frames :]
        of_block = F.pad(of_block, (0, 0, before, self.blocks * self.group - self.frames))
        of_block = of_block.unfold(2, before + self.group, self.group).permute(0, 2, 1, 4, 3)
        ahead = F.pad(ahead, (0, 0, 0, self.blocks * self.copies - self.total))
        ahead = ahead.unflatten(2, (self.blocks, self.copies)).transpose(1, 2)
        return torch.cat((of_block, ahead), 3).flatten(0, 1)


def _sizes(frames: int, chunk: int, left: int) -> tuple[int, int]:
    """Chunks of a block, and blocks of an utterance."""
    chunks = -(-frames // chunk)
    group = min(chunks, max(1, round(left / BLOCK_SHARE / chunk)))
    return group, -(-chunks // group)


def pairs(frames: int, chunk: int, left: int, lookahead: int) -> tuple[int, int]:
    """Pairs of frames that are computed: in blocks, and under a mask over all."""
    group, blocks = _sizes(frames, chunk, left)
    queries = group * (chunk + lookahead)
    everything = frames + -(-frames // chunk) * lookahead
    return blocks * queries * (left + queries), everything * everything
