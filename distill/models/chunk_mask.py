"""Which frames a frame may attend to when audio arrives in chunks."""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_mask(lengths: Tensor, frames: int, chunk: int | None, left: int | None = None) -> Tensor:
    """Visibility of frames (last dimension) to frames (the one before): bool (B, 1, frames, frames), True = visible.

    A frame of chunk c = t // chunk sees its whole chunk and ``left`` frames of history before the chunk's start
    (None: all of it), within its utterance's length. ``chunk`` None is full context. Frames beyond the length see
    themselves only, as attention over nothing is undefined.

    Args:
        lengths: (B,) frames of each utterance.
        frames: T of the batch.
        chunk: frames of a chunk.
        left: frames of history before a chunk.
    """
    time = torch.arange(frames, device=lengths.device)
    inside = time < lengths[:, None]
    visible = (inside[:, :, None] & inside[:, None, :])[:, None]
    if chunk is not None:
        start = (time // chunk * chunk)[:, None]
        window = time < start + chunk
        if left is not None:
            window &= time >= start - left
        visible = visible & window
    return visible | torch.eye(frames, dtype=torch.bool, device=lengths.device)
