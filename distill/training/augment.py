"""On-the-fly augmentation of audio: random gain, and white or pink noise at a random signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.configuration import AugmentConf
from distill.training.losses import frame_mask


def _uniform(low: float, high: float, like: Tensor) -> Tensor:
    return torch.empty(len(like), 1, device=like.device).uniform_(low, high)


def pink(white: Tensor) -> Tensor:
    """(B, N) white noise -> (B, N) pink: its power falls with 1/f. B and N are at least 1."""
    samples = white.shape[1]
    spectrum = torch.fft.rfft(white, n=-(-samples // 4096) * 4096)  # a large prime in the length is slow
    frequency = torch.arange(spectrum.shape[1], device=spectrum.device).clamp(min=1)
    return torch.fft.irfft(spectrum / frequency.sqrt())[:, :samples]


def augment(speech: Tensor, lengths: Tensor, conf: AugmentConf) -> Tensor:
    """(B, N) audio -> (B, N) augmented audio, drawn for every utterance anew; the padding stays zero.

    Half of the noise is white and half pink (power falling with 1/f); its power is that of the utterance divided by
    ``10^(SNR/10)``, so silence stays silent.
    """
    inside = frame_mask(lengths, speech.shape[1])
    count = lengths.clamp(min=1)[:, None]
    if conf.gain_db:
        chosen = _uniform(0, 1, speech) < conf.prob
        gain = 10 ** (_uniform(-conf.gain_db, conf.gain_db, speech) / 20)
        speech = speech * torch.where(chosen, gain, torch.ones_like(gain))
    noisy = (_uniform(0, 1, speech) < conf.prob)[:, 0].nonzero()[:, 0]
    if len(noisy):
        clean, mask = speech[noisy], inside[noisy]
        noise = torch.randn_like(clean)
        chosen = (_uniform(0, 1, clean) < 0.5)[:, 0].nonzero()[:, 0]
        if len(chosen):
            noise[chosen] = pink(noise[chosen])
        noise = noise.masked_fill(~mask, 0.0)
        samples = count[noisy]
        power = clean.square().sum(1, keepdim=True) / samples
        noise_power = (noise.square().sum(1, keepdim=True) / samples).clamp(min=1e-20)
        snr = 10 ** (_uniform(*conf.snr_range, clean) / 10)
        speech = speech.index_copy(0, noisy, clean + noise * (power / noise_power / snr).sqrt())
    return speech
