"""The choice of an n-gram's weight and word bonus: few pairs are tried on everything, and the best one is found."""

from __future__ import annotations

import pytest
import torch

from distill.decode.greedy import GreedySearch
from distill.recognition.tune import PART_WORDS, ValidationSet, try_pairs

TOKENS = ["<blank>", "<space>", "a", "b", "<sos/eos>"]
PAIRS = [(weight, bonus) for weight in (0.1, 0.5, 1.0, 2.0) for bonus in (0.0, 1.0)]


class Noisy(GreedySearch):
    """Greedy search that gets the beginning of each utterance, and blanks for the rest: it deletes the last words."""

    decoded = 0

    def __init__(self, correct: float) -> None:
        super().__init__()
        self.correct = correct

    def accept(self, logits: torch.Tensor) -> None:
        Noisy.decoded += len(logits)
        kept = round(self.correct * len(logits))
        super().accept(torch.cat([logits[:kept], torch.eye(len(TOKENS))[[0] * (len(logits) - kept)]]))


def sentences(count: int) -> ValidationSet:
    """Sentences of ten words, each the letter a, and the logits that say so."""
    logits = torch.eye(len(TOKENS))[[2, 1] * 9 + [2, 0]] * 9
    return ValidationSet([["a"] * 10] * count, [logits] * count, TOKENS, "char")


def quality(weight: float, bonus: float) -> float:
    return 1 - 0.2 * abs(weight - 0.5) - 0.1 * bonus


@pytest.mark.parametrize("count", [6, 600])
def test_the_best_pair_is_found_among_those_tried_on_everything(count):
    validation = sentences(count)
    Noisy.decoded = 0
    grid = try_pairs(validation, PAIRS, lambda *pair: Noisy(quality(*pair)), "noisy")
    assert [(point["lm_weight"], point["word_bonus"]) for point in grid] == PAIRS
    complete = [point for point in grid if point["words"] == 10 * count]
    best = min(complete, key=lambda point: point["wer"])
    assert (best["lm_weight"], best["word_bonus"]) == (0.5, 0.0) and best["wer"] == 0
    utterances = Noisy.decoded / 20
    if 10 * count < 2 * PART_WORDS:  # a small set is not divided
        assert len(complete) == len(PAIRS) and utterances == count * len(PAIRS)
    else:
        assert len(complete) == 2 and all(point["words"] in (10 * count, 10 * count // 8) for point in grid)
        assert utterances == count // 8 * len(PAIRS) + 2 * (count - count // 8)
    for point in grid:
        search = Noisy(quality(point["lm_weight"], point["word_bonus"]))
        errors = validation.errors(search, range(count))
        assert point["wer"] == pytest.approx(100 * errors / (10 * count))
