"""A token n-gram as a deterministic automaton with back-off: the form in which every n-gram is held.

Nodes 0 to S - 1 are the states a path can be in, each a history of tokens with a last token; state 0 is the sentence
start. Further nodes (such as the empty history, which holds the 1-gram) are only backed off to. A node lists some
tokens, each with log P and the state that follows; for all others it has a back-off:

    P(v | h) = what h lists for v,  else  weight(h) * P(v | backoff(h)),  else 0

and the state after v is the one that the node which lists v names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distill.errors import UserError

MAX_ENTRIES = 50_000_000  # of the dense tables


@dataclass(frozen=True)
class Automaton:
    """See the module. Arrays of numpy; logs are natural.

    Attributes:
        vocab_size: V, tokens with blank (0).
        last: (S,) last token of each state's history, 0 at the sentence start.
        final: (S,) log P(sentence end | state), -inf where there is none.
        arc_node, arc_token, arc_target, arc_log_p: (A,) the listed tokens, in ascending order of node and then token.
        backoff: (N,) node backed off to, -1 for none; log_weight: (N,) log of the weight, 0 where there is none.
        order: of the n-gram: the last ``order - 1`` tokens determine the state. 0: not known.
    """

    vocab_size: int
    last: np.ndarray
    final: np.ndarray
    arc_node: np.ndarray
    arc_token: np.ndarray
    arc_target: np.ndarray
    arc_log_p: np.ndarray
    backoff: np.ndarray
    log_weight: np.ndarray
    order: int

    @staticmethod
    def make(
        vocab_size: int,
        last: np.ndarray,
        final: np.ndarray,
        arcs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        backoff: np.ndarray,
        log_weight: np.ndarray,
        order: int,
    ) -> Automaton:
        """From arcs (node, token, target, log P) in any order. A listed probability of 0 is kept: it bars back-off."""
        node, token, target, log_p = arcs
        sort = np.lexsort((token, node))
        return Automaton(
            vocab_size,
            np.asarray(last, dtype=np.int64),
            np.asarray(final, dtype=np.float64),
            node[sort].astype(np.int64),
            token[sort].astype(np.int64),
            target[sort].astype(np.int64),
            np.asarray(log_p[sort], dtype=np.float64),
            np.asarray(backoff, dtype=np.int64),
            np.asarray(log_weight, dtype=np.float64),
            order,
        )

    @staticmethod
    def from_dense(log_p: np.ndarray, next_state: np.ndarray, last: np.ndarray) -> Automaton:
        """From (S, V) log P(token | state) with the end in column 0, and the (S, V) state after each token."""
        states, vocab_size = log_p.shape
        node, token = np.nonzero(np.isfinite(log_p[:, 1:]))
        token = token + 1
        bigram = states == vocab_size and bool((next_state == np.arange(vocab_size)).all())
        return Automaton.make(
            vocab_size,
            last,
            log_p[:, 0],
            (node, token, next_state[node, token], log_p[node, token]),
            np.full(states, -1),
            np.zeros(states),
            2 if bigram and bool((last == np.arange(vocab_size)).all()) else 0,
        )

    @property
    def states(self) -> int:
        return len(self.last)

    @property
    def nodes(self) -> int:
        return len(self.backoff)

    @cached_property
    def arc_key(self) -> np.ndarray:
        return self.arc_node * self.vocab_size + self.arc_token

    @cached_property
    def is_bigram(self) -> bool:
        """Whether a state is its last token: then a new token leads to the same state from everywhere."""
        tokens = np.arange(self.vocab_size)
        return (
            self.states == self.vocab_size
            and bool((self.last == tokens).all())
            and bool((self.arc_target == self.arc_token).all())
        )

    @cached_property
    def by_depth(self) -> list[np.ndarray]:
        """Nodes by the number of back-offs until there is none: a list of arrays of node ids."""
        depth = np.zeros(self.nodes, dtype=np.int64)
        at = self.backoff.copy()
        while (at >= 0).any():
            depth[at >= 0] += 1
            at = np.where(at >= 0, self.backoff[at], -1)
        return [np.nonzero(depth == d)[0] for d in range(int(depth.max()) + 1)]

    def resolve(self, node: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log P and state after each (node, token), back-off followed; -inf and state 0 where there is no way.

        Args:
            node, token: integers of one shape; a node of -1 has no way at all.
        """
        node, token = np.broadcast_arrays(node, token)
        log_p, target = np.full(node.shape, -np.inf), np.zeros(node.shape, dtype=np.int64)
        weight, open_ = np.zeros(node.shape), node >= 0
        node = node.copy()
        while open_.any():
            key = node * self.vocab_size + token
            place = np.minimum(np.searchsorted(self.arc_key, key), max(0, len(self.arc_key) - 1))
            hit = open_ & (self.arc_key[place] == key) if len(self.arc_key) else np.zeros_like(open_)
            log_p[hit] = weight[hit] + self.arc_log_p[place[hit]]
            target[hit] = self.arc_target[place[hit]]
            open_ = open_ & ~hit & (self.backoff[node] >= 0)
            weight[open_] += self.log_weight[node[open_]]
            node[open_] = self.backoff[node[open_]]
        return log_p, target

    def log_prob(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(B,) log P of token sequences (B, U), the end included.

        All positions at once: guess the states, let each position correct the next, and stop when none changes. In an
        n-gram a state hangs on the last n - 1 tokens alone, so that takes n rounds; in any automaton at most U + 1.
        """
        inside = np.arange(tokens.shape[1]) < lengths[:, None]
        token = np.where(inside, tokens, 0)
        before = np.zeros((len(tokens), tokens.shape[1] + 1), dtype=np.int64)  # column u: the state before token u
        while True:
            log_p, after = self.resolve(before[:, :-1], token)
            after = np.where(inside, after, 0)
            if (before[:, 1:] == after).all():
                break
            before[:, 1:] = after
        end = self.final[before[np.arange(len(tokens)), lengths]]
        return np.where(inside, log_p, 0.0).sum(1) + end

    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """(S, V) log P with the end in column 0, and the (S, V) state after each token.

        Raises:
            UserError: more than MAX_ENTRIES entries.
        """
        if self.states * self.vocab_size > MAX_ENTRIES:
            raise UserError(
                f"denominator graph: {self.states} histories of {self.vocab_size} tokens are too many for a dense table"
            )
        log_p, target = self.resolve(np.arange(self.states)[:, None], np.arange(self.vocab_size)[None])
        log_p[:, 0], target[:, 0] = self.final, 0
        if self.is_bigram:
            target[:] = np.arange(self.vocab_size)
        return log_p, target

    def row_sums(self) -> np.ndarray:
        """(S,) sum of the probabilities of all tokens and the end after each state."""
        sums = np.bincount(self.arc_node, np.exp(self.arc_log_p), self.nodes)
        lower, _ = self.resolve(self.backoff[self.arc_node], self.arc_token)
        replaced = np.bincount(self.arc_node, np.exp(lower + self.log_weight[self.arc_node]), self.nodes)
        for nodes in self.by_depth[1:]:
            below = np.exp(self.log_weight[nodes]) * sums[self.backoff[nodes]]
            sums[nodes] += np.maximum(below - replaced[nodes], 0.0)
        return sums[: self.states] + np.exp(self.final)
