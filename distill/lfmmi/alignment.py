"""When a network puts tokens out: the most probable alignment of given tokens under CTC's topology."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def first_frames(log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """Frame at which each token begins on the most probable alignment (Viterbi), on the device of ``log_probs``.

    An alignment passes through the states blank, token 1, blank, token 2, ..., blank, of which a blank may be left out
    between two tokens that differ.

    Args:
        log_probs: (B, T, V); token 0 is blank.
        lengths: (B,) frames.
        tokens: (B, U) padded with -1. token_lengths: (B,).

    Returns:
        (B, U) frames. Where there are too few frames for an alignment, and in the padding, they mean nothing.
    """
    device = log_probs.device
    lengths, tokens, token_lengths = (x.to(device, non_blocking=True) for x in (lengths, tokens, token_lengths))
    batch, frames, _ = log_probs.shape
    labels = F.pad(tokens.clamp(min=0)[:, :, None], (1, 0)).flatten(1)  # (B, 2 U): blank, token 1, blank, token 2 ...
    labels = F.pad(labels, (0, 1))  # (B, S = 2 U + 1)
    emissions = log_probs.gather(2, labels[:, None].expand(-1, frames, -1))  # (B, T, S)
    may_skip = F.pad(labels[:, 2:] != labels[:, :-2], (2, 0)) & (labels > 0)  # (B, S) from two states before
    no_skip = torch.zeros_like(emissions[:, 0]).masked_fill(~may_skip, float("-inf"))
    score = torch.cat([emissions[:, 0, :2], emissions.new_full((batch, labels.shape[1] - 2), float("-inf"))], 1)
    steps = torch.zeros_like(emissions, dtype=torch.long)  # how many states each frame's best predecessor is before
    for t in range(1, frames):
        before = F.pad(score, (2, 0), value=float("-inf"))
        best, step = torch.stack([score, before[:, 1:-1], before[:, :-2] + no_skip]).max(0)
        inside = (t < lengths)[:, None]
        steps[:, t] = step * inside
        score = torch.where(inside, best + emissions[:, t], score)
    last = (2 * token_lengths)[:, None]  # the blank after the last token, or that token
    ends = score.gather(1, torch.cat([last, (last - 1).clamp(min=0)], 1))
    state = last - ends.argmax(1, keepdim=True) * (last > 0)  # (B, 1)
    path = [state]
    for t in range(frames - 1, 0, -1):
        state = state - steps[:, t].gather(1, state)
        path.append(state)
    # A path never goes back, so a token begins after as many frames as are spent in states before it.
    of_token = 2 * torch.arange(tokens.shape[1], device=device) + 1
    return (torch.cat(path, 1)[:, :, None] < of_token).sum(1)
