"""The numerator: the score of given tokens, whose gradient is the occupancies of their alignments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.lfmmi import host

MINUS_INFINITY = float("-inf")


class CTCScore(torch.autograd.Function):
    """(B, N) log of the sum over all alignments of given tokens, -inf where there is none; gradient: its occupancies.

    ``log_probs`` (B, T, V) need not be normalised; ``tokens`` (B, N, U) with ``token_lengths`` (B, N) are N sequences
    for each utterance. ``earliest`` (B, N, U) is the first frame at which each token may be put out; of equal tokens in
    a row that of the first counts for all. An alignment emits blank and the tokens of its sequence only, so torch's
    ctc_loss is given these U + 1 columns, equal tokens in a row under one number, and each frame divided by its largest
    emission among them, which changes no occupancy. What it calls the gradient is exp(log_probs) - occupancy, as it
    takes its input for the output of a softmax.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_probs: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        earliest: Tensor | None = None,
    ) -> Tensor:
        batch, frames, _ = log_probs.shape
        count, device = tokens.shape[1], log_probs.device
        # What hangs on the tokens alone is found on the host, where ctc_loss wants the lengths too
        lengths, tokens, token_lengths = (
            torch.from_numpy(a).long() for a in host.read(lengths, tokens.flatten(0, 1), token_lengths.flatten())
        )
        n_host, tokens = (
            lengths.repeat_interleave(count),
            torch.nn.functional.pad(tokens, (0, int(tokens.shape[1] == 0))),
        )
        within = torch.arange(tokens.shape[1]) < token_lengths[:, None]
        tokens = tokens.masked_fill(~within, 0)
        repeats = ((tokens[:, 1:] == tokens[:, :-1]) & within[:, 1:]).sum(1)
        fits = (n_host >= token_lengths + repeats) & (n_host > 0)
        u_host = token_lengths.masked_fill(~fits, 0)
        columns = torch.cat([tokens.new_zeros(len(tokens), 1), tokens], 1)  # (B N, U + 1) of log_probs
        nothing = (n_host == 0) & (token_lengths == 0)
        n, fits, nothing, columns = (each.to(device, non_blocking=True) for each in (n_host, fits, nothing, columns))
        wide = columns.unflatten(0, (batch, count))[:, :, None].expand(-1, -1, frames, -1)
        x = log_probs.detach()[:, None].expand(-1, count, -1, -1).gather(3, wide).flatten(0, 1)  # (B N, T, U + 1)
        time = torch.arange(frames, device=device)
        inside = time < n[:, None]  # (B N, T)
        x = torch.where(inside[:, :, None], x.double(), 0.0)
        if earliest is not None:
            early = time[:, None] < earliest.to(device, non_blocking=True).flatten(0, 1)[:, None]  # (B N, T, U)
            x = x.masked_fill(torch.nn.functional.pad(early, (1, 0)) & inside[:, :, None], MINUS_INFINITY)
        top = x.amax(2, keepdim=True)
        top = top.masked_fill(top == MINUS_INFINITY, 0.0)
        x = (x - top).transpose(0, 1).requires_grad_(ctx.needs_input_grad[0])
        # The first place of each run of equal tokens among the columns is their number
        place = torch.arange(1, columns.shape[1], device=device) * (columns[:, 1:] != columns[:, :-1])
        labels = place.cummax(1).values  # (B N, U)
        # ctc_loss is given a blank's worth of what does not fit, which is taken out again below
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            losses = torch.nn.functional.ctc_loss(x, labels, n_host, u_host, reduction="none")
            gradient = torch.autograd.grad(losses.sum(), x)[0] if x.requires_grad else None
        losses = losses.detach()
        scores = top.sum((1, 2)) - losses
        scores = scores.masked_fill(~fits | (losses == float("inf")), MINUS_INFINITY)
        scores = scores.masked_fill(nothing, 0.0)
        if gradient is not None:
            emission = x.detach().exp()
            possible = fits & (losses < float("inf"))
            # Chosen, not multiplied: where there is no emission or no alignment the gradient is not a number.
            keep = (inside & possible[:, None]).t()[:, :, None] & (emission > 0)
            occupied = torch.where(keep, emission - gradient, 0.0).clamp_(min=0).transpose(0, 1)
            ctx.save_for_backward(occupied.to(torch.promote_types(log_probs.dtype, torch.float32)), columns)
            ctx.shape, ctx.dtype = log_probs.shape, log_probs.dtype
        return scores.unflatten(0, (batch, count))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        occupied, columns = ctx.saved_tensors
        batch, frames, _ = ctx.shape
        weighted = occupied * grads[0].flatten().to(occupied.dtype)[:, None, None]  # (B N, T, U + 1)
        weighted = weighted.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)  # (B, T, N (U + 1))
        place = columns.unflatten(0, (batch, -1)).flatten(1)[:, None].expand(-1, frames, -1)
        return weighted.new_zeros(ctx.shape).scatter_add_(2, place, weighted).to(ctx.dtype), None, None, None, None
