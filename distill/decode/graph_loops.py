"""Loops over the arcs of decoding graphs, compiled by numba: a lexicon's tree behind every history, and CTC topology.

Arcs are arrays of source, input label (a token's id + 1, 0 for none), output label, cost and target; or, sorted by
source, the same without the source and with ``begin`` (states + 1,).
"""

from __future__ import annotations

import numpy as np
from numba import njit

TAIL = np.int64(1) << 62  # added to the number of a tail, until tails have states

Arcs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@njit(cache=True)
def lexicon_trees(
    src: np.ndarray,
    rank: np.ndarray,
    cost: np.ndarray,
    dst: np.ndarray,
    spelling: np.ndarray,
    start: np.ndarray,
    label: np.ndarray,
    suffix: np.ndarray,
    suffixes: int,
    first: int,
    arcs: Arcs,
    targets: np.ndarray,
    fill: bool,
) -> tuple[int, int]:
    """A tree of the spellings of the words that follow each history.

    A cost is paid, and a word is put out, as early as the tokens allow. Behind the token that tells the word the tree
    is a tail, which depends only on the remaining tokens and the history that follows; tails are shared.

    Args:
        src, rank, cost, dst: (N,) a spelling behind a history, sorted by history and rank.
        spelling: tokens of all spellings, in lexicographic order; spelling r is ``start[r]`` to ``start[r + 1]``.
        label: output label of each spelling.
        suffix: number of the remaining tokens' sequence at each position of ``spelling``; there are ``suffixes``.
        first: number of the first new state.
        arcs: written if ``fill``; ``targets`` (N,) int64 likewise, where a tail is TAIL + target * suffixes + suffix.

    Returns:
        number of arcs, and number of the state after the last new one.
    """
    count, free = 0, first
    size = len(src)
    # Subtrees to be made: state, depth, first and last row, cost paid so far
    states, depths = np.empty(4096, np.int64), np.empty(4096, np.int64)
    lows, highs, paid = np.empty(4096, np.int64), np.empty(4096, np.int64), np.empty(4096, np.float32)
    row = 0
    while row < size:
        last = row
        while last + 1 < size and src[last + 1] == src[row]:
            last += 1
        top = 0
        states[0], depths[0], lows[0], highs[0], paid[0] = src[row], 0, row, last, 0.0
        while top >= 0:
            state, depth, low, high, base = states[top], depths[top], lows[top], highs[top], paid[top]
            top -= 1
            a = low
            while a <= high:
                token = spelling[start[rank[a]] + depth]
                b = a
                while b < high and spelling[start[rank[b + 1]] + depth] == token:
                    b += 1
                e = a
                while e <= b and start[rank[e] + 1] - start[rank[e]] == depth + 1:
                    if fill:
                        arcs[0][count], arcs[1][count], arcs[2][count] = state, token + 1, label[rank[e]]
                        arcs[3][count], targets[count] = cost[e] - base, dst[e]
                    count += 1
                    e += 1
                if e == b:
                    if fill:
                        arcs[0][count], arcs[1][count], arcs[2][count] = state, token + 1, label[rank[e]]
                        arcs[3][count] = cost[e] - base
                        targets[count] = TAIL + dst[e] * suffixes + suffix[start[rank[e]] + depth + 1]
                    count += 1
                elif e < b:
                    lowest = cost[e]
                    for r in range(e + 1, b + 1):
                        lowest = min(lowest, cost[r])
                    if fill:
                        arcs[0][count], arcs[1][count], arcs[2][count] = state, token + 1, 0
                        arcs[3][count], targets[count] = lowest - base, free
                    count += 1
                    top += 1
                    if top == len(states):
                        states, depths = np.append(states, states), np.append(depths, depths)
                        lows, highs, paid = np.append(lows, lows), np.append(highs, highs), np.append(paid, paid)
                    states[top], depths[top], lows[top], highs[top], paid[top] = free, depth + 1, e, b, lowest
                    free += 1
                a = b + 1
        row = last + 1
    return count, free


@njit(cache=True)
def places_by_source(src: np.ndarray, states: int) -> tuple[np.ndarray, np.ndarray]:
    """``begin`` of each source's arcs, and the (arcs,) order that sorts them by source."""
    begin = np.zeros(states + 1, np.int64)
    for s in src:
        begin[s + 1] += 1
    for s in range(states):
        begin[s + 1] += begin[s]
    free = begin[:-1].copy()
    order = np.empty(len(src), np.int64)
    for arc in range(len(src)):
        order[free[src[arc]]] = arc
        free[src[arc]] += 1
    return begin, order


