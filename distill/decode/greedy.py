"""Greedy CTC decoding: the most probable token of every frame, with repetitions merged and blanks dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distill.decode.hypothesis import Hypothesis, Token

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BestTokens:
    """What greedy decoding needs of t frames: (t,) ids of the most probable tokens, (t,) their log-posteriors."""

    ids: np.ndarray
    log_posteriors: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def best_tokens(scores: np.ndarray) -> BestTokens:
    """The best tokens of (t, V) logits or log-probabilities, t > 0."""
    highest = scores.max(1, keepdims=True)
    return BestTokens(scores.argmax(1), -np.log(np.exp(scores - highest).sum(1)))


class GreedySearch:
    """Greedy decoding of one stream, of torch's or numpy's arrays; a :class:`distill.decode.hypothesis.Search`.

    Attributes:
        frames: number of frames decoded since the beginning of the stream.
        tokens: tokens of the current utterance.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._last_id = 0  # of the previous frame; 0 is blank
        self._start_utterance()

    def _start_utterance(self) -> None:
        self.tokens: list[Token] = []
        self._posterior_sum = 0.0  # of the last token, over its frames
        self._score = 0.0

    def accept(self, logits: Tensor | np.ndarray | BestTokens) -> None:
        """Decode the next (t, V) logits or log-probabilities, or the best tokens of t frames; t may be 0."""
        if not len(logits):
            return
        if not isinstance(logits, BestTokens):
            logits = best_tokens(logits if isinstance(logits, np.ndarray) else logits.detach().float().cpu().numpy())
        self._score += float(logits.log_posteriors.sum())
        for token_id, posterior in zip(logits.ids.tolist(), np.exp(logits.log_posteriors).tolist(), strict=True):
            self._add_frame(token_id, posterior)

    def _add_frame(self, token_id: int, posterior: float) -> None:
        end = self.frames + 1
        if token_id and token_id == self._last_id:  # the last token lasts one frame longer
            if self.tokens:  # else it is of the utterance before
                start = self.tokens[-1].start_frame
                self._posterior_sum += posterior
                self.tokens[-1] = Token(token_id, start, end, self._posterior_sum / (end - start))
        elif token_id:
            self._posterior_sum = posterior
            self.tokens.append(Token(token_id, self.frames, end, posterior))
        self._last_id, self.frames = token_id, end

    @property
    def settled(self) -> int:
        """Number of tokens that cannot change any more: all, but the last one while its frames may continue."""
        return max(0, len(self.tokens) - (self._last_id != 0))

    @property
    def best(self) -> Hypothesis:
        """The tokens so far, and ln P of their best path."""
        return Hypothesis(self.tokens, None, self._score)

    def finish(self) -> list[Hypothesis]:
        """End the utterance and return its only hypothesis. The next frame begins a new utterance."""
        hypotheses = [self.best]
        self._start_utterance()
        return hypotheses


def greedy(logits: Tensor | np.ndarray) -> list[Token]:
    """Tokens of one utterance's (T, V) logits or log-probabilities; token 0 is blank."""
    search = GreedySearch()
    search.accept(logits)
    return search.tokens
