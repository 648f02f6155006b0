"""Functions whose gradients are occupancies: score of all paths, divergence of two distributions over paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MINUS_INFINITY = float("-inf")
# (log_probs, lengths, gradient) -> scores, occupancies
Denominator = Callable[..., tuple[Tensor, Tensor]]


class Score(torch.autograd.Function):
    """(B,) scores whose gradient with respect to the log-probabilities is the occupancies."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, denominator: Denominator) -> Tensor:
        scores, occupancies = denominator(log_probs, lengths, ctx.needs_input_grad[0])
        _keep(ctx, occupancies, log_probs)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _gradient(ctx, grads[0]), None, None


class Divergence(torch.autograd.Function):
    """(B,) Kullback-Leibler divergence of the student's distribution over paths from the teacher's, both (B, T, V).

    ``(Z_S - sum gamma_T x_S) - (Z_T - sum gamma_T x_T)``, gamma_T the teacher's occupancies; its gradient with respect
    to the student is occupancy_S - gamma_T. Infinite where either has no path.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, lengths: Tensor, denominator: Denominator) -> Tensor:
        wide = torch.promote_types(student.dtype, teacher.dtype)
        both = torch.cat([student.detach().to(wide), teacher.detach().to(wide)])  # one pass over frames for the two
        scores, occupancies = denominator(both, lengths.repeat(2))
        (score_s, score_t), (occupancy, gamma) = scores.chunk(2), occupancies.chunk(2)
        # in double: half precision inputs lie far apart, and the sum runs over many frames
        difference = both[: len(student)].double() - both[len(student) :].double()
        difference = torch.where(gamma > 0, difference * gamma, difference.new_zeros(()))
        _keep(ctx, occupancy - gamma, student)
        divergence = score_s - score_t - difference.sum((1, 2))
        nowhere = (score_s == MINUS_INFINITY) | (score_t == MINUS_INFINITY)
        return divergence.masked_fill(nowhere, float("inf"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _gradient(ctx, grads[0]), None, None, None


def _keep(ctx: Any, occupancies: Tensor, log_probs: Tensor) -> None:
    """Save what the gradient is, never wider than float32 unless the input is."""
    ctx.dtype = log_probs.dtype
    ctx.save_for_backward(occupancies.to(torch.promote_types(log_probs.dtype, torch.float32)))


def _gradient(ctx: Any, grad: Tensor) -> Tensor:
    (occupancies,) = ctx.saved_tensors
    return (occupancies * grad.to(occupancies.dtype)[:, None, None]).to(ctx.dtype)
