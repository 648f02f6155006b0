"""Networks on the device equal those on the CPU in float64: outputs, hidden layers and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_networks import batch, student, teacher
from torch import Tensor, nn

pytestmark = pytest.mark.gpu

SAMPLES = [24000, 17777, 9000, 450]
# In frames of 20 ms (cnn) and 40 ms (fbank)
MASKS: dict[str, dict[str, int | None]] = {
    "full": {},
    "chunks": {"chunk_frames": 8, "left_frames": 16},
    "all history": {"chunk_frames": 5, "left_frames": None},
    "look-ahead": {"chunk_frames": 6, "left_frames": 12, "lookahead_frames": 6},
}


def networks() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    students = {
        f"{front_end}, {name}": (student(front_end), mask)
        for front_end in ("cnn", "fbank")
        for name, mask in MASKS.items()
    }
    return {
        "teacher": (teacher(), {}),
        "normalising teacher": (teacher_that_normalises(), {}),
        "teacher with group norm": (teacher(feat_extract_norm="group", do_stable_layer_norm=False), {}),
        **students,
    }


def teacher_that_normalises() -> nn.Module:
    network = teacher()
    network.normalize = True
    return network


NAMES = [
    *("teacher", "normalising teacher", "teacher with group norm"),
    *(f"{front_end}, {name}" for front_end in ("cnn", "fbank") for name in MASKS),
]


def outputs(network: nn.Module, speech: Tensor, lengths: Tensor, **mask: Any) -> tuple[Tensor, Tensor]:
    """Log probabilities and the last hidden layer, with zeros beyond the lengths."""
    output = network(speech, lengths, **mask)
    inside = torch.arange(output.logits.shape[1], device=speech.device) < output.lengths[:, None]
    of_hidden = torch.arange(output.hidden[-1].shape[1], device=speech.device) < output.hidden_lengths[:, None]
    return (
        output.logits.float().log_softmax(-1).masked_fill(~inside[:, :, None], 0.0),
        output.hidden[-1].masked_fill(~of_hidden[:, :, None], 0.0),
    )


def both(network: nn.Module, device: torch.device) -> tuple[tuple[nn.Module, Tensor], tuple[nn.Module, Tensor], Tensor]:
    """The network with its audio on the device in float32 and on the CPU in float64, and the lengths."""
    speech, lengths = batch(SAMPLES)
    on_device = copy.deepcopy(network).to(device), speech.to(device)
    return on_device, (copy.deepcopy(network).double(), speech.double()), lengths


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs(device, name):
    network, mask = networks()[name]
    (there, speech), (here, exact_speech), lengths = both(network, device)
    log_probs, hidden = outputs(there, speech, lengths.to(device), **mask)
    expected, expected_hidden = outputs(here, exact_speech, lengths, **mask)
    torch.testing.assert_close(log_probs.cpu(), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(hidden.cpu().double(), expected_hidden, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(device, name):
    """Of every parameter: the norm of the difference beside that of the gradient, which a norm may make 0."""
    network, mask = networks()[name]
    gradients = []
    (there, speech), (here, exact_speech), lengths = both(network, device)
    for each, audio in ((there, speech), (here, exact_speech)):
        log_probs, hidden = outputs(each, audio, lengths.to(audio.device), **mask)
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(log_probs.shape, generator=generator).to(log_probs)
        ((log_probs * weights).sum() + hidden.square().mean()).backward()
        gradients.append({key: p.grad.cpu().double() for key, p in each.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    whole = torch.stack([gradient.norm() for gradient in gradients[1].values()]).norm()
    for key, expected in gradients[1].items():
        error = (gradients[0][key] - expected).norm()
        assert error <= 2e-3 * expected.norm() + 1e-5 * whole, (key, error, expected.norm())


@pytest.mark.parametrize("name", ["teacher", "cnn, full", "cnn, look-ahead", "fbank, full", "fbank, look-ahead"])
@torch.no_grad()
def test_outputs_in_bfloat16(device, name):
    """8 bits of mantissa: log probabilities of these networks, whose logits are large, are off by some hundredths."""
    network, mask = networks()[name]
    (there, speech), (here, exact_speech), lengths = both(network, device)
    with torch.autocast(device.type, torch.bfloat16):
        log_probs, _ = outputs(there, speech, lengths.to(device), **mask)
    expected, _ = outputs(here, exact_speech, lengths, **mask)
    difference = (log_probs.cpu().double() - expected).abs()
    assert 0 < difference.mean() < 0.06 and difference.max() < 0.8, (difference.mean(), difference.max())


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@torch.no_grad()
def test_padding_and_the_batch_change_nothing(device, front_end):
    network = student(front_end).to(device)
    speech, lengths = batch(SAMPLES)
    together = network(speech.to(device), lengths.to(device))
    for row, samples in enumerate(SAMPLES):
        alone = network(speech[row : row + 1, :samples].to(device), lengths[row : row + 1].to(device)).logits[0]
        torch.testing.assert_close(together.logits[row, : len(alone)], alone, atol=1e-3, rtol=0)
