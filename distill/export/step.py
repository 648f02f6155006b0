"""One step of a streaming student as a network of fixed shapes: the audio of the next chunk goes in, its log-posteriors
come out, and all caches are both inputs and outputs.

A step computes what :meth:`distill.models.student.Student.stream` does for one chunk, arranged for a runtime without
state:

- Caches have a fixed size. Keys and values are in ring buffers: a chunk overwrites the oldest frames, which no later
  frame attends to, and nothing else moves. If a cache's output uses its input's memory, nothing else is written.
- Keys are cached after their rotary rotation, so they are rotated only once. Positions would grow with the stream, but
  only their angles matter: the angles of the chunk's first frame are a cache of their own, which each step rotates
  further and normalises to length one.
- Linear operations are merged: mean removal, pre-emphasis, window and Fourier transform of the log-mel are one matrix;
  the factor 0.5 of the feed-forward modules and the scale of attention are in the weights.
- Activations are (time, channel), so only the heads of attention are transposed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.cnn import ConvFrontEnd
from distill.models.conformer import (
    Attention,
    CausalConvolution,
    ConformerBlock,
    FeedForward,
    for_rotation,
    rotary_tables,
)
from distill.models.fbank import FFT, FRAME, MEAN, SCALE, SHIFT, FbankFrontEnd
from distill.models.student import Student

HIDDEN = -1e9  # attention score of a masked frame


@dataclass(frozen=True)
class Shapes:
    """Sizes of a step.

    Attributes:
        chunk: encoder frames of a step.
        lookahead: encoder frames of look-ahead beyond them.
        left: encoder frames of history.
        samples: audio samples of a step, at 16 kHz.
        hop: samples between two encoder frames.
        window: samples in the field of view of an encoder frame.
        lead: samples before the audio that mirror its first ones.
        tail: samples of silence that are appended to the audio.
        logits_per_frame: frames of log-posteriors for each encoder frame.
    """

    chunk: int
    lookahead: int
    left: int
    samples: int
    hop: int
    window: int
    lead: int
    tail: int
    logits_per_frame: int

    @property
    def ring(self) -> int:
        """Frames of a ring buffer: history and chunk."""
        return self.left + self.chunk

    @property
    def priming(self) -> int:
        """Number of steps before the first chunk, which only fill its look-ahead; their log-posteriors are ignored."""
        return -(-self.lookahead // self.chunk)

    @property
    def leading(self) -> int:
        """Samples of silence before the stream's first sample, so that whole steps fill the look-ahead."""
        return (self.priming * self.chunk - self.lookahead) * self.hop


def shapes_of(student: Student, chunk: int, left: int, lookahead: int) -> Shapes:
    """Sizes of a step with these numbers of encoder frames."""
    front = student.front_end
    samples = front.hop * chunk + front.window - front.hop
    return Shapes(
        chunk, lookahead, left, samples, front.hop, front.window, front.lead, front.tail, student.logits_per_frame
    )


