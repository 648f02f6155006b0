"""The n-gram's part of a frame as three sparse matrices without a negative entry.

A frame needs, for every state s', the sum over s, v with s.v = s' of P(v | s) * (mass of s), where the mass is
all_{t-1}(s), or blank_{t-1}(s) alone if v repeats the last token of s. Written out that is S * V terms. Back-off makes
most of them share a factor, and the sum becomes

    pools    = G all                       one entry for a history h: mass that may draw from h, weights multiplied
    groups   = H pools                     sums over groups of histories that back off to the same one
    arrivals = F [blank; all; pools; groups]

An n-gram h v that is listed is one of two kinds. If backing off leads to the same state, and to no more probability,
what the list adds is an arc with P(v|h) - weight(h) P(v|h') >= 0, and h backs off as if it did not list v. (So it is
where h is as long as the order allows.) Otherwise the arc has P(v|h), and v is *excluded* from what h passes down: that
is so for v with a longer state h.v, for v = l(h), whose repetition needs a blank (arcs from blank, one for each state),
and for models that are not interpolated. What arrives at h' for v is then a sum over all histories that back off to h'
but those that exclude v. Subtracting them would cancel digits; instead the histories are the leaves of a binary tree,
and all but k of n leaves are at most k log2(n) of its nodes: these are the groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distill.lfmmi.ngram_automaton import Automaton


class Sparse(NamedTuple):
    """Entries of a matrix: rows, columns, logs of the values; no two entries share a place."""

    row: np.ndarray
    column: np.ndarray
    log_value: np.ndarray
    size: tuple[int, int]


class Factors(NamedTuple):
    """``pools`` G (Z, S), ``groups`` H (Y, Z), ``arrivals`` F (S, 2S + Z + Y)."""

    pools: Sparse
    groups: Sparse
    arrivals: Sparse


class _Arcs(NamedTuple):
    """Arcs of nodes after :func:`_split`, and the (node, token) pairs that a node excludes, as node * V + token."""

    node: np.ndarray
    token: np.ndarray
    target: np.ndarray
    log_p: np.ndarray
    excluded: np.ndarray


def _split(automaton: Automaton) -> tuple[_Arcs, np.ndarray]:
    """Listed n-grams by kind, and (S,) log P of repeating each state's last token, -inf where there is none."""
    a, vocab = automaton, automaton.vocab_size
    node, token, target, log_p = a.arc_node, a.arc_token, a.arc_target, a.arc_log_p
    speaks = np.nonzero(a.last > 0)[0]
    repeats = speaks * vocab + a.last[speaks]
    below_p, below_target = a.resolve(a.backoff[node], token)
    below_p = below_p + a.log_weight[node]
    added = (below_p == -np.inf) & (a.backoff[node] < 0)  # nothing below: all of it is added
    added |= (below_target == target) & (log_p >= below_p - 1e-12) & (below_p > -np.inf)
    excluded = np.union1d((node * vocab + token)[~added], repeats)
    # Closed downwards: what is excluded above must be an arc of its own wherever its mass would pass
    while True:
        holder, what = a.backoff[excluded // vocab], excluded % vocab
        inner = (holder >= 0) & (a.backoff[holder] >= 0)
        missing = np.setdiff1d((holder * vocab + what)[inner], excluded)
        if not len(missing):
            break
        more_p, more_target = a.resolve(missing // vocab, missing % vocab)
        new = ~np.isin(missing, a.arc_key)
        node, token = np.append(node, missing[new] // vocab), np.append(token, missing[new] % vocab)
        target, log_p = np.append(target, more_target[new]), np.append(log_p, more_p[new])
        below_p = np.append(below_p, np.full(int(new.sum()), -np.inf))
        excluded = np.union1d(excluded, missing)
    key = node * vocab + token
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = log_p + np.log1p(-np.exp(np.minimum(below_p - log_p, 0.0)))
    value = np.where(np.isin(key, excluded) | (below_p == -np.inf), log_p, excess)
    keep = (value > -np.inf) & ~np.isin(key, repeats)
    repeated = np.full(a.states, -np.inf)
    repeated[speaks], _ = a.resolve(speaks, a.last[speaks])
    return _Arcs(node[keep], token[keep], target[keep], value[keep], excluded), repeated


def _tree_nodes(row: np.ndarray, leaf: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
    """For every row the nodes of a binary tree that together cover leaves low to high - 1 but for the listed ones.

    Args:
        row, leaf: (E,) leaves to leave out. low, high: of each row, (R,).

    Returns:
        rows, levels and indices of the nodes; the node (j, i) covers leaves i * 2^j to (i + 1) * 2^j - 1.
    """
    rows = np.arange(len(low))
    row = np.concatenate([row, rows, rows])  # the leaves beside the range are left out as well
    leaf = np.concatenate([leaf, low - 1, high]) + 1
    levels = max(1, int(leaf.max())).bit_length()
    width = 1 << (levels + 1)
    touched = np.unique(row * width + leaf)
    pieces = []
    for level in range(levels):
        beside = np.setdiff1d(touched ^ 1, touched)
        row, index = beside // width, beside % width
        # leaves were moved by one
        inside = ((index << level) > low[row]) & (((index + 1) << level) <= high[row] + 1)
        pieces.append((row[inside], np.full(int(inside.sum()), level), index[inside]))
        touched = np.unique(touched // width * width + (touched % width >> 1))
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


def factorise(automaton: Automaton) -> Factors:
    """The three matrices, see the module."""
    a, vocab, states = automaton, automaton.vocab_size, automaton.states
    arcs, repeated = _split(a)
    # Leaves: nodes by what they back off to
    leaves = np.nonzero(a.backoff >= 0)[0]
    leaves = leaves[np.argsort(a.backoff[leaves], kind="stable")]
    low = np.searchsorted(a.backoff[leaves], np.arange(a.nodes))
    high = np.searchsorted(a.backoff[leaves], np.arange(a.nodes), side="right")
    place = np.empty(a.nodes, dtype=np.int64)
    place[leaves] = np.arange(len(leaves))

    # Which arcs miss which leaves
    above = arcs.excluded[a.backoff[arcs.excluded // vocab] >= 0]
    passed = a.backoff[above // vocab] * vocab + above % vocab
    arc_key = arcs.node * vocab + arcs.token
    order = np.argsort(arc_key)
    at = np.minimum(np.searchsorted(arc_key[order], passed), max(0, len(order) - 1))
    hit = arc_key[order][at] == passed if len(order) else np.zeros(0, dtype=bool)
    arc, out = order[at[hit]], place[above[hit] // vocab]
    whole = np.ones(len(arcs.node), dtype=bool)
    whole[arc] = False

    partial = np.nonzero(~whole)[0]
    compact = np.cumsum(~whole) - 1
    if len(partial):
        rows, level, index = _tree_nodes(compact[arc], out, low[arcs.node[partial]], high[arcs.node[partial]])
    else:
        rows = level = index = np.zeros(0, dtype=np.int64)
    groups, group_of = np.unique(level << 40 | index, return_inverse=True)
    starts, sizes = ((groups & ((1 << 40) - 1)) << (groups >> 40)) - 1, 1 << (groups >> 40)
    members = np.repeat(starts, sizes) + np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    group_row, member = np.repeat(np.arange(len(groups)), sizes), leaves[members]

    pooled = whole & (high > low)[arcs.node]
    needed = np.union1d(arcs.node[pooled], member)
    pool_of = np.full(a.nodes, -1)
    pool_of[needed] = np.arange(len(needed))

    alone = ~pooled & (arcs.node < states)  # the node's mass alone, and for partial arcs groups besides
    speaks = np.nonzero(repeated > -np.inf)[0]
    _, repeat_target = a.resolve(speaks, a.last[speaks])
    first_pool, first_group = 2 * states, 2 * states + len(needed)
    arrivals = (
        (repeat_target, speaks, repeated[speaks]),
        (arcs.target[alone], states + arcs.node[alone], arcs.log_p[alone]),
        (arcs.target[pooled], first_pool + pool_of[arcs.node[pooled]], arcs.log_p[pooled]),
        (arcs.target[partial][rows], first_group + group_of.reshape(-1), arcs.log_p[partial][rows]),
    )
    row, column, value = (np.concatenate(parts) for parts in zip(*arrivals, strict=True))
    return Factors(
        _pools(a, pool_of, len(needed)),
        Sparse(group_row, pool_of[member], a.log_weight[member], (len(groups), len(needed))),
        Sparse(row, column, value, (states, first_group + len(groups))),
    )


def _pools(a: Automaton, pool_of: np.ndarray, count: int) -> Sparse:
    """The mass of every state at each pool among the nodes it backs off to, itself included."""
    entries = []
    state, node, weight = np.arange(a.states), np.arange(a.states), np.zeros(a.states)
    while len(state):
        has_pool = pool_of[node] >= 0
        entries.append((pool_of[node[has_pool]], state[has_pool], weight[has_pool]))
        weight = weight + a.log_weight[node]
        node = a.backoff[node]
        state, node, weight = state[node >= 0], node[node >= 0], weight[node >= 0]
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return Sparse(row, column, value, (count, a.states))
