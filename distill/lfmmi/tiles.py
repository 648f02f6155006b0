"""Sparse matrices cut into tiles of equal work, for :mod:`distill.lfmmi.triton_loop`.

A matrix is a list of entries in the order of its rows, cut into tiles. A row is filled up to a multiple of GROUP
entries; GROUP neighbours are added first, and a segmented scan adds the groups of each row, whatever their number. So
the work is that of the entries, however uneven the rows are; a row that a tile does not end is carried to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distill.lfmmi.backoff_factors import Sparse

GROUP = 4  # neighbouring entries of a row, 16 bytes of float32


class Table(NamedTuple):
    """Six matrices (G, H, F and their transposes) one behind the other.

    ``columns`` int32, -1 for filling; ``values``; ``groups`` int32, for GROUP entries each: twice (1 + the row that
    ends here), or 0, plus 1 if a row starts here; ``first``: tile with which each matrix starts, and where the last
    ends. An empty tile follows.
    """

    columns: np.ndarray
    values: np.ndarray
    groups: np.ndarray
    first: list[int]


def table(matrices: list[Sparse], rows: list[np.ndarray], tile: int) -> Table:
    """Lay out matrices, each with the rows (ascending, without gaps between their entries' rows) that are wanted."""
    columns, values, groups, first = [], [], [], [0]
    for matrix, wanted in zip(matrices, rows, strict=True):
        count = np.bincount(matrix.row, minlength=matrix.size[0])[wanted]
        filled = np.maximum(1, -(-count // GROUP))  # groups of a row
        end = filled.cumsum()
        total = -(-int(end[-1]) * GROUP // tile) * tile if len(end) else 0
        column, value, code = np.full(total, -1), np.zeros(total), np.zeros(total // GROUP, dtype=np.int64)
        order = np.lexsort((matrix.column, matrix.row))
        begin = (end - filled) * GROUP
        place = np.repeat(begin - (count.cumsum() - count), count) + np.arange(len(order))
        column[place], value[place] = matrix.column[order], np.exp(matrix.log_value[order])
        code[end - 1] = 2 * (wanted + 1)
        code[end - filled] += 1
        columns.append(column)
        values.append(value)
        groups.append(code)
        first.append(first[-1] + total // tile)
    columns.append(np.full(tile, -1))
    values.append(np.zeros(tile))
    groups.append(np.zeros(tile // GROUP, dtype=np.int64))
    return Table(
        np.concatenate(columns).astype(np.int32), np.concatenate(values), np.concatenate(groups).astype(np.int32), first
    )
