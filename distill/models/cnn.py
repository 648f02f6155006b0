"""wav2vec 2.0's convolutional feature encoder with layer norm, in the layout (batch, time, channel) throughout.

On a GPU a layer is a convolution with channels last (:func:`channels_last_conv`). On a CPU it is computed several times
faster as matrix products, as every layer has kernel <= 2 * stride: with time cut into blocks of ``stride`` frames, a
strided convolution is one product with the block and one with the beginning of the next block, both of which read the
activations in place. Either way layer norm needs no transposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Hides parts of features (B, T, D) whose frames are so many samples apart, in training.
FeatureMask = Callable[[Tensor, int], Tensor]


class _BlockConv(torch.autograd.Function):
    """Rows (M, stride * Cin), weight (Cout, Cin, kernel), bias (Cout,) -> (M, Cout).

    Row m is multiplied by the first ``stride`` taps, row m + 1 by the remaining ones. Utterances follow each other in
    the rows, so an utterance's last row is mixed with the next utterance and must be dropped by the caller.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        out_channels, in_channels, kernel = weight.shape
        taps = weight.permute(2, 1, 0).reshape(kernel * in_channels, out_channels)
        head, tail = taps[: stride * in_channels], taps[stride * in_channels :]
        ctx.save_for_backward(rows, head, tail)
        ctx.shape = weight.shape
        result = torch.addmm(bias, rows[:, : len(head)], head)
        if len(tail):
            result[:-1].addmm_(rows[1:, : len(tail)], tail)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows, head, tail = ctx.saved_tensors
        out_channels, in_channels, kernel = ctx.shape
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_rows = (
                grad @ head.t()
                if len(head) == rows.shape[1]
                else F.pad(grad @ head.t(), (0, rows.shape[1] - len(head)))
            )
            if len(tail):
                grad_rows[1:, : len(tail)].addmm_(grad[:-1], tail.t())
        if ctx.needs_input_grad[1]:
            parts = [rows[:, : len(head)].t() @ grad]
            if len(tail):
                parts.append(rows[1:, : len(tail)].t() @ grad[:-1])
            grad_weight = torch.cat(parts).view(kernel, in_channels, out_channels).permute(2, 1, 0)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_rows, grad_weight, grad_bias, None


def block_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Strided convolution over time without padding, (B, T, Cin) -> (B, ceil(T / stride), Cout).

    ``weight`` is (Cout, Cin, kernel) with kernel <= 2 * stride, as nn.Conv1d keeps it. Only the first
    ``(T - kernel) // stride + 1`` frames are the convolution's; what follows them is finite and to be ignored.
    """
    batch, time, channels = x.shape
    kernel = weight.shape[2]
    if kernel > 2 * stride:
        raise ValueError(f"kernel {kernel} is longer than two strides of {stride}")
    if time % stride:
        x = F.pad(x, (0, 0, 0, -time % stride))
    count = x.shape[1] // stride
    if channels == 1 and kernel > stride:
        # Both blocks side by side: a product with 5 columns wastes more than the copy of a (short) waveform.
        rows = F.pad(x.reshape(-1), (0, kernel - stride)).unfold(0, kernel, stride).contiguous()
        return _BlockConv.apply(rows, weight, bias, kernel).view(batch, count, -1)
    return _BlockConv.apply(x.reshape(batch * count, stride * channels), weight, bias, stride).view(batch, count, -1)


def channels_last_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Strided convolution over time without padding, (B, T, Cin) -> (B, T', Cout), both contiguous.

    As a convolution of images one pixel high whose channels come last in memory: cuDNN's own layout, so that neither it
    nor the layer norm that follows transposes anything.
    """
    images = x.transpose(1, 2)[:, :, None]
    return F.conv2d(images, weight[:, :, None], bias, (1, stride))[:, :, 0].transpose(1, 2)


def convolve(x: Tensor, layers: Iterable[Any]) -> Tensor:
    """wav2vec 2.0's layer-norm convolution layers (each with conv, layer_norm): (B, T, Cin) -> (B, T', Cout).

    T' is what convolutions without padding leave; T must be enough for one frame. Gradients of frames that are dropped
    are zero. Works on this module's layers and on Hugging Face's ``feature_extractor.conv_layers``. Under autocast all
    of it is computed in the lower precision; layer norm's sums are float32 nevertheless.
    """
    layers = list(layers)
    kind, count = x.device.type, x.shape[1]
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        if kind == "cpu":  # padding once to a multiple of all strides spares every layer a copy
            x = F.pad(x, (0, 0, 0, -count % math.prod(layer.conv.stride[0] for layer in layers)))
        for layer in layers:
            stride = layer.conv.stride[0]
            count = (count - layer.conv.kernel_size[0]) // stride + 1
            weight, bias, scale, shift = (
                parameter.to(x.dtype)
                for parameter in (layer.conv.weight, layer.conv.bias, layer.layer_norm.weight, layer.layer_norm.bias)
            )
            x = (block_conv if kind == "cpu" else channels_last_conv)(x, weight, bias, stride)
            x = F.gelu(F.layer_norm(x, (x.shape[-1],), scale, shift, layer.layer_norm.eps))
    return x[:, :count]