@njit(cache=True)
def repeats(pairs: np.ndarray, tokens: int, begin: np.ndarray, il: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Which (state * tokens + input label) have an arc of that label, from the state or from where it backs off to."""
    result = np.zeros(len(pairs), np.bool_)
    for p in range(len(pairs)):
        state, label = pairs[p] // tokens, pairs[p] % tokens
        while state >= 0 and not result[p]:
            following = np.int64(-1)
            for arc in range(begin[state], begin[state + 1]):
                if il[arc] == label:
                    result[p] = True
                elif il[arc] == 0:
                    following = np.int64(to[arc])
            state = following
    return result


@njit(cache=True)
def backed_off(
    pairs: np.ndarray, again: np.ndarray, tokens: int, begin: np.ndarray, il: np.ndarray, to: np.ndarray
) -> np.ndarray:
    """The pairs that the pairs with ``again`` back off to."""
    result = np.empty(len(pairs), np.int64)
    count = 0
    for p in range(len(pairs)):
        if again[p]:
            state, label = pairs[p] // tokens, pairs[p] % tokens
            for arc in range(begin[state], begin[state + 1]):
                if il[arc] == 0:
                    result[count] = np.int64(to[arc]) * tokens + label
                    count += 1
                    break
    return result[:count]


@njit(cache=True)
def topology(
    pairs: np.ndarray,
    again: np.ndarray,
    tokens: int,
    lg: Arcs,
    final: np.ndarray,
    words_from: tuple[int, int],
    states: np.ndarray,
    arcs: np.ndarray,
    word_begins: np.ndarray,
    fill: bool,
) -> int:
    """CTC topology ∘ LG.

    State q of the result is LG's state q behind a blank; state Q + p is state ``pairs[p] // tokens`` in the frames of
    the token that led there, ``pairs[p] % tokens``. From there the same token must not follow without a blank. Where it
    does not follow anyway, what follows is shared with state q.

    Args:
        pairs: sorted; ``again`` tells which can be followed by the same token.
        lg: begin, input label, output label, cost, target.
        final: (Q,) cost of ending in a state.
        words_from: first and last + 1 of the states from which arcs with a token begin a word.
        states, arcs: written if ``fill``, in OpenFst's types.
        word_begins: bit ``a % 8`` of byte ``a // 8`` is set for arcs that begin a word.

    Returns:
        number of arcs.
    """
    begin, il, ol, cost, to = lg
    q_count = len(begin) - 1
    of_state = np.zeros(q_count + 1, np.int64)  # where a state's pairs begin
    for pair in pairs:
        of_state[pair // tokens + 1] += 1
    for q in range(q_count):
        of_state[q + 1] += of_state[q]
    count = 0
    for number in range(q_count + len(pairs)):
        p = number - q_count
        q = number if p < 0 else pairs[p] // tokens
        token = np.int64(0) if p < 0 else pairs[p] % tokens
        here, inputs, outputs = count, 0, 0
        full = p < 0 or again[p]
        # The blank, or the token in further frames; behind a token the blank; or all that is shared
        if fill:
            arcs[count].ilabel, arcs[count].olabel = 1 if p < 0 else token, 0
            arcs[count].cost, arcs[count].target = 0.0, number
        count += 1
        if p >= 0:
            if fill:
                arcs[count].ilabel, arcs[count].olabel = 1 if full else 0, 0
                arcs[count].cost, arcs[count].target = 0.0, q
            inputs += 0 if full else 1
            count += 1
        if full:
            for arc in range(begin[q], begin[q + 1]):
                label = il[arc]
                if p >= 0 and label == token:
                    continue
                target = np.int64(to[arc])
                carried = token if label == 0 else np.int64(label)
                if carried:
                    low, high, key = of_state[target], of_state[target + 1], target * tokens + carried
                    while low < high:
                        middle = (low + high) // 2
                        if pairs[middle] < key:
                            low = middle + 1
                        else:
                            high = middle
                    target = q_count + low
                inputs += label == 0
                outputs += ol[arc] == 0
                if fill:
                    arcs[count].ilabel, arcs[count].olabel = label, ol[arc]
                    arcs[count].cost, arcs[count].target = cost[arc], target
                    if label and words_from[0] <= q < words_from[1]:
                        word_begins[count // 8] |= np.uint8(1 << (count % 8))
                count += 1
        if fill:
            states[number].final = final[q] if full else np.inf
            states[number].begin, states[number].arcs = here, count - here
            states[number].input_epsilons = inputs
            states[number].output_epsilons = outputs + (1 if p < 0 else 2)
    return count
