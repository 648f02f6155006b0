"""On-the-fly augmentation: gain and noise on audio, and masks over features."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.configuration import AugmentConf, MaskConf
from distill.training.loss_terms import frame_mask


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
    low, high = conf.gain_range
    if low or high:
        chosen = _uniform(0, 1, speech) < conf.prob
        gain = 10 ** (_uniform(low, high, speech) / 20)
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


def mask_features(features: Tensor, lengths: Tensor, frame_ms: float, conf: MaskConf) -> Tensor:
    """(B, T, D) features with (B,) frames -> the same with stretches of time and bands of bins set to 0.

    Drawn for every utterance anew; ``frame_ms`` is milliseconds between frames. What is beyond an utterance's length
    may be masked or not.
    """
    batch, frames, bins = features.shape
    device = features.device
    lengths = lengths.to(device, torch.float32)
    hidden = torch.zeros(batch, frames, dtype=torch.bool, device=device)
    counts = (lengths * (conf.times_per_s * frame_ms / 1000)).round().clamp(min=1) if conf.times_per_s else lengths * 0
    longest = torch.minimum(lengths / 5, lengths.new_tensor(conf.time_ms / frame_ms)).floor()
    time = torch.arange(frames, device=device)
    for number in range(int(counts.max())):
        width = (torch.rand(batch, device=device) * (longest + 1)).floor().clamp(max=frames)
        width = torch.where(counts > number, width, torch.zeros_like(width))
        start = (torch.rand(batch, device=device) * (lengths - width + 1)).floor()
        hidden |= (time >= start[:, None]) & (time < (start + width)[:, None])
    hidden_bins = torch.zeros(batch, bins, dtype=torch.bool, device=device)
    bin_numbers = torch.arange(bins, device=device)
    for _ in range(conf.bands):
        width = (torch.rand(batch, device=device) * (conf.band_share * bins + 1)).floor()
        start = (torch.rand(batch, device=device) * (bins - width + 1)).floor()
        hidden_bins |= (bin_numbers >= start[:, None]) & (bin_numbers < (start + width)[:, None])
    return features.masked_fill(hidden[:, :, None] | hidden_bins[:, None, :], 0.0)
