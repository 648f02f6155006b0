"""The fast CNN is Hugging Face's, forward and backward."""

import pytest
import torch
from tiny_networks import CHANNELS, TEACHER, batch, speech
from transformers import Wav2Vec2Config, Wav2Vec2Model

from distill.models.cnn import ConvFrontEnd, block_conv, frame_counts


def hugging_face() -> torch.nn.Module:
    torch.manual_seed(0)
    extractor = Wav2Vec2Model(Wav2Vec2Config(**TEACHER)).feature_extractor
    for layer in extractor.conv_layers:  # away from ones and zeros, so that a forgotten factor shows
        torch.nn.init.normal_(layer.layer_norm.weight, 1, 0.3)
        torch.nn.init.normal_(layer.layer_norm.bias, 0, 0.3)
    return extractor


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 721, 9999, 16000])
def test_output_and_gradients_are_those_of_hugging_face(samples):
    extractor = hugging_face()
    front_end = ConvFrontEnd(CHANNELS)
    front_end.load_state_dict(extractor.state_dict())
    audio = torch.stack([speech(samples, 1), speech(samples, 2)])
    actual, lengths = front_end(audio, torch.tensor([samples, samples]))
    reference = extractor(audio.clone()).transpose(1, 2)
    assert actual.shape == reference.shape
    assert lengths.tolist() == [reference.shape[1]] * 2
    torch.testing.assert_close(actual, reference, atol=1e-5, rtol=0)
    weight = torch.randn_like(reference)
    (actual * weight).sum().backward()
    (reference * weight).sum().backward()
    pairs = dict(extractor.named_parameters())
    for name, parameter in front_end.named_parameters():
        scale = pairs[name].grad.abs().max()
        torch.testing.assert_close(parameter.grad / scale, pairs[name].grad / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(1, 10, 5), (3, 3, 2), (3, 2, 2), (2, 4, 2), (4, 1, 2)])
def test_a_block_convolution_is_a_convolution(channels, kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(3, 23, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, channels, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    count = (23 - kernel) // stride + 1
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    torch.testing.assert_close(block_conv(x, weight, bias, stride)[:, :count], expected)
    assert torch.autograd.gradcheck(lambda *a: block_conv(*a, stride)[:, :count], (x, weight, bias))


def test_a_kernel_beyond_two_strides_is_refused():
    with pytest.raises(ValueError, match="kernel 5"):
        block_conv(torch.zeros(1, 9, 1), torch.zeros(1, 1, 5), torch.zeros(1), 2)


def test_frame_counts():
    front = ConvFrontEnd(CHANNELS)
    assert (front.hop, front.window) == (320, 400)
    for samples, frames in [(1, 1), (400, 1), (719, 1), (720, 2), (1040, 3), (16000, 49)]:
        assert frame_counts(front, torch.tensor([samples])).tolist() == [frames]
        assert front(*batch([samples]))[0].shape[1] == frames


def test_a_frozen_cnn_has_no_gradient():
    front = ConvFrontEnd(CHANNELS, freeze=True)
    features, _ = front(*batch([4000]))
    assert not features.requires_grad
    assert not any(p.requires_grad for p in front.parameters())
