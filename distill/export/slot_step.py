"""A step of many streams at once, whose keys and values stay where they are: each stream has a slot of the caches.

A step computes what :class:`distill.export.step.StreamStep` does, for the next chunk of each of B streams, wherever
each of them is in its audio. The caches have S slots. A step writes the chunk's keys and values to the slots of its
streams, and reads what these slots hold; the others are not touched, so that nothing is copied from one batch to the
next as long as a cache's output has the memory of its input. What is small is passed for the streams of a batch alone.

Inputs, with chunks of C encoder frames, look-ahead R, history L, width W, K frames in a depthwise convolution:

- samples (B, n): audio of each stream from the first sample of its next encoder frame on;
- slots (B,): of the streams;
- past (B,): frames before the chunk; a multiple of L + C may be subtracted as long as it remains at least L + C;
- origin (B, 2, dim / 2): cosines and sines of the angles of the chunk's first frame, of which only differences matter;
- ahead (B, R, W): frames [C k, C k + R) from the front end; absent if R is 0;
- conv (B, layers, K - 1, W): last inputs of the depthwise convolutions; initially zeros;
- keys_0, values_0, ... (S, heads, L + C, dim).

Outputs: log-posteriors (B, C times logits_per_frame, V), next_ahead, next_conv, next_keys_0, next_values_0, ...
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.export.step import HIDDEN, StreamStep, rotated, strided
from distill.models.conformer import Attention, CausalConvolution, ConformerBlock, for_rotation


class SlotStep(StreamStep):
    """A step of B streams of a student, with a copy of its weights; see the module for its inputs."""

    @property
    def time(self) -> int:
        """Encoder frames of a step."""
        return self.shapes.chunk + self.shapes.lookahead

    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and of outputs, in order."""
        state = (["ahead"] if self.shapes.lookahead else []) + ["conv"]
        for number in range(len(self.blocks)):
            state += [f"keys_{number}", f"values_{number}"]
        return ["samples", "slots", "past", "origin", *state], ["log_probs", *(f"next_{name}" for name in state)]

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The axes whose sizes vary: B and S."""
        inputs, outputs = self.names()
        return {name: {0: "slots" if "keys" in name or "values" in name else "streams"} for name in (*inputs, *outputs)}

    def first_inputs(self, streams: int = 2, slots: int = 3) -> tuple[Tensor, ...]:
        """Inputs of the first step of silent streams."""
        shapes, zeros, layers = self.shapes, torch.zeros, len(self.blocks)
        past = cast(ConformerBlock, self.blocks[0]).convolution.kernel - 1
        origin = torch.stack((torch.ones(streams, self.dim // 2), zeros(streams, self.dim // 2)), 1)
        ahead = [zeros(streams, shapes.lookahead, self.width)] if shapes.lookahead else []
        history = [zeros(slots, self.heads, shapes.ring, self.dim) for _ in range(2 * layers)]
        conv = zeros(streams, layers, past, self.width)
        frames = zeros(streams, dtype=torch.long)
        return (zeros(streams, shapes.samples), torch.arange(streams), frames, origin, *ahead, conv, *history)

    def forward(  # type: ignore[override]
        self, samples: Tensor, slots: Tensor, past: Tensor, origin: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        shapes = self.shapes
        batch = samples.shape[0]
        x = samples[..., None] if self.log_mel is None else self.log_mel(samples)
        for layer in self.conv_layers:
            x = strided(x, layer)
        x = self.projection(self.feature_norm(x)).reshape(batch, shapes.chunk, self.width)
        result = []
        if shapes.lookahead:
            x = torch.cat((state[0], x), 1)
            result.append(x[:, shapes.chunk :])
            state = state[1:]
        pasts, history = state[0].unbind(1), state[1:]
        newest = torch.remainder(torch.arange(shapes.chunk) + past[:, None], shapes.ring)  # (B, C)
        places = slots[:, None, None], torch.arange(self.heads)[:, None], newest[:, None]
        time = torch.remainder(torch.arange(shapes.ring) - past[:, None] - shapes.chunk, shapes.ring) - shapes.left
        hidden = F.pad((time < -past[:, None]).to(x.dtype) * HIDDEN, (0, shapes.lookahead))[:, None, None]
        cos, sin = self.cos[: self.time], self.sin[: self.time]
        first_cos, first_sin = origin[:, :1], origin[:, 1:]
        turned = first_cos * cos - first_sin * sin, first_sin * cos + first_cos * sin  # (B, T, dim / 2)
        tables = tuple(table[:, None] for table in for_rotation(*turned))
        kept, caches = [], []
        x = x.reshape(-1, self.width)  # products with weights are faster without an axis of streams
        for number, block in enumerate(self.blocks):
            keys, values = history[2 * number : 2 * number + 2]
            x, *after = self._streams_block(
                cast(ConformerBlock, block), x, batch, hidden, tables, places, keys, values, pasts[number]
            )
            caches += after[:2]
            kept.append(after[2])
        x = x.reshape(batch, self.time, self.width)[:, : shapes.chunk].reshape(-1, self.width)
        logits = self.output(x).reshape(batch, shapes.chunk * shapes.logits_per_frame, self.vocab_size)
        return (F.log_softmax(logits, -1), *result, torch.stack(kept, 1), *caches)

    def _streams_block(
        self, block: ConformerBlock, x: Tensor, batch: int, hidden: Tensor, tables: tuple[Tensor, ...],
        places: tuple[Tensor, ...], keys: Tensor, values: Tensor, conv: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """The (B T, width) frames of all streams through a block; its next keys, values and convolution's past."""
        x = x + block.ffn1(x)
        attended, keys, values = self._attend(block.attention, x, batch, hidden, tables, places, keys, values)
        x = x + attended
        convolved, conv = self._convolve(block.convolution, x, batch, conv)
        x = x + convolved
        x = x + block.ffn2(x)
        return block.norm(x), keys, values, conv

    def _attend(
        self, module: Attention, x: Tensor, batch: int, hidden: Tensor, tables: tuple[Tensor, ...],
        places: tuple[Tensor, ...], keys: Tensor, values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        heads = self.heads
        qkv = module.qkv(module.norm(x)).reshape(batch, self.time, 3 * heads, self.dim).transpose(1, 2)
        turned = rotated(qkv[:, : 2 * heads], *tables)
        keys, seen_keys = self._write(keys, turned[:, heads:], places)
        values, seen_values = self._write(values, qkv[:, 2 * heads :], places)
        context = (turned[:, :heads] @ seen_keys.transpose(2, 3) + hidden).softmax(-1) @ seen_values
        return module.out(context.transpose(1, 2).reshape(-1, self.width)), keys, values

    def _write(self, rings: Tensor, new: Tensor, places: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Write the chunks' frames of (B, heads, T, dim) to the slots; these, and all that the T frames attend to."""
        rings = rings.index_put(places, new[:, :, : self.shapes.chunk])
        seen = rings[places[0][:, 0, 0]]
        return rings, torch.cat((seen, new[:, :, self.shapes.chunk :]), 2) if self.shapes.lookahead else seen

    def _convolve(self, module: CausalConvolution, x: Tensor, batch: int, past: Tensor) -> tuple[Tensor, Tensor]:
        gated = F.glu(module.gate(module.norm(x)), -1).reshape(batch, self.time, self.width)
        x = torch.cat((past, gated), 1)
        chunk = self.shapes.chunk
        kept = x[:, chunk : chunk + module.kernel - 1]
        taps = module.depthwise.weight[:, 0].t()
        seen = torch.arange(self.time)[:, None] + torch.arange(module.kernel)
        x = (x[:, seen] * taps).sum(2) + cast(Tensor, module.depthwise.bias)
        return module.out(F.silu(module.inner_norm(x)).reshape(-1, self.width)), kept
