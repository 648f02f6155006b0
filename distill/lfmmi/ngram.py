"""Token n-grams: estimated from text, or read from an ARPA file. Both become an automaton with back-off."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.lfmmi.ngram_automaton import Automaton

START, END = -1, 0  # in histories the sentence start is -1; as a token that follows, 0 is the sentence end
MAX_ARCS = 50_000_000
MAX_LOG10_P = 1e-3  # what rounding may add to a probability of 1
History = tuple[int, ...]


def refuse_above_most(ngrams: int) -> None:
    """Refuse an n-gram that is too large; estimation does so while it counts."""
    if ngrams > MAX_ARCS:
        raise UserError(f"denominator graph: more than {MAX_ARCS:,} n-grams; lower the order")


def _histories(known: Iterable[History], order: int, vocab_size: int) -> list[History]:
    """The start, every single token (the CTC topology needs to know the last one), and longer known histories.

    With a history its endings are there too, so that the state is always the longest known ending.
    """
    # An ARPA file also lists sequences that end with the sentence end, which nothing follows
    wanted = {h[i:] for h in known if 2 <= len(h) < order and END not in h for i in range(len(h) - 1)}
    return [(START,), *((token,) for token in range(1, vocab_size)), *sorted(wanted, key=lambda h: h[::-1])]


def _automaton(
    histories: list[History],
    listed: Mapping[History, Mapping[int, float]],
    log_weight: Mapping[History, float],
    order: int,
    vocab_size: int,
) -> Automaton:
    """An automaton whose nodes are the histories and, last, the empty one.

    Args:
        listed: log P of the tokens (and the end, 0) that a history lists.
        log_weight: log back-off weight of a history, 0 where not given.
    """
    nodes: list[History] = [*histories, ()]
    number = {history: index for index, history in enumerate(nodes)}
    backoff = np.array([number[history[1:]] for history in histories] + [-1])
    arcs: list[tuple[int, int, int, float]] = []
    final = np.full(len(nodes), -np.inf)
    for index in sorted(range(len(nodes)), key=lambda i: len(nodes[i])):  # back-off before what backs off to it
        history = nodes[index]
        if history:
            final[index] = final[backoff[index]] + log_weight.get(history, 0.0)
        # In an n-gram of order 1 the histories exist for the topology alone
        for token, log_p in (listed.get(history, {}) if order > 1 or not history else {}).items():
            if token == END:
                final[index] = log_p
                continue
            after = (*history, token)[-max(order - 1, 1) :]
            while after not in number:
                after = after[1:]
            arcs.append((index, token, number[after], log_p))
    refuse_above_most(len(arcs))
    integers = np.array([arc[:3] for arc in arcs], dtype=np.int64).reshape(-1, 3)
    return Automaton.make(
        vocab_size,
        np.array([max(history[-1], 0) for history in histories]),
        final[:-1],
        (integers[:, 0], integers[:, 1], integers[:, 2], np.array([arc[3] for arc in arcs])),
        backoff,
        np.array([log_weight.get(history, 0.0) if order > 1 else 0.0 for history in nodes]),
        max(order, 2),
    )


def from_text(lines: Iterable[Sequence[int]], order: int, vocab_size: int) -> Automaton:
    """Interpolated Witten-Bell estimate (Witten & Bell, 1991):

    P(w | h) = (c(h w) + n(h) P(w | h')) / (c(h) + n(h)), n(h) the number of different successors of h, h' without the
    oldest token, down to the uniform distribution over tokens and end. Every token has some probability everywhere.
    What follows h in the text is listed; for the rest n(h) / (c(h) + n(h)) is the back-off weight.
    """
    if not 1 <= order <= 4:
        raise UserError(f"n-gram order {order}: must be from 1 to 4")
    counts: dict[History, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    different = 0
    for number, line in enumerate(lines, 1):
        for token in line:
            if not 1 <= token < vocab_size:
                raise UserError(f"text line {number}: token {token} is not from 1 to {vocab_size - 1}")
        padded = (START, *line)
        for position, token in enumerate((*line, END)):
            for length in range(min(order, position + 2)):
                row = counts[padded[position + 1 - length : position + 1]]
                different += token not in row
                row[token] += 1
        refuse_above_most(different)
    if not counts:
        raise UserError("text: no lines to estimate an n-gram from")
    p: dict[History, dict[int, float]] = {}
    log_weight: dict[History, float] = {}
    for history in sorted(counts, key=len):
        seen = counts[history]
        total = sum(seen.values()) + len(seen)
        if not history:
            p[history] = {w: (seen.get(w, 0) + len(seen) / vocab_size) / total for w in range(vocab_size)}
            continue
        log_weight[history] = math.log(len(seen) / total)
        below = p[history[1:]]  # what follows a history follows its endings
        p[history] = {w: (count + len(seen) * below[w]) / total for w, count in seen.items()}
    listed = {history: {w: math.log(value) for w, value in row.items()} for history, row in p.items()}
    return _automaton(_histories(counts, order, vocab_size), listed, log_weight, order, vocab_size)


def arpa_entries(path: Path) -> Iterator[tuple[int, tuple[str, ...], float, float | None]]:
    """Line number, words, log10 probability and log10 back-off weight (None: not given) of each n-gram of an ARPA file.

    Raises:
        UserError: the file is missing, a line is damaged, or there are not as many n-grams as it declares (at its end).
    """
    declared: dict[int, int] = {}
    counted: dict[int, int] = defaultdict(int)
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
                    counted[order] += 1
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
    if not ended or dict(counted) != {size: count for size, count in declared.items() if count}:
        raise UserError(f"{path}: cut off, it declares {declared} n-grams and holds {dict(counted)}; make it again")


def from_arpa(path: Path, token_list: Sequence[str]) -> Automaton:
    """Read an ARPA file of token n-grams (orders 1 to 4): an n-gram's own probability if listed, else back-off.

    Tokens of the file that are not in the list are refused (but for <unk>, which is left out), and so are tokens of the
    list that the file lacks, but for special ones such as <sos/eos>, which then have no way in.
    """
    id_of = {token: index for index, token in enumerate(token_list)} | {"<s>": START, "</s>": END}
    listed: dict[History, dict[int, float]] = defaultdict(dict)
    log_weight: dict[History, float] = {}
    known: list[History] = []
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
        known.append(key)
        if key[-1] != START:
            listed[key[:-1]][key[-1]] = p * math.log(10)
        if weight is not None:
            log_weight[key] = weight * math.log(10)
    if not order:
        raise UserError(f"{path}: holds no n-grams; make it again")
    vocab_size = len(token_list)
    for token, name in enumerate(token_list):
        if token and token not in listed[()] and not (name.startswith("<") and name.endswith(">")):
            raise UserError(f"{path}: has no 1-gram for token {name!r} of the list; make it from the same tokens")
    histories = _histories(known, order, vocab_size)
    automaton = _automaton(histories, listed, log_weight, order, vocab_size)
    sums = automaton.row_sums()
    if (sums > 1.01).any():
        worst = int(sums.argmax())
        after_what = " ".join("<s>" if token == START else token_list[token] for token in histories[worst])
        raise UserError(f"{path}: the probabilities after {after_what!r} sum to {sums[worst]:.4g}; make it again")
    return automaton
