"""Estimation of word n-grams on text, as ARPA files; counts are sorted arrays, of some tens of bytes for each word."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.errors import UserError
from distill.files import atomic_write, text_lines

MAX_WORDS = 30_000_000  # of text
CUT_OFF_WORDS = 5_000_000  # of text, from which n-grams of order 3 and more that occur once are left out
LINES = 100_000  # that are written at a time


class Level(NamedTuple):
    """The n-grams of one order, sorted.

    Attributes:
        history: (n,) number of the n-gram that all words but the last are; 0 for order 1.
        word: (n,) last word.
        p: (n,) probability of the last word.
    """

    history: np.ndarray
    word: np.ndarray
    p: np.ndarray


def write_arpa(sentences: Iterable[Sequence[str]], order: int, path: Path) -> int:
    """Estimate an n-gram on sentences of words and write it as an ARPA file.

    Interpolated Witten-Bell discounting (Witten & Bell, 1991), as in :func:`distill.lfmmi.ngram.from_text`. The
    back-off weight of a history h is n(h) / (c(h) + n(h)), where c(h) words follow it, n(h) of them different. <unk> is
    a word with count 0. The counts of n-grams that are left out are added to n(h) in the numerator, so that what
    follows h still sums to 1.

    Returns:
        number of n-grams.

    Raises:
        UserError: the order is not positive, there are no sentences, or more than MAX_WORDS words.
    """
    if order < 1:
        raise UserError(f"n-gram order {order}: must be at least 1")
    names, text = _numbered(sentences)
    start, size = names.index("<s>"), len(names)
    place = np.arange(len(text))
    place -= np.maximum.accumulate(np.where(text == start, place, 0))  # within the sentence, of <s> 0
    counts = np.bincount(text[text != start], minlength=size)
    listed = np.arange(size) != start  # <s> follows nothing
    p = np.where(listed, (counts + (counts > 0).sum() / (size - 1)) / (counts.sum() + (counts > 0).sum()), 0.0)
    levels = [Level(np.zeros(size, np.int64), np.arange(size), p)]
    backoffs: list[np.ndarray] = []
    numbers = text.astype(np.int64)  # of the n-gram of the level before that ends at each place; -1: left out
    for length in range(1, order):
        least = 2 if length >= 2 and len(text) >= CUT_OFF_WORDS else 1
        ends = np.flatnonzero(place >= length)
        ends = ends[numbers[ends - 1] >= 0]
        keys = numbers[ends - 1] * size + text[ends]
        keys, first, inverse, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        histories = len(levels[-1].p)
        kept = count >= least
        follow = np.bincount(keys // size, count, histories)
        different = np.bincount(keys // size, minlength=histories)
        reserved = different + np.bincount(keys[~kept] // size, count[~kept], histories)
        total = np.maximum(follow + different, 1)
        backoffs.append(np.where((np.bincount(keys[kept] // size, minlength=histories) > 0), reserved / total, np.nan))
        renumbered = np.where(kept, np.cumsum(kept) - 1, -1)
        lower = levels[-1].p[numbers[ends[first[kept]]]]
        keys, count = keys[kept], count[kept]
        history = keys // size
        levels.append(Level(history, keys % size, (count + reserved[history] * lower) / total[history]))
        numbers = np.full(len(text), -1, np.int64)
        numbers[ends] = renumbered[inverse]
        if not len(keys):  # longer than the longest sentence
            levels.pop()
            break
    with atomic_write(path) as stream:
        stream.write("\\data\\\n")
        sizes = [len(level.p) for level in levels]
        stream.writelines(f"ngram {length}={number}\n" for length, number in enumerate(sizes, 1))
        for length in range(1, len(levels) + 1):
            stream.write(f"\n\\{length}-grams:\n")
            backoff = backoffs[length - 1] if length <= len(backoffs) else None
            for part in _lines(levels[:length], backoff, names, start):
                stream.write(part)
        stream.write("\n\\end\\\n")
    return sum(sizes)


def _numbered(sentences: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Words in sorted order, with <s>, </s> and <unk>, and their numbers in the sentences, <s> and </s> included."""
    number_of = {"<s>": 0, "</s>": 1, "<unk>": 2}
    text = array("i")
    for sentence in sentences:
        text.append(0)
        text.extend([number_of.setdefault(word, len(number_of)) for word in sentence])
        text.append(1)
        if len(text) > MAX_WORDS:
            raise UserError(
                f"more than {MAX_WORDS} words are too many to count here; give --lm FILE.arpa, made by a tool for "
                "large texts such as lmplz"
            )
    if not text:
        raise UserError("no sentences to estimate an n-gram from")
    names = sorted(number_of)
    rank = np.empty(len(names), np.int32)
    rank[[number_of[name] for name in names]] = np.arange(len(names))
    return names, rank[np.array(text, np.int32)]


def _lines(levels: Sequence[Level], backoff: np.ndarray | None, names: list[str], start: int) -> Iterator[str]:
    """The lines of the last level's n-grams, some at a time."""
    level = levels[-1]
    for begin in range(0, len(level.p), LINES):
        rows = np.arange(begin, min(len(level.p), begin + LINES))
        if len(levels) == 1:  # <s> first
            rows = np.where(rows == 0, start, np.where(rows <= start, rows - 1, rows))
        columns = []
        history = rows
        for shorter in reversed(levels):
            columns.append(shorter.word[history].tolist())
            history = shorter.history[history]
        log_p = np.log10(np.maximum(level.p[rows], 1e-99)).tolist()
        weights = [float("nan")] * len(rows) if backoff is None else np.log10(backoff[rows]).tolist()
        lines = []
        for *words, p, weight in zip(*reversed(columns), log_p, weights, strict=True):
            ngram = " ".join([names[word] for word in words])
            shown = "-99" if words == [start] else f"{p:.7f}"
            lines.append(f"{shown}\t{ngram}\n" if weight != weight else f"{shown}\t{ngram}\t{weight:.7f}\n")
        yield "".join(lines)


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
