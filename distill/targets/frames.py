"""Frames averaged for a comparison with longer ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.models.transfer import send


def average_frames(x: Tensor, lengths: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Bring (B, T, D) to ``factor`` times fewer frames: a teacher's to its student's, or a student's to its teacher's.

    Frame t is the mean of frames ``factor*t ... factor*t + factor - 1``; a remainder at the end is dropped, so an
    utterance keeps ``length // factor`` frames (one shorter than that keeps its first frame).
    """
    if factor == 1:
        return x, lengths
    frames = max(x.shape[1] // factor, 1)
    padded = F.pad(x, (0, 0, 0, max(0, factor - x.shape[1])))
    pooled = padded[:, : frames * factor].unflatten(1, (frames, factor)).mean(2)
    if x.shape[1]:
        short = send(lengths, x.device) < factor
        pooled[:, 0] = torch.where(short[:, None], x[:, 0], pooled[:, 0])
    return pooled, torch.div(lengths, factor, rounding_mode="floor").clamp(min=1)