class LogMel(nn.Module):
    """(..., n) audio in [-1, 1] -> (..., frames, bins), the input of the convolutions in :class:`FbankFrontEnd`."""

    fourier: Tensor
    filters: Tensor

    def __init__(self, front_end: FbankFrontEnd) -> None:
        super().__init__()
        filters = front_end.filters.double()
        used = filters.sum(1).nonzero().flatten()  # frequencies in any mel bin
        eye = torch.eye(FRAME, dtype=torch.float64)
        frames = eye - eye.mean(1, keepdim=True)
        before = F.pad(frames[None], (1, 0), mode="replicate")[0, :, :-1]
        spectrum = torch.fft.rfft((frames - 0.97 * before) * front_end.povey.double(), n=FFT)[:, used]
        self.register_buffer("fourier", torch.cat((spectrum.real, spectrum.imag), 1).float())
        self.register_buffer("filters", filters[used].float())

    def forward(self, samples: Tensor) -> Tensor:
        *batch, length = samples.shape
        count = (length - FRAME) // SHIFT + 1
        blocks = samples[..., : length // SHIFT * SHIFT].reshape(*batch, length // SHIFT, SHIFT)
        rest = samples[..., 2 * SHIFT : 2 * SHIFT + count * SHIFT]
        rest = F.pad(rest, (0, count * SHIFT - rest.shape[-1])).reshape(*batch, count, SHIFT)[..., : FRAME - 2 * SHIFT]
        parts = blocks[..., :count, :], blocks[..., 1 : count + 1, :], rest
        real, imaginary = (torch.cat(parts, -1) @ self.fourier).chunk(2, -1)
        power = (real * real + imaginary * imaginary) @ self.filters
        return (power.clamp(min=torch.finfo(torch.float32).eps).log() - MEAN) / SCALE


def strided(x: Tensor, layer: nn.Module) -> Tensor:
    """A convolution layer of a front end as one matrix product: (..., T, Cin) -> (..., T', Cout).

    T' = (T - kernel) // stride + 1.
    """
    conv = cast(nn.Conv1d, layer.conv)
    kernel, stride, channels = conv.kernel_size[0], conv.stride[0], x.shape[-1]
    count = (x.shape[-2] - kernel) // stride + 1
    rows = x[..., : count * stride, :].reshape(*x.shape[:-2], count, stride * channels)
    if kernel > stride:
        following = [x[..., offset : offset + (count - 1) * stride + 1 : stride, :] for offset in range(stride, kernel)]
        rows = torch.cat((rows, *following), -1)
    taps = conv.weight.permute(0, 2, 1).reshape(conv.out_channels, -1)
    return F.gelu(cast(nn.LayerNorm, layer.layer_norm)(F.linear(rows[..., : taps.shape[1]], taps, conv.bias)))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (..., T, dim) by rotary positions: (T, dim) cosines, and sines whose first half is negated."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((second, first), -1) * sin


class StreamStep(nn.Module):
    """A step of a student, with a copy of its weights.

    Inputs of :meth:`forward` in step k, with chunks of C encoder frames, look-ahead R, history L, and width W:

    - samples (n,): audio from the first sample of encoder frame C k + R on; n is ``samples`` of :class:`Shapes`.
    - frames (): how many of the step's C + R frames exist; fewer than all only at the end of the stream.
    - past (): number of frames before this chunk, of which at most L are attended to. Modulo L + C it is the chunk's
      position in the ring buffers, so a multiple of L + C may be subtracted as long as it remains at least L + C.
    - origin (2, dim / 2): cosines and sines of the angles of the chunk's first frame; initially 1 and 0.
    - ahead (R, W): frames [C k, C k + R) from the front end; absent if R is 0.
    - keys, values (heads, L + C, dim) and conv (kernel - 1, W) of each block; initially zeros.

    Output: log-posteriors (C times logits_per_frame, V), then the next origin, ahead, keys, values and conv.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, student: Student, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes
        self.width, self.heads = student.width, student.heads
        self.dim = student.width // student.heads
        front = student.front_end
        self.log_mel = LogMel(front) if isinstance(front, FbankFrontEnd) else None
        assert isinstance(front, FbankFrontEnd | ConvFrontEnd)
        self.conv_layers = front.conv_layers
        self.feature_norm, self.projection = student.feature_norm, student.projection
        self.blocks = copy.deepcopy(student.blocks)
        self.output, self.vocab_size = student.output, student.vocab_size
        merge_factors(self.blocks, self.dim**-0.5)
        cos, sin = rotary_tables(shapes.chunk + shapes.lookahead + 1, self.dim, torch.device("cpu"))
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and of outputs, in order."""
        state = ["origin"] + (["ahead"] if self.shapes.lookahead else [])
        for number in range(len(self.blocks)):
            state += [f"keys_{number}", f"values_{number}", f"conv_{number}"]
        return ["samples", "frames", "past", *state], ["log_probs", *(f"next_{name}" for name in state)]

    def first_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the first step of a silent stream."""
        shapes, zeros = self.shapes, torch.zeros
        origin = torch.stack((torch.ones(self.dim // 2), zeros(self.dim // 2)))
        state = [origin] + ([zeros(shapes.lookahead, self.width)] if shapes.lookahead else [])
        for block in self.blocks:
            past = cast(ConformerBlock, block).convolution.kernel - 1
            history = self.heads, shapes.ring, self.dim
            state += [zeros(history), zeros(history), zeros(past, self.width)]
        frames = torch.tensor(shapes.chunk + shapes.lookahead)
        return (zeros(shapes.samples), frames, torch.tensor(0), *state)

    def forward(
        self, samples: Tensor, frames: Tensor, past: Tensor, origin: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        shapes = self.shapes
        x = samples[:, None] if self.log_mel is None else self.log_mel(samples)
        for layer in self.conv_layers:
            x = strided(x, layer)
        x = self.projection(self.feature_norm(x))
        result = []
        if shapes.lookahead:
            x = torch.cat((state[0], x))
            result.append(x[shapes.chunk :])
            state = state[1:]
        # Positions of the chunk in the ring buffers, and the frame in each position relative to the chunk's first.
        newest = torch.remainder(torch.arange(shapes.chunk) + past, shapes.ring)
        places = torch.arange(self.heads)[:, None], newest
        time = torch.remainder(torch.arange(shapes.ring) - past - shapes.chunk, shapes.ring) - shapes.left
        time = torch.cat((time, torch.arange(shapes.chunk, x.shape[0])))
        hidden = torch.logical_or(time < -past, time >= frames).to(x.dtype) * HIDDEN
        turned_cos = origin[0] * self.cos - origin[1] * self.sin
        turned_sin = origin[1] * self.cos + origin[0] * self.sin
        tables = for_rotation(turned_cos[: x.shape[0]], turned_sin[: x.shape[0]])
        next_origin = torch.stack((turned_cos[shapes.chunk], turned_sin[shapes.chunk]))
        result.insert(0, next_origin / (next_origin * next_origin).sum(0, keepdim=True).sqrt())
        for number, block in enumerate(self.blocks):
            keys, values, conv = state[3 * number : 3 * number + 3]
            x, *cache = self._block(cast(ConformerBlock, block), x, hidden, tables, places, keys, values, conv)
            result += cache
        logits = self.output(x[: shapes.chunk]).view(shapes.chunk * shapes.logits_per_frame, self.vocab_size)
        return (F.log_softmax(logits, -1), *result)

    def _block(
        self,
        block: ConformerBlock,
        x: Tensor,
        hidden: Tensor,
        tables: tuple[Tensor, Tensor],
        places: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        conv: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x + block.ffn1(x)
        attended, keys, values = self._attention(block.attention, x, hidden, tables, places, keys, values)
        x = x + attended
        convolved, conv = self._convolution(block.convolution, x, conv)
        x = x + convolved
        x = x + block.ffn2(x)
        return block.norm(x), keys, values, conv

    def _attention(
        self,
        module: Attention,
        x: Tensor,
        hidden: Tensor,
        tables: tuple[Tensor, Tensor],
        places: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        time = x.shape[0]
        qkv = module.qkv(module.norm(x)).view(time, 3 * self.heads, self.dim).transpose(0, 1)
        turned = rotated(qkv[: 2 * self.heads], *tables)
        keys, seen_keys = self._remember(keys, turned[self.heads :], places)
        values, seen_values = self._remember(values, qkv[2 * self.heads :], places)
        context = (turned[: self.heads] @ seen_keys.transpose(1, 2) + hidden).softmax(-1) @ seen_values
        return module.out(context.transpose(0, 1).reshape(time, self.width)), keys, values

    def _remember(self, ring: Tensor, new: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Write the chunk's frames of (heads, T, dim) to the ring buffer.

        Returns:
            the ring buffer, and all that the T frames attend to: it and the look-ahead.
        """
        if not self.shapes.lookahead:
            ring = ring.index_put(places, new)
            return ring, ring
        chunk, ahead = new.split((self.shapes.chunk, self.shapes.lookahead), 1)
        ring = ring.index_put(places, chunk)
        return ring, torch.cat((ring, ahead), 1)

    def _convolution(self, module: CausalConvolution, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((past, F.glu(module.gate(module.norm(x)), -1)))
        chunk = self.shapes.chunk
        kept = x[chunk : chunk + module.kernel - 1]
        # Not as a convolution: runtimes need two to three times as long for a depthwise one of so few frames.
        taps = module.depthwise.weight[:, 0].t()
        seen = torch.arange(x.shape[0] - module.kernel + 1)[:, None] + torch.arange(module.kernel)
        x = (x[seen] * taps).sum(1) + cast(Tensor, module.depthwise.bias)
        return module.out(F.silu(module.inner_norm(x))), kept


def merge_factors(blocks: nn.ModuleList, scale: float) -> None:
    """Multiply the factors of half-step feed-forward modules and the scale of attention into the blocks' weights."""
    for block in blocks:
        halve(cast(ConformerBlock, block).ffn1)
        halve(cast(ConformerBlock, block).ffn2)
        scale_queries(cast(ConformerBlock, block).attention, scale)


@torch.no_grad()
def halve(module: FeedForward) -> None:
    """Multiply the factor 0.5 of a half-step feed-forward module into its weights."""
    contract = cast(nn.Linear, module[4])
    contract.weight.mul_(0.5)
    contract.bias.mul_(0.5)


@torch.no_grad()
def scale_queries(module: Attention, scale: float) -> None:
    """Multiply the scale of attention scores into the weights of the queries."""
    module.qkv.weight.chunk(3)[0].mul_(scale)
    module.qkv.bias.chunk(3)[0].mul_(scale)
