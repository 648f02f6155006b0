"""The parts of ESPnet's asr experiments: front end, normalisation and encoder."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from distill.models.teachers.espnet_s3prl import S3prlFrontEnd
from distill.models.teachers.espnet_statistics import GlobalStatistics
from distill.models.transfer import send


class EspnetEncoder(nn.Module):
    """What an experiment computes before its CTC layer, with its names for the weights, from sections of its config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
        from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
        from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
        from espnet2.asr.frontend.default import DefaultFrontend
        from espnet2.asr.preencoder.linear import LinearProjection
        from espnet2.layers.utterance_mvn import UtteranceMVN

        kinds = {"conformer": ConformerEncoder, "e_branchformer": EBranchformerEncoder}
        self.config = SimpleNamespace(**config)
        self.upstream = config.get("frontend") == "s3prl"
        frontend: Any = (S3prlFrontEnd if self.upstream else DefaultFrontend)(**config["frontend_conf"])
        self.frontend = frontend
        bins = frontend.width if self.upstream else frontend.output_size()
        normalise = {"global_mvn": lambda: GlobalStatistics(bins), "utterance_mvn": UtteranceMVN, None: lambda: None}
        self.normalize = normalise[config["normalize"]]()
        linear = config.get("preencoder_conf")
        self.preencoder = None if linear is None else LinearProjection(**linear)
        inputs = bins if self.preencoder is None else self.preencoder.output_size()
        self.encoder = kinds.get(config["encoder"], TransformerEncoder)(inputs, **config["encoder_conf"])

    def count(self, samples: Tensor) -> Tensor:
        """Frames of the front end for so many samples; s3prl has none at the very end."""
        return torch.div(samples - int(self.upstream), self.frontend.hop_length, rounding_mode="floor") + 1

    def least(self, frames: int) -> int:
        """The fewest samples that have so many frames, and that the front end takes."""
        samples = self.frontend.hop_length * (frames - 1) + int(self.upstream)
        return samples if self.upstream else max(samples, self.frontend.stft.n_fft // 2 + 1)

    def features(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) audio with (B,) samples each -> the encoder's input (B, T, D), and (B,) frames on its device."""
        with torch.autocast(
            speech.device.type, enabled=self.upstream and torch.is_autocast_enabled(speech.device.type)
        ):
            x, frames = self.frontend(speech, lengths if self.upstream else send(lengths, speech.device))
        if self.normalize is not None:
            x, frames = self.normalize(x, frames)
        return (x, frames) if self.preencoder is None else self.preencoder(x, frames)
