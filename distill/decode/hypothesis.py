"""What a decoder hands over: tokens and words with their frames, and n-best lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from distill.decode.text import tokens_to_text


class Token(NamedTuple):
    """A recognised token: frames [start_frame, end_frame), mean posterior over them as confidence."""

    id: int
    start_frame: int
    end_frame: int
    confidence: float


class Word(NamedTuple):
    """A recognised word: frames [start_frame, end_frame), the least confidence of its tokens."""

    text: str
    start_frame: int
    end_frame: int
    confidence: float


class Hypothesis(NamedTuple):
    """A result. ``words`` are None where they follow from the tokens alone; ``score`` is in nats."""

    tokens: list[Token]
    words: list[Word] | None
    score: float


class Search(Protocol):
    """A decoder of one stream: frames in pieces of any size give the same results as all at once.

    ``frames`` counts them.
    """

    frames: int

    @property
    def settled(self) -> int:
        """How many tokens of ``best`` stay as they are, whatever comes."""

    def accept(self, logits: Tensor) -> None:
        """Take in (t, V) logits or log-probabilities; t may be 0."""

    @property
    def best(self) -> Hypothesis:
        """The best hypothesis of the frames so far."""

    def finish(self) -> list[Hypothesis]:
        """End an utterance: its hypotheses, best first. The next frame begins another; frames are counted on."""


def join_word(tokens: Sequence[Token], text: str) -> Word:
    """The word that tokens spell."""
    confidence = min(token.confidence for token in tokens)
    return Word(text, tokens[0].start_frame, tokens[-1].end_frame, confidence)


def words_of(hypothesis: Hypothesis, token_list: Sequence[str], token_type: str) -> list[Word]:
    """The words of a hypothesis, with the frames from each one's first token to its last."""
    if hypothesis.words is not None:
        return hypothesis.words
    groups: list[list[Token]] = [[]]
    for token in hypothesis.tokens:
        name = token_list[token.id]
        if token_type in ("word", "phn") or name == "<space>" or name.startswith("▁"):
            groups.append([])
        if name != "<space>":
            groups[-1].append(token)
    spelled = [(group, tokens_to_text((token_list[token.id] for token in group), token_type)) for group in groups]
    return [join_word(group, text) for group, text in spelled if text]
