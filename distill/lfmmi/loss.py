"""LF-MMI with three kinds of numerator: the transcript, the teacher's transcript, the teacher's whole distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.lfmmi.forward_backward import CTCScore, Divergence, Score
from distill.lfmmi.graph import DenominatorGraph


class LFMMILoss(nn.Module):
    """Lattice-free MMI over CTC topology and token n-gram.

    With Z the denominator's score and num the score of all alignments of the tokens plus their log P:

    - ``transcript``, ``pseudo``: ``den_scale * Z(student) - num(student)``; the tokens are the reference's or the
      teacher's. Gradient: den_scale * occupancy_Z - occupancy_num.
    - ``posterior``: the Kullback-Leibler divergence of the student's distribution over paths from the teacher's,
      ``(Z_S - sum gamma_T x_S) - (Z_T - sum gamma_T x_T) >= 0`` with gamma_T the teacher's occupancies. Gradient:
      occupancy_Z(student) - gamma_T. Zero, with zero gradient, where student and teacher agree.

    Args:
        graph: denominator.
        target: ``transcript``, ``pseudo`` or ``posterior``.
        den_scale: scales Z (transcript and pseudo).
        reduction: ``none`` (B,), ``sum`` or ``mean`` over utterances.
        backend: of the denominator: ``native``, ``k2``, or ``auto``, which is k2 on a GPU where it is installed and
            native otherwise. The numerator's alignments are always torch's ctc_loss.

    Attributes:
        skipped: utterances so far that no alignment exists for (too few frames, a token sequence the n-gram rules
            out); their loss and gradient are 0.
    """

    def __init__(
        self,
        graph: DenominatorGraph,
        target: str = "transcript",
        den_scale: float = 1.0,
        reduction: str = "mean",
        backend: str = "native",
    ) -> None:
        super().__init__()
        if target not in ("transcript", "pseudo", "posterior"):
            raise UserError(f"target {target!r}: must be transcript, pseudo or posterior")
        if reduction not in ("none", "sum", "mean"):
            raise UserError(f"reduction {reduction!r}: must be none, sum or mean")
        if backend not in ("native", "k2", "auto"):
            raise UserError(f"backend {backend!r}: must be native, k2 or auto")
        if target == "posterior" and den_scale != 1.0:
            raise UserError(f"den_scale {den_scale}: a divergence of distributions has none; leave it at 1")
        self.graph, self.target, self.den_scale, self.reduction = graph, target, den_scale, reduction
        self.backend = backend
        self.skipped = 0

    def forward(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        tokens: Tensor | None = None,
        token_lengths: Tensor | None = None,
        teacher_log_probs: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            log_probs: (B, T, V) of the student; lengths: (B,) frames.
            tokens: (B, U) padded with -1, token_lengths: (B,) (transcript, pseudo).
            teacher_log_probs: (B, T, V) (posterior); no gradient flows into it.

        Returns:
            (B,) or a scalar, double.
        """
        self.graph.check(log_probs, lengths)
        denominator_of = self.graph.denominator(self.backend, log_probs.device)
        if self.target == "posterior":
            if teacher_log_probs is None or teacher_log_probs.shape != log_probs.shape:
                raise UserError("target posterior: needs teacher_log_probs of the shape of log_probs")
            losses = Divergence.apply(log_probs, teacher_log_probs, lengths, denominator_of)
            impossible = losses.detach() == float("inf")
        else:
            if tokens is None or token_lengths is None:
                raise UserError(f"target {self.target}: needs tokens and token_lengths")
            if tokens.dim() != 2 or not len(tokens) == len(token_lengths) == len(log_probs):
                shapes = f"{tuple(tokens.shape)} and {len(token_lengths)} lengths"
                raise UserError(f"tokens: {shapes} for {len(log_probs)} utterances; give a row and a length for each")
            if int(token_lengths.min()) < 0 or int(token_lengths.max()) > tokens.shape[1]:
                raise UserError(f"token_lengths: must be lengths from 0 to {tokens.shape[1]}, the width of tokens")
            prior = self.graph.log_prob(tokens, token_lengths)
            numerator = CTCScore.apply(log_probs, lengths, tokens, token_lengths) + prior.to(log_probs.device)
            denominator = Score.apply(log_probs, lengths, denominator_of)
            losses = self.den_scale * denominator - numerator
            # An input that is not a number is no such case: it shows as a loss that is not a number.
            impossible = (numerator.detach() == float("-inf")) | (denominator.detach() == float("-inf"))
        # Chosen, not multiplied: 0 * inf is not a number.
        losses = torch.where(impossible, torch.zeros_like(losses), losses)
        self.skipped += int(impossible.sum())
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.mean()
