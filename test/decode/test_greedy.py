import torch

from distill.decode.greedy import GreedySearch, greedy


def logits(path: list[int], vocab: int = 4, sharpness: float = 3.0) -> torch.Tensor:
    return sharpness * torch.nn.functional.one_hot(torch.tensor(path), vocab).float()


def test_repetitions_are_merged_and_blanks_separate():
    tokens = greedy(logits([0, 1, 1, 0, 1, 2, 2, 2, 0, 0, 3]))
    assert [(t.id, t.start_frame, t.end_frame) for t in tokens] == [(1, 1, 3), (1, 4, 5), (2, 5, 8), (3, 10, 11)]


def test_confidence_is_the_mean_posterior():
    x = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]]).log()
    (token,) = greedy(x)
    assert abs(token.confidence - 0.8) < 1e-6


def test_nothing_gives_nothing():
    assert greedy(torch.zeros(0, 4)) == []
    assert greedy(logits([0, 0])) == []


def test_pieces_give_the_same_tokens_as_all_at_once():
    generator = torch.Generator().manual_seed(0)
    path = torch.randint(0, 3, (60,), generator=generator).repeat_interleave(3).tolist()
    whole = logits(path) + 0.1 * torch.randn(180, 4, generator=generator)
    expected = greedy(whole)
    for size in (1, 2, 7, 100):
        search = GreedySearch()
        for piece in whole.split(size):
            search.accept(piece)
        assert [t[:3] for t in search.tokens] == [t[:3] for t in expected]
        assert all(abs(a.confidence - b.confidence) < 1e-5 for a, b in zip(search.tokens, expected, strict=True))
