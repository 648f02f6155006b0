"""How often a loss waits for the device: once for lengths and tokens, once for what float32 cannot do."""

import pytest
import torch
from device_reads import OnDevice, OperationCount, on_device
from small_graphs import random_bigram, random_text

from distill.lfmmi import DenominatorGraph, LFMMILoss, denominator_score, host
from distill.lfmmi.loss import spread_occupancies, top_occupancies

LENGTHS, TOKENS, TOKEN_LENGTHS = (
    torch.tensor([9, 5, 7]),
    torch.tensor([[1, 2], [3, -1], [2, 1]]),
    torch.tensor([2, 1, 2]),
)


@pytest.fixture(autouse=True)
def operations_of_torch(monkeypatch):
    """What is to count as a device is the CPU, for which numba would compile a loop."""
    monkeypatch.setattr(denominator_score, "compiler", lambda device: None)


def transfers(criterion: LFMMILoss, *inputs: torch.Tensor, **more: torch.Tensor) -> int:
    """Of a loss and its gradient, all of whose inputs are on a device; fails if it waits in any other way."""
    x = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0))
    expected = criterion(x, *inputs, **more)  # makes what is kept as well
    x = on_device(x).requires_grad_()
    OnDevice.transfers = 0
    with OperationCount() as count:
        loss = criterion(x, *map(on_device, inputs), **{name: on_device(value) for name, value in more.items()})
        loss.backward()
    assert isinstance(loss, OnDevice) and x.grad is not None
    assert not count.waiting
    found = OnDevice.transfers
    assert float(loss.detach().cpu()) == pytest.approx(float(expected))
    return found


@pytest.mark.parametrize("order", [1, 2, 3])
def test_tokens(order):
    criterion = LFMMILoss(DenominatorGraph.from_text(random_text(4), order=order, vocab_size=4))
    assert transfers(criterion, LENGTHS, TOKENS, TOKEN_LENGTHS) == 2


def test_several_sequences():
    criterion = LFMMILoss(DenominatorGraph.from_text(random_text(4), order=2, vocab_size=4), target="pseudo")
    tokens = torch.stack([TOKENS, TOKENS.flip(0)], 1)
    token_lengths = torch.stack([TOKEN_LENGTHS, TOKEN_LENGTHS.flip(0)], 1)
    assert transfers(criterion, LENGTHS, tokens, token_lengths, weights=torch.rand(3, 2)) == 2


def test_teacher():
    graph = DenominatorGraph.from_text(random_text(4), order=2, vocab_size=4)
    criterion, teacher = LFMMILoss(graph, target="posterior"), torch.randn(3, 9, 4)
    assert transfers(criterion, LENGTHS, teacher_log_probs=teacher) == 2
    occupancies = spread_occupancies(*top_occupancies(graph, teacher, LENGTHS, 2), 4)
    assert transfers(criterion, LENGTHS, teacher_occupancies=occupancies) == 2


def test_missing_arcs():
    assert transfers(LFMMILoss(random_bigram(4, absent=0.3)), LENGTHS, TOKENS, TOKEN_LENGTHS) == 2


def test_reads_all_at_once():
    OnDevice.transfers = 0
    here, first, second = torch.tensor([3]), on_device(torch.tensor([[1, 2]])), on_device(torch.tensor([True, False]))
    values = host.read(first, here, second)
    assert OnDevice.transfers == 1
    assert [v.tolist() for v in values] == [[[1, 2]], [3], [1, 0]]


def test_waiting_is_seen():
    """What these tests rely on."""
    with OperationCount() as count:
        x = torch.randn(3)
        x[x > 0].sum()
        (x > 0).any().item()
    assert len(count.waiting) == 2 and count.total > 4
    with pytest.raises(AssertionError):
        bool((on_device(x) > 0).any())
