"""Conformer blocks that can stream: rotary relative positions, causal convolution, and caches for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.chunk_attention import ChunkAttention


@dataclass
class BlockCache:
    """Cached past of one block, for B streams of the same age.

    Attributes:
        keys, values: (B, heads, capacity, width / heads), of which frames [start, end) are valid; free capacity behind
            them means that most chunks need no copy of the past. Keys are rotated by their frame's position in the
            stream.
        conv: (B, kernel - 1, width) last inputs of the depthwise convolution.
    """

    keys: Tensor
    values: Tensor
    conv: Tensor
    start: int = 0
    end: int = 0

    def take_in(self, key: Tensor, value: Tensor, frames: int, left: int | None) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, dim) keys and values, and return all keys and values that these T frames attend to.

        Of the T frames the first ``frames`` stay in the cache, the rest is look-ahead and will be overwritten. At most
        ``left`` frames stay in total.
        """
        stop = self.end + key.shape[2]
        if stop > self.keys.shape[2]:
            start, self.start = self.start, 0
            stop, self.end = stop - start, self.end - start
            for name in ("keys", "values"):
                old: Tensor = getattr(self, name)
                new = old.new_empty(*old.shape[:2], stop + stop // 2, old.shape[3])
                new[:, :, : self.end] = old[:, :, start : start + self.end]
                setattr(self, name, new)
        self.keys[:, :, self.end : stop] = key
        self.values[:, :, self.end : stop] = value
        seen = self.keys[:, :, self.start : stop], self.values[:, :, self.start : stop]
        self.end += frames
        if left is not None:
            self.start = max(self.start, self.end - left)
        return seen


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
        # Query, key and value are three square matrices: their gain is that of a square one.
        for part in self.qkv.weight.data.chunk(3):
            nn.init.xavier_uniform_(part)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | ChunkAttention | None,
        tables: tuple[Tensor, Tensor],
        frames: int,
        caches: Sequence[BlockCache] | None,
        left: int | None,
    ) -> Tensor:
        """(B, T, width) -> (B, T, width).

        ``mask`` is bool (B, 1, T, T) or (B, 1, 1, T), True = visible, None = everything; or attention in blocks. With
        caches, whose batches follow each other in x's, x is a chunk of ``frames`` frames and its look-ahead; it follows
        the cached frames and sees all of them. The chunk, without the look-ahead, is then appended to the caches, which
        keep ``left`` frames.
        """
        batch, time, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[:2], tables)
        value = qkv[2]
        # No dropout on attention weights: with it the CPU falls back to a path that is several times slower.
        attend = F.scaled_dot_product_attention
        if isinstance(mask, ChunkAttention):
            context = mask(query, key, value)
        elif caches is None:
            context = attend(query, key, value, attn_mask=mask)
        else:
            parts = (part.split([len(cache.keys) for cache in caches]) for part in (query, key, value))
            each = zip(caches, *parts, strict=True)
            context = torch.cat([attend(q, *cache.take_in(k, v, frames, left)) for cache, q, k, v in each])
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

    def forward(self, x: Tensor, frames: int, chunk: int | None, caches: Sequence[BlockCache] | None) -> Tensor:
        """(B, T, width) -> (B, T, width); frame t sees frames t - kernel + 1 ... t, zeros before the beginning.

        What follows the first ``frames`` frames is look-ahead: with caches that of one chunk, else that of every
        chunk, one after the other.
        """
        x = F.glu(self.gate(self.norm(x)), dim=-1)
        past = self.kernel - 1
        if caches is not None:
            x = torch.cat((torch.cat([cache.conv for cache in caches]), x), 1)
            recent = x[:, frames : frames + past].split([len(cache.conv) for cache in caches])
            for cache, part in zip(caches, recent, strict=True):
                cache.conv = part.clone()
            x = self._convolve(x)
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

    def initial_cache(self, batch: int) -> BlockCache:
        """An empty past for ``batch`` streams."""
        weight = self.norm.weight
        heads, width = self.attention.heads, len(weight)
        empty = weight.new_zeros(batch, heads, 0, width // heads)
        return BlockCache(empty, empty, weight.new_zeros(batch, self.convolution.kernel - 1, width))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | ChunkAttention | None,
        tables: tuple[Tensor, Tensor],
        frames: int,
        chunk: int | None = None,
        caches: Sequence[BlockCache] | None = None,
        left: int | None = None,
    ) -> Tensor:
        """(B, T, width) -> (B, T, width); the first ``frames`` of T are the utterance's, the rest copies to look ahead.

        See :meth:`Attention.forward` and :meth:`CausalConvolution.forward` for the arguments.
        """
        x = x.add(self.ffn1(x), alpha=0.5)
        x = x + self.attention(x, mask, tables, frames, caches, left)
        x = x + self.convolution(x, frames, chunk, caches)
        x = x.add(self.ffn2(x), alpha=0.5)
        return self.norm(x)
