"""Exact forward-backward over the CTC topology composed with a token n-gram.

A state of the composition is a history s of the n-gram together with what the last frame emitted: a blank, or the
history's last token l(s). With x_t the emissions (probabilities) of frame t, P(v | s) the n-gram and s.v the history
after token v:

    blank_t(s)  = x_t(blank) * (blank_{t-1}(s) + token_{t-1}(s))
    token_t(s') = x_t(l(s')) * (token_{t-1}(s')                                        the same token goes on
                                + sum over s with s.l(s') = s' of P(l(s') | s) * (blank_{t-1}(s)
                                                             + [l(s) != l(s')] token_{t-1}(s)))

The last line is a matrix product with M[s, s'] = P(l(s') | s), less the terms in which a token follows itself without a
blank: one s' for each s. Everything is computed in double precision in the probability domain, each frame scaled by its
largest emission and by its total, which is exact to about 700 nats between emissions of a frame; utterances with a wider
range are computed again in the log domain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Transitions:
    """An n-gram's transitions between its S history states, in double precision.

    Attributes:
        log_matrix: (S, S) log M[s, s'], -inf where there is no such transition.
        log_final: (S,) log probability of the sentence end.
        last: (S,) last token of each history, 0 for the sentence start (state 0).
        again: (S,) state that a repeated last token leads to, with ``log_again`` (S,) its log probability.
    """

    def __init__(self, log_matrix: Tensor, log_final: Tensor, last: Tensor, again: Tensor, log_again: Tensor) -> None:
        self.log_matrix, self.log_final = log_matrix.double(), log_final.double()
        self.last, self.again, self.log_again = last, again, log_again.double()
        self.matrix, self.final = self.log_matrix.exp(), self.log_final.exp()
        self.transposed = self.matrix.t().contiguous()
        self.repeat = self.log_again.exp()
        # In a bigram a repeated token leads to the state it came from, and no scattering is needed.
        self.loops = bool((again == torch.arange(len(again), device=again.device)).all())

    def to(self, device: torch.device) -> Transitions:
        """The same on another device."""
        if self.matrix.device == device:
            return self
        tensors = (self.log_matrix, self.log_final, self.last, self.again, self.log_again)
        return Transitions(*(tensor.to(device) for tensor in tensors))


def forward_backward(graph: Transitions, log_probs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Total score and occupancies of every utterance.

    Args:
        graph: S states over tokens below V.
        log_probs: (B, T, V), need not be normalised; -inf is allowed.
        lengths: (B,) frames, each at least 1.

    Returns:
        scores (B,) ``log sum over paths of exp(sum_t x_t[path_t] + log P(tokens of the path))`` and the occupancies
        (B, T, V), the gradient of their sum, both double; where no path is possible -inf and 0.
    """
    x = log_probs.detach().double()
    scores, occupancies = _scaled(graph, x, lengths)
    # A frame whose largest emission no path can reach leaves too little of the others, seen as a total of 0
    doubtful = ~torch.isfinite(scores)
    if doubtful.any():
        again, occ = _log_domain(graph, x[doubtful], lengths[doubtful])
        scores[doubtful], occupancies[doubtful] = again, occ
    return scores, occupancies


def _scaled(graph: Transitions, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    batch, frames, vocabulary = x.shape
    states = len(graph.last)
    time_major = x.transpose(0, 1)
    top = time_major.amax(2, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
    emission = (time_major - top).exp()  # (T, B, V)
    blank_x = emission[:, :, :1].contiguous()
    bigram = states == vocabulary and bool((graph.last == torch.arange(states, device=x.device)).all())
    token_x = (emission if bigram else emission[:, :, graph.last]).clone()
    token_x[:, :, 0] = 0  # nothing emits into the sentence start
    # Frames beyond an utterance keep what was reached: they are computed, as the batch is, and then not taken.
    inside = torch.arange(frames, device=x.device)[:, None, None] < lengths[None, :, None]
    ragged = bool((lengths < frames).any())

    blanks = x.new_zeros(frames, batch, states)
    tokens = x.new_zeros(frames, batch, states)
    scales = x.new_ones(frames, batch, 1)
    blank = x.new_zeros(batch, states)
    blank[:, 0] = 1
    token = x.new_zeros(batch, states)
    for t in range(frames):
        both = blank + token
        fresh = torch.mm(both, graph.matrix)
        if graph.loops:
            fresh = torch.addcmul(fresh, token, graph.repeat, value=-1)
        else:
            fresh.index_add_(1, graph.again, token * graph.repeat, alpha=-1)
        # What is subtracted was added by the product; rounding may leave a hair below zero
        next_token = token_x[t] * (token + fresh.clamp_(min=0))
        next_blank = blank_x[t] * both
        total = (next_token.sum(1, keepdim=True) + next_blank.sum(1, keepdim=True)).clamp_(min=1e-300)
        next_token, next_blank = next_token / total, next_blank / total
        if ragged:
            now = inside[t]
            next_token, next_blank = torch.where(now, next_token, token), torch.where(now, next_blank, blank)
            total = torch.where(now, total, torch.ones_like(total))
        token, blank = next_token, next_blank
        tokens[t], blanks[t], scales[t] = token, blank, total
    ended = ((token + blank) * graph.final).sum(1)
    shift = (top * inside).sum(0)[:, 0]
    scores = ended.log() + scales.log().sum(0)[:, 0] + shift
    scores = torch.where((scales <= 1e-300).any(0)[:, 0], torch.full_like(scores, float("-inf")), scores)

    occupancies = x.new_zeros(frames, batch, vocabulary)
    beta_token = graph.final.expand(batch, states)
    beta_blank = beta_token
    for t in range(frames - 1, -1, -1):
        if t < frames - 1:
            into = token_x[t + 1] * beta_token
            reach = torch.mm(into, graph.transposed)
            stay = blank_x[t + 1] * beta_blank
            repeated = into if graph.loops else into[:, graph.again]
            new_token = stay + into + (reach - repeated * graph.repeat).clamp_(min=0)
            new_blank = stay + reach
            largest = torch.maximum(new_token.amax(1, keepdim=True), new_blank.amax(1, keepdim=True)).clamp_(min=1e-300)
            new_token, new_blank = new_token / largest, new_blank / largest
            if ragged:
                now = inside[t + 1]
                new_token = torch.where(now, new_token, beta_token)
                new_blank = torch.where(now, new_blank, beta_blank)
            beta_token, beta_blank = new_token, new_blank
        occupied = tokens[t] * beta_token
        blank_mass = (blanks[t] * beta_blank).sum(1, keepdim=True)
        total = (occupied.sum(1, keepdim=True) + blank_mass).clamp(min=1e-300)
        if bigram:
            occupancies[t] = occupied / total
        else:
            occupancies[t].index_add_(1, graph.last, occupied / total)
        occupancies[t, :, :1] = blank_mass / total
    occupancies *= inside & torch.isfinite(scores)[None, :, None]
    return scores, occupancies.transpose(0, 1).contiguous()


def _log_domain(graph: Transitions, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The same sums in the log domain, one utterance at a time: slow, and right for any range of emissions."""
    scores, occupancies = x.new_full((len(x),), float("-inf")), torch.zeros_like(x)
    minus = float("-inf")
    jumps = graph.log_matrix  # after a blank
    changes = jumps.clone()  # after a token: not the same token again
    rows = torch.arange(len(graph.last), device=x.device)
    changes[rows, graph.again] = minus
    start = graph.last == 0
    for b, length in enumerate(lengths.tolist()):
        frames = x[b, :length]
        into = frames[:, graph.last].masked_fill(start, minus)
        token, blank = x.new_full((len(rows),), minus), x.new_full((len(rows),), minus)
        blank[0] = 0
        kept = []
        for t in range(length):
            reach = torch.logaddexp(
                torch.logsumexp(blank[:, None] + jumps, 0), torch.logsumexp(token[:, None] + changes, 0)
            )
            token, blank = into[t] + torch.logaddexp(token, reach), frames[t, 0] + torch.logaddexp(blank, token)
            kept.append((token, blank))
        total = torch.logsumexp(torch.cat([token + graph.log_final, blank + graph.log_final]), 0)
        scores[b] = total
        if not torch.isfinite(total):
            continue
        beta_token = beta_blank = graph.log_final
        for t in range(length - 1, -1, -1):
            if t < length - 1:
                after = into[t + 1] + beta_token
                stay = frames[t + 1, 0] + beta_blank
                beta_token = torch.logaddexp(
                    torch.logaddexp(stay, after), torch.logsumexp(changes + after[None, :], 1)
                )
                beta_blank = torch.logaddexp(stay, torch.logsumexp(jumps + after[None, :], 1))
            token, blank = kept[t]
            occupancies[b, t].index_add_(0, graph.last, (token + beta_token - total).exp())
            occupancies[b, t, 0] = (torch.logsumexp(blank + beta_blank, 0) - total).exp()
    return scores, occupancies


class Score(torch.autograd.Function):
    """(B,) scores whose gradient with respect to the log-probabilities is the occupancies."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, graph: Transitions) -> Tensor:
        scores, occupancies = forward_backward(graph, log_probs, lengths)
        ctx.save_for_backward(occupancies)
        ctx.dtype = log_probs.dtype
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (occupancies,) = ctx.saved_tensors
        return (occupancies * grads[0][:, None, None]).to(ctx.dtype), None, None


class CTCScore(torch.autograd.Function):
    """(B,) log of the sum over all alignments of given tokens, -inf where there is none; gradient: its occupancies.

    ``log_probs`` need not be normalised. torch's ctc_loss does the sums; what it calls the gradient is
    exp(log_probs) - occupancy, as it takes its input for the output of a softmax.
    """

    FLOOR = -1e5  # stands for -inf, with which ctc_loss would compute inf - inf

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        x = log_probs.detach().double().clamp(min=CTCScore.FLOOR).transpose(0, 1).requires_grad_(True)
        with torch.enable_grad():
            losses = torch.nn.functional.ctc_loss(
                x, tokens.clamp(min=0), lengths, token_lengths, reduction="none", zero_infinity=False
            )
            possible = torch.isfinite(losses.detach()) & (losses.detach() < -CTCScore.FLOOR / 2)
            (gradient,) = torch.autograd.grad(losses[possible].sum(), x)
        inside = torch.arange(x.shape[0], device=x.device)[:, None] < lengths
        # chosen, not multiplied: where there is no alignment ctc_loss's gradient is not a number
        occupancies = torch.where((inside & possible)[:, :, None], x.detach().exp() - gradient, torch.zeros_like(x))
        ctx.save_for_backward(occupancies.transpose(0, 1))
        ctx.dtype = log_probs.dtype
        return torch.where(possible, -losses.detach(), torch.full_like(losses, float("-inf")))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (occupancies,) = ctx.saved_tensors
        return (occupancies * grads[0][:, None, None]).to(ctx.dtype), None, None, None


class Divergence(torch.autograd.Function):
    """(B,) Kullback-Leibler divergence of the student's distribution over paths from the teacher's, both (B, T, V).

    ``(Z_S - sum gamma_T x_S) - (Z_T - sum gamma_T x_T)``, gamma_T the teacher's occupancies; its gradient with respect
    to the student is occupancy_S - gamma_T. Not finite where either has no path.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, lengths: Tensor, graph: Transitions) -> Tensor:
        both = torch.cat([student.detach(), teacher.detach()]).double()  # one pass over frames for the two
        scores, occupancies = forward_backward(graph, both, lengths.repeat(2))
        (score_s, score_t), (occupancy, gamma) = scores.chunk(2), occupancies.chunk(2)
        difference = torch.where(gamma > 0, both[: len(student)] - both[len(student) :], torch.zeros_like(gamma))
        ctx.save_for_backward(occupancy - gamma)
        ctx.dtype = student.dtype
        return score_s - score_t - (gamma * difference).sum((1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None, None]).to(ctx.dtype), None, None, None
