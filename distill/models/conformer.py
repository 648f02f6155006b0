"""Conformer blocks that can stream: rotary relative positions, causal convolution, and caches for both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class BlockCache:
    """What a block remembers of the past.

    Attributes:
        keys, values: (B, heads, L, width / heads), keys before rotation, so that positions can be counted anew from
            the cache's beginning at every chunk and never grow.
        conv: (B, kernel - 1, width) inputs of the depthwise convolution.
    """

    keys: Tensor
    values: Tensor
    conv: Tensor


def rotary_tables(length: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, dim / 2) of rotary position embedding, angle = position * 10000^(-2j / dim).

    In float64 until the end: at thousands of frames float32 angles would be off by a thousandth.
    (Su et al. 2021, RoFormer, equation 34.)
    """
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate (B, heads, T, dim) by the angles of T positions; scores then depend on position differences only."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


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
        # Query, key and value are three square matrices: their gain is that of a square one.
        for part in self.qkv.weight.data.chunk(3):
            nn.init.xavier_uniform_(part)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        tables: tuple[Tensor, Tensor],
        frames: int,
        cache: BlockCache | None,
        left: int | None,
    ) -> Tensor:
        """(B, T, width) -> (B, T, width).

        ``mask`` is bool (B, 1, T or 1, keys), True = visible, None = everything. With a cache, x is a chunk of
        ``frames`` frames and its look-ahead; it follows the cached frames and sees all of them. The cache then takes
        the chunk in, without the look-ahead, and keeps its last ``left`` frames.
        """
        batch, time, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = torch.cat((cache.keys, key), 2), torch.cat((cache.values, value), 2)
            end = key.shape[2] - (time - frames)
            start = max(0, end - left) if left is not None else 0
            # A copy, because a view would keep the whole of a growing buffer alive.
            cache.keys, cache.values = key[:, :, start:end].clone(), value[:, :, start:end].clone()
        cos, sin = tables
        query = rotate(query, (cos[-time:], sin[-time:]))
        key = rotate(key, tables)
        # No dropout on attention weights: with it the CPU falls back to a path that is several times slower.
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

    def forward(self, x: Tensor, frames: int, chunk: int | None, cache: BlockCache | None) -> Tensor:
        """(B, T, width) -> (B, T, width); frame t sees frames t - kernel + 1 ... t, zeros before the beginning.

        What follows the first ``frames`` frames is look-ahead: with a cache that of one chunk, else that of every
        chunk, one after the other.
        """
        x = F.glu(self.gate(self.norm(x)), dim=-1)
        past = self.kernel - 1
        if cache is not None:
            x = torch.cat((cache.conv, x), 1)
            cache.conv = x[:, frames : frames + past].clone()
            x = self._convolve(x)
        else:
            own, ahead = F.pad(x[:, :frames], (0, 0, past, 0)), x[:, frames:]
            x = self._convolve(own)
            if chunk is not None and ahead.shape[1]:
                batch, copies, width = ahead.shape
                # The past of a look-ahead is the end of its chunk; where that is beyond the batch, nothing is ahead.
                ends = (torch.arange(1, -(-frames // chunk) + 1, device=x.device) * chunk).clamp(max=frames)
                before = own[:, ends[:, None] + torch.arange(past, device=x.device)]
                windows = torch.cat((before, ahead.reshape(batch, len(ends), -1, width)), 2)
                x = torch.cat((x, self._convolve(windows.flatten(0, 1)).reshape(batch, copies, width)), 1)
        return self.dropout(self.out(F.silu(self.inner_norm(x))))

    def _convolve(self, x: Tensor) -> Tensor:
        return self.depthwise(x.transpose(1, 2)).transpose(1, 2)


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

    def initial_cache(self, batch: int) -> BlockCache:
        """An empty past for ``batch`` streams."""
        weight = self.norm.weight
        heads, width = self.attention.heads, len(weight)
        nothing = weight.new_zeros(batch, heads, 0, width // heads)
        return BlockCache(nothing, nothing, weight.new_zeros(batch, self.convolution.kernel - 1, width))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        tables: tuple[Tensor, Tensor],
        frames: int,
        chunk: int | None = None,
        cache: BlockCache | None = None,
        left: int | None = None,
    ) -> Tensor:
        """(B, T, width) -> (B, T, width); the first ``frames`` of T are the utterance's, the rest copies to look ahead.

        See :meth:`Attention.forward` and :meth:`CausalConvolution.forward` for the arguments.
        """
        x = x + 0.5 * self.ffn1(x)
        x = x + self.attention(x, mask, tables, frames, cache, left)
        x = x + self.convolution(x, frames, chunk, cache)
        x = x + 0.5 * self.ffn2(x)
        return self.norm(x)
