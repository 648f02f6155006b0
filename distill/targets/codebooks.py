"""A teacher's outputs in a few bytes a frame: sums of codewords, and logits of many tokens as their largest values.

Multi-codebook quantisation of hidden layers for distillation is the idea of Guo et al. (2022), arXiv 2211.00508. Here a
layer's frame h, normalised as the loss compares it, is coded as

    norm(h) ~ C_1[i_1] + ... + C_N[i_N],    i_n in 0 ... 255

one byte for each of the N codebooks. They begin as k-means of the residuals of those before, and are then improved
together: the best codes are searched for, and all codewords are set to the least-squares solution for these codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.configuration import CODEWORDS, top_logits
from distill.errors import UserError
from distill.files import NPZ_DAMAGE, atomic_write

BEAM = 4  # partial codes kept in the search
ROWS = 4096  # frames that are coded at a time
LLOYD_STEPS, JOINT_STEPS = 10, 4
RIDGE = 1.0  # frames' worth of trust in the codewords before a least-squares step; most codewords have hundreds
LOWEST = 32.0  # nats below 0 at which log-probabilities are cut off
LOGITS = 0
FIELDS = ("teacher", "hidden_ms")


class Codebooks:
    """The codebooks of a teacher's hidden layers and, of few tokens, its logits.

    Args:
        layers: (N, 256, D) float32 codewords by layer; LOGITS is the layer of logits.
        teacher: checksum of the teacher whose frames they were trained on.
        hidden_ms: milliseconds between these frames.
    """

    def __init__(self, layers: Mapping[int, Tensor], teacher: str, hidden_ms: int) -> None:
        self.layers, self.teacher, self.hidden_ms = dict(layers), teacher, hidden_ms
        self._grams: dict[int, Tensor] = {}

    def to(self, device: torch.device) -> Codebooks:
        """The same on a device."""
        return Codebooks({layer: c.to(device) for layer, c in self.layers.items()}, self.teacher, self.hidden_ms)

    def encode(self, layer: int, hidden: Tensor) -> Tensor:
        """Codes (..., N) uint8 of a layer's output (..., D), or of logits (..., V)."""
        codewords = self.layers[layer]
        if layer not in self._grams:
            self._grams[layer] = gram(codewords)
        frames = compared(layer, hidden.float()).reshape(-1, hidden.shape[-1])
        codes = [search(rows, codewords, self._grams[layer]) for rows in frames.split(ROWS)]
        empty = torch.zeros(0, len(codewords), dtype=torch.long, device=hidden.device)
        return torch.cat(codes or [empty]).to(torch.uint8).reshape(*hidden.shape[:-1], len(codewords))

    def decode(self, layer: int, codes: Tensor) -> Tensor:
        """What codes (..., N) stand for, (..., D): see :func:`compared`."""
        return summed(self.layers[layer], codes.long())

    def save(self, path: Path) -> None:
        """Write a file, the same bytes for the same codebooks. Codewords are rounded to half precision."""
        layers = {f"layer_{layer:02d}": c.half().cpu().numpy() for layer, c in self.layers.items()}
        with atomic_write(path, "wb") as stream:
            np.savez_compressed(stream, teacher=np.array(self.teacher), hidden_ms=np.array(self.hidden_ms), **layers)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Codebooks:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as saved:
                layers = {int(n[6:]): torch.from_numpy(saved[n]).float() for n in saved.files if n not in FIELDS}
                return cls(layers, str(saved["teacher"]), int(saved["hidden_ms"]))
        except NPZ_DAMAGE:
            raise UserError(f"{path}: codebooks missing or damaged; extract again (stage 8)") from None


def compared(layer: int, frames: Tensor) -> Tensor:
    """Frames (..., D) as the loss compares them: of a hidden layer normalised, of logits without their mean."""
    if layer == LOGITS:
        return frames - frames.mean(-1, keepdim=True)
    return F.layer_norm(frames, frames.shape[-1:])


def summed(codewords: Tensor, codes: Tensor) -> Tensor:
    """Sums (..., D) of the codewords (N, 256, D) of codes (..., N)."""
    total = F.embedding(codes[..., 0], codewords[0])
    for n in range(1, len(codewords)):
        total = total + F.embedding(codes[..., n], codewords[n])
    return total


def gram(codewords: Tensor) -> Tensor:
    """Products (N, 256, N, 256) of all pairs of codewords (N, 256, D)."""
    flat = codewords.flatten(0, 1)
    return (flat @ flat.T).reshape(*codewords.shape[:2], *codewords.shape[:2])


