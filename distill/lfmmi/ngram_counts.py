"""Counts of the token n-grams of a text, as sorted arrays of some bytes for each different n-gram."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from distill.errors import UserError

BLOCK = 2_000_000  # tokens that are counted at a time
MAX_ARCS = 50_000_000


def refuse_above_most(ngrams: int) -> None:
    """Refuse an n-gram that is too large."""
    if ngrams > MAX_ARCS:
        raise UserError(f"denominator graph: more than {MAX_ARCS:,} n-grams; lower the order")


def code_base(vocab_size: int, order: int) -> int:
    """V + 1: a sequence of tokens is coded as an integer with these digits, the sentence start being V.

    Raises:
        UserError: sequences of ``order`` tokens do not fit into 64 bits.
    """
    base = vocab_size + 1
    if base**order >= 2**63:
        raise UserError(f"denominator graph: n-grams of order {order} of {vocab_size} tokens; lower the order")
    return base


def count_ngrams(
    lines: Iterable[Sequence[int]], order: int, vocab_size: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Count what follows each history of 0 to ``order - 1`` tokens, the sentence start being one of them.

    Args:
        lines: token ids from 1 to V - 1.

    Returns:
        for each length of history: (n,) codes of the histories, ascending; (n,) tokens that follow, ascending within a
        history, 0 for the sentence end; (n,) how often they do.

    Raises:
        UserError: a token is out of range, there are no lines, or more than MAX_ARCS different n-grams.
    """
    base = code_base(vocab_size, order)
    tables = [_Table() for _ in range(order)]
    for text, place in _blocks(lines, vocab_size):
        for length, table in enumerate(tables):
            at = np.flatnonzero(place >= max(length, 1))  # what has so many tokens before it in its line
            code = np.zeros(len(at), np.int64)
            for back in range(length, -1, -1):
                code *= base
                code += text[at - back]
            table.add(*np.unique(code, return_counts=True))
        refuse_above_most(sum(len(table.codes) for table in tables))
    if not len(tables[0].codes):
        raise UserError("text: no lines to estimate an n-gram from")
    return [(table.codes // base, table.codes % base, table.counts) for table in tables]


class _Table:
    """Sorted codes and their counts."""

    def __init__(self) -> None:
        self.codes = self.counts = np.zeros(0, np.int64)

    def add(self, codes: np.ndarray, counts: np.ndarray) -> None:
        """Add counts of different codes, ascending."""
        place = np.searchsorted(self.codes, codes)
        known = place < len(self.codes)
        known[known] = self.codes[place[known]] == codes[known]
        self.counts[place[known]] += counts[known]
        self.codes = np.insert(self.codes, place[~known], codes[~known])
        self.counts = np.insert(self.counts, place[~known], counts[~known])


def _blocks(lines: Iterable[Sequence[int]], vocab_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Lines after one another, V before and 0 after each, and the (n,) place of each token in its line, from 0."""
    block = array("q")
    read = 0  # lines of earlier blocks
    lengths: list[int] = []

    def arrays() -> tuple[np.ndarray, np.ndarray]:
        text = np.array(block, np.int64)
        starts = np.cumsum([0, *lengths[:-1]])
        place = np.arange(len(text)) - np.repeat(starts, lengths)
        middle = (place > 0) & (place < np.repeat(lengths, lengths) - 1)
        wrong = np.flatnonzero(middle & ((text < 1) | (text >= vocab_size)))
        if len(wrong):
            line = read + int(np.searchsorted(starts, wrong[0], side="right"))
            raise UserError(f"text line {line}: token {text[wrong[0]]} is not from 1 to {vocab_size - 1}")
        return text, place

    for line in lines:
        block.append(vocab_size)
        block.extend(line)
        block.append(0)
        lengths.append(len(line) + 2)
        if len(block) >= BLOCK:
            yield arrays()
            read += len(lengths)
            block, lengths = array("q"), []
    if lengths:
        yield arrays()
