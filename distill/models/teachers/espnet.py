"""Recognisers of ESPnet's own asr experiments: log-mel, a Conformer, E-Branchformer or transformer, and CTC."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.output import NetworkOutput, predict
from distill.models.teacher import Teacher
from distill.models.transfer import send

HALVINGS = {"conv2d": 2, "conv2d8": 3}  # of the frame rate, by the encoder's input_layer


class GlobalStatistics(nn.Module):
    """ESPnet's global_mvn, whose statistics are weights here: (B, T, D) and (B,) frames -> normalised, zero beyond."""

    mean: Tensor
    std: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bins))
        self.register_buffer("std", torch.ones(bins))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return (x - self.mean) * inside[:, :, None] / self.std, lengths


class EspnetEncoder(nn.Module):
    """What an experiment computes before its CTC layer, with its names for the weights, from sections of its config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
        from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
        from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
        from espnet2.asr.frontend.default import DefaultFrontend
        from espnet2.layers.utterance_mvn import UtteranceMVN

        kinds = {"conformer": ConformerEncoder, "e_branchformer": EBranchformerEncoder}
        self.config = SimpleNamespace(**config)
        self.frontend = DefaultFrontend(**config["frontend_conf"])
        bins = self.frontend.output_size()
        normalise = {"global_mvn": lambda: GlobalStatistics(bins), "utterance_mvn": UtteranceMVN, None: lambda: None}
        self.normalize = normalise[config["normalize"]]()
        self.encoder = kinds.get(config["encoder"], TransformerEncoder)(bins, **config["encoder_conf"])


class EspnetTeacher(Teacher):
    """An asr experiment of ESPnet (``model_type: espnet``). In a batch its outputs depend on the padding."""

    @property
    def sees_padding(self) -> bool:
        return True

    def _make_encoder(self, config: Any) -> EspnetEncoder:
        return EspnetEncoder(config)

    def _set_frames(self) -> None:
        self._hop, self._halvings = self.encoder.frontend.hop_length, HALVINGS[self.config.encoder_conf["input_layer"]]
        self._least = self._hop * (4 << self._halvings)  # ESPnet refuses what is too short for its convolutions
        self.frame_ms = self.encoder_frame_ms = (self._hop << self._halvings) // 16

    def _frames(self, samples: Tensor) -> Tensor:
        frames = torch.div(samples.clamp(min=self._least), self._hop, rounding_mode="floor") + 1
        for _ in range(self._halvings):
            frames = torch.div(frames - 1, 2, rounding_mode="floor")
        return frames

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> NetworkOutput:
        speech = F.pad(speech, (0, max(0, self._least - speech.shape[1])))
        with torch.autocast(speech.device.type, enabled=False):
            x, frames = self.encoder.frontend(speech, send(speech_lengths, speech.device).clamp(min=self._least))
            if self.encoder.normalize is not None:
                x, frames = self.encoder.normalize(x, frames)
        hidden: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output: hidden.append(first(output)))
            for layer in self.encoder.encoder.encoders
        ]
        try:
            x = first(self.encoder.encoder(x, frames))
        finally:
            for hook in hooks:
                hook.remove()
        lengths = self._frames(speech_lengths).clamp(max=x.shape[1])
        return NetworkOutput(predict(self.output, self.dropout(x)), lengths, hidden, lengths)


def first(output: Any) -> Tensor:
    """The features among what a layer of ESPnet puts out: with positions, and with a mask."""
    while isinstance(output, tuple):
        output = output[0]
    return output