def search(frames: Tensor, codewords: Tensor, products: Tensor, beam: int = BEAM) -> Tensor:
    """Codes (T, N) of frames (T, D), found by a beam search over the codebooks in turn.

    ``|x - sum_n C_n[i_n]|^2`` is, but for |x|^2, the sum over n of ``|C_n[i_n]|^2 - 2 x C_n[i_n]
    + 2 sum_{m < n} C_m[i_m] C_n[i_n]``, so a step needs products of codewords alone.
    """
    count, size = codewords.shape[:2]
    of_frame = (frames @ codewords.flatten(0, 1).T).reshape(-1, count, size)
    squares = codewords.square().sum(2)
    codes = torch.zeros(len(frames), 1, 0, dtype=torch.long, device=frames.device)
    costs = frames.new_zeros(len(frames), 1)
    for n in range(count):
        step = (squares[n] - 2 * of_frame[:, n])[:, None].repeat(1, codes.shape[1], 1)
        for m in range(n):
            step += 2 * products[m, :, n][codes[:, :, m]]
        step += costs[:, :, None]
        costs, best = step.flatten(1).topk(min(beam if n < count - 1 else 1, codes.shape[1] * size), largest=False)
        before = (best // size)[:, :, None].expand(-1, -1, n)
        codes = torch.cat([codes.gather(1, before), (best % size)[:, :, None]], 2)
    return codes[:, 0]


def train_codebooks(layer: int, sample: Tensor, count: int) -> Tensor:
    """``count`` codebooks (N, 256, D) for a layer's output, from a sample (M, D) of its frames."""
    generator = torch.Generator().manual_seed(0)
    frames = compared(layer, sample.float())
    rest, codebooks = frames, []
    for _ in range(count):
        codebooks.append(kmeans(rest, generator))
        rest = rest - codebooks[-1][nearest(rest, codebooks[-1])]
    codewords = torch.stack(codebooks)
    for _ in range(JOINT_STEPS):
        products = gram(codewords)
        codes = torch.cat([search(rows, codewords, products) for rows in frames.split(ROWS)])
        codewords = codewords + least_squares(frames - summed(codewords, codes), codes)
    return codewords


def nearest(frames: Tensor, centroids: Tensor) -> Tensor:
    """(M,) number of the centroid (K, D) nearest to each frame (M, D)."""
    return (centroids.square().sum(1) - 2 * frames @ centroids.T).argmin(1)


def kmeans(frames: Tensor, generator: torch.Generator) -> Tensor:
    """256 centroids (256, D) of frames (M, D) by Lloyd's algorithm, beginning with frames drawn at random."""
    if len(frames) >= CODEWORDS:
        drawn = torch.randperm(len(frames), generator=generator)[:CODEWORDS]
    else:
        drawn = torch.randint(len(frames), (CODEWORDS,), generator=generator)
    centroids = frames[drawn.to(frames.device)]
    for _ in range(LLOYD_STEPS):
        number = nearest(frames, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, number, frames)
        sizes = torch.bincount(number, minlength=CODEWORDS)[:, None]
        drawn = torch.randint(len(frames), (CODEWORDS,), generator=generator).to(frames.device)
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), frames[drawn])  # a new place for an empty one
    return centroids


def least_squares(errors: Tensor, codes: Tensor) -> Tensor:
    """What to add to all codewords (N, 256, D) to make the squared errors (M, D) of frames with codes (M, N) least.

    With B (M, N 256) the indicators of the codes, the solution of ``(B' B + RIDGE) X = B' errors``.
    """
    count = codes.shape[1]
    columns = codes + CODEWORDS * torch.arange(count, device=codes.device)
    together = errors.new_zeros(count * CODEWORDS, count * CODEWORDS)
    sums = errors.new_zeros(count * CODEWORDS, errors.shape[1])
    one = errors.new_ones(len(errors))
    for n in range(count):
        sums.index_add_(0, columns[:, n], errors)
        for m in range(count):
            together.index_put_((columns[:, n], columns[:, m]), one, accumulate=True)
    together.diagonal().add_(RIDGE)
    return torch.linalg.solve(together, sums).reshape(count, CODEWORDS, -1)


def encode_logits(logits: Tensor) -> Tensor:
    """Each frame's most probable tokens: (..., V) logits -> (..., bytes) uint8.

    A frame has the ids of the k tokens, of one byte each or two, low byte first, the byte of each one's
    log-probability, and that of the mean log-probability of all other tokens. A log-probability p is the byte
    255 sqrt(-p / 32), so that those near 0 are finest.
    """
    kept, wide = top_logits(logits.shape[-1])
    log_probs = logits.float().log_softmax(-1)
    values, ids = log_probs.topk(kept, -1)
    others = (log_probs.sum(-1, keepdim=True) - values.sum(-1, keepdim=True)) / (logits.shape[-1] - kept)
    nats = torch.cat([values, others], -1).neg().clamp(0.0, LOWEST)
    parts = [ids % 256, *([ids // 256] if wide else []), (255 * (nats / LOWEST).sqrt()).round()]
    return torch.cat([part.to(torch.uint8) for part in parts], -1)


def decode_logits(codes: Tensor, vocab_size: int) -> Tensor:
    """Log-probabilities (..., V) of what :func:`encode_logits` made; they do not sum to exactly 1."""
    kept, wide = top_logits(vocab_size)
    ids = codes[..., :kept].long()
    if wide:
        ids = ids + 256 * codes[..., kept : 2 * kept].long()
    values = -LOWEST * (codes[..., -kept - 1 :].float() / 255).square()
    others = values[..., -1:].expand(*codes.shape[:-1], vocab_size)
    return others.scatter(-1, ids.clamp(0, vocab_size - 1), values[..., :-1])
