"""The past of streams, stacked: one operation serves all of them, wherever each of them is in its audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.models.transfer import send


class StreamCaches:
    """What the blocks of a student keep of S streams, which share the lengths of chunks, history and look-ahead.

    A stream has one of the S slots. Its frame t lies at t modulo the capacity: of a limited history the oldest frames
    are overwritten, so that nothing is moved, and with a full history there is nothing to mask. Attention does not
    depend on the order of what it sees. Storage grows until it holds history, chunk and look-ahead.

    Args:
        weight: of the network, for device and type.
        layers, heads, width, kernel: of the network.
        left: frames of history, None for all.
        ahead: frames of a chunk and its look-ahead.
        lookahead: of these, frames of look-ahead.

    Attributes:
        keys, values: by layer (S, heads, capacity, width / heads). Keys are rotated by their frame's position.
        conv: by layer (S, kernel - 1, width), last inputs of the depthwise convolution.
        features: (S, lookahead, width), projected features that were look-ahead so far.
    """

    def __init__(
        self,
        weight: Tensor,
        layers: int,
        heads: int,
        width: int,
        kernel: int,
        left: int | None,
        ahead: int,
        lookahead: int,
    ) -> None:
        self.left = left
        self._most = None if left is None else left + ahead  # of a stream, frames
        self.keys = [weight.new_zeros(0, heads, 0, width // heads) for _ in range(layers)]
        self.values = [weight.new_zeros(0, heads, 0, width // heads) for _ in range(layers)]
        self.conv = [weight.new_zeros(0, kernel - 1, width) for _ in range(layers)]
        self.features = weight.new_zeros(0, lookahead, width)
        self._free: list[int] = []

    @property
    def slots(self) -> int:
        """S, free ones included."""
        return len(self.features)

    @property
    def used(self) -> int:
        """Number of streams."""
        return self.slots - len(self._free)

    @property
    def capacity(self) -> int:
        """Frames of a stream for which there is room."""
        return self.keys[0].shape[2]

    def tensors(self) -> list[Tensor]:
        """All of the storage."""
        return [*self.keys, *self.values, *self.conv, self.features]

    def take(self, count: int) -> list[int]:
        """Slots for ``count`` new streams, whose past is empty."""
        if len(self._free) < count:
            slots = max(2 * self.slots, self.slots + count - len(self._free))
            self._free += range(self.slots, slots)
            self._resize(slots, self.capacity)
        rows = [self._free.pop(0) for _ in range(count)]
        chosen = self._index(rows)
        for tensor in (*self.conv, self.features):
            tensor[chosen] = 0
        return rows

    def release(self, rows: Sequence[int]) -> None:
        """Give slots back. Any thread may do this, at any time: a slot that is free is not touched."""
        self._free.extend(rows)

    def move(self, other: StreamCaches, rows: Sequence[int], frames: int) -> list[int]:
        """Copy streams of ``frames`` frames from slots ``rows`` of other caches; the slots that they get here."""
        self.reserve(min(frames, other.capacity))
        taken = self.take(len(rows))
        old_slots, new_slots = self._index(rows), self._index(taken)
        count = min(self.capacity, other.capacity)
        for target, source in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            target[new_slots, :, :count] = source[old_slots, :, :count]
        for target, source in zip((*self.conv, self.features), (*other.conv, other.features), strict=True):
            target[new_slots] = source[old_slots]
        return taken

    def reserve(self, frames: int) -> None:
        """Make room for streams that reach so many frames."""
        needed = frames if self._most is None else min(frames, self._most)
        if needed > self.capacity:
            room = needed + needed // 2
            self._resize(self.slots, room if self._most is None else min(room, self._most))

    def _index(self, rows: Sequence[int]) -> Tensor:
        return send(torch.tensor(rows), self.features.device)

    def _resize(self, slots: int, capacity: int) -> None:
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = F.pad(old, (0, 0, 0, capacity - old.shape[2], 0, 0, 0, slots - len(old)))
        for layer, conv in enumerate(self.conv):
            self.conv[layer] = F.pad(conv, (0, 0, 0, 0, 0, slots - len(conv)))
        self.features = F.pad(self.features, (0, 0, 0, 0, 0, slots - len(self.features)))

    def step(self, rows: Sequence[int], first: Sequence[int], time: int, frames: int) -> StreamStep:
        """Prepare the next chunk of N streams.

        Args:
            rows: slot of each stream.
            first: number of the chunk's first frame in each stream.
            time: frames of a chunk and its look-ahead.
            frames: of these, frames of the chunk.
        """
        self.reserve(max(first) + time)
        device, capacity = self.features.device, self.capacity
        seen = [time + (start if self.left is None else min(start, self.left)) for start in first]
        columns = min(capacity, max(first) + time)
        slot, start, count = send(torch.tensor([rows, first, seen]), device)[..., None]  # (N, 1) each
        mask = None
        if min(seen) < columns:
            # How long ago the frame at each place was written, 0 for the newest; older ones are of no use any more.
            age = (start + (time - 1) - torch.arange(columns, device=device)) % capacity
            mask = (age < count)[:, None, None]
        consecutive = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        chosen = slice(rows[0], rows[0] + len(rows)) if consecutive else slot[:, 0]
        places = (start + torch.arange(time, device=device)) % capacity
        return StreamStep(self, chosen, slot, places, start, columns, mask, frames)


@dataclass
class StreamStep:
    """A chunk of N streams on its way through the blocks.

    Attributes:
        caches: of the streams.
        rows: slots of the streams; a slice spares copies.
        slot: the same as (N, 1).
        places: (N, T) where the new frames of each stream go.
        first: (N, 1) numbers of the first new frames.
        columns: frames of the caches that may hold something.
        mask: (N, 1, 1, columns) bool, True = visible; None: everything is.
        frames: frames of the chunk; those behind it are look-ahead and will be overwritten.
    """

    caches: StreamCaches
    rows: slice | Tensor
    slot: Tensor
    places: Tensor
    first: Tensor
    columns: int
    mask: Tensor | None
    frames: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of (N, heads, T, dim) to the past of a block and to these T frames, which become part of it."""
        keys, values = self.caches.keys[layer], self.caches.values[layer]
        keys[self.slot, :, self.places] = key.transpose(1, 2)
        values[self.slot, :, self.places] = value.transpose(1, 2)
        seen = keys[self.rows, :, : self.columns], values[self.rows, :, : self.columns]
        return F.scaled_dot_product_attention(query, seen[0], seen[1], attn_mask=self.mask)

    def with_past(self, layer: int, x: Tensor) -> Tensor:
        """(N, T, width) inputs of a block's depthwise convolution, behind the kernel - 1 before: (N, ..., width)."""
        conv = self.caches.conv[layer]
        x = torch.cat((conv[self.rows], x), 1)
        conv[self.rows] = x[:, self.frames : self.frames + conv.shape[1]]
        return x
