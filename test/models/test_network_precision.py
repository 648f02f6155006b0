"""What is computed in bfloat16 under autocast, and what stays in float32."""

from contextlib import nullcontext

import pytest
import torch
from far_device import far_device, to_far
from tiny_networks import CHANNELS, batch, speech, student, teacher
from torch.utils._python_dispatch import TorchDispatchMode

from distill.models.cnn import ConvFrontEnd
from distill.models.fbank import FbankFrontEnd
from distill.models.output import predict

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "convolution", "linear", "mkldnn_rnn_layer")


class Products(TorchDispatchMode):
    """Types and shapes of all matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in PRODUCTS or "attention" in name:
            result_tensor = result[0] if isinstance(result, tuple) else result
            self.found.append((args[-1 if name == "mm" else 0].dtype, tuple(result_tensor.shape)))
        return result


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_a_teacher_computes_in_bfloat16_but_for_its_prediction_layer():
    network = teacher()
    audio, lengths = batch([8000, 6000])
    with torch.no_grad(), bf16(), Products() as products:
        output = network(audio, lengths)
    inexact = [shape for dtype, shape in products.found if dtype == torch.bfloat16]
    exact = [shape for dtype, shape in products.found if dtype != torch.bfloat16]
    assert len(inexact) >= 7 + 3 * 6 and all(shape[-1] == network.vocab_size for shape in exact) and len(exact) == 1
    assert output.logits.dtype == torch.float32


def test_log_mel_features_are_the_same_under_autocast():
    front, audio = FbankFrontEnd(8), speech(16000)[None]
    expected = front.features(audio)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert (front.features(audio) - expected).abs().max() < 1e-3
    with bf16():
        # float16 audio, as in a network converted to it
        assert (front.features(audio.half()) - expected)[:, :, 20:].abs().max() < 0.5


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_the_prediction_layer_adds_no_error_to_that_of_the_body(front_end):
    network = student(front_end)
    audio, lengths = batch([16000, 12000])
    with torch.no_grad(), bf16():
        output = network(audio, lengths)
    assert output.logits.dtype == torch.float32
    exact = torch.nn.functional.linear(
        output.hidden[-1].double(), network.output.weight.double(), network.output.bias.double()
    )
    exact = exact.view(output.logits.shape)
    assert (output.logits - exact).abs().max() < 1e-5 * exact.abs().max()
    with bf16():
        rounded = network.output(output.hidden[-1]).view(output.logits.shape)
    assert (rounded - exact).abs().max() > 1e-3 * exact.abs().max()  # what it would be
    converted = predict(network.output.bfloat16(), output.hidden[-1]).view(output.logits.shape)
    assert converted.dtype == torch.float32 and (converted - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_a_student_under_autocast_is_near_the_one_in_float32(front_end):
    """Outputs and gradients, of a network that a training step could take."""
    network = student(front_end).train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    audio, lengths = batch([16000, 16000])
    results = []
    for context in (nullcontext(), bf16()):
        network.zero_grad()
        with context:
            logits = network(audio, lengths, 8, 16, 4).logits
        logits.float().log_softmax(-1)[..., 1].mean().backward()
        results.append((logits.detach(), [parameter.grad for parameter in network.parameters()]))
    (expected, gradients), (found, rounded) = results
    assert (found - expected).abs().mean() < 0.03 * expected.abs().mean()
    for one, other in zip(gradients, rounded, strict=True):
        assert (
            other.dtype == torch.float32
            and torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.9
        )


class Copies(TorchDispatchMode):
    """Operations that write an activation anew in another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("clone", "contiguous", "copy_", "_to_copy", "constant_pad_nd") and args[0].numel() > 2000:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_the_cnn_of_a_gpu_transposes_and_copies_nothing():
    front = ConvFrontEnd(CHANNELS)
    audio = torch.stack([speech(16000, 1), speech(16000, 2)])
    expected = front.encode(audio)
    expected.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in front.named_parameters()}
    front.zero_grad()
    with far_device(), Copies() as copies:
        found = to_far(front).encode(to_far(audio))
        assert found.stride() == (found.shape[1] * found.shape[2], found.shape[2], 1)
        forward = list(copies.found)
        found.square().sum().backward()
    torch.testing.assert_close(found.near, expected, atol=1e-5, rtol=0)
    for name, parameter in front.named_parameters():
        scale = gradients[name].abs().max()
        torch.testing.assert_close(parameter.grad.near / scale, gradients[name] / scale, atol=1e-4, rtol=0)
    assert not forward and not copies.found
