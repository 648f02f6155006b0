"""Loss terms of distillation, as pure functions of padded batches.

Shapes: B utterances, T frames, D dimensions, V tokens, U tokens of the longest transcript. Every term is normalised per
utterance by its own frames and returned as a (B,) tensor, because ESPnet's trainer weights a batch by its utterances.
Lengths, and tokens of the host, may lie on the host while the rest is on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.lfmmi.numerator import CTCScore
from distill.models.transfer import send


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B,) lengths -> (B, frames) bool, True where ``t < length``."""
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def masked_mse(student: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Mean squared error over the frames within length, (B, T, D) x (B, T, D) x (B,) -> (B,).

    ``MSE_b = 1/(T_b D) sum_{t < T_b} sum_d (student_btd - target_btd)^2``. An utterance of no frames counts 0.
    """
    lengths = send(lengths, student.device)
    # Masked before the square, so that even an infinite value in the padding has no gradient.
    difference = (student - target).masked_fill(~frame_mask(lengths, student.shape[1])[:, :, None], 0.0)
    return difference.square().mean(-1).sum(1) / lengths.clamp(min=1)


def centred_mse(student: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """:func:`masked_mse` of logits from which each frame's mean over V is taken, as softmax ignores it."""
    return masked_mse(student - student.mean(-1, keepdim=True), target - target.mean(-1, keepdim=True), lengths)


def blank_at_start(logits: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """Negative log probability of blank in the first frames of utterances, (B, T, V) x (B,) -> (B,).

    ``-1/T_b sum_{t < frames} log softmax(logits_bt)_0``
    """
    of_blank = logits[:, :frames].log_softmax(-1)[..., 0]
    return -of_blank.sum(1) / send(lengths, logits.device).clamp(min=1)


def masked_cosine(student: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Mean cosine distance of the frames within length, shapes as in :func:`masked_mse`.

    ``1/T_b sum_{t < T_b} (1 - cos(student_bt, target_bt))``. An utterance of no frames counts 0.
    """
    lengths = send(lengths, student.device)
    padding = ~frame_mask(lengths, student.shape[1])
    # As in masked_mse; ones, as the cosine with a zero vector has no finite gradient.
    student, target = (x.masked_fill(padding[:, :, None], 1.0) for x in (student, target))
    distance = 1 - F.cosine_similarity(student, target, dim=-1)
    return distance.masked_fill(padding, 0.0).sum(1) / lengths.clamp(min=1)


def frame_kl(student_logits: Tensor, teacher_logits: Tensor, lengths: Tensor) -> Tensor:
    """Kullback-Leibler divergence of single frames, (B, T, V) x (B, T, V) x (B,) -> (B,).

    ``1/T_b sum_{t < T_b} sum_v p_btv log(p_btv / q_btv)``, p and q the softmax of the teacher's and the student's
    logits. Unlike LF-MMI it does not model sequences. An utterance of no frames counts 0.
    """
    lengths = send(lengths, student_logits.device)
    padding = ~frame_mask(lengths, student_logits.shape[1])[:, :, None]
    student, teacher = (x.masked_fill(padding, 0.0).log_softmax(-1) for x in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum((1, 2)) / lengths.clamp(min=1)


def code_entropy(student: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of a teacher's codes, (B, T, N K) x (B, T, N) x (B,) -> (B,), K the codewords of a codebook.

    ``-1/(T_b N) sum_{t < T_b} sum_n log softmax(student_btn)_(codes_btn)``
    """
    lengths = send(lengths, student.device)
    scores = student.unflatten(-1, (codes.shape[-1], -1)).log_softmax(-1)
    entropy = -scores.gather(-1, codes[..., None]).squeeze(-1).mean(-1)
    return entropy.masked_fill(~frame_mask(lengths, student.shape[1]), 0.0).sum(1) / lengths.clamp(min=1)


def normalise_frames(hidden: Tensor) -> Tensor:
    """Layer norm of every frame without parameters: (h - mean_d h) / sqrt(var_d h + 1e-5), shape unchanged."""
    return F.layer_norm(hidden, hidden.shape[-1:])


def ctc(
    logits: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, earliest: Tensor | None = None
) -> Tensor:
    """CTC's negative log-likelihood per frame, (B, T, V), (B,), (B, U) padded with -1, (B,) -> (B,); blank is 0.

    An utterance with fewer frames than its tokens need has no path and counts 0. ``earliest`` (B, U) is the first frame
    at which each token may be put out.
    """
    if earliest is not None:
        log_probs = logits.float().log_softmax(-1)
        score = CTCScore.apply(log_probs, lengths, tokens[:, None], token_lengths[:, None], earliest[:, None])[:, 0]
        loss = -score.masked_fill(score.detach() == float("-inf"), 0.0).float()
        return loss / send(lengths, loss.device).clamp(min=1)
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    # torch wants the lengths on the host and copies them to the device itself; tokens it takes from the device
    targets = send(tokens, logits.device).clamp(min=0)
    loss = F.ctc_loss(log_probs, targets, lengths, token_lengths, blank=0, reduction="none", zero_infinity=True)
    return loss / send(lengths, loss.device).clamp(min=1)


def greedy_tokens(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """CTC's best path of every utterance, (B, T, V), (B,) -> token ids without repetitions and blanks."""
    hypotheses = []
    for path, length in zip(logits.argmax(-1).tolist(), lengths.tolist(), strict=True):
        path = path[:length]
        hypotheses.append([k for t, k in enumerate(path) if k != 0 and (t == 0 or k != path[t - 1])])
    return hypotheses


def pad_tokens(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token id sequences -> (B, U) padded with -1, and (B,) lengths, on the host."""
    lengths = torch.tensor([len(s) for s in sequences])
    padded = torch.full((len(sequences), max(1, int(lengths.max()))), -1, dtype=torch.long)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return padded, lengths


def token_error_rate(hypotheses: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """Insertions + deletions + substitutions over the reference tokens of the batch."""
    import editdistance

    errors = sum(editdistance.eval(list(h), list(r)) for h, r in zip(hypotheses, references, strict=True))
    return errors / max(1, sum(len(r) for r in references))


def earliest_frames(frames: Tensor, delay: int, lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """First frame at which each token may be put out, ``delay`` frames after those given.

    At an utterance's end, tokens may be as early as the last ones that fit with a blank between them, so that an
    alignment is left.

    Args:
        frames: (..., U) of the tokens. delay: may be 0.
        lengths: (...) frames of the utterances. token_lengths: (...).

    Returns:
        (..., U) frames.
    """
    lengths, token_lengths = (send(x, frames.device) for x in (lengths, token_lengths))
    after = token_lengths[..., None] - 1 - torch.arange(frames.shape[-1], device=frames.device)  # tokens that follow
    return torch.minimum(frames + delay, lengths[..., None] - 1 - 2 * after)
