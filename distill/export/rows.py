"""One row of log-posteriors for each encoder frame, where a student has several: for runtimes that count 40 ms a row.

Greedy CTC decoding needs of all rows only the first of each token, and a blank between two equal tokens. There is room
for these in almost every chunk, as at 20 ms a row most rows are blank: each is put where its time is, or in the next
row that is free. A chunk with more of them than encoder frames gets as many rows as it needs, and later chunks have
fewer until the times are right again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST_DEBT = 64  # rows


class RowState(NamedTuple):
    """Of B streams: rows that were put out in excess, and the best token of the last frame; each (B,), first zeros."""

    debt: Tensor
    last: Tensor


def one_row_per_frame(log_probs: Tensor, per_frame: int, state: RowState) -> tuple[Tensor, RowState]:
    """Choose rows of the log-posteriors of a chunk: (B, n, V), ``per_frame`` for each encoder frame -> (B, t, V).

    t is n / per_frame, more if a stream has more tokens than that, less if all are in debt. Greedy decoding of the
    chosen rows finds the tokens of all rows.
    """
    ids = log_probs.argmax(-1)
    number = torch.arange(ids.shape[1])
    before = torch.cat((state.last[:, None], ids[:, :-1]), 1)
    following = _first_from(ids > 0, number)  # (B, n) number of the next token's row, n if there is none
    next_id = torch.cat((ids, torch.full_like(ids[:, :1], -1)), 1).gather(1, following)
    # A blank at the end is needed, too: the next chunk may begin with the same token.
    separates = torch.logical_or(next_id == before, next_id == -1)
    needed = torch.logical_and(ids != before, torch.logical_or(ids > 0, separates))

    rank = needed.long().cumsum(1) - 1
    count = needed.long().sum(1)
    frames = ids.shape[1] // per_frame
    rows = torch.maximum(count, frames - state.debt).max().clamp(min=1)  # runtimes fail with no rows at all
    # The place of a needed row is its frame's or later, behind those before it, and leaves room for those after it.
    earliest = torch.div(number, per_frame, rounding_mode="floor") - state.debt[:, None]
    slack = torch.where(needed, earliest - rank, torch.zeros_like(rank))
    upto = number[:, None] >= number
    delay = torch.where(upto, slack[:, None], torch.zeros_like(slack[:, None])).amax(-1).clamp(min=0)
    place = torch.minimum(rank + delay, rows - count[:, None] + rank)

    row = torch.arange(rows)[:, None]  # type: ignore[call-overload]  # a tensor, so that a traced model depends on it
    here = torch.logical_and(needed[:, None], place[:, None] == row)
    earlier = torch.logical_and(needed[:, None], place[:, None] < row)
    nothing = torch.full_like(place[:, None], -1)
    # Other rows are the last of their frame if that is blank, else the token before once more.
    last_of_frame = (per_frame * (row[:, 0] + 1 + state.debt[:, None]) - 1).clamp(max=ids.shape[1] - 1)
    token_before = torch.where(earlier, number, nothing).amax(-1)
    use_frame = torch.logical_or(ids.gather(1, last_of_frame) == 0, token_before < 0)
    filler = torch.where(use_frame, last_of_frame, token_before)
    chosen = torch.where(here, number, nothing).amax(-1)
    chosen = torch.where(chosen < 0, filler, chosen)
    taken = log_probs.gather(1, chosen[..., None].expand(-1, -1, log_probs.shape[2]))
    return taken, RowState((state.debt + rows - frames).clamp(max=MOST_DEBT - 1), ids[:, -1])


def _first_from(holds: Tensor, number: Tensor) -> Tensor:
    """(B, n) number of the first true entry at or after each of ``holds`` (B, n), n if there is none."""
    none = torch.full_like(number, len(number))
    where = torch.where(holds, number, none)[:, None]
    return torch.where(number[:, None] <= number, where, none).amin(-1)
