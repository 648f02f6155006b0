"""LF-MMI on a GPU: scores, losses and gradients of the CPU, in one kernel, and what the host waits for."""

import warnings

import numpy as np
import pytest
import torch
from small_graphs import random_bigram, random_text

from distill.lfmmi import DenominatorGraph, LFMMILoss, topology

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
LENGTHS = torch.tensor([120, 1, 77, 0])


def zipf_text(vocab_size: int, lines: int = 400) -> list[list[int]]:
    rng = np.random.default_rng(vocab_size)
    return [((rng.zipf(1.3, 30) - 1) % (vocab_size - 1) + 1).tolist() for _ in range(lines)]


GRAPHS = {
    "order 1": lambda: DenominatorGraph.from_text(zipf_text(60), 1, 60),
    "bigram, V = 30": lambda: DenominatorGraph.from_text(zipf_text(30), 2, 30),
    "bigram, V = 100": lambda: DenominatorGraph.from_text(zipf_text(100), 2, 100),
    "bigram, V = 500": lambda: DenominatorGraph.from_text(zipf_text(500), 2, 500),
    "bigram, V = 5000": lambda: DenominatorGraph.from_text(zipf_text(5000), 2, 5000),
    "bigram without back-off": lambda: random_bigram(90),
    "bigram with missing arcs": lambda: random_bigram(40, absent=0.5),
    "trigram": lambda: DenominatorGraph.from_text(zipf_text(100), 3, 100),
    "order 4": lambda: DenominatorGraph.from_text(random_text(9, 60), 4, 9),
}


def emissions(vocab_size: int, kind: str, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 120, vocab_size, generator=generator, dtype=torch.double)
    if kind == "peaky":
        x.scatter_(2, torch.randint(vocab_size, (4, 120, 1), generator=generator), 60.0)
    return x.log_softmax(2).to(dtype)


def score_and_occupancies(graph, x, lengths):
    x = x.detach().requires_grad_()
    scores = graph.score(x, lengths)
    (occupancies,) = torch.autograd.grad(scores.sum(), x)
    return scores.detach().cpu(), occupancies.cpu().double()


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("kind", ["flat", "peaky"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scores_and_occupancies(name, kind, dtype):
    graph = GRAPHS[name]()
    x = emissions(graph.vocab_size, kind, dtype)
    expected, expected_occupancies = score_and_occupancies(graph, x.double(), LENGTHS)
    scores, occupancies = score_and_occupancies(graph, x.cuda(), LENGTHS.cuda())
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    assert ((scores - expected).abs() <= 100 * tolerance + tolerance * expected.abs()).all()
    atol = {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 5e-3)
    torch.testing.assert_close(occupancies, expected_occupancies, rtol=0, atol=atol)


@pytest.mark.parametrize("order", [2, 3])
def test_what_cannot_be_emitted_and_what_is_not_a_number(order):
    graph = DenominatorGraph.from_text(random_text(9, 40), order, 9)
    x = torch.randn(3, 30, 9, dtype=torch.double)
    x[0, 2, 1:] = x[0, 3, 0] = float("-inf")
    x[1, 3] = float("-inf")
    x[2, 4, 5] = float("nan")
    lengths = torch.tensor([30, 30, 30])
    expected, expected_occupancies = score_and_occupancies(graph, x, lengths)
    scores, occupancies = score_and_occupancies(graph, x.cuda(), lengths)
    torch.testing.assert_close(scores, expected, equal_nan=True)
    torch.testing.assert_close(occupancies[:2], expected_occupancies[:2])


@pytest.mark.parametrize("block", [1, 7])
def test_sums_kept_block_by_block(monkeypatch, block):
    graph = DenominatorGraph.from_text(random_text(9, 40), 3, 9)
    x, lengths = torch.randn(2, 50, 9, dtype=torch.double), torch.tensor([50, 31])
    expected = score_and_occupancies(graph, x, lengths)
    monkeypatch.setattr(topology, "KEPT_BYTES", block * 4 * graph.states * 2 * 8)
    for found, whole in zip(score_and_occupancies(graph, x.cuda(), lengths), expected, strict=True):
        torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("target", ["transcript", "pseudo", "posterior"])
@pytest.mark.parametrize("order", [2, 3])
def test_losses(target, order):
    graph = DenominatorGraph.from_text(zipf_text(60), order, 60)
    generator = torch.Generator().manual_seed(0)
    x, teacher = (torch.randn(3, 50, 60, generator=generator).log_softmax(2) for _ in range(2))
    lengths, tokens = torch.tensor([50, 31, 44]), torch.randint(1, 60, (3, 2, 8), generator=generator)
    given = {"tokens": tokens, "token_lengths": torch.tensor([[8, 3], [5, 5], [1, 0]])}
    given["weights"] = torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5]])
    if target == "posterior":
        given = {"teacher_log_probs": teacher}
    results = []
    for device in ("cpu", "cuda"):
        logits = x.to(device).requires_grad_()
        criterion = LFMMILoss(graph, target=target, reduction="none")
        losses = criterion(logits, lengths.to(device), **{name: value.to(device) for name, value in given.items()})
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        results.append((losses.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=1e-5)


def test_the_host_waits_twice_and_frames_cost_no_kernels():
    graph = DenominatorGraph.from_text(zipf_text(100), 2, 100)
    criterion, kernels = LFMMILoss(graph), []
    for frames in (50, 100, 200):
        x = torch.randn(4, frames, 100, device="cuda").log_softmax(2).requires_grad_()
        lengths = torch.tensor([frames, frames - 1, 30, 9], device="cuda")
        tokens, token_lengths = torch.randint(1, 100, (4, 8), device="cuda"), torch.tensor([8, 7, 2, 1], device="cuda")
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waited:
            warnings.simplefilter("always")
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                criterion(x, lengths, tokens, token_lengths).backward()
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
        waited = [str(w.message) for w in waited if "synchroniz" in str(w.message)]
        kernels.append(sum(event.count for event in profile.key_averages() if "mem" not in event.key.lower()))
    assert len(waited) <= 2, waited  # of the last, for which all is compiled and kept
    assert kernels[2] <= kernels[1] + 10  # ctc_loss's own depend on the frames
