"""Log-mel features are Kaldi's."""

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch
from tiny_networks import batch, speech

from distill.models.cnn import frame_counts, with_lead
from distill.models.fbank import FbankFrontEnd, kaldi_fbank


def kaldi(audio: np.ndarray) -> np.ndarray:
    """(frames, 80) of (n,) audio in [-1, 1], by Kaldi's code with the options of sherpa-onnx."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(16000, audio.tolist())
    return np.stack([computer.get_frame(number) for number in range(computer.num_frames_ready)])


@pytest.mark.parametrize("level", [1.0, 1e-3, 0.0])
def test_features_are_those_of_kaldi(level):
    """Also of the first samples, which are mirrored, and of audio below the lowest energy."""
    audio = speech(16000) * level
    audio[8000:] *= 1e-3
    expected = kaldi(audio.numpy())
    front = FbankFrontEnd(8)
    features = front.features(with_lead(audio[None], front.lead))[0].numpy()
    assert features.shape == expected.shape == (99, 80)
    np.testing.assert_allclose(features, expected, atol=1e-3, rtol=0)


def test_the_port_in_torchaudio_agrees():
    from torchaudio.compliance.kaldi import fbank

    audio = speech(16000)[None]
    expected = fbank(audio, dither=0.0, num_mel_bins=80, high_freq=-400.0, snip_edges=True)
    torch.testing.assert_close(FbankFrontEnd(8).features(audio)[0], expected, atol=1e-3, rtol=0)


def test_features_are_exact_outside_training():
    """In bands 90 dB below the loudest, where float32 is wrong by more than exported models may differ from torch."""
    time = torch.arange(16000) / 16000
    audio = ((0.9 * torch.sin(2 * torch.pi * 110 * time) + 1e-5 * speech(16000)) * 32768).round()[None] / 32768
    front = FbankFrontEnd(8)
    exact = kaldi_fbank(audio.double(), front.povey.double(), front.filters.double())
    assert (front.features(audio) - exact).abs().max() > 1e-4
    front.eval()
    assert (front.features(audio) - exact).abs().max() < 1e-5


def test_half_as_many_frames_as_wav2vec():
    front = FbankFrontEnd(8)
    assert (front.hop, front.window) == (640, 1360)
    for samples in [1, 119, 120, 400, 720, 1039, 1040, 1359, 1360, 1361, 16000, 16321]:
        wav2vec = max(0, samples - 400) // 320 + 1
        frames = max(1, wav2vec // 2)
        assert frame_counts(front, torch.tensor(samples)) == frames
        features, lengths = front(*batch([samples]))
        assert features.shape[1] == lengths.item() == frames
