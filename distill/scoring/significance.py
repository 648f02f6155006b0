"""How sure an error rate is, and a difference between two systems that recognised the same utterances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
BLOCK = 1 << 22  # utterance weights in memory at a time


def resample(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Column sums of a table over bootstrap samples of its rows.

    Args:
        counts: (N, K) integers, a row per utterance.
        seed: of the samples; the same seed and N give the same ones.

    Returns:
        (RESAMPLES, K) float64: each row sums N utterances drawn with replacement.
    """
    number = len(counts)
    random = np.random.default_rng(seed)
    uniform = np.full(number, 1 / number)
    table = counts.astype(np.float64)  # sums of integers are exact, and the product is one of matrices
    sums = np.empty((RESAMPLES, counts.shape[1]))
    step = max(1, BLOCK // number)
    for start in range(0, RESAMPLES, step):
        weights = random.multinomial(number, uniform, min(step, RESAMPLES - start))  # (step, N)
        sums[start : start + step] = weights.astype(np.float64) @ table
    return sums


def bootstrap(
    systems: Sequence[np.ndarray], teachers: Sequence[int | None], seed: int = 0
) -> list[dict[str, float | None]]:
    """95 % intervals of the error rates and of the relative losses of systems on one test set, in per cent.

    A paired bootstrap over utterances: all systems are summed over the same samples (Bisani & Ney, "Bootstrap estimates
    for confidence intervals in ASR performance evaluation", ICASSP 2004). The relative loss is
    100 (rate / teacher's rate - 1). It is left out where the teacher has no errors; an end of its interval is None
    where the teacher has no errors in so many samples that the end is infinite.

    Args:
        systems: for each system (N, 2) words and errors of the utterances, which are the same in all.
        teachers: for each system the index of its teacher among them, or None.
        seed: of the samples.

    Returns:
        For each system ``low`` and ``high``, and ``relative_loss``, ``relative_low`` and ``relative_high`` if it has
        a teacher with errors.
    """
    words_and_errors = resample(np.hstack(systems), seed).reshape(RESAMPLES, len(systems), 2)
    results = []
    for index, teacher in enumerate(teachers):
        words, errors = words_and_errors[:, index].T
        low, high = np.percentile(100 * errors / np.maximum(words, 1), [2.5, 97.5])
        result: dict[str, float | None] = {"low": low, "high": high}
        teacher_errors = 0 if teacher is None else systems[teacher][:, 1].sum()
        if teacher is not None and teacher_errors > 0:
            result["relative_loss"] = 100 * (systems[index][:, 1].sum() / teacher_errors - 1)
            with np.errstate(divide="ignore", invalid="ignore"):
                loss = 100 * (errors / words_and_errors[:, teacher, 1] - 1)
            loss = np.nan_to_num(loss, nan=0.0, posinf=np.inf)
            low, high = np.percentile(loss, [2.5, 97.5], method="lower")
            result["relative_low"] = low if np.isfinite(low) else None
            result["relative_high"] = high if np.isfinite(high) else None
        results.append(result)
    return results


def matched_pairs(system: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p value of the hypothesis that two systems make equally many errors.

    The matched-pairs test of Gillick & Cox, "Some statistical issues in the comparison of speech recognition
    algorithms", ICASSP 1989, with utterances as the segments whose errors are independent: z = mean(d) / (sd(d) / √N)
    over the N utterances' differences d of errors is taken as normal.

    Args:
        system: (N, 2) words and errors of each utterance.
        other: the same of the other system.
    """
    differences = system[:, 1] - other[:, 1]
    if len(differences) < 2 or not differences.any():
        return 1.0
    spread = differences.std(ddof=1)
    if spread == 0:
        return 0.0
    return math.erfc(abs(differences.mean()) * math.sqrt(len(differences)) / spread / math.sqrt(2))
