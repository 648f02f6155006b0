"""Word alignment and error counts, equal to those of NIST sclite.

The alignment minimises the cost 4 S + 3 (D + I) of its S substitutions, D deletions and I insertions. Of equally cheap
alignments sclite takes the one that, traced from the end, matches or substitutes where it can, else inserts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SUBSTITUTION, GAP = 4, 3  # cost of a substitution, and of an insertion or deletion
BLOCK_CELLS = 1 << 20  # of the arrays that count_errors works on


class Counts(NamedTuple):
    """Words of the reference, and errors by kind."""

    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Pairs of aligned positions (in ``ref``, in ``hyp``) in order.

    The first is None for an insertion, the second for a deletion.
    """
    above = list(range(0, GAP * len(hyp) + 1, GAP))
    costs = [above]
    for number, word in enumerate(ref, 1):
        row = [GAP * number]
        for place, other in enumerate(hyp):
            match = above[place] + SUBSTITUTION * (word != other)
            row.append(min(match, above[place + 1] + GAP, row[place] + GAP))
        costs.append(row)
        above = row
    pairs: list[tuple[int | None, int | None]] = []
    i, j = len(ref), len(hyp)
    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + SUBSTITUTION * (ref[i - 1] != hyp[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif j and costs[i][j] == costs[i][j - 1] + GAP:
            j -= 1
            pairs.append((None, j))
        else:
            i -= 1
            pairs.append((i, None))
    return pairs[::-1]


def count_errors(refs: Sequence[Sequence[str]], hyps: Sequence[Sequence[str]]) -> list[Counts]:
    """Error counts of each pair of reference and hypothesis: those of :func:`align`, for many utterances at once."""
    sizes = [len(ref) + len(hyp) for ref, hyp in zip(refs, hyps, strict=True)]
    order = sorted(range(len(refs)), key=sizes.__getitem__)
    counts: list[Counts] = [Counts(0, 0, 0, 0)] * len(refs)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * (sizes[order[end]] + 1) <= BLOCK_CELLS:
            end += 1
        block = order[start:end]
        for index, count in zip(block, _count_block([refs[i] for i in block], [hyps[i] for i in block]), strict=True):
            counts[index] = count
        start = end
    return counts


def _count_block(refs: list[Sequence[str]], hyps: list[Sequence[str]]) -> list[Counts]:
    """Counts of a block of B pairs by dynamic programming over the antidiagonals i + j of their alignment tables.

    A cell (i, j) holds the cost of aligning the first i reference words with the first j of the hypothesis, and the
    substitutions of the alignment that sclite would trace back from there. D - I = len(ref) - len(hyp) and
    3 (D + I) = cost - 4 S then give the other counts.
    """
    ref_lengths, hyp_lengths = (np.array([len(words) for words in side]) for side in (refs, hyps))
    n, m = int(ref_lengths.max()), int(hyp_lengths.max())
    ids: dict[str, int] = {}
    ref_ids, hyp_ids = (
        _padded([[ids.setdefault(word, len(ids)) for word in words] for words in side], longest, padding)
        for side, longest, padding in ((refs, n, -1), (hyps, m, -2))
    )
    batch = len(refs)
    cost = np.zeros((3, batch, n + 1), np.int32)  # of the antidiagonals d, d - 1 and d - 2, by i; (0, 0) costs nothing
    subs = np.zeros((3, batch, n + 1), np.int32)
    end_cost, end_subs = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
    for d in range(1, n + m + 1):
        now, last, before = d % 3, (d - 1) % 3, (d - 2) % 3
        if d <= m:  # i = 0: insertions alone
            cost[now, :, 0], subs[now, :, 0] = GAP * d, 0
        if d <= n:  # j = 0: deletions alone
            cost[now, :, d], subs[now, :, d] = GAP * d, 0
        low, high = max(1, d - m), min(n, d - 1)  # i with 1 <= i <= n and 1 <= j = d - i <= m
        if low <= high:
            here, back = slice(low, high + 1), slice(low - 1, high)
            # hypothesis words j - 1 = d - i - 1 for i = low ... high, from right to left
            hyp_words = hyp_ids[:, d - high - 1 : d - low][:, ::-1]
            differs = ref_ids[:, back] != hyp_words  # (B, high - low + 1)
            match = cost[before, :, back] + SUBSTITUTION * differs
            inserted, deleted = cost[last, :, here] + GAP, cost[last, :, back] + GAP
            best = np.minimum(match, np.minimum(inserted, deleted))
            cost[now, :, here] = best
            gaps = np.where(inserted == best, subs[last, :, here], subs[last, :, back])
            subs[now, :, here] = np.where(match == best, subs[before, :, back] + differs, gaps)
        done = np.flatnonzero(ref_lengths + hyp_lengths == d)
        end_cost[done], end_subs[done] = cost[now, done, ref_lengths[done]], subs[now, done, ref_lengths[done]]
    gaps_total = (end_cost - SUBSTITUTION * end_subs) // GAP  # D + I
    deletions = (gaps_total + ref_lengths - hyp_lengths) // 2
    columns = ref_lengths, end_subs, deletions, gaps_total - deletions
    return [Counts(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _padded(rows: list[list[int]], length: int, padding: int) -> np.ndarray:
    """(len(rows), length) array of the rows, filled up with ``padding``."""
    out = np.full((len(rows), length), padding, np.int32)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
