"""Losses on the device in float32 equal those on the CPU in float64, with their gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_graphs import random_bigram, random_text
from torch import Tensor

from distill.lfmmi import DenominatorGraph, LFMMILoss
from distill.lfmmi.alignment import first_frames
from distill.lfmmi.loss import spread_occupancies, top_occupancies
from distill.training import loss_terms

pytestmark = pytest.mark.gpu

LENGTHS = [60, 41, 7, 1]
GRAPHS: dict[str, Callable[[], DenominatorGraph]] = {
    "dense bigram": lambda: random_bigram(30),
    "bigram with missing arcs": lambda: random_bigram(12, seed=4, absent=0.3),
    "bigram with back-off": lambda: DenominatorGraph.from_text(random_text(300, 200), 2, 300),
    "trigram with back-off": lambda: DenominatorGraph.from_text(random_text(300, 200), 3, 300),
    "small trigram": lambda: DenominatorGraph.from_text(random_text(20, 60), 3, 20),
}
NUMERATORS = ("transcript", "n best", "posterior", "stored posterior")


def value_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) and the gradient of their sum, on the CPU in float64."""
    x = x.clone().requires_grad_()
    losses = loss(x)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach().cpu().double(), gradient.cpu().double()


def assert_the_same(device: torch.device, loss: Callable[[Tensor], Tensor], x: Tensor, gradient_error: float) -> None:
    value, gradient = value_and_gradient(loss, x.float().to(device))
    expected, expected_gradient = value_and_gradient(loss, x.double())
    assert ((value - expected).abs() <= 1e-4 + 2e-6 * expected.abs()).all(), (value, expected)
    torch.testing.assert_close(gradient, expected_gradient, atol=gradient_error, rtol=0)
    for row, length in zip(gradient, LENGTHS, strict=True):
        assert row[:length].any() and not row[length:].any()


def emissions(vocab_size: int, seed: int = 0) -> Tensor:
    """(B, T, V) log probabilities, peaky as a trained network's, the same in float32 and float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(LENGTHS), LENGTHS[0], vocab_size, generator=generator)
    x += 6 * F.one_hot(torch.randint(vocab_size, x.shape[:2], generator=generator), vocab_size)
    return x.log_softmax(-1)


@pytest.mark.parametrize("numerator", NUMERATORS)
@pytest.mark.parametrize("graph_name", GRAPHS)
def test_lfmmi(device, graph_name, numerator):
    graph = GRAPHS[graph_name]()
    size, lengths = graph.vocab_size, torch.tensor(LENGTHS)
    # sequences of the n-gram's own text have a probability in every graph; one token fits into one frame
    tokens = torch.tensor([[1, 2, 3, 1, 2], [2, 3, -1, -1, -1], [3, 1, -1, -1, -1], [1, -1, -1, -1, -1]])
    token_lengths = (tokens > 0).sum(1)
    teacher = emissions(size, 1)
    criterion = LFMMILoss(graph, target="posterior" if "posterior" in numerator else "pseudo", reduction="none")

    def loss(x: Tensor) -> Tensor:
        to = {"device": x.device}
        if numerator == "transcript":
            return criterion(x, lengths.to(**to), tokens.to(**to), token_lengths.to(**to))
        if numerator == "n best":
            sequences = torch.stack((tokens, tokens.roll(1, 0)), 1)
            sequences[:, 1, 1:] = -1  # the second of each has one token
            weights = torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5], [0.9, 0.1]])
            counts = torch.stack((token_lengths, torch.ones_like(token_lengths)), 1)
            return criterion(x, lengths.to(**to), sequences.to(**to), counts.to(**to), weights=weights.to(**to))
        of_teacher = teacher.to(x)
        if numerator == "posterior":
            return criterion(x, lengths.to(**to), teacher_log_probs=of_teacher)
        top = top_occupancies(graph, of_teacher, lengths.to(**to), 5)
        return criterion(x, lengths.to(**to), teacher_occupancies=spread_occupancies(*top, size))

    assert_the_same(device, loss, emissions(size), 1e-5)


@pytest.mark.parametrize("term", ["centred_mse", "masked_cosine", "frame_kl", "ctc"])
def test_terms_of_frames(device, term):
    x, teacher = 3 * emissions(24), 3 * emissions(24, 1)

    def loss(x: Tensor) -> Tensor:
        lengths = torch.tensor(LENGTHS, device=x.device)
        if term == "ctc":
            tokens = torch.tensor([[1, 2, 2, 5], [3, 4, -1, -1], [7, 7, -1, -1], [9, -1, -1, -1]], device=x.device)
            log_probs = x.log_softmax(-1).transpose(0, 1)  # loss_terms.ctc casts to float32
            counts = (tokens > 0).sum(1)
            if x.dtype == torch.float32:
                return loss_terms.ctc(x, lengths, tokens, counts)
            return F.ctc_loss(log_probs, tokens.clamp(min=0), lengths, counts, reduction="none") / lengths
        return getattr(loss_terms, term)(x, teacher.to(x), lengths)

    assert_the_same(device, loss, x, 1e-5)


def test_alignments_and_bounded_ctc(device):
    """A token's first frame on the best alignment, and CTC whose tokens may not come before it."""
    x, lengths = emissions(30), torch.tensor([60, 41, 17, 9])
    tokens = torch.tensor([[1, 2, 2, 1, 2], [2, 3, -1, -1, -1], [3, 3, -1, -1, -1], [1, -1, -1, -1, -1]])
    token_lengths = (tokens > 0).sum(1)
    frames = [first_frames(y, lengths, tokens[:, None], token_lengths[:, None])[:, 0].cpu() for y in (x, x.to(device))]
    assert torch.equal(*frames)
    earliest = loss_terms.earliest_frames(frames[0], 3, lengths, token_lengths)
    values, gradients = zip(
        *(
            value_and_gradient(lambda y: loss_terms.ctc(y, lengths, tokens, token_lengths, earliest.to(y.device)), z)
            for z in (x, x.to(device))
        ),
        strict=True,
    )
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
