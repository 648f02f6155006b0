"""Graphs whose loop over frames is compiled by what a test chooses, and comparison with torch's operations."""

import pytest
import torch

from distill.lfmmi import DenominatorGraph, denominator_score


def by(graph: DenominatorGraph, compiler: str | None) -> DenominatorGraph:
    """The same graph; ``compiler``: as :func:`distill.lfmmi.denominator_score.compiler` returns it."""
    graph = DenominatorGraph(graph.automaton)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denominator_score, "compiler", lambda device: compiler)
        for dtype in (torch.float32, torch.float64):
            loop = graph.native.loop(torch.device("cpu"), dtype)
            assert type(loop).__name__ == f"{(compiler or 'torch').title()}Recursions"
    return graph


def assert_same(
    graph: DenominatorGraph, x: torch.Tensor, lengths: list[int], compiler: str, tolerance: float = 1e-12
) -> None:
    """Scores, occupancies and what is doubtful, in both number formats, are those of torch's operations."""
    graph, reference, counts = by(graph, compiler), by(graph, None), torch.tensor(lengths)
    for dtype, atol in ((torch.float64, tolerance), (torch.float32, max(tolerance, 5e-6))):
        scores, occupancies, doubtful = graph.native._by(dtype, x, counts, True)
        expected, expected_occupancies, expected_doubtful = reference.native._by(dtype, x, counts, True)
        torch.testing.assert_close(scores, expected, rtol=atol, atol=20 * atol, equal_nan=True)
        torch.testing.assert_close(occupancies, expected_occupancies, rtol=0, atol=atol, equal_nan=True)
        assert doubtful.tolist() == expected_doubtful.tolist()


def emissions(batch: int, frames: int, vocab_size: int, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, frames, vocab_size, generator=generator, dtype=torch.double)
