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
from distill.lfmmi.ngram_automaton import Automaton

MAX_STATES = 1 << 31
MAX_NODES = 20_000_000
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
                raise UserError(
                    f"{where}: a second back-off arc leaves state {source}; expected one at most, which has token 0 or "
                    f"one beyond the {vocab_size} of the token list"
                )
            self.back_off[source] = target, log_p
        elif token in self.arcs[source]:
            raise UserError(f"{where}: a second arc with token {token} leaves state {source}; determinise the FST")
        else:
            self.arcs[source][token] = target, log_p

    def chain(self, state: int) -> list[int]:
        """The states that ``state`` backs off to in turn, itself first."""
        passed = [state]
        while passed[-1] in self.back_off:
            below = self.back_off[passed[-1]][0]
            if below in passed:
                raise UserError(
                    f"{self.path}: back-off arcs of state {state} go round in a circle; is it of another token list?"
                )
            passed.append(below)
        return passed

    def log_final(self, state: int) -> float:
        """log P of the end after a state, by back-off if it has none of its own; -inf for none."""
        weight = 0.0
        for each in self.chain(state):
            if each in self.final:
                return weight + self.final[each]
            weight += self.back_off.get(each, (0, 0.0))[1]
        return -math.inf

    def entered(self) -> dict[int, set[int]]:
        """The tokens by which a path can come into each state; 0 stands for the start."""
        assert self.start is not None
        tokens: dict[int, set[int]] = defaultdict(set)
        tokens[self.start].add(0)
        todo, seen = [self.start], {self.start}
        while todo:
            state = todo.pop()
            following = [to for to, _ in self.arcs.get(state, {}).values()] + self.chain(state)
            for token, (to, _) in self.arcs.get(state, {}).items():
                tokens[to].add(token)
            for to in following:
                if to not in seen:
                    seen.add(to)
                    todo.append(to)
        return tokens


def read(path: Path, token_list: Sequence[str]) -> Automaton:
    """Read an FST as an n-gram.

    A state of the result is a state of the FST together with the token that led to it. Special tokens of the list, such
    as <sos/eos>, may be missing from the FST.
    """
    vocab_size = len(token_list)
    fst = _Acceptor(path, vocab_size)
    assert fst.start is not None
    entered = fst.entered()
    # Last tokens of all that draw from a state: its own and those of what backs off to it
    drawing: dict[int, set[int]] = defaultdict(set)
    for state, tokens in entered.items():
        for below in fst.chain(state):
            drawing[below] |= tokens
    states = [(fst.start, 0)] + [
        (q, v) for q in sorted(entered) for v in sorted(entered[q]) if (q, v) != (fst.start, 0)
    ]
    missing = sorted(set(range(1, vocab_size)) - {token for _, token in states})
    for token in missing:
        name = token_list[token]
        if not (name.startswith("<") and name.endswith(">")):
            raise UserError(f"{path}: no path leads to token {token} ({name!r}); make it from the same token list")
    states += [(-1, token) for token in missing]  # never entered: as the start
    if len(states) == vocab_size and len({token for _, token in states}) == vocab_size:
        states.sort(key=lambda key: key[1])  # a bigram: history and token are one
    number = {key: index for index, key in enumerate(states)}
    # A state of the FST that all draw from with the same last token is one node; any other is a node beside its states
    node_of = {q: number[q, min(drawing[q])] for q in entered if len(drawing[q]) == 1 and entered[q]}
    pools = [q for q in sorted(drawing) if q not in node_of]
    node_of |= {q: len(states) + index for index, q in enumerate(pools)}
    if len(states) + len(pools) > MAX_NODES:
        raise UserError(f"{path}: {len(states)} states are too many; prune the n-gram")
    return _checked(path, _automaton(fst, states, node_of, vocab_size))


def _automaton(fst: _Acceptor, states: list[tuple[int, int]], node_of: dict[int, int], vocab_size: int) -> Automaton:
    assert fst.start is not None
    nodes = max(len(states), max(node_of.values()) + 1)
    backoff, log_weight, final = np.full(nodes, -1), np.zeros(nodes), np.full(len(states), -np.inf)
    number = {key: index for index, key in enumerate(states)}
    rows: list[tuple[int, int, int, float]] = []
    for q, node in node_of.items():
        rows += [(node, token, number[to, token], p) for token, (to, p) in fst.arcs.get(q, {}).items()]
        if q in fst.back_off:
            below, log_weight[node] = fst.back_off[q]
            backoff[node] = node_of[below]
    for index, (q, _) in enumerate(states):
        q = fst.start if q < 0 else q
        final[index] = fst.log_final(q)
        if node_of[q] != index:
            backoff[index] = node_of[q]
    columns = [np.array(column) for column in zip(*rows, strict=True)] if rows else [np.zeros(0, dtype=int)] * 4
    last = np.array([token for _, token in states])
    make = Automaton.make(vocab_size, last, final, tuple(columns), backoff, log_weight, 0)  # type: ignore[arg-type]
    if make.is_bigram:
        return Automaton.make(vocab_size, last, final, tuple(columns), backoff, log_weight, 2)  # type: ignore[arg-type]
    return make


def _checked(path: Path, automaton: Automaton) -> Automaton:
    """Refuse states whose probabilities are no distribution, unless every weight is 0."""
    sums = automaton.row_sums()
    wrong = np.nonzero((sums < 0.5) | (sums > 1.01))[0]
    weighted = automaton.arc_log_p.any() or automaton.final[np.isfinite(automaton.final)].any()
    if len(wrong) and weighted:
        after = int(automaton.last[wrong[0]])
        raise UserError(
            f"{path}: the probabilities of a state that token {after} leads to sum to {sums[wrong[0]]:.4g}, not to 1; "
            "make it again from the same token list"
        )
    return automaton


def write(path: Path, automaton: Automaton) -> None:
    """Write an n-gram with its back-off arcs, which have the number after the last token, ``#0`` in icefall's lists."""
    a = automaton
    with atomic_write(path, "w") as stream:
        ends = np.searchsorted(a.arc_node, np.arange(a.nodes + 1))
        for node in range(a.nodes):
            for i in range(ends[node], ends[node + 1]):
                token = a.arc_token[i]
                stream.write(f"{node} {a.arc_target[i]} {token} {token} {-a.arc_log_p[i]:.10g}\n")
            if a.backoff[node] >= 0:
                stream.write(f"{node} {a.backoff[node]} {a.vocab_size} 0 {-a.log_weight[node]:.10g}\n")
            if node < a.states and np.isfinite(a.final[node]):
                stream.write(f"{node} {-a.final[node]:.10g}\n")
