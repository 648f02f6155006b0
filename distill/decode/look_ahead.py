"""Look-ahead of a word n-gram in a search that goes token by token."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np

from distill.decode.lm import UNKNOWN, NgramLM

_LAST = "\U0010ffff"  # sorts after every other character


class LookAhead:
    """ln P of words whose end is not known yet.

    A search compares hypotheses after every token, but an n-gram scores a word only when it is complete. Until then a
    word counts as the most probable word that begins with its letters, by the n-gram's unigrams (Steinbiss, Tran & Ney,
    1994, "Improvements in beam search"). If there is none it is an unknown word, with P(<unk>) times 1/A for each of
    its letters, where A is the number of different letters of the n-gram's words. Without the letters' cost a single
    long unknown word would be more probable than several words.

    Args:
        lm: n-gram of words.
        more_words: words that the n-gram does not list but are as expected as <unk>, such as hot words.
    """

    def __init__(self, lm: NgramLM, more_words: Iterable[str] = ()) -> None:
        special = ("<s>", "</s>", *UNKNOWN)
        self._unknown = lm.score(0, UNKNOWN[0])[0]
        log_p = dict.fromkeys(more_words, self._unknown)
        log_p.update((word, lm.score(0, word)[0]) for word in lm.word_ids if word not in special)
        self._words = sorted(log_p)
        self._known = frozenset(self._words)
        self._log_p = np.array([log_p[word] for word in self._words])
        self._letter = -math.log(max(2, len(set().union(*self._words))))
        self._cached: dict[str, float] = {}  # of beginnings of known words, which are not many

    def beginning(self, letters: str) -> float:
        """Largest natural log P of a word that begins with these letters."""
        if (found := self._cached.get(letters)) is None:
            first, last = bisect_left(self._words, letters), bisect_left(self._words, letters + _LAST)
            if first == last:
                return self._unknown + self._letter * len(letters)
            found = self._cached[letters] = float(self._log_p[first:last].max())
        return found

    def spelling(self, word: str) -> float:
        """Natural log P of a complete word's letters given that it is <unk>; 0 for known words."""
        return 0.0 if word in self._known else self._letter * len(word)
