"""w2v-BERT 2.0: Conformer layers over pairs of log-mel frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError
from distill.models.fbank import FRAME, SHIFT, kaldi_fbank, mel_filters, povey_window
from distill.models.teacher import Teacher

BINS, PAIR = 80, 2  # mel bins, and log-mel frames of 10 ms side by side in one of the network's 20 ms


class Wav2Vec2BertTeacher(Teacher):
    """w2v-BERT 2.0 (``model_type: wav2vec2-bert``).

    Its features are Kaldi's log-mel (80 bins up to 8 kHz, of samples of 16 bits), each bin brought to zero mean and
    unit variance over the utterance, two frames side by side: what transformers' SeamlessM4TFeatureExtractor computes.
    A frame that has no partner at the end of an utterance is dropped.
    """

    povey: Tensor
    filters: Tensor

    def _set_frames(self) -> None:
        if self.config.feature_projection_input_dim != BINS * PAIR:
            size = self.config.feature_projection_input_dim
            raise UserError(f"network_conf.config.feature_projection_input_dim: {size} is not {BINS * PAIR}")
        # Constants, so not in the checkpoint.
        self.register_buffer("povey", povey_window().float(), persistent=False)
        self.register_buffer("filters", mel_filters(BINS, 8000.0).float(), persistent=False)

    def _frames(self, samples: Tensor) -> Tensor:
        return torch.div(self._log_mel_frames(samples), PAIR, rounding_mode="floor")

    def _log_mel_frames(self, samples: Tensor) -> Tensor:
        return torch.div((samples - FRAME).clamp(min=SHIFT), SHIFT, rounding_mode="floor") + 1

    def _inputs(self, speech: Tensor, samples: Tensor) -> Tensor:
        speech = F.pad(speech, (0, max(0, FRAME + SHIFT - speech.shape[1])))
        with torch.autocast(speech.device.type, enabled=False):  # bfloat16 would round logarithms by up to 0.07
            log_mel = kaldi_fbank(speech.float() * 32768, self.povey, self.filters)
            count = self._log_mel_frames(samples)[:, None]
            inside = (torch.arange(log_mel.shape[1], device=speech.device) < count)[:, :, None]
            mean = (log_mel * inside).sum(1) / count
            centred = (log_mel - mean[:, None]) * inside
            scaled = centred / (centred.square().sum(1) / (count - 1) + 1e-7).sqrt()[:, None]
        return scaled[:, : scaled.shape[1] // PAIR * PAIR].unflatten(1, (-1, PAIR)).flatten(2)
