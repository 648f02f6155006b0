"""LF-MMI with three kinds of numerator: the transcript, the teacher's transcript, the teacher's whole distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.lfmmi import host
from distill.lfmmi.autograd import Divergence, Score
from distill.lfmmi.denominator_graph import DenominatorGraph
from distill.lfmmi.numerator import CTCScore


class LFMMILoss(nn.Module):
    """Lattice-free MMI over CTC topology and token n-gram.

    With Z the denominator's score and num the score of all alignments of the tokens plus their log P:

    - ``transcript``, ``pseudo``: ``den_scale * Z(student) - num(student)``; the tokens are the reference's or the
      teacher's. Gradient: den_scale * occupancy_Z - occupancy_num. With several token sequences y_n of weight w_n,
      such as a teacher's n best by their posteriors, ``num = sum_n w_n num(y_n)``: at den_scale 1 the divergence of the
      student's distribution over sequences from w, but for w's entropy.
    - ``posterior``: the Kullback-Leibler divergence of the student's distribution over paths from the teacher's,
      ``(Z_S - sum gamma_T x_S) - (Z_T - sum gamma_T x_T) >= 0`` with gamma_T the teacher's occupancies. Gradient:
      occupancy_Z(student) - gamma_T. Zero, with zero gradient, where student and teacher agree. With gamma_T given
      instead of the teacher's emissions it is the cross entropy ``Z_S - sum gamma_T x_S``: the same gradient, larger by
      the teacher's entropy.

    Args:
        graph: denominator.
        target: ``transcript``, ``pseudo`` or ``posterior``.
        den_scale: scales Z (transcript and pseudo).
        reduction: ``none`` (B,), ``sum`` or ``mean`` over utterances.
        backend: of the denominator: ``native``, or ``k2`` to compare with, where it is installed. The numerator's
            alignments are always torch's ctc_loss.

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
        if backend not in ("native", "k2"):
            raise UserError(f"backend {backend!r}: must be native or k2")
        if target == "posterior" and den_scale != 1.0:
            raise UserError(f"den_scale {den_scale}: a divergence of distributions has none; leave it at 1")
        self.graph, self.target, self.den_scale, self.reduction = graph, target, den_scale, reduction
        self.backend = backend
        self._skipped: Tensor | int = 0

    @property
    def skipped(self) -> int:
        """See the class; waits for the device."""
        return int(self._skipped)

    def forward(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        tokens: Tensor | None = None,
        token_lengths: Tensor | None = None,
        teacher_log_probs: Tensor | None = None,
        teacher_occupancies: Tensor | None = None,
        weights: Tensor | None = None,
        earliest: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            log_probs: (B, T, V) of the student; lengths: (B,) frames.
            tokens: (B, U) padded with -1, token_lengths: (B,) (transcript, pseudo); or (B, N, U) and (B, N) with
                ``weights`` (B, N) of the sequences, 0 for those that are not there. What too few frames leave no
                alignment for leaves its weight to the others.
            earliest: first frame at which the numerator may put out each token, shaped as ``tokens``.
            teacher_log_probs: (B, T, V) (posterior); no gradient flows into it.
            teacher_occupancies: (B, T, V) instead (posterior), such as :func:`top_occupancies` stores and
                :func:`spread_occupancies` restores; frames beyond lengths count nothing.

        Returns:
            (B,) or a scalar, double.
        """
        device = log_probs.device
        if tokens is not None and token_lengths is not None:  # the host needs all three: read them at once
            lengths, tokens, token_lengths = map(torch.from_numpy, host.read(lengths, tokens, token_lengths))
        self.graph.check(log_probs, lengths)
        denominator_of = self.graph.denominator(self.backend)
        if self.target == "posterior":
            teacher = teacher_log_probs if teacher_occupancies is None else teacher_occupancies
            if teacher is None or teacher.shape != log_probs.shape:
                raise UserError("target posterior: needs teacher_log_probs or teacher_occupancies, shaped as log_probs")
            if teacher_occupancies is None:
                losses = Divergence.apply(log_probs, teacher, lengths, denominator_of)
            else:
                lengths = lengths.to(device, non_blocking=True)
                inside = torch.arange(log_probs.shape[1], device=device) < lengths[:, None]
                gamma = torch.where(inside[:, :, None], teacher.detach(), teacher.new_zeros(()))
                products = torch.where(gamma > 0, gamma * log_probs.double(), gamma.new_zeros((), dtype=torch.double))
                losses = Score.apply(log_probs, lengths, denominator_of) - products.sum((1, 2))
                nothing = (gamma.sum((1, 2)) == 0) & (lengths > 0)  # the teacher has no path
                losses = losses.masked_fill(nothing, float("inf"))
            impossible = losses.detach().isinf()
        else:
            if tokens is None or token_lengths is None:
                raise UserError(f"target {self.target}: needs tokens and token_lengths")
            if weights is None:
                tokens, token_lengths = tokens[:, None], token_lengths[:, None]
                earliest = None if earliest is None else earliest[:, None]
                weights = log_probs.new_ones(len(log_probs), 1)
            if tokens.dim() != 3 or not len(tokens) == len(token_lengths) == len(log_probs):
                shapes = f"{tuple(tokens.shape)} and {len(token_lengths)} lengths"
                raise UserError(f"tokens: {shapes} for {len(log_probs)} utterances; give a row and a length for each")
            (counts,) = host.read(token_lengths)
            if counts.min() < 0 or counts.max() > tokens.shape[2]:
                raise UserError(f"token_lengths: must be lengths from 0 to {tokens.shape[2]}, the width of tokens")
            scores = sequence_scores(self.graph, log_probs, lengths, tokens, token_lengths, earliest)
            numerator = weighted_mean(scores, weights.to(scores, non_blocking=True))
            denominator = Score.apply(log_probs, lengths, denominator_of)
            losses = self.den_scale * denominator - numerator
            # An input that is not a number is no such case: it shows as a loss that is not a number.
            impossible = (numerator.detach() == float("-inf")) | (denominator.detach() == float("-inf"))
        # Chosen, not multiplied: 0 * inf is not a number.
        losses = torch.where(impossible, torch.zeros_like(losses), losses)
        self._skipped = self._skipped + impossible.sum()
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.mean()


def sequence_scores(
    graph: DenominatorGraph,
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    earliest: Tensor | None = None,
) -> Tensor:
    """num of (B, N, U) token sequences with (B, N) lengths: (B, N) double, -inf where there is no alignment.

    ``earliest`` (B, N, U): first frame at which each token may be put out.
    """
    lengths, tokens, token_lengths = map(torch.from_numpy, host.read(lengths, tokens, token_lengths))
    prior = graph.log_prob(tokens.flatten(0, 1), token_lengths.flatten()).to(log_probs.device, non_blocking=True)
    scores = CTCScore.apply(log_probs, lengths, tokens, token_lengths, earliest)
    return scores + prior.unflatten(0, (-1, tokens.shape[1]))


def weighted_mean(scores: Tensor, weights: Tensor) -> Tensor:
    """(B,) mean of (B, N) scores by their weights, over those that are not -inf; -inf where there are none."""
    weights = weights.masked_fill(scores.detach() == float("-inf"), 0.0)
    total = weights.sum(1, keepdim=True)
    chosen = torch.where(weights > 0, scores, torch.zeros_like(scores))  # not multiplied: 0 * inf is not a number
    mean = (chosen * weights / torch.where(total > 0, total, torch.ones_like(total))).sum(1)
    return mean.masked_fill(total[:, 0] == 0, float("-inf"))


def top_occupancies(graph: DenominatorGraph, log_probs: Tensor, lengths: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most probable tokens of every frame under the graph, to be stored.

    Args:
        log_probs: (B, T, V) of the teacher; lengths: (B,) frames.
        count: k, how many tokens of a frame.

    Returns:
        token ids (B, T, k) and their occupancies (B, T, k), the largest first.
    """
    _, occupancies = graph.native(log_probs, lengths)
    values, tokens = occupancies.topk(min(count, graph.vocab_size), dim=-1)
    return tokens, values


def spread_occupancies(tokens: Tensor, values: Tensor, vocab_size: int) -> Tensor:
    """Occupancies (B, T, V) of stored ones, (B, T, k) ids and values; the other tokens share what they leave of 1.

    A frame whose values are all 0 (padding, or an utterance without a path) stays 0.
    """
    batch, frames, count = tokens.shape
    rest = (1.0 - values.sum(-1, keepdim=True)).clamp(min=0) * (values.sum(-1, keepdim=True) > 0)
    others = vocab_size - count
    filled = (rest / others if others else rest * 0).expand(batch, frames, vocab_size)
    return filled.scatter(-1, tokens, values)
