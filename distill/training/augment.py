"""On-the-fly augmentation: gain, noise and silence on audio, and masks over features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.configuration import AugmentConf, MaskConf
from distill.models.transfer import send
from distill.training.loss_terms import frame_mask


def _chosen(count: int, share: float) -> Tensor:
    """Numbers below ``count``, each with probability ``share``; on the host."""
    return (torch.rand(count) < share).nonzero()[:, 0]


def pink(white: Tensor) -> Tensor:
    """(B, N) white noise -> (B, N) pink: its power falls with 1/f. B and N are at least 1."""
    samples = white.shape[1]
    spectrum = torch.fft.rfft(white, n=-(-samples // 4096) * 4096)  # a large prime in the length is slow
    frequency = torch.arange(spectrum.shape[1], device=spectrum.device).clamp(min=1)
    return torch.fft.irfft(spectrum / frequency.sqrt())[:, :samples]


def augment(speech: Tensor, lengths: Tensor, conf: AugmentConf) -> Tensor:
    """(B, N) audio -> (B, N) augmented audio, drawn for every utterance anew; the padding stays zero.

    Half of the noise is white and half pink (power falling with 1/f); its power is that of the utterance divided by
    ``10^(SNR/10)``, so silence stays silent. What is drawn for whole utterances is drawn on the host, which then knows
    how many get noise without asking a GPU.
    """
    device, batch = speech.device, len(speech)
    lengths = send(lengths, device)
    low, high = conf.gain_range
    if low or high:
        gain = 10 ** (torch.empty(batch).uniform_(low, high) / 20)
        gain = torch.where(torch.rand(batch) < conf.prob, gain, torch.ones_like(gain))
        speech = speech * send(gain, device)[:, None]
    noisy = _chosen(batch, conf.prob)
    if len(noisy):
        rows = send(noisy, device)
        clean, samples = speech[rows], lengths[rows][:, None].clamp(min=1)
        noise = torch.randn_like(clean)
        coloured = _chosen(len(noisy), 0.5)
        if len(coloured):
            rows_of_noise = send(coloured, device)
            noise = noise.index_copy(0, rows_of_noise, pink(noise[rows_of_noise]))
        noise = noise * frame_mask(samples[:, 0], noise.shape[1])
        power = clean.square().sum(1, keepdim=True) / samples
        noise_power = (noise.square().sum(1, keepdim=True) / samples).clamp(min=1e-20)
        snr = send(10 ** (torch.empty(len(noisy)).uniform_(*conf.snr_range) / 10), device)[:, None]
        speech = speech.index_copy(0, rows, clean + noise * (power / noise_power / snr).sqrt())
    return speech


SILENCE_DB = (-100.0, -50.0)  # level of the faint noise in a silence, in dB of full scale


def surround_with_silence(speech: Tensor, lengths: Tensor, before: int, after: int) -> Tensor:
    """(B, N) audio with (B,) samples -> (B, before + N + after): the same with silence around every utterance.

    Half of the silences are digital, the others have faint noise of a level drawn for each utterance, which goes on
    through its words. The padding stays zero.
    """
    device, batch = speech.device, len(speech)
    if before == after == 0:
        return speech
    padded = F.pad(speech, (before, after))
    level = 10 ** (torch.empty(batch).uniform_(*SILENCE_DB) / 20)
    level = send(torch.where(torch.rand(batch) < 0.5, level, torch.zeros_like(level)), device)
    within = frame_mask(send(lengths, device) + before + after, padded.shape[1])
    return padded + level[:, None] * torch.randn_like(padded) * within


def draw_silence(conf: AugmentConf, frame_ms: int) -> tuple[int, int]:
    """Silence before and after the utterances of a batch, in frames of ``frame_ms``."""
    most = int(1000 * conf.silence_s / frame_ms)
    if most == 0 or torch.rand(()) >= conf.prob:
        return 0, 0
    total = round(most * float(torch.rand(())) ** 4)  # long silences are costly, so they are rare
    before = int(torch.randint(0, total + 1, ()))
    return before, total - before


def mask_features(features: Tensor, lengths: Tensor, frame_ms: float, conf: MaskConf) -> Tensor:
    """(B, T, D) features with (B,) frames -> the same with stretches of time and bands of bins set to 0.

    Drawn for every utterance anew; ``frame_ms`` is milliseconds between frames. What is beyond an utterance's length
    may be masked or not.
    """
    batch, frames, bins = features.shape
    device = features.device
    rate = conf.times_per_s * frame_ms / 1000
    most = max(1, round((frames + 2) * rate)) if rate else 0  # of any utterance; two frames may be left at its end
    lengths = send(lengths, device).float()[:, None]
    number = torch.arange(most, device=device)
    longest = (lengths / 5).clamp(max=conf.time_ms / frame_ms).floor()
    width = (torch.rand(batch, most, device=device) * (longest + 1)).floor()
    width = width * (number < (lengths * rate).round().clamp(min=1))
    start = (torch.rand(batch, most, device=device) * (lengths - width + 1)).floor()
    hidden = _covered(start, width, frames)
    width = (torch.rand(batch, conf.bands, device=device) * (conf.band_share * bins + 1)).floor()
    start = (torch.rand(batch, conf.bands, device=device) * (bins - width + 1)).floor()
    return features.masked_fill(hidden[:, :, None] | _covered(start, width, bins)[:, None, :], 0.0)


def _covered(start: Tensor, width: Tensor, count: int) -> Tensor:
    """(B, count) bool: which of ``count`` numbers lie in any of a row's (B, M) stretches."""
    number = torch.arange(count, device=start.device)[:, None]
    return ((number >= start[:, None]) & (number < (start + width)[:, None])).any(-1)
