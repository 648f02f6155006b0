"""What a search returns: hypotheses of tokens and words with their frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from distill.decode.token_text import tokens_to_text

if TYPE_CHECKING:
    from torch import Tensor


class Token(NamedTuple):
    """A recognised token in frames [start_frame, end_frame); confidence is its posterior averaged over them."""

    id: int
    start_frame: int
    end_frame: int
    confidence: float


class Word(NamedTuple):
    """A recognised word in frames [start_frame, end_frame); confidence is the lowest of its tokens."""

    text: str
    start_frame: int
    end_frame: int
    confidence: float


class Hypothesis(NamedTuple):
    """Tokens of an utterance and their score in nats.

    ``words`` is None where the tokens determine the words, see :func:`words_of`.
    """

    tokens: list[Token]
    words: list[Word] | None
    score: float


class Search(Protocol):
    """A decoder of one stream. How the frames are cut into pieces does not change its results."""

    @property
    def frames(self) -> int:
        """Number of frames decoded since the beginning of the stream."""

    @property
    def settled(self) -> int:
        """Number of first tokens of ``best`` that no further frame can change."""

    def accept(self, logits: Tensor) -> None:
        """Decode the next (t, V) logits or log-probabilities; t may be 0."""

    @property
    def best(self) -> Hypothesis:
        """The best hypothesis of the utterance so far."""

    def finish(self) -> list[Hypothesis]:
        """End the utterance and return its hypotheses, best first. The next frame begins a new utterance.

        ``frames`` is not reset.
        """


class RecordingSearch:
    """A search that also hands every piece of (t, V) scores to a function, for reuse or comparison."""

    def __init__(self, search: Search, record: Callable[[Any], None]) -> None:
        self._search, self._record = search, record

    @property
    def frames(self) -> int:
        """Number of frames decoded since the beginning of the stream."""
        return self._search.frames

    @property
    def settled(self) -> int:
        """See :class:`Search`."""
        return self._search.settled

    @property
    def best(self) -> Hypothesis:
        """See :class:`Search`."""
        return self._search.best

    def accept(self, logits: Any) -> None:
        """Record and decode the next (t, V) scores."""
        self._record(logits)
        self._search.accept(logits)

    def finish(self) -> list[Hypothesis]:
        """See :class:`Search`."""
        return self._search.finish()


def join_word(tokens: Sequence[Token], text: str) -> Word:
    """The word that consecutive tokens spell."""
    confidence = min(token.confidence for token in tokens)
    return Word(text, tokens[0].start_frame, tokens[-1].end_frame, confidence)


def words_of(hypothesis: Hypothesis, token_list: Sequence[str], token_type: str) -> list[Word]:
    """Words of a hypothesis, each from the first frame of its first token to the end of its last token."""
    if hypothesis.words is not None:
        return hypothesis.words
    groups: list[list[Token]] = [[]]
    for token in hypothesis.tokens:
        name = token_list[token.id]
        if token_type in ("word", "phn") or name == "<space>" or name.startswith("▁"):
            groups.append([])
        if name != "<space>":
            groups[-1].append(token)
    texts = [tokens_to_text((token_list[token.id] for token in group), token_type) for group in groups]
    return [join_word(group, text) for group, text in zip(groups, texts, strict=True) if text]
