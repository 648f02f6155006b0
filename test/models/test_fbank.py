"""Log-mel features are Kaldi's."""

import torch
from tiny_networks import batch, speech

from distill.models.cnn import frame_counts
from distill.models.fbank import FbankFrontEnd


def test_features_are_those_of_kaldi():
    """torchaudio's port has been compared with Kaldi's own programs."""
    from torchaudio.compliance.kaldi import fbank

    audio = speech(16000)[None]
    expected = fbank(audio * 32768, dither=0.0, num_mel_bins=80, high_freq=-400.0, snip_edges=True)
    features = FbankFrontEnd(8).features(audio)[0]
    assert features.shape == expected.shape == (98, 80)
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=0)


def test_silence_is_finite():
    features = FbankFrontEnd(8).features(torch.zeros(1, 1000))
    assert torch.isfinite(features).all()


def test_half_as_many_frames_as_wav2vec():
    front = FbankFrontEnd(8)
    assert (front.hop, front.window) == (640, 1360)
    for samples in [1, 400, 720, 1039, 1040, 1359, 1360, 1361, 16000, 16321]:
        wav2vec = max(0, samples - 400) // 320 + 1
        frames = max(1, wav2vec // 2)
        assert frame_counts(front, torch.tensor(samples)) == frames
        features, lengths = front(*batch([samples]))
        assert features.shape[1] == lengths.item() == frames
