"""A step of many streams of a log-mel student, with the interface that sherpa-onnx has for Zipformer2 CTC models.

sherpa-onnx computes Kaldi's log-mel features of each stream, hands over T frames of them, moves on by
``decode_chunk_len`` frames, and keeps the caches. It puts several streams into one batch. Its programs do so for all
streaming CTC models, but those of the type NeMo get other features since version 2.

The caches have the names and shapes of a Zipformer of one layer, whose sizes are chosen so that a student's fit in:

- x (B, T, 80): features;
- cached_val1, cached_val2 (history, B, layers * width): keys and values of the frames before the chunk, in order of
  time, before their rotation, as positions are relative to the chunk;
- cached_conv1, cached_conv2 (B, 2, n): last inputs of the depthwise convolutions, in two halves;
- processed_lens (B,) int64: frames of history and the :class:`RowState`, see :meth:`BatchStep.unpack`;
- cached_key, cached_nonlin_attn, embed_states: nothing.

All begin with zeros. Outputs: log-posteriors (B, t, V), and the caches.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.export.rows import MOST_DEBT, RowState, one_row_per_frame
from distill.export.step import Shapes, merge_factors, rotated, strided
from distill.models.conformer import Attention, CausalConvolution, ConformerBlock, for_rotation, rotary_tables
from distill.models.fbank import MEAN, SCALE, SHIFT, FbankFrontEnd
from distill.models.student import Student

HIDDEN = -1e9  # attention score of a masked frame
CACHES = {  # and the axis of their streams
    "cached_key": 1,
    "cached_nonlin_attn": 1,
    "cached_val1": 1,
    "cached_val2": 1,
    "cached_conv1": 0,
    "cached_conv2": 0,
    "embed_states": 0,
    "processed_lens": 0,
}
EMBED_STATES = 128, 3, 19  # sherpa-onnx has no other
ENCODER_DIM = 2  # the least for which sherpa-onnx makes no empty cache


class BatchStep(nn.Module):
    """A step of B streams of a log-mel student, with a copy of its weights; see the module for its inputs."""

    cos: Tensor
    sin: Tensor

    def __init__(self, student: Student, shapes: Shapes) -> None:
        super().__init__()
        front = student.front_end
        assert isinstance(front, FbankFrontEnd)
        self.shapes = shapes
        self.width, self.heads, self.dim = student.width, student.heads, student.width // student.heads
        self.bins, self.conv_layers = front.bins, front.conv_layers
        self.feature_norm, self.projection = student.feature_norm, student.projection
        self.blocks = copy.deepcopy(student.blocks)
        self.output, self.vocab_size = student.output, student.vocab_size
        merge_factors(self.blocks, self.dim**-0.5)
        frames = shapes.left + shapes.chunk + shapes.lookahead
        cos, sin = for_rotation(*rotary_tables(frames, self.dim, torch.device("cpu")))
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    @property
    def chunk_shift(self) -> int:
        """Feature frames by which a step moves on."""
        return self.shapes.chunk * self.shapes.hop // SHIFT

    @property
    def window_size(self) -> int:
        """Feature frames of a step, look-ahead included."""
        encoder_frame, seen = self.shapes.hop // SHIFT, 7
        return (self.shapes.chunk + self.shapes.lookahead - 1) * encoder_frame + seen

    @property
    def _past(self) -> int:
        """Frames that a depthwise convolution sees of the past."""
        return cast(ConformerBlock, self.blocks[0]).convolution.kernel - 1

    @property
    def _half_conv(self) -> int:
        """Length of each of the four rows in which the convolutions' caches are kept."""
        return -(-len(self.blocks) * self.width * self._past // (2 * ENCODER_DIM))

    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and of outputs, in order."""
        return ["x", *CACHES], ["log_probs", *(f"new_{name}" for name in CACHES)]

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The axes whose sizes vary: B, and t."""
        axes = {"x": {0: "streams"}, "log_probs": {0: "streams", 1: "rows"}}
        for name, axis in CACHES.items():
            axes |= {name: {axis: "streams"}, f"new_{name}": {axis: "streams"}}
        return axes

    def first_inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs of the first step of silent streams."""
        left, zeros = self.shapes.left, torch.zeros
        history = left, batch, len(self.blocks) * self.width
        conv = batch, ENCODER_DIM, self._half_conv
        return (
            zeros(batch, self.window_size, self.bins),
            zeros(left, batch, 1),
            zeros(1, batch, left, 3 * ENCODER_DIM // 4),
            zeros(history),
            zeros(history),
            zeros(conv),
            zeros(conv),
            zeros(batch, *EMBED_STATES),
            zeros(batch, dtype=torch.long),
        )

    def metadata(self) -> dict[str, str]:
        """What sherpa-onnx reads: sizes of a Zipformer whose caches have these shapes."""
        values = {
            "model_type": "zipformer2",
            "T": self.window_size,
            "decode_chunk_len": self.chunk_shift,
            "encoder_dims": ENCODER_DIM,
            "query_head_dims": 1,
            "value_head_dims": len(self.blocks) * self.width,
            "num_heads": 1,
            "num_encoder_layers": 1,
            "cnn_module_kernels": 2 * self._half_conv,
            "left_context_len": self.shapes.left,
        }
        return {key: str(value) for key, value in values.items()}

    def unpack(self, code: Tensor) -> tuple[Tensor, RowState]:
        """(B,) frames of history, and the state of the rows, of processed_lens: digits of a mixed base."""
        base = self.shapes.left + 1
        rest = torch.div(code, base, rounding_mode="floor")
        debt, last = torch.remainder(rest, MOST_DEBT), torch.div(rest, MOST_DEBT, rounding_mode="floor")
        return torch.remainder(code, base), RowState(debt, last)

    def pack(self, history: Tensor, rows: RowState) -> Tensor:
        """The reverse of :meth:`unpack`."""
        return history + (self.shapes.left + 1) * (rows.debt + MOST_DEBT * rows.last)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        nonlin_attn: Tensor,
        keys: Tensor,
        values: Tensor,
        conv1: Tensor,
        conv2: Tensor,
        embed: Tensor,
        code: Tensor,
    ) -> tuple[Tensor, ...]:
        shapes, layers = self.shapes, len(self.blocks)
        history, rows = self.unpack(code)
        x = (x - MEAN) / SCALE
        for layer in self.conv_layers:
            x = strided(x, layer)
        x = self.projection(self.feature_norm(x))
        age = torch.arange(shapes.left, 0, -1)  # of the cached frames, in frames before the chunk
        hidden = (age > history[:, None]).to(x.dtype) * HIDDEN
        hidden = F.pad(hidden, (0, shapes.chunk + shapes.lookahead))[:, None, None]
        past = torch.cat((conv1, conv2), 1).flatten(1)
        size = layers * self._past * self.width
        pasts = past[:, :size].reshape(x.shape[0], layers, self._past, self.width).unbind(1)
        caches = keys.transpose(0, 1).split(self.width, 2), values.transpose(0, 1).split(self.width, 2), pasts
        new: list[tuple[Tensor, ...]] = []
        for block, *cache in zip(self.blocks, *caches, strict=True):
            x, *after = self._block(cast(ConformerBlock, block), x, hidden, *cache)
            new.append(tuple(after))
        logits = self.output(x[:, : shapes.chunk]).reshape(x.shape[0], -1, self.vocab_size)
        log_probs = F.log_softmax(logits, -1)
        if shapes.logits_per_frame > 1:
            log_probs, rows = one_row_per_frame(log_probs, shapes.logits_per_frame, rows)
        history = (history + shapes.chunk).clamp(max=shapes.left)
        new_keys, new_values, new_past = zip(*new, strict=True)
        past = F.pad(torch.stack(new_past, 1).flatten(1), (0, 2 * ENCODER_DIM * self._half_conv - size))
        halves = past.reshape(x.shape[0], 2 * ENCODER_DIM, self._half_conv).split(ENCODER_DIM, 1)
        attended = (torch.cat(cache, 2).transpose(0, 1) for cache in (new_keys, new_values))
        return log_probs, key + 0, nonlin_attn + 0, *attended, *halves, embed + 0, self.pack(history, rows)

    def _block(
        self, block: ConformerBlock, x: Tensor, hidden: Tensor, keys: Tensor, values: Tensor, conv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x + block.ffn1(x)
        attended, keys, values = self._attention(block.attention, x, hidden, keys, values)
        x = x + attended
        convolved, conv = self._convolution(block.convolution, x, conv)
        x = x + convolved
        x = x + block.ffn2(x)
        return block.norm(x), keys, values, conv

    def _attention(
        self, module: Attention, x: Tensor, hidden: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        left, chunk = self.shapes.left, self.shapes.chunk
        query, new_keys, new_values = module.qkv(module.norm(x)).split(self.width, -1)
        keys, values = torch.cat((keys, new_keys), 1), torch.cat((values, new_values), 1)
        seen = rotated(self._heads(keys), self.cos, self.sin)
        query = rotated(self._heads(query), self.cos[left:], self.sin[left:])
        context = (query @ seen.transpose(2, 3) + hidden).softmax(-1) @ self._heads(values)
        context = context.transpose(1, 2).flatten(2)
        return module.out(context), keys[:, chunk : chunk + left], values[:, chunk : chunk + left]

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, heads, T, dim)."""
        return x.reshape(x.shape[0], -1, self.heads, self.dim).transpose(1, 2)

    def _convolution(self, module: CausalConvolution, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((past, F.glu(module.gate(module.norm(x)), -1)), 1)
        chunk = self.shapes.chunk
        kept = x[:, chunk : chunk + module.kernel - 1]
        # Not as a convolution: runtimes need two to three times as long for a depthwise one of so few frames.
        taps = module.depthwise.weight[:, 0].t()
        seen = torch.arange(chunk + self.shapes.lookahead)[:, None] + torch.arange(module.kernel)
        x = (x[:, seen] * taps).sum(2) + cast(Tensor, module.depthwise.bias)
        return module.out(F.silu(module.inner_norm(x))), kept
