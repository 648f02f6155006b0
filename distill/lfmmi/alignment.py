"""When a network puts tokens out: the most probable alignment of given tokens under CTC's topology."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.models.transfer import send


@torch.no_grad()
def first_frames(scores: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """Frame at which each token begins on the most probable alignment (Viterbi), on the device of ``scores``.

    An alignment passes through the states blank, token 1, blank, token 2, ..., blank, of which a blank may be left out
    between two tokens that differ.

    Args:
        scores: (B, T, V) logits or log-probabilities, which give the same; token 0 is blank.
        lengths: (B,) frames.
        tokens: (B, N, U), N sequences of each utterance, padded with -1. token_lengths: (B, N).

    Returns:
        (B, N, U) frames. Where there are too few frames for an alignment, and in the padding, they mean nothing.
    """
    device, shape, frames = scores.device, tokens.shape, scores.shape[1]
    lengths, tokens, token_lengths = (send(x, device) for x in (lengths, tokens, token_lengths))
    labels = F.pad(tokens.clamp(min=0)[..., None], (1, 0)).flatten(2)  # (B, N, 2 U): blank, token 1, blank, token 2 ...
    labels = F.pad(labels, (0, 1))  # (B, N, S = 2 U + 1)
    of_sequence = scores.transpose(0, 1)[:, :, None].expand(-1, -1, shape[1], -1)  # (T, B, N, V)
    emissions = of_sequence.gather(3, labels.expand(frames, -1, -1, -1)).flatten(1, 2)  # (T, B N, S)
    lengths, labels, token_lengths = lengths.repeat_interleave(shape[1]), labels.flatten(0, 1), token_lengths.flatten()
    batch = len(labels)
    may_skip = F.pad(labels[:, 2:] != labels[:, :-2], (2, 0)) & (labels > 0)  # (B N, S) from two states before
    no_skip = torch.zeros_like(emissions[0]).masked_fill(~may_skip, float("-inf"))

    # Best scores of partial alignments by frame and last state, behind two states that there are not
    best = emissions.new_full((frames, batch, 2 + labels.shape[1]), float("-inf"))
    best[0, :, 2:4] = emissions[0, :, :2]
    for t in range(1, frames):
        before = best[t - 1]
        stay_or_step = torch.maximum(before[:, 2:], before[:, 1:-1])
        torch.add(torch.maximum(stay_or_step, before[:, :-2] + no_skip), emissions[t], out=best[t, :, 2:])
    stay, step, skip = best[:-1, :, 2:], best[:-1, :, 1:-1], best[:-1, :, :-2] + no_skip
    steps = torch.where(skip > torch.maximum(stay, step), 2, (step > stay).long())
    steps = F.pad(steps, (0, 0, 0, 0, 1, 0))  # (T, B N, S) how many states before a frame's best predecessor is
    steps = steps.masked_fill((torch.arange(frames, device=device)[:, None] >= lengths)[:, :, None], 0)

    last = (2 * token_lengths)[:, None]  # (B N, 1) the blank after the last token, or that token
    at_end = best.gather(0, (lengths - 1).clamp(min=0)[None, :, None].expand(-1, -1, best.shape[2]))[0, :, 2:]
    ends = at_end.gather(1, torch.cat([last, (last - 1).clamp(min=0)], 1))
    state = last - ends.argmax(1, keepdim=True) * (last > 0)
    path = [state]
    for t in range(frames - 1, 0, -1):
        state = state - steps[t].gather(1, state)
        path.append(state)
    # A path never goes back, so a token begins after as many frames as are spent in states before it.
    of_token = 2 * torch.arange(shape[2], device=device) + 1
    return (torch.cat(path, 1)[:, :, None] < of_token).sum(1).reshape(shape)
