"""The best CTC path: the most probable token of every frame, repetitions merged and blanks dropped."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Token(NamedTuple):
    """A recognised token: frames [start_frame, end_frame), mean posterior over them as confidence."""

    id: int
    start_frame: int
    end_frame: int
    confidence: float


class GreedySearch:
    """Greedy decoding of a stream: frames in pieces of any size give the same tokens as all at once."""

    def __init__(self) -> None:
        self.frames = 0
        self.tokens: list[Token] = []
        self._open = 0  # token of the last frame; 0 is blank

    def accept(self, logits: Tensor) -> None:
        """Take in (t, V) logits or log-probabilities; t may be 0."""
        if not len(logits):
            return
        posterior, ids = logits.float().softmax(-1).max(-1)
        runs, counts = torch.unique_consecutive(ids, return_counts=True)
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
    def trailing_blanks(self) -> int:
        """Frames since the last token ended."""
        return self.frames - self.tokens[-1].end_frame if self.tokens else self.frames


def greedy(logits: Tensor) -> list[Token]:
    """Tokens of an utterance's (T, V) logits or log-probabilities; token 0 is blank."""
    search = GreedySearch()
    search.accept(logits)
    return search.tokens
