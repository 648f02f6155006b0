"""Token n-grams: estimated from text, or read from an ARPA file. Both become an automaton with back-off."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.lfmmi.ngram_automaton import Automaton
from distill.lfmmi.ngram_counts import code_base, count_ngrams, refuse_above_most

START, END = -1, 0  # in histories the sentence start is -1; as a token that follows, 0 is the sentence end
MAX_LOG10_P = 1e-3  # what rounding may add to a probability of 1
History = tuple[int, ...]
# Ascending codes (see :func:`code_base`) of the histories of one length, and something of each
Coded = tuple[np.ndarray, np.ndarray]


class _Nodes:
    """The nodes of an automaton by the history that each stands for.

    They are the start, every single token (the CTC topology needs to know the last one), the given histories with
    their endings, so that the state is always the longest known ending, and at last the empty history.

    Args:
        histories: for each length from 2, ascending codes of histories.

    Attributes:
        codes: for each length from 0, ascending codes.
        nodes: for each length from 0, their nodes.
        last: (S,) last token of each but the empty history, 0 for the start.
    """

    def __init__(self, histories: Sequence[np.ndarray], vocab_size: int, base: int) -> None:
        self.base = base
        longer = [np.unique(codes) for codes in histories]
        for length in range(len(longer) - 1, 0, -1):
            longer[length - 1] = np.union1d(longer[length - 1], longer[length] % base ** (length + 1))
        # In the order of their reversed tokens, the start before all others, a shorter one before a longer
        digits = np.full((sum(map(len, longer)), len(longer) + 1), -2)
        begin = 0
        for length, codes in enumerate(longer, 2):
            for back in range(length):
                digit = codes // base**back % base
                digits[begin : begin + len(codes), back] = np.where(digit == vocab_size, START, digit)
            begin += len(codes)
        sort = np.lexsort(digits.T[::-1])
        rank = np.empty(len(digits), np.int64)
        rank[sort] = np.arange(vocab_size, vocab_size + len(digits))
        single = np.arange(1, vocab_size)
        self.codes = [np.zeros(1, np.int64), np.append(single, vocab_size), *longer]
        longer_nodes = np.split(rank, np.cumsum([len(codes) for codes in longer], dtype=np.int64))[: len(longer)]
        self.nodes = [np.full(1, vocab_size + len(digits)), np.append(single, 0), *longer_nodes]
        self.last = np.concatenate([np.arange(vocab_size), np.maximum(digits[sort, 0], 0)])

    def find(self, length: int, codes: np.ndarray) -> np.ndarray:
        """Nodes of histories of a length, -1 for those that have none."""
        known = self.codes[length] if length < len(self.codes) else np.zeros(0, np.int64)
        place = np.minimum(np.searchsorted(known, codes), max(0, len(known) - 1))
        return np.where(known[place] == codes, self.nodes[length][place], -1) if len(known) else np.full(len(codes), -1)

    def history(self, node: int) -> list[int]:
        """The tokens of a node's history, START for the start."""
        for length, (codes, nodes) in enumerate(zip(self.codes, self.nodes, strict=True)):
            for code in codes[nodes == node].tolist():
                digits = [code // self.base**back % self.base for back in reversed(range(length))]
                return [START if digit == self.base - 1 else digit for digit in digits]
        raise AssertionError(f"no node {node}")

    def longest(self, length: int, codes: np.ndarray) -> np.ndarray:
        """Nodes of the longest endings that have one, of sequences of a length."""
        found = self.find(length, codes)
        for shorter in range(length - 1, -1, -1):
            found = np.where(found < 0, self.find(shorter, codes % self.base**shorter), found)
        return found


def _automaton(
    nodes: _Nodes,
    listed: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    log_weight: Sequence[Coded],
    order: int,
    vocab_size: int,
) -> Automaton:
    """An automaton whose nodes are histories and, last, the empty one.

    Args:
        listed: for each length of history from 0: (n,) codes of histories, (n,) the tokens (or the end, 0) that they
            list, (n,) log P of those.
        log_weight: for each length from 1, log back-off weights of histories, 0 where not given.
    """
    count = len(nodes.last) + 1
    backoff, final, weights = np.full(count, -1), np.full(count, -np.inf), np.zeros(count)
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for length, (codes, node) in enumerate(zip(nodes.codes, nodes.nodes, strict=True)):
        if length:
            backoff[node] = nodes.find(length - 1, codes % nodes.base ** (length - 1))
            if order > 1 and length <= len(log_weight):  # of order 1 the histories exist for the topology alone
                of, weight = log_weight[length - 1]
                at = nodes.find(length, of)
                weights[at[at >= 0]] = weight[at >= 0]
            final[node] = final[backoff[node]] + weights[node]
        if length >= len(listed) or (length and order == 1):
            continue
        history, token, log_p = listed[length]
        at = nodes.find(length, history)
        ends = (at >= 0) & (token == END)
        final[at[ends]] = log_p[ends]
        arcs = (at >= 0) & (token != END)
        kept = max(order - 1, 1)  # tokens of a history
        after = history[arcs] * nodes.base + token[arcs]
        target = nodes.longest(min(length + 1, kept), after % nodes.base**kept)
        columns.append((at[arcs], token[arcs], target, log_p[arcs]))
    refuse_above_most(sum(len(column[0]) for column in columns))
    arrays = tuple(np.concatenate(part) for part in zip(*columns, strict=True))
    return Automaton.make(vocab_size, nodes.last, final[:-1], arrays, backoff, weights, max(order, 2))  # type: ignore


def from_text(lines: Iterable[Sequence[int]], order: int, vocab_size: int) -> Automaton:
    """Interpolated Witten-Bell estimate (Witten & Bell, 1991):

    P(w | h) = (c(h w) + n(h) P(w | h')) / (c(h) + n(h)), n(h) the number of different successors of h, h' without the
    oldest token, down to the uniform distribution over tokens and end. Every token has some probability everywhere.
    What follows h in the text is listed; for the rest n(h) / (c(h) + n(h)) is the back-off weight.
    """
    if not 1 <= order <= 4:
        raise UserError(f"n-gram order {order}: must be from 1 to 4")
    base = code_base(vocab_size, order)
    counts = count_ngrams(lines, order, vocab_size)
    listed: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    log_weight: list[Coded] = []
    lower, lower_codes = np.full(vocab_size, 1 / vocab_size), np.arange(vocab_size)  # P of one token less, and n-grams
    for length, (history, token, count) in enumerate(counts):
        begin = np.flatnonzero(np.diff(history, prepend=-1))  # of each history
        different = np.diff(begin, append=len(history))
        total = np.add.reduceat(count, begin) + different
        if length == 0:
            seen = np.bincount(token, count, vocab_size)
            history, token = np.zeros(vocab_size, np.int64), np.arange(vocab_size)
            p = (seen + different[0] * lower) / total[0]
        else:
            of = np.repeat(np.arange(len(begin)), different)
            ngram = history % base ** (length - 1) * base + token  # what follows a history follows its endings
            below = lower[np.searchsorted(lower_codes, ngram)]
            p = (count + different[of] * below) / total[of]
            log_weight.append((history[begin], np.log(different / total)))
        listed.append((history, token, np.log(p)))
        lower, lower_codes = p, history * base + token
    nodes = _Nodes([of for of, _ in log_weight[1:]], vocab_size, base)
    return _automaton(nodes, listed, log_weight, order, vocab_size)


def _codes(histories: Sequence[History], length: int, base: int) -> np.ndarray:
    """Codes of histories of one length."""
    digits = np.array(histories, np.int64).reshape(len(histories), length)
    return np.where(digits == START, base - 1, digits) @ base ** np.arange(length - 1, -1, -1)


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
    base = code_base(vocab_size, order)
    # The file also lists sequences that end with the sentence end, which nothing follows
    histories = [
        _codes([h for h in known if len(h) == length and END not in h], length, base) for length in range(2, order)
    ]
    nodes = _Nodes(histories, vocab_size, base)
    rows, weights = [], []
    for length in range(order):
        of = [(h, token, log_p) for h, row in listed.items() if len(h) == length for token, log_p in row.items()]
        tokens, log_p = np.array([token for _, token, _ in of], np.int64), np.array([log_p for _, _, log_p in of])
        rows.append((_codes([h for h, _, _ in of], length, base), tokens, log_p))
        backed_off = [h for h in log_weight if len(h) == length]
        weights.append((_codes(backed_off, length, base), np.array([log_weight[h] for h in backed_off])))
    automaton = _automaton(nodes, rows, weights[1:], order, vocab_size)
    sums = automaton.row_sums()
    if (sums > 1.01).any():
        worst = int(sums.argmax())
        after_what = " ".join("<s>" if token == START else token_list[token] for token in nodes.history(worst))
        raise UserError(f"{path}: the probabilities after {after_what!r} sum to {sums[worst]:.4g}; make it again")
    return automaton
