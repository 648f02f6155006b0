"""The best CTC path: the most probable token of every frame, repetitions merged and blanks dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.decode.hypothesis import Hypothesis, Token


class GreedySearch:
    """Greedy decoding of a stream; see :class:`distill.decode.hypothesis.Search`."""

    def __init__(self) -> None:
        self.frames = 0
        self._begin()

    def _begin(self) -> None:
        self.tokens: list[Token] = []
        self._open = 0  # token of the last frame; 0 is blank
        self._score = 0.0

    def accept(self, logits: Tensor) -> None:
        """Take in (t, V) logits or log-probabilities; t may be 0."""
        if not len(logits):
            return
        posterior, ids = logits.float().softmax(-1).max(-1)
        runs, counts = torch.unique_consecutive(ids, return_counts=True)
        self._score += posterior.log().sum().item()
        means = [part.mean().item() for part in posterior.split(counts.tolist())]
        for token, count, mean in zip(runs.tolist(), counts.tolist(), means, strict=True):
            end = self.frames + count
            if token and token == self._open:  # goes on from the piece before
                last = self.tokens[-1]
                before = self.frames - last.start_frame
                mean = (last.confidence * before + mean * count) / (before + count)
                self.tokens[-1] = Token(token, last.start_frame, end, mean)
            elif token:
                self.tokens.append(Token(token, self.frames, end, mean))
            self._open = token
            self.frames = end

    @property
    def settled(self) -> int:
        """All but the last token, which may go on."""
        return max(0, len(self.tokens) - 1)

    @property
    def best(self) -> Hypothesis:
        """The tokens so far, and ln P of their path."""
        return Hypothesis(self.tokens, None, self._score)

    def finish(self) -> list[Hypothesis]:
        """End an utterance: its only hypothesis. The next frame begins another."""
        hypotheses = [self.best]
        self._begin()
        return hypotheses


def greedy(logits: Tensor) -> list[Token]:
    """Tokens of an utterance's (T, V) logits or log-probabilities; token 0 is blank."""
    search = GreedySearch()
    search.accept(logits)
    return search.tokens
