"""Conformer blocks that can stream: rotary relative positions, causal convolution, and caches for both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.chunk_attention import ChunkAttention
from distill.models.stream_caches import StreamStep


def rotary_tables(length: int, dim: int, device: torch.device, first: int | Tensor = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, dim / 2) of rotary position embedding, angle = position * 10000^(-2j / dim).

    Positions begin at ``first``; it may be (B, 1), and the tables are (B, length, dim / 2) then. In float64 until the
    end: at thousands of frames float32 angles would be off by a thousandth. (Su et al. 2021, RoFormer, equation 34.)
    """
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    position = torch.arange(length, dtype=torch.float64, device=device) + first
    angle = position[..., None] * frequency
    return angle.cos().float(), angle.sin().float()


def for_rotation(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The tables as :func:`rotate` takes them, once for all blocks: for both halves of ``dim``."""
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate (..., T, dim) by the angles of T positions; scores then depend on position differences only."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), -1), sin).to(x.dtype)


class FeedForward(nn.Sequential):
    """Layer norm, expansion, SiLU, contraction: (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, ffn),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(ffn, width),
            nn.Dropout(dropout),
        )


class Attention(nn.Module):
    """Pre-norm multi-head self-attention with rotary positions."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | ChunkAttention | None,
        tables: tuple[Tensor, Tensor],
        layer: int,
        step: StreamStep | None,
    ) -> Tensor:
        """(B, T, width) -> (B, T, width).

        ``mask`` is bool (B, 1, T, T) or (B, 1, 1, T), True = visible, None = everything; or attention in blocks. In a
        step of streams x is the next chunk and its look-ahead of each; it sees the past of this ``layer`` and becomes
        part of it.
        """
        batch, time, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[:2], tables)
        value = qkv[2]
        # No dropout on attention weights: with it the CPU falls back to a path that is several times slower.
        if step is not None:
            context = step.attend(layer, query, key, value)
        elif isinstance(mask, ChunkAttention):
            context = mask(query, key, value)
        else:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.dropout(self.out(context.transpose(1, 2).reshape(batch, time, width)))


class CausalConvolution(nn.Module):
    """Conformer's convolution module with a depthwise convolution that sees the past only, and layer norm inside.

    Batch norm would mix utterances, and its running statistics differ from those of training.
    """

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.inner_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, frames: int, chunk: int | None, layer: int, step: StreamStep | None) -> Tensor:
        """(B, T, width) -> (B, T, width); frame t sees frames t - kernel + 1 ... t, zeros before the beginning.

        What follows the first ``frames`` frames is look-ahead: in a step of streams that of one chunk, else that of
        every chunk, one after the other.
        """
        x = F.glu(self.gate(self.norm(x)), dim=-1)
        past = self.kernel - 1
        if step is not None:
            x = self._convolve(step.with_past(layer, x))
        else:
            utterance, ahead = F.pad(x[:, :frames], (0, 0, past, 0)), x[:, frames:]
            x = self._convolve(utterance)
            if chunk is not None and ahead.shape[1]:
                batch, copies, width = ahead.shape
                # The past of a look-ahead is the end of its chunk; beyond the batch's end there is no look-ahead.
                ends = (torch.arange(1, -(-frames // chunk) + 1, device=x.device) * chunk).clamp(max=frames)
                before = utterance[:, ends[:, None] + torch.arange(past, device=x.device)]
                windows = torch.cat((before, ahead.reshape(batch, len(ends), -1, width)), 2)
                x = torch.cat((x, self._convolve(windows.flatten(0, 1)).reshape(batch, copies, width)), 1)
        return self.dropout(self.out(F.silu(self.inner_norm(x))))

    def _convolve(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        if torch.is_grad_enabled():
            return self.depthwise(x).transpose(1, 2)
        # Two to three times as fast: the two-dimensional one takes channels last as they are, but has a slow backward.
        weight = self.depthwise.weight[:, :, None]
        return F.conv2d(x[:, :, None], weight, self.depthwise.bias, groups=len(weight))[:, :, 0].transpose(1, 2)


class ConformerBlock(nn.Module):
    """Half-step feed-forward, attention, causal convolution, half-step feed-forward, layer norm.

    (Gulati et al. 2020, Conformer.) Every part is pre-norm with a residual connection.
    """

    def __init__(self, width: int, heads: int, ffn: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.ffn1 = FeedForward(width, ffn, dropout)
        self.attention = Attention(width, heads, dropout)
        self.convolution = CausalConvolution(width, kernel, dropout)
        self.ffn2 = FeedForward(width, ffn, dropout)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | ChunkAttention | None,
        tables: tuple[Tensor, Tensor],
        frames: int,
        chunk: int | None = None,
        layer: int = 0,
        step: StreamStep | None = None,
    ) -> Tensor:
        """(B, T, width) -> (B, T, width); the first ``frames`` of T are the utterance's, the rest copies to look ahead.

        See :meth:`Attention.forward` and :meth:`CausalConvolution.forward` for the arguments. ``layer`` is this
        block's number in the caches of a ``step``.
        """
        x = x.add(self.ffn1(x), alpha=0.5)
        x = x + self.attention(x, mask, tables, layer, step)
        x = x + self.convolution(x, frames, chunk, layer, step)
        x = x.add(self.ffn2(x), alpha=0.5)
        return self.norm(x)
