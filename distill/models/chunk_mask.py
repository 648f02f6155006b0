"""Which frames a frame may attend to when audio arrives in chunks.

Look-ahead: a chunk may see R frames beyond its end. If the frames themselves were looked at layer by layer, those would
have looked further ahead, and the look-ahead would grow by R with every layer. So each chunk gets copies of these R
frames, which are computed with it, see what it sees, and are then forgotten (Shi et al. 2021, Emformer, "hard copy of
the right context"). A whole utterance of T frames in n chunks is then T + n R frames: the utterance's, then the copies.
"""

from __future__ import annotations

import torch
from torch import Tensor


def copied_frames(frames: int, chunk: int, lookahead: int, device: torch.device | None = None) -> Tensor:
    """(n, lookahead) numbers of the frames that each of the n chunks of ``frames`` sees ahead; also beyond the end."""
    ends = torch.arange(1, -(-frames // chunk) + 1, device=device) * chunk
    return ends[:, None] + torch.arange(lookahead, device=device)


def chunk_mask(lengths: Tensor, frames: int, chunk: int | None, left: int | None = None, lookahead: int = 0) -> Tensor:
    """Visibility of frames (last dimension) to frames (the one before): bool (B, 1, L, L), True = visible.

    A frame of chunk c = t // chunk sees its whole chunk, ``left`` frames of history before the chunk's start (None: all
    of it) and the copies of the ``lookahead`` frames after the chunk's end, within its utterance's length. ``chunk``
    None is full context. Frames beyond the length see themselves only, as attention over nothing is undefined.

    Args:
        lengths: (B,) frames of each utterance.
        frames: T of the batch.
        chunk: frames of a chunk.
        left: frames of history before a chunk.
        lookahead: frames after a chunk; with it L = T + n lookahead for n chunks, the copies by chunk, else L = T.
    """
    time = torch.arange(frames, device=lengths.device)
    copy = torch.zeros_like(time, dtype=torch.bool)
    number = time // chunk if chunk is not None else torch.zeros_like(time)
    if chunk is not None and lookahead:
        ahead = copied_frames(frames, chunk, lookahead, lengths.device)
        number = torch.cat((number, torch.arange(len(ahead), device=lengths.device).repeat_interleave(lookahead)))
        time = torch.cat((time, ahead.flatten()))
        copy = torch.cat((copy, torch.ones_like(ahead.flatten(), dtype=torch.bool)))
    inside = time < lengths[:, None]
    visible = (inside[:, :, None] & inside[:, None, :])[:, None]
    if chunk is not None:
        start = (number * chunk)[:, None]
        window = time < start + chunk
        if left is not None:
            window &= time >= start - left
        visible = visible & torch.where(copy, number == number[:, None], window)
    return visible | torch.eye(len(time), dtype=torch.bool, device=lengths.device)
