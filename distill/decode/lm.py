"""Back-off n-gram language models in ARPA format: scores for decoding, and estimation from text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.files import atomic_write, text_lines
from distill.lfmmi.ngram import arpa_entries

UNKNOWN = ("<unk>", "<UNK>")


class NgramLM:
    """An n-gram of words, or of tokens.

    A state is the node of the longest history that the model has; state 0 is the empty history. N-grams are stored as a
    sorted array of (node of the history, last word), so that each of millions takes only tens of bytes.

    Args:
        path: ARPA file.

    Attributes:
        start: state at the beginning of a sentence.

    Raises:
        UserError: the file is missing or damaged, or lists an n-gram without its history.
    """

    def __init__(self, path: Path) -> None:
        self.word_ids: dict[str, int] = {}
        log_p, backoff, suffix = [0.0], [0.0], [0]
        node_of: dict[int, int] = {}
        order, self._leaves = 0, 1
        context: tuple[str, ...] = ()
        parent, width = 0, 1
        for line, words, p, b in arpa_entries(path):
            if len(words) != order:
                order, self._leaves, context, parent = len(words), len(log_p), (), 0
                width = max(1, len(self.word_ids))
            if order == 1:
                key = self.word_ids.setdefault(words[0], len(self.word_ids))
                below = 0
            else:
                ids = [self.word_ids.get(word) for word in words]
                if None in ids:
                    raise UserError(f"{path}:{line}: {words[ids.index(None)]!r} has no 1-gram; make the file again")
                if words[:-1] != context:
                    context, parent = words[:-1], 0
                    for index in ids[:-1]:
                        parent = node_of.get(parent * width + index, -1)  # type: ignore[operator]
                        if parent < 0:
                            raise UserError(f"{path}:{line}: its history is not listed; make the file again")
                last = ids[-1]
                assert last is not None
                key = parent * width + last
                shorter = suffix[parent]
                while (node := node_of.get(shorter * width + last)) is None and shorter:
                    shorter = suffix[shorter]
                below = node or 0
            node_of[key] = len(log_p)
            log_p.append(p * math.log(10))
            backoff.append((b or 0.0) * math.log(10))
            suffix.append(below)
        if "</s>" not in self.word_ids:
            raise UserError(f"{path}: has no 1-gram for </s>; make it again with sentence ends")
        self._width = len(self.word_ids)
        keys = np.fromiter(node_of, np.int64, len(node_of))
        ranks = keys.argsort()
        self._keys, self._nodes = keys[ranks], np.fromiter(node_of.values(), np.int32, len(node_of))[ranks]
        self._log_p, self._backoff = np.array(log_p, np.float32), np.array(backoff, np.float32)
        self._suffix = np.array(suffix, np.int32)
        self._end = self.word_ids["</s>"]
        self._unknown = next((self.word_ids[word] for word in UNKNOWN if word in self.word_ids), None)
        unigrams = self._log_p[1 : self._width + 1]
        self._floor = float(min(unigrams[unigrams > -90 * math.log(10)], default=-10.0))  # -99 means probability 0
        self.start = self._child(0, self.word_ids["<s>"]) if "<s>" in self.word_ids and self._leaves > 1 else 0

    def _child(self, state: int, word: int) -> int:
        key = state * self._width + word
        place = int(self._keys.searchsorted(key))
        return int(self._nodes[place]) if place < len(self._keys) and self._keys[place] == key else -1

    def score(self, state: int, word: str) -> tuple[float, int]:
        """Natural log P(word | state), and the next state.

        An unknown word has the probability of <unk>, or of the rarest word if the file has no <unk>.
        """
        index = self.word_ids.get(word, self._unknown)
        if index is None:
            return self._floor, 0
        return self._score(state, index)

    def end(self, state: int) -> float:
        """Natural log P(</s> | state)."""
        return self._score(state, self._end)[0]

    def _score(self, state: int, word: int) -> tuple[float, int]:
        total = 0.0
        while (node := self._child(state, word)) < 0:
            if state == 0:
                return total + self._floor, 0
            total += float(self._backoff[state])
            state = int(self._suffix[state])
        after = node if node < self._leaves else int(self._suffix[node])
        return total + float(self._log_p[node]), after


def write_arpa(sentences: Iterable[Sequence[str]], order: int, path: Path) -> int:
    """Estimate an n-gram on sentences of words and write it as an ARPA file.

    Interpolated Witten-Bell discounting (Witten & Bell, 1991), as in :func:`distill.lfmmi.ngram.from_text`. The
    back-off weight of a history h is n(h) / (c(h) + n(h)), where c(h) words follow it, n(h) of them different. <unk> is
    a word with count 0.

    Returns:
        number of n-grams.

    Raises:
        UserError: the order is not positive, or there are no sentences.
    """
    if order < 1:
        raise UserError(f"n-gram order {order}: must be at least 1")
    counts: list[dict[tuple[str, ...], dict[str, int]]] = [defaultdict(lambda: defaultdict(int)) for _ in range(order)]
    for sentence in sentences:
        padded = ("<s>", *sentence, "</s>")
        for end in range(1, len(padded)):
            for length in range(min(order, end + 1)):
                counts[length][padded[end - length : end]][padded[end]] += 1
    if not counts[0]:
        raise UserError("no sentences to estimate an n-gram from")
    words = sorted({*counts[0][()], "<unk>", "</s>"})
    probability: dict[tuple[str, ...], float] = {}
    lines: list[list[str]] = []

    def backoff(history: tuple[str, ...]) -> str:
        after = counts[len(history)].get(history) if len(history) < order else None
        return f"\t{math.log10(len(after) / (sum(after.values()) + len(after))):.7f}" if after else ""

    for length, histories in enumerate(counts):
        level, section = {}, []
        if length == 0:
            section.append(f"-99\t<s>{backoff(('<s>',))}")
        for history in sorted(histories):
            after = histories[history]
            total, kinds = sum(after.values()), len(after)
            for word in sorted(after) if length else words:
                lower = probability[*history[1:], word] if length else 1 / len(words)
                ngram = (*history, word)
                level[ngram] = (after.get(word, 0) + kinds * lower) / (total + kinds)
                section.append(f"{math.log10(level[ngram]):.7f}\t{' '.join(ngram)}{backoff(ngram)}")
        probability = level
        if section:  # an order higher than the longest sentence has no n-grams
            lines.append(section)
    with atomic_write(path) as stream:
        stream.write("\\data\\\n")
        stream.writelines(f"ngram {length}={len(section)}\n" for length, section in enumerate(lines, 1))
        for length, section in enumerate(lines, 1):
            stream.write(f"\n\\{length}-grams:\n" + "\n".join(section) + "\n")
        stream.write("\n\\end\\\n")
    return sum(map(len, lines))


def read_sentences(text: Path) -> Iterator[list[str]]:
    """Yield the words of every line of a Kaldi ``text`` file, without the utterance id."""
    for number, line in text_lines(text, "give a Kaldi text file"):
        fields = line.split()
        if len(fields) < 2:
            raise UserError(f"{text}:{number}: no text after the utterance id; remove the line")
        yield fields[1:]


def estimate_lm(text: Path, order: int, output: Path) -> None:
    """Write a word n-gram of a Kaldi text file as an ARPA file, and print a line about it."""
    count = write_arpa(read_sentences(text), order, output)
    print(f"{output}: {order}-gram of {text}, {count} n-grams")
