"""OpenFst's text format: the ``P.fst.txt`` that kaldilm and arpa2fst make and that icefall and k2 read.

An arc is a line ``source target token token cost``, a final state ``state cost``, and a cost is -log P; the first
line's source is the start. An arc with token 0 or one beyond the token list (``#0``) is the state's back-off: it is
taken for the tokens, and for the end, that the state has none of its own for, which is what an ARPA file means.
(k2 and icefall turn such arcs into epsilons and count both ways of a token that has an arc of its own.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.files import atomic_write

MAX_ENTRIES = 50_000_000
MAX_STATES = 1 << 31
Arcs = dict[int, tuple[int, float]]  # token -> target, log P


class _Acceptor:
    """Arcs, back-off and final weight of each state as they stand in the file."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self.start: int | None = None
        self.arcs: dict[int, Arcs] = defaultdict(dict)
        self.back_off: dict[int, tuple[int, float]] = {}
        self.final: dict[int, float] = {}
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            raise UserError(f"{path}: not found") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: not text; expected an FST in OpenFst's text format (fstprint)") from None
        # A weight of 0 is left out, so four fields are an acceptor's with or a transducer's without a weight.
        fours = [fields for fields in lines if len(fields) == 4]
        labels = 2 if any(len(f) == 5 for f in lines) or (fours and all(f[2] == f[3] for f in fours)) else 1
        for number, fields in enumerate(lines, 1):
            if not fields:
                continue
            try:
                if len(fields) <= 2:
                    self._begin(int(fields[0]))
                    self.final[int(fields[0])] = -float(fields[1]) if len(fields) == 2 else 0.0
                elif len(fields) in (2 + labels, 3 + labels):
                    source, target, token = (int(field) for field in fields[:3])
                    self._begin(source)
                    log_p = -float(fields[2 + labels]) if len(fields) == 3 + labels else 0.0
                    self._add(number, source, target, token, log_p, vocab_size)
                else:
                    raise ValueError(f"{len(fields)} fields")
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"{path}:{number}: {error}; expected 'source target token token cost' or 'state cost', in numbers"
                ) from None
        if self.start is None or not self.final:
            raise UserError(f"{path}: has no {'arcs' if self.start is None else 'final state'}; is it cut off?")

    def _begin(self, state: int) -> None:
        if self.start is None:
            self.start = state

    def _add(self, number: int, source: int, target: int, token: int, log_p: float, vocab_size: int) -> None:
        where = f"{self.path}:{number}"
        if not max(source, target) < MAX_STATES or min(source, target) < 0:
            raise ValueError(f"states {source} and {target}")
        if not log_p < math.inf:
            raise ValueError(f"cost {-log_p}")
        if token < 0:
            raise UserError(f"{where}: token {token}; expected one from 0 to {vocab_size - 1}, or a back-off beyond")
        if token == 0 or token >= vocab_size:
            if source in self.back_off:
                raise UserError(f"{where}: a second back-off arc leaves state {source}; expected one at most")
            self.back_off[source] = target, log_p
        elif token in self.arcs[source]:
            raise UserError(f"{where}: a second arc with token {token} leaves state {source}; determinise the FST")
        else:
            self.arcs[source][token] = target, log_p

    def resolve(self, state: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        """(V,) log P and (V,) target of every token after ``state``, back-off followed; column 0 is the end."""
        log_p, target = np.full(vocab_size, -np.inf), np.zeros(vocab_size, dtype=np.int64)
        missing, weight, passed = np.ones(vocab_size, dtype=bool), 0.0, set()
        while True:
            if state in passed:
                raise UserError(
                    f"{self.path}: back-off arcs of state {state} go round in a circle; is it of another token list?"
                )
            passed.add(state)
            for token, (to, value) in self.arcs.get(state, {}).items():
                if missing[token]:
                    log_p[token], target[token], missing[token] = weight + value, to, False
            if missing[0] and state in self.final:
                log_p[0], missing[0] = weight + self.final[state], False
            if state not in self.back_off:
                return log_p, target
            state, more = self.back_off[state]
            weight += more


def read(path: Path, token_list: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``log_p`` (S, V), ``next_state`` (S, V) and ``last`` (S,) of a :class:`distill.lfmmi.DenominatorGraph`.

    A state of the graph is a state of the FST together with the token that led to it. Special tokens of the list, such
    as <sos/eos>, may be missing from the FST.
    """
    vocab_size = len(token_list)
    fst = _Acceptor(path, vocab_size)
    assert fst.start is not None
    order = [(fst.start, 0)]
    seen = set(order)
    resolved: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for state, _ in order:  # grows as it goes
        if state in resolved:
            continue
        log_p, target = resolved[state] = fst.resolve(state, vocab_size)
        for token in np.nonzero(np.isfinite(log_p))[0].tolist():
            key = int(target[token]), token
            if token and key not in seen:
                seen.add(key)
                order.append(key)
        if len(order) * vocab_size > MAX_ENTRIES:
            raise UserError(f"{path}: {len(order)} states of {vocab_size} tokens are too many; prune the n-gram")
    for token in sorted(set(range(1, vocab_size)) - {token for _, token in order}):
        name = token_list[token]
        if not (name.startswith("<") and name.endswith(">")):
            raise UserError(f"{path}: no path leads to token {token} ({name!r}); make it from the same token list")
        order.append((fst.start, token))
    if len(order) == vocab_size:
        order.sort(key=lambda key: key[1])  # a bigram: history and token are one, which the dense products count on
    number = {key: index for index, key in enumerate(order)}
    log_matrix = np.stack([resolved[state][0] for state, _ in order])
    next_state = np.zeros(log_matrix.shape, dtype=np.int64)
    for state, (_, target) in resolved.items():
        row = [number.get((int(target[token]), token), token) for token in range(vocab_size)]
        next_state[[index for index, key in enumerate(order) if key[0] == state]] = row
    sums = np.exp(log_matrix).sum(1)
    wrong = np.nonzero((sums < 0.5) | (sums > 1.01))[0]
    if len(wrong) and log_matrix[np.isfinite(log_matrix)].any():
        state, total = order[wrong[0]][0], sums[wrong[0]]
        raise UserError(f"{path}: the probabilities of state {state} sum to {total:.4g}, not to 1; make it again")
    return log_matrix, next_state, np.array([token for _, token in order])


def write(path: Path, log_p: np.ndarray, next_state: np.ndarray) -> None:
    """Write a graph's n-gram as an FST without back-off arcs."""
    with atomic_write(path, "w") as stream:
        for state, row in enumerate(log_p):
            for token in np.nonzero(np.isfinite(row))[0].tolist():
                if token:
                    stream.write(f"{state} {next_state[state, token]} {token} {token} {-row[token]:.10g}\n")
            if np.isfinite(row[0]):
                stream.write(f"{state} {-row[0]:.10g}\n")