class ConvLayer(nn.Module):
    """Parameters of one layer, named as Hugging Face names them."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, stride)
        assert self.conv.bias is not None
        self.layer_norm = nn.LayerNorm(out_channels)
        if not self.conv.weight.is_meta:  # on meta it has no effect but to load torch._dynamo, which takes 3 s
            nn.init.kaiming_normal_(self.conv.weight)
        # Audio is small (0.05 on average) beside the usual random bias: the layer norm would pass on the bias alone,
        # and a network from scratch would not learn for hundreds of steps.
        nn.init.zeros_(self.conv.bias)
        # The taps come first in memory, as block_conv multiplies by them; a chunk of audio is too short to rearrange
        # megabytes for it.
        self.conv.weight.data = self.conv.weight.data.permute(2, 1, 0).contiguous().permute(2, 1, 0)


class ConvFrontEnd(nn.Module):
    """wav2vec 2.0's layer-norm feature encoder: 16 kHz audio -> a frame per 20 ms.

    Frame t sees samples [320 t, 320 t + 400): 5 ms more than its 20 ms. A chunk of frames
    [c C, (c + 1) C) is therefore complete 5 ms after the chunk's end, the declared look-ahead of this front end.

    Args:
        channels: of each layer; the teacher's are 512 everywhere.
        kernels, strides: of each layer; kernel <= 2 * stride.
        freeze: keep the weights as they are and skip the backward pass.
    """

    lead, tail = 0, 0  # samples that mirror the audio before its beginning; samples of silence appended to it

    def __init__(
        self,
        channels: Sequence[int] = (512,) * 7,
        kernels: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        freeze: bool = False,
    ) -> None:
        super().__init__()
        inputs = (1, *channels[:-1])
        self.conv_layers = nn.ModuleList(map(ConvLayer, inputs, channels, kernels, strides))
        self.channels = channels[-1]
        self.hop, self.window = field_of_view(kernels, strides)
        self.freeze = freeze
        if freeze:
            self.requires_grad_(False)

    def encode(self, samples: Tensor, mask: FeatureMask | None = None) -> Tensor:
        """(B, n) audio, n >= window -> (B, (n - window) // hop + 1, channels); ``mask`` applies to these features."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = convolve(samples[..., None], self.conv_layers)
        return features if mask is None else mask(features, self.hop)

    def forward(self, speech: Tensor, lengths: Tensor, mask: FeatureMask | None = None) -> tuple[Tensor, Tensor]:
        """(B, N) audio padded with zeros and (B,) samples -> features (B, T, channels) and (B,) frames, at least 1.

        Audio shorter than a window is padded with zeros.
        """
        return whole_utterance(self, speech, lengths, mask)


def field_of_view(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Hop and window, in inputs, of stacked convolutions."""
    hop, window = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        window += (kernel - 1) * hop
        hop *= stride
    return hop, window


def frame_counts(front_end: Any, samples: Tensor) -> Tensor:
    """Frames that a front end makes of so many samples, at least 1; any shape."""
    extra = (samples + front_end.lead + front_end.tail - front_end.window).clamp(min=0)
    return torch.div(extra, front_end.hop, rounding_mode="floor") + 1


def whole_utterance(front_end: Any, speech: Tensor, lengths: Tensor, mask: FeatureMask | None) -> tuple[Tensor, Tensor]:
    """Append the front end's tail, zero-pad to a window, put the mirrored lead before it, encode, and count frames."""
    missing = max(front_end.tail, front_end.window - front_end.lead - speech.shape[1])
    audio = with_lead(F.pad(speech, (0, missing)), front_end.lead)
    return front_end.encode(audio, mask), frame_counts(front_end, lengths)


def with_lead(audio: Tensor, lead: int) -> Tensor:
    """(B, n) audio, n >= lead, behind its first ``lead`` samples in reversed order: (B, lead + n)."""
    return torch.cat((audio[:, :lead].flip(1), audio), 1) if lead else audio
