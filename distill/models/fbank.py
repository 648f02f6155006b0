"""Kaldi's log-mel filterbank in torch, and a slim convolutional subsampling to a frame per 40 ms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.cnn import ConvLayer, FeatureMask, convolve, field_of_view, whole_utterance

FRAME, SHIFT, FFT = 400, 160, 512  # samples: 25 ms, 10 ms
LEAD = 120  # samples by which a frame begins before its 10 ms
LOW_HZ, HIGH_HZ = 20.0, 7600.0
# ln energies of speech lie around MEAN +- SCALE, between those of loud speech and of rounding to 16 bits
MEAN, SCALE = 12.0 - 2 * math.log(32768), 5.0


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def mel_filters(bins: int, high_hz: float = HIGH_HZ) -> Tensor:
    """Kaldi's triangular mel filters over the FFT bins, (FFT / 2 + 1, bins); float64."""
    low, high = _mel(torch.tensor([LOW_HZ, high_hz], dtype=torch.float64))
    step = (high - low) / (bins + 1)
    left = low + torch.arange(bins, dtype=torch.float64) * step
    mel = _mel(torch.arange(FFT // 2 + 1, dtype=torch.float64) * 16000 / FFT)[:, None]
    filters = torch.minimum((mel - left) / step, (left + 2 * step - mel) / step).clamp(min=0)
    filters[-1] = 0  # Kaldi leaves out the Nyquist bin
    return filters


def povey_window() -> Tensor:
    """Kaldi's window, (FRAME,); float64."""
    hann = 0.5 - 0.5 * torch.cos(torch.arange(FRAME, dtype=torch.float64) * (2 * math.pi / (FRAME - 1)))
    return hann.pow(0.85)


def kaldi_fbank(samples: Tensor, window: Tensor, filters: Tensor) -> Tensor:
    """Log-mel energies as Kaldi computes them (no dither, samples in [-1, 1]).

    (B, n) audio, n >= 400, from the first frame's first sample on -> (B, (n - 400) // 160 + 1, bins). Frames are
    independent of each other.
    """
    frames = samples.unfold(1, FRAME, SHIFT)
    frames = frames - frames.mean(-1, keepdim=True)
    before = F.pad(frames, (1, 0), mode="replicate")[..., :-1]
    frames = (frames - 0.97 * before) * window
    power = torch.fft.rfft(frames, n=FFT).abs().square()
    return (power @ filters).clamp(min=torch.finfo(torch.float32).eps).log()


class FbankFrontEnd(nn.Module):
    """80-dim log-mel and two strided convolutions: 16 kHz audio -> a frame per 40 ms.

    The features are Kaldi's with ``snip_edges`` false, as most runtimes compute them: feature frame t is centred on its
    10 ms and begins with sample 160 t - 120, and the samples before the audio mirror its first ones. Frame t sees 7
    feature frames from 4 t on, samples [640 t - 120, 640 t + 1240): 37.5 ms more than its 40 ms, the declared
    look-ahead of this front end. Silence is appended to the audio, so that there are half as many frames as wav2vec 2.0
    has and the end of the last word is covered.

    Args:
        channels: of both convolutions.
        bins: mel bins.
    """

    lead, tail = LEAD, 4 * SHIFT - LEAD
    povey: Tensor
    filters: Tensor

    def __init__(self, channels: int = 256, bins: int = 80) -> None:
        super().__init__()
        self.channels = channels
        self.conv_layers = nn.ModuleList([ConvLayer(bins, channels, 3, 2), ConvLayer(channels, channels, 3, 2)])
        hop, window = field_of_view((3, 3), (2, 2))
        self.hop, self.window = hop * SHIFT, (window - 1) * SHIFT + FRAME
        self.bins = bins
        # Constants, so not in the checkpoint.
        self.register_buffer("povey", torch.empty(FRAME), persistent=False)
        self.register_buffer("filters", torch.empty(FFT // 2 + 1, bins), persistent=False)
        self.set_constants()

    def set_constants(self) -> None:
        """Compute the window and the mel filters."""
        self.povey.copy_(povey_window())
        self.filters.copy_(mel_filters(self.bins))

    def features(self, samples: Tensor) -> Tensor:
        """:func:`kaldi_fbank` of (B, n) audio, as float32, under any autocast (bfloat16 is wrong by up to 0.07 nats).

        Outside training it is computed in float64: in bands that are much quieter than the rest, float32 is wrong by up
        to 0.003 nats, and log-posteriors of an exported model then differ by more than 0.001 from those of torch.
        """
        dtype = torch.promote_types(samples.dtype, torch.float32)
        exact = dtype if self.training else torch.float64
        with torch.autocast(samples.device.type, enabled=False):
            return kaldi_fbank(samples.to(exact), self.povey.to(exact), self.filters.to(exact)).to(dtype)

    def encode(self, samples: Tensor, mask: FeatureMask | None = None) -> Tensor:
        """(B, n) audio, n >= window -> (B, (n - window) // hop + 1, channels); ``mask`` applies to the log-mel.

        The first sample is frame 0's first, ``lead`` samples before the audio.
        """
        log_mel = (self.features(samples) - MEAN) / SCALE
        return convolve(log_mel if mask is None else mask(log_mel, SHIFT), self.conv_layers)

    def forward(self, speech: Tensor, lengths: Tensor, mask: FeatureMask | None = None) -> tuple[Tensor, Tensor]:
        """(B, N) audio padded with zeros and (B,) samples -> features (B, T, channels) and (B,) frames, at least 1."""
        return whole_utterance(self, speech, lengths, mask)
