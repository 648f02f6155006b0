"""Parakeet: a FastConformer, whose frames are longer than wav2vec 2.0's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.models.output import NetworkOutput, predict
from distill.models.teacher import Teacher
from distill.models.transfer import send

SHIFT, WINDOW, FFT, PREEMPHASIS = 160, 400, 512, 0.97  # of the log-mel; samples


class ParakeetTeacher(Teacher):
    """Parakeet's encoder (``model_type: parakeet_encoder``), with a frame per 80 ms.

    Its features are NeMo's log-mel, each bin brought to zero mean and unit variance over the utterance: what
    transformers' ParakeetFeatureExtractor computes. Frame t is centred on 80 t ms.
    """

    filters: Tensor
    hann: Tensor

    def _set_frames(self) -> None:
        from transformers.audio_utils import mel_filter_bank

        self.frame_ms = self.encoder_frame_ms = 10 * self.config.subsampling_factor
        bins = self.config.num_mel_bins
        filters = mel_filter_bank(FFT // 2 + 1, bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("hann", torch.hann_window(WINDOW, periodic=False), persistent=False)

    def _frames(self, samples: Tensor) -> Tensor:
        return self.encoder._get_subsampling_output_length(self._log_mel_frames(samples)).long()

    def _log_mel_frames(self, samples: Tensor) -> Tensor:
        return torch.div(samples, SHIFT, rounding_mode="floor").clamp(min=2)

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> NetworkOutput:
        features, mask = self._log_mel(speech, send(speech_lengths, speech.device)[:, None])
        x, hidden = self._run(features, mask, [])
        lengths = self._frames(speech_lengths)
        return NetworkOutput(predict(self.output, self.dropout(x)), lengths, hidden, lengths)

    def _log_mel(self, speech: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) audio with (B, 1) samples -> features (B, T, bins) and their mask (B, T)."""
        speech = F.pad(speech, (0, max(0, 2 * SHIFT - speech.shape[1])))
        inside = torch.arange(speech.shape[1], device=speech.device) < samples
        audio = torch.cat((speech[:, :1], speech[:, 1:] - PREEMPHASIS * speech[:, :-1]), 1) * inside
        with torch.autocast(speech.device.type, enabled=False):  # bfloat16 would round logarithms by up to 0.07
            spectrum = torch.stft(audio, FFT, SHIFT, WINDOW, self.hann, pad_mode="constant", return_complex=True)
            log_mel = (spectrum.abs().square().transpose(1, 2) @ self.filters + 2.0**-24).log()
            count = self._log_mel_frames(samples)[:, None]
            mask = (torch.arange(log_mel.shape[1], device=speech.device) < count[:, 0])[:, :, None]
            centred = (log_mel - (log_mel * mask).sum(1, keepdim=True) / count) * mask
            deviation = (centred.square().sum(1, keepdim=True) / (count - 1)).sqrt()
            return centred / (deviation + 1e-5), mask[:, :, 0]
