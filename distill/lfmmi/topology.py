"""The CTC topology composed with a token n-gram: recursions over frames, forward and backward.

A state of the composition is a state s of the n-gram (a history) together with what the last frame emitted: a blank, or
the history's last token l(s). With x_t the emissions (probabilities) of frame t, P(v | s) the n-gram, s.v the history
after token v, and all_t = blank_t + token_t:

    blank_t(s)  = x_t(blank) * all_{t-1}(s)
    token_t(s') = x_t(l(s')) * arrivals_{t-1}(s')
    arrivals(s') = token(s')                                                          the same token goes on
                   + sum over s, v with s.v = s' of P(v | s) * (blank(s) + [v != l(s)] token(s))

The backward pass is the transpose. The sum over s, v is the n-gram's part, a :class:`Transitions`: dense products
(:mod:`distill.lfmmi.dense`), or listed n-grams and back-off (:mod:`distill.lfmmi.backoff`).

Everything is in the probability domain: a frame's emissions are divided by their mean, and the sums rescaled every few
frames. :mod:`distill.lfmmi.precision` says when that is safe. Tensors are (frames, states, utterances), so that a frame
is a product of a matrix with (S, B). The loops over frames read nothing back from the device.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MINUS_INFINITY = float("-inf")
# Frames between two scalings
RESCALE = {torch.float32: 2, torch.float64: 8}
TINY = {torch.float32: 1e-30, torch.float64: 1e-290}  # a sum of 0 is divided by this instead
# What the recursions may keep; beyond that the forward one is computed again, block of frames by block
KEPT_BYTES = 600_000_000


class Transitions(Protocol):
    """The n-gram's part of a frame on one device and in one precision.

    Attributes:
        last: (S,) last token of each state, or None where that is the state's own number.
        final: (S,) P(end | state), divided by its largest, whose log is ``log_final_scale``.
    """

    dtype: torch.dtype
    states: int
    last: Tensor | None
    final: Tensor
    log_final_scale: float

    def arrive(self, token: Tensor, blank: Tensor, all_: Tensor) -> Tensor:
        """``arrivals`` (S, B) of token and blank sums and of both together, each (S, B)."""
        ...

    def depart(self, emitted: Tensor, stay: Tensor, token: Tensor, blank: Tensor) -> None:
        """What follows token and blank states, written into ``token`` and ``blank``.

        Args:
            emitted: (S, B) what follows each token state of the next frame, times its emission.
            stay: (S, B) what follows if the next frame is blank.
        """
        ...


class Emissions(NamedTuple):
    """Emission probabilities, divided by their mean in each frame.

    ``token`` (T, V, B), column 0 is 0; ``blank`` (T, 1, B); ``log_scale`` (B,) double, sum of the logs of the means;
    ``lowest`` (B,) the lowest emission above 0 relative to the largest of its frame, 1 where not asked for.
    """

    token: Tensor
    blank: Tensor
    log_scale: Tensor
    lowest: Tensor


def emissions(
    log_probs: Tensor, lengths: Tensor, unreachable: Tensor | None, dtype: torch.dtype, want_lowest: bool
) -> Emissions:
    """Emissions of (B, T, V) log-probabilities with (B,) lengths.

    Frames beyond an utterance emit a blank with probability 1, which leaves every state and the final score as they
    are, so that a ragged batch needs no masks. ``unreachable``: (V,) tokens that no state leads to, masked; None: none.
    """
    x = log_probs.detach().to(dtype, copy=True)
    outside = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, T)
    if unreachable is not None:
        x.masked_fill_(unreachable, MINUS_INFINITY)
    x.masked_fill_(outside[:, :, None], MINUS_INFINITY)
    x[:, :, 0].masked_fill_(outside, 0.0)
    top = x.amax(2, keepdim=True)
    top.masked_fill_(top == MINUS_INFINITY, 0.0)
    x.sub_(top)
    lowest = x.new_ones(len(x))
    if want_lowest:
        lowest = x.masked_fill(x == MINUS_INFINITY, 0.0).amin((1, 2)).exp()
    x.exp_()
    # By the mean rather than the largest: sums then stay near 1 whether emissions are peaky or flat.
    mean = x.mean(2, keepdim=True)
    mean.masked_fill_((mean == 0) | outside[:, :, None], 1.0)
    x.div_(mean)
    log_scale = (top.double() + mean.double().log()).sum((1, 2))
    token = x.permute(1, 2, 0)
    if x.is_cpu:
        token = token.contiguous()
    blank = token[:, :1].clone()
    token[:, 0] = 0
    return Emissions(token, blank, log_scale, lowest)


class Sums(NamedTuple):
    """Sums of some frames (t, S, B), for a token and for a blank, and the scales they were divided by (k, B)."""

    token: Tensor
    blank: Tensor
    scales: Tensor


def start(final: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """(token, blank) before the first frame: all mass in state 0, as after a blank; ``final``: (S,)."""
    token = final.new_zeros(len(final), batch)
    blank = token.clone()
    blank[0] = 1
    return token, blank


def forward(
    transitions: Transitions, x: Emissions, first: int, last: int, entry: tuple[Tensor, Tensor], keep: bool
) -> tuple[Sums, tuple[Tensor, Tensor]]:
    """Sums over all beginnings of paths, of frames ``first`` to ``last - 1``, and the sums after these.

    Args:
        entry: (token, blank) before frame ``first``.
        keep: False leaves the sums of the frames out (empty tensors).
    """
    every, tiny = RESCALE[transitions.dtype], TINY[transitions.dtype]
    token, blank = entry
    shape = (last - first if keep else 0, *token.shape)
    tokens, blanks = token.new_empty(shape), token.new_empty(shape)
    # Lists of views: slicing a tensor costs as much as an operation on a frame.
    x_at, blank_at, token_out, blank_out = x.token.unbind(0), x.blank.unbind(0), tokens.unbind(0), blanks.unbind(0)
    index = transitions.last
    scales = []
    for t in range(first, last):
        emission, blank_emission = x_at[t], blank_at[t]
        all_ = torch.add(token, blank)
        if t % every == every - 1:  # rather than the sums, what they are multiplied by is divided
            scale = all_.sum(0, keepdim=True).clamp_(min=tiny)
            emission, blank_emission = emission / scale, blank_emission / scale
            scales.append(scale)
        if index is not None:
            emission = emission.index_select(0, index)
        arrivals = transitions.arrive(token, blank, all_)
        if keep:
            token = torch.mul(arrivals, emission, out=token_out[t - first])
            blank = torch.mul(all_, blank_emission, out=blank_out[t - first])
        else:
            token, blank = arrivals.mul_(emission), all_.mul_(blank_emission)
    if last == len(x.token):
        scale = torch.add(token, blank).sum(0, keepdim=True).clamp_(min=tiny)
        token.div_(scale)
        blank.div_(scale)
        scales.append(scale)
    return Sums(tokens, blanks, _stacked(scales, token)), (token, blank)


def backward(
    transitions: Transitions, x: Emissions, first: int, last: int, after: tuple[Tensor, Tensor]
) -> tuple[Sums, tuple[Tensor, Tensor]]:
    """Sums over all ends of paths, after frames ``first`` to ``last - 1``, and those after frame ``first - 1``.

    Args:
        after: (token, blank) after frame ``last - 1``.
    """
    every, tiny = RESCALE[transitions.dtype], TINY[transitions.dtype]
    token, blank = after
    tokens, blanks = token.new_empty(last - first, *token.shape), token.new_empty(last - first, *token.shape)
    x_at, blank_at, token_out, blank_out = x.token.unbind(0), x.blank.unbind(0), tokens.unbind(0), blanks.unbind(0)
    index = transitions.last
    scales = []
    token, blank = token_out[-1].copy_(token), blank_out[-1].copy_(blank)
    before = torch.empty_like(token), torch.empty_like(token)  # of the frame before the first
    for t in range(last - 1, max(first - 1, 0), -1):
        emission, blank_emission = x_at[t], blank_at[t]
        if t % every == every - 1:
            scale = torch.maximum(token.amax(0, keepdim=True), blank.amax(0, keepdim=True)).clamp_(min=tiny)
            emission, blank_emission = emission / scale, blank_emission / scale
            scales.append(scale)
        if index is not None:
            emission = emission.index_select(0, index)
        emitted, stay = token * emission, blank * blank_emission
        token, blank = (token_out[t - 1 - first], blank_out[t - 1 - first]) if t > first else before
        transitions.depart(emitted, stay, token, blank)
    if first == 0:
        scales.append(torch.maximum(token.amax(0, keepdim=True), blank.amax(0, keepdim=True)).clamp_(min=tiny))
    return Sums(tokens, blanks, _stacked(scales, token)), (token, blank)


def _stacked(scales: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(scales) if scales else like.new_ones(0, like.shape[1])


def occupancies(last: Tensor | None, alpha: Sums, beta: Sums, vocab_size: int) -> Tensor:
    """(t, V, B) share of all paths that emit each token in each frame; overwrites the sums.

    ``last``: (S,) last token of each state, None where that is its own number.
    """
    token = alpha.token.mul_(beta.token)
    blank = alpha.blank.mul_(beta.blank).sum(1, keepdim=True)
    if last is not None:
        token = token.new_zeros(len(token), vocab_size, token.shape[2]).index_add_(1, last, token)
    token[:, :1] = blank
    return token.div_(token.sum(1, keepdim=True).clamp_(min=torch.finfo(token.dtype).tiny))
