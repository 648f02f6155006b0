"""Back-off n-gram language models in ARPA format: scores for decoding."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.lfmmi.ngram import arpa_entries

UNKNOWN = ("<unk>", "<UNK>")


class NgramLM:
    """An n-gram of words, or of tokens.

    A state is the node of the longest history that the model has; state 0 is the empty history. N-grams are stored as a
    sorted array of (node of the history, last word), so that each of millions takes only tens of bytes.

    Args:
        path: ARPA file.

    Attributes:
        word_ids: id of each word.
        start: state at the beginning of a sentence.
        parent, word: (nodes,) history and last word of each node's n-gram; -1 for node 0.
        log_p, backoff: (nodes,) natural logarithms.
        suffix: (nodes,) the longest shorter n-gram that is there.
        floor: ln P of the rarest word.
        leaves: number of the first node of the highest order, which is no state.

    Raises:
        UserError: the file is missing or damaged, or lists an n-gram without its history.
    """

    def __init__(self, path: Path) -> None:
        self.word_ids: dict[str, int] = {}
        self.parent, self.word = np.full(1, -1, np.int32), np.full(1, -1, np.int32)
        self.log_p, self.backoff, self.suffix = np.zeros(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32)
        self.leaves = 1
        self._keys, self._nodes = np.zeros(0, np.int64), np.zeros(0, np.int32)
        for order, lines, ids, log10_p, log10_backoff in self._sections(path):
            self.leaves = len(self.log_p)
            try:
                self._add(order, ids)
            except LookupError as missing:
                line = lines[missing.args[0]]
                raise UserError(f"{path}:{line}: its history is not listed; make the file again") from None
            self.log_p = np.append(self.log_p, log10_p * np.float32(math.log(10)))
            self.backoff = np.append(self.backoff, log10_backoff * np.float32(math.log(10)))
        if "</s>" not in self.word_ids:
            raise UserError(f"{path}: has no 1-gram for </s>; make it again with sentence ends")
        self._end = self.word_ids["</s>"]
        self._unknown = next((self.word_ids[word] for word in UNKNOWN if word in self.word_ids), None)
        unigrams = self.log_p[1 : self._width + 1]
        self.floor = float(min(unigrams[unigrams > -90 * math.log(10)], default=-10.0))  # -99 means probability 0
        self.start = self._child(0, self.word_ids["<s>"]) if "<s>" in self.word_ids and self.leaves > 1 else 0

    def _sections(self, path: Path) -> Iterator[tuple[int, array[int], np.ndarray, np.ndarray, np.ndarray]]:
        """Order, line numbers, (n, order) word ids, log10 probabilities and back-off weights of each section."""
        order, section = 0, (array("i"), array("i"), array("f"), array("f"))

        def arrays() -> tuple[int, array[int], np.ndarray, np.ndarray, np.ndarray]:
            lines, ids, p, b = section
            self._width = max(1, len(self.word_ids))
            return (
                order,
                lines,
                np.array(ids, np.int32).reshape(-1, order),
                np.array(p, np.float32),
                np.array(b, np.float32),
            )

        for line, words, p, b in arpa_entries(path):
            if len(words) != order:
                if order:
                    yield arrays()
                order, section = len(words), (array("i"), array("i"), array("f"), array("f"))
            if order == 1:
                section[1].append(self.word_ids.setdefault(words[0], len(self.word_ids)))
            else:
                try:
                    section[1].extend([self.word_ids[word] for word in words])
                except KeyError as missing:
                    word = missing.args[0]
                    raise UserError(f"{path}:{line}: {word!r} has no 1-gram; make the file again") from None
            section[0].append(line)
            section[2].append(p)
            section[3].append(b or 0.0)
        if order:
            yield arrays()

    def _find(self, ids: np.ndarray) -> np.ndarray:
        """Nodes of (n, order) n-grams; -1 for those that are not there."""
        nodes = np.zeros(len(ids), np.int64)
        for words in ids.T if len(self._keys) else ():
            keys = nodes * self._width + words
            places = self._keys.searchsorted(keys, side="right") - 1
            found = (nodes >= 0) & (places >= 0) & (self._keys[places] == keys)
            nodes = np.where(found, self._nodes[places], np.int64(-1))  # 64 bits, as millions of nodes times words
        return nodes

    def _add(self, order: int, ids: np.ndarray) -> None:
        """Add the nodes of a section; a LookupError names the first n-gram whose history is not there."""
        parents = self._find(ids[:, :-1])
        if (missing := np.flatnonzero(parents < 0)).size:
            raise LookupError(int(missing[0]))
        suffix = np.zeros(len(ids), np.int64)
        for length in range(1, order):  # the longest that is there wins
            shorter = self._find(ids[:, order - length :])
            suffix = np.where(shorter >= 0, shorter, suffix)
        nodes = np.arange(len(self.parent), len(self.parent) + len(ids), dtype=np.int32)
        keys = np.append(self._keys, parents * self._width + ids[:, -1])
        ranks = keys.argsort(kind="stable")
        self._keys, self._nodes = keys[ranks], np.append(self._nodes, nodes)[ranks]
        self.parent = np.append(self.parent, parents.astype(np.int32))
        self.word = np.append(self.word, ids[:, -1])
        self.suffix = np.append(self.suffix, suffix.astype(np.int32))

    def _child(self, state: int, word: int) -> int:
        key = state * self._width + word
        place = int(self._keys.searchsorted(key, side="right")) - 1
        return int(self._nodes[place]) if place >= 0 and self._keys[place] == key else -1

    def score(self, state: int, word: str) -> tuple[float, int]:
        """Natural log P(word | state), and the next state.

        An unknown word has the probability of <unk>, or of the rarest word if the file has no <unk>.
        """
        index = self.word_ids.get(word, self._unknown)
        if index is None:
            return self.floor, 0
        return self._score(state, index)

    def end(self, state: int) -> float:
        """Natural log P(</s> | state)."""
        return self._score(state, self._end)[0]

    def _score(self, state: int, word: int) -> tuple[float, int]:
        total = 0.0
        while (node := self._child(state, word)) < 0:
            if state == 0:
                return total + self.floor, 0
            total += float(self.backoff[state])
            state = int(self.suffix[state])
        after = node if node < self.leaves else int(self.suffix[node])
        return total + float(self.log_p[node]), after
