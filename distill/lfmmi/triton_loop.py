"""The loop over frames for a GPU: one kernel runs both recursions of :mod:`distill.lfmmi.topology`.

A program of the kernel owns one utterance and one direction, so that nothing but its own threads waits from one frame
to the next, and the host is never asked. The sums, their scaling and the emissions are those of the topology; the
n-gram's part of a frame is three sparse products, of :mod:`distill.lfmmi.backoff_factors` or a bigram's
(:func:`distill.lfmmi.backoff.bigram_factors`), and a token that goes on:

    pools = G all,   groups = H pools,   arrivals = F [blank; all; pools; groups] + goes_on * token

The backward direction multiplies by the transposes. Vectors that a product gathers from lie in scratch memory, which
the first-level cache of a multiprocessor holds up to tens of thousands of states.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _segment(sum_a, start_a, sum_b, start_b):
    return tl.where(start_b != 0, sum_b, sum_a + sum_b), start_a | start_b


@triton.jit
def _entries(columns, values, groups, tile, TILE: tl.constexpr, GROUP: tl.constexpr):
    """Columns and values (TILE / GROUP, GROUP) and codes (TILE / GROUP,) of a tile."""
    COUNT: tl.constexpr = TILE // GROUP
    group = tl.arange(0, COUNT)
    place = tile * TILE + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    return tl.load(columns + place), tl.load(values + place), tl.load(groups + tile * COUNT + group)


@triton.jit
def _row_sums(column, value, code, vector, carry):
    """Of one tile: (TILE / GROUP,) sums of the rows that end with each group, and what is carried to the next tile."""
    product = value * tl.load(vector + column, mask=column >= 0, other=0.0)
    sums, started = tl.associative_scan((tl.sum(product, 1), code & 1), 0, _segment)
    sums = tl.where(started == 0, sums + carry, sums)
    group = tl.arange(0, code.shape[0])
    return sums, tl.sum(tl.where(group == code.shape[0] - 1, sums, 0.0), 0)


@triton.jit
def _emission(x, x_token, last, state, mask):
    """Emission of the last token of states, 0 where that is none (the sentence start)."""
    label = tl.load(last + state, mask=mask, other=0)
    return tl.load(x + label * x_token, mask=label > 0, other=0.0)


# Numbers that differ from batch to batch or from graph to graph compile nothing anew.
NUMBERS = ["first", "last_frame", "slots", "direction", "batch", "states", "pool_count", "group_count"]
NUMBERS += ["x_frame", "x_utterance", "x_token", "blank_frame", "blank_utterance"]
NUMBERS += ["tile_0", "tile_1", "tile_2", "tile_3", "tile_4", "tile_5", "tile_6"]


@triton.jit(do_not_specialize=NUMBERS)
def recursion(
    columns,
    values,
    groups,
    goes_on,
    last,
    x,
    x_blank,
    alpha_token,
    alpha_blank,
    beta_token,
    beta_blank,
    alpha_scales,
    beta_scales,
    scratch,
    first,
    last_frame,
    slots,
    direction,
    batch,
    states,
    pool_count,
    group_count,
    x_frame,
    x_utterance,
    x_token,
    blank_frame,
    blank_utterance,
    tile_0,
    tile_1,
    tile_2,
    tile_3,
    tile_4,
    tile_5,
    tile_6,
    EVERY: tl.constexpr,
    TINY: tl.constexpr,
    FROM_BLANK: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Frames ``first`` to ``last_frame - 1`` of utterance ``program_id(0)``; ``program_id(1) + direction``: 1 is back.

    Sums of a frame lie in a slot, (slots, S) for each utterance: alpha's slot 0 holds those before the first frame, and
    beta's slot 0 is for those after the frame before the first. A tile's entries are read while the one before it, also
    of the matrix before, is added up.
    """
    b = tl.program_id(0)
    way = tl.program_id(1)
    x += b.to(tl.int64) * x_utterance
    x_blank += b.to(tl.int64) * blank_utterance
    size = 2 * states + pool_count + group_count
    blank_at = scratch + (way * batch + b).to(tl.int64) * (size + states)
    all_at = blank_at + states
    pool_at = all_at + states
    group_at = pool_at + pool_count
    emitted_at = blank_at + size
    lane = tl.arange(0, BLOCK)
    zero = tl.sum(tl.zeros((BLOCK,), dtype=goes_on.dtype.element_ty), 0)
    if way + direction == 0:
        token = alpha_token + b.to(tl.int64) * slots * states
        blank = alpha_blank + b.to(tl.int64) * slots * states
        for t in range(first, last_frame):
            at = (t - first) % slots * states
            to = (t - first + 1) % slots * states
            column, value, code = _entries(columns, values, groups, tile_0, TILE, GROUP)
            total = tl.zeros((BLOCK,), dtype=goes_on.dtype.element_ty)
            for start in range(0, states, BLOCK):
                inside = start + lane < states
                token_sum = tl.load(token + at + start + lane, mask=inside, other=0.0)
                blank_sum = tl.load(blank + at + start + lane, mask=inside, other=0.0)
                tl.store(blank_at + start + lane, blank_sum, mask=inside)
                tl.store(all_at + start + lane, token_sum + blank_sum, mask=inside)
                total += token_sum + blank_sum
            scale = zero + 1.0
            if t % EVERY == EVERY - 1:
                scale = tl.maximum(tl.sum(total, 0), TINY)
                tl.store(alpha_scales + (t // EVERY - first // EVERY) * batch + b, scale)
            blank_emission = tl.load(x_blank + t * blank_frame) / scale
            frame = x + t * x_frame
            tl.debug_barrier()
            carry = zero
            for tile in range(tile_0, tile_1):
                row, ends = (code >> 1) - 1, code > 1
                next_column, next_value, next_code = _entries(columns, values, groups, tile + 1, TILE, GROUP)
                sums, carry = _row_sums(column, value, code, all_at, carry)
                column, value, code = next_column, next_value, next_code
                tl.store(pool_at + row, sums, mask=ends)
            tl.debug_barrier()
            carry = zero
            for tile in range(tile_1, tile_2):
                row, ends = (code >> 1) - 1, code > 1
                next_column, next_value, next_code = _entries(columns, values, groups, tile + 1, TILE, GROUP)
                sums, carry = _row_sums(column, value, code, pool_at, carry)
                column, value, code = next_column, next_value, next_code
                tl.store(group_at + row, sums, mask=ends)
            tl.debug_barrier()
            carry = zero
            for tile in range(tile_2, tile_3):
                row, ends = (code >> 1) - 1, code > 1
                goes = tl.load(token + at + row, mask=ends, other=0.0) * tl.load(goes_on + row, mask=ends, other=0.0)
                emission = _emission(frame, x_token, last, row, ends) / scale
                all_sum = tl.load(all_at + row, mask=ends, other=0.0)
                next_column, next_value, next_code = _entries(columns, values, groups, tile + 1, TILE, GROUP)
                sums, carry = _row_sums(column, value, code, blank_at, carry)
                column, value, code = next_column, next_value, next_code
                tl.store(token + to + row, (sums + goes) * emission, mask=ends)
                tl.store(blank + to + row, all_sum * blank_emission, mask=ends)
            tl.debug_barrier()
    else:
        token = beta_token + b.to(tl.int64) * slots * states
        blank = beta_blank + b.to(tl.int64) * slots * states
        for back in range(1, last_frame - tl.maximum(first, 1) + 1):
            t = last_frame - back
            to = (t - first) * states
            at = to + states
            column, value, code = _entries(columns, values, groups, tile_3, TILE, GROUP)
            scale = zero + 1.0
            if t % EVERY == EVERY - 1:
                largest = tl.zeros((BLOCK,), dtype=goes_on.dtype.element_ty)
                for start in range(0, states, BLOCK):
                    inside = start + lane < states
                    largest = tl.maximum(largest, tl.load(token + at + start + lane, mask=inside, other=0.0))
                    largest = tl.maximum(largest, tl.load(blank + at + start + lane, mask=inside, other=0.0))
                scale = tl.maximum(tl.max(largest, 0), TINY)
                tl.store(beta_scales + (last_frame // EVERY - 1 - t // EVERY) * batch + b, scale)
            blank_emission = tl.load(x_blank + t * blank_frame) / scale
            frame = x + t * x_frame
            for start in range(0, states, BLOCK):
                inside = start + lane < states
                emission = _emission(frame, x_token, last, start + lane, inside) / scale
                emitted = tl.load(token + at + start + lane, mask=inside, other=0.0) * emission
                tl.store(emitted_at + start + lane, emitted, mask=inside)
            tl.debug_barrier()
            carry = zero
            for tile in range(tile_3, tile_4):
                row, ends = (code >> 1) - 1, code > 1
                next_column, next_value, next_code = _entries(columns, values, groups, tile + 1, TILE, GROUP)
                sums, carry = _row_sums(column, value, code, emitted_at, carry)
                column, value, code = next_column, next_value, next_code
                tl.store(blank_at + row, sums, mask=ends)
            tl.debug_barrier()
            carry = zero
            for tile in range(tile_4, tile_5):
                row, ends = (code >> 1) - 1, code > 1
                pool = tl.load(pool_at + row, mask=ends, other=0.0)
                next_column, next_value, next_code = _entries(columns, values, groups, tile + 1, TILE, GROUP)
                sums, carry = _row_sums(column, value, code, group_at, carry)
                column, value, code = next_column, next_value, next_code
                tl.store(pool_at + row, sums + pool, mask=ends)
            tl.debug_barrier()
            carry = zero
            for tile in range(tile_5, tile_6):
                row, ends = (code >> 1) - 1, code > 1
                follows = tl.load(all_at + row, mask=ends, other=0.0)
                follows += tl.load(blank + at + row, mask=ends, other=0.0) * blank_emission
                goes = tl.load(emitted_at + row, mask=ends, other=0.0) * tl.load(goes_on + row, mask=ends, other=0.0)
                next_column, next_value, next_code = _entries(columns, values, groups, tile + 1, TILE, GROUP)
                sums, carry = _row_sums(column, value, code, pool_at, carry)
                column, value, code = next_column, next_value, next_code
                sums += follows
                tl.store(token + to + row, sums + goes, mask=ends)
                if FROM_BLANK:
                    sums += tl.load(blank_at + row, mask=ends, other=0.0)
                tl.store(blank + to + row, sums, mask=ends)
            tl.debug_barrier()
