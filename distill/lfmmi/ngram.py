"""Token n-grams: estimated from text, or read from an ARPA file. Both end as histories with a full row each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.errors import UserError

START, END = -1, 0  # in histories the sentence start is -1; column 0 of a row is the sentence end
MAX_ENTRIES = 50_000_000
MAX_LOG10_P = 1e-3  # what rounding may add to a probability of 1
History = tuple[int, ...]


class Ngram(NamedTuple):
    """``log_p`` (S, V): row of each history, column 0 the end; ``histories`` the S histories, the start first."""

    log_p: np.ndarray
    histories: list[History]


def _states(histories: Iterable[History], order: int, vocab_size: int) -> list[History]:
    """The start, every single token (the CTC topology needs to know the last one), and longer known histories."""
    # An ARPA file also lists sequences that end with the sentence end, which nothing follows
    wanted = {h for h in histories if 2 <= len(h) < order and END not in h}
    states: list[History] = [(START,), *((token,) for token in range(1, vocab_size)), *sorted(wanted)]
    if len(states) * vocab_size > MAX_ENTRIES:
        raise UserError(
            f"denominator graph: {len(states)} histories of {vocab_size} tokens each are more than {MAX_ENTRIES:.0e} "
            "entries; lower the order"
        )
    return states


def from_text(lines: Iterable[Sequence[int]], order: int, vocab_size: int) -> Ngram:
    """Interpolated Witten-Bell estimate (Witten & Bell, 1991):

    P(w | h) = (c(h w) + n(h) P(w | h')) / (c(h) + n(h)), n(h) the number of different successors of h, h' without the
    oldest token, down to the uniform distribution over tokens and end. Every token has some probability everywhere.
    """
    if not 1 <= order <= 4:
        raise UserError(f"n-gram order {order}: must be from 1 to 4")
    counts: dict[History, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for number, line in enumerate(lines, 1):
        for token in line:
            if not 1 <= token < vocab_size:
                raise UserError(f"text line {number}: token {token} is not from 1 to {vocab_size - 1}")
        padded = (START, *line)
        for position, token in enumerate((*line, END)):
            for length in range(order):
                if length <= position + 1:
                    counts[padded[position + 1 - length : position + 1]][token] += 1
    if not counts:
        raise UserError("text: no lines to estimate an n-gram from")
    rows: dict[History, np.ndarray] = {}

    def row(history: History) -> np.ndarray:
        if history not in rows:
            lower = row(history[1:]) if history else np.full(vocab_size, 1 / vocab_size)
            seen = counts.get(history)
            if seen is None:
                rows[history] = lower
            else:
                own = np.zeros(vocab_size)
                own[list(seen)] = list(seen.values())
                rows[history] = (own + len(seen) * lower) / (own.sum() + len(seen))
        return rows[history]

    states = _states(counts, order, vocab_size)
    # A history longer than the order allows has the row of its ending
    return Ngram(np.log(np.stack([row(h if order > 1 else ()) for h in states])), states)


def arpa_entries(path: Path) -> Iterator[tuple[int, tuple[str, ...], float, float | None]]:
    """Line number, words, log10 probability and log10 back-off weight (None: not given) of each n-gram of an ARPA file.

    Raises:
        UserError: the file is missing, a line is damaged, or there are not as many n-grams as it declares (at its end).
    """
    declared: dict[int, int] = {}
    found: dict[int, int] = defaultdict(int)
    order, ended = 0, False
    try:
        with open(path, encoding="utf-8") as stream:
            for number, raw in enumerate(stream, 1):
                line = raw.strip()
                if not order and line.startswith("ngram ") and "=" in line:
                    size, count = line[6:].split("=")
                    declared[int(size)] = int(count)
                elif line.startswith("\\") and line.endswith("-grams:"):
                    order = int(line[1:].split("-")[0])
                elif line == "\\end\\":
                    ended = True
                elif line and order:
                    fields = line.split()
                    if len(fields) not in (order + 1, order + 2):
                        raise UserError(
                            f"{path}:{number}: {len(fields)} fields in the {order}-grams; the file is damaged"
                        )
                    found[order] += 1
                    p, backoff = float(fields[0]), float(fields[-1]) if len(fields) == order + 2 else None
                    if not p <= MAX_LOG10_P or not (backoff or 0.0) < math.inf:
                        raise ValueError(f"a log10 probability of {p} with back-off {backoff}")
                    yield number, tuple(fields[1 : order + 1]), p, backoff
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; expected an ARPA file") from None
    except ValueError as error:
        raise UserError(f"{path}:{number}: {error}; the file is damaged") from None
    if not ended or dict(found) != {size: count for size, count in declared.items() if count}:
        raise UserError(f"{path}: cut off, it declares {declared} n-grams and holds {dict(found)}; make it again")


def from_arpa(path: Path, token_list: Sequence[str]) -> Ngram:
    """Read an ARPA file of token n-grams (orders 1 to 4): an n-gram's own probability if listed, else back-off.

    Tokens of the file that are not in the list are refused (but for <unk>, which is left out), and so are tokens of the
    list that the file lacks, but for special ones such as <sos/eos>, which then have no way in.
    """
    id_of = {token: index for index, token in enumerate(token_list)} | {"<s>": START, "</s>": END}
    log_p: dict[History, float] = {}
    backoff: dict[History, float] = {}
    order = 0
    for number, words, p, weight in arpa_entries(path):
        order = len(words)
        if order > 4:
            raise UserError(f"{path}: order {order}; must be from 1 to 4")
        unknown = [w for w in words if w not in id_of]
        if "<unk>" in unknown:
            continue
        if unknown:
            raise UserError(f"{path}:{number}: token {unknown[0]!r} is not in the token list; use the same tokens")
        key = tuple(id_of[w] for w in words)
        log_p[key] = p * math.log(10)
        if weight is not None:
            backoff[key] = weight * math.log(10)
    if not order:
        raise UserError(f"{path}: holds no n-grams; make it again")
    vocab_size = len(token_list)
    for token, name in enumerate(token_list):
        if token and (token,) not in log_p and not (name.startswith("<") and name.endswith(">")):
            raise UserError(f"{path}: has no 1-gram for token {name!r} of the list; make it from the same tokens")
    rows: dict[History, np.ndarray] = {}
    after: dict[History, list[int]] = defaultdict(list)
    for key in log_p:
        after[key[:-1]].append(key[-1])

    def row(history: History) -> np.ndarray:
        if history not in rows:
            if history:
                values = row(history[1:]) + backoff.get(history, 0.0)
            else:
                values = np.full(vocab_size, -np.inf)
            values = values.copy()
            for token in after.get(history, ()):
                if token != START:
                    values[token] = log_p[*history, token]
            rows[history] = values
        return rows[history]

    states = _states(log_p, order, vocab_size)
    log_matrix = np.stack([row(h if order > 1 else ()) for h in states])
    sums = np.exp(log_matrix).sum(1)
    if (sums > 1.01).any():
        worst = int(sums.argmax())
        after_what = " ".join("<s>" if token == START else token_list[token] for token in states[worst])
        raise UserError(f"{path}: the probabilities after {after_what!r} sum to {sums[worst]:.4g}; make it again")
    return Ngram(log_matrix, states)
