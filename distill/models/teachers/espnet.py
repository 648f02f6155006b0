"""Recognisers of ESPnet's own asr experiments: a front end, a Conformer, E-Branchformer or transformer, and CTC."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distill.models.output import NetworkOutput, predict
from distill.models.teacher import Teacher
from distill.models.teachers.espnet_parts import EspnetEncoder

# Strides of the convolutions over 3 frames that are the encoder's input_layer
STRIDES = {"linear": (), "conv2d1": (1, 1), "conv2d2": (2, 1), "conv2d": (2, 2), "conv2d8": (2, 2, 2)}


class EspnetTeacher(Teacher):
    """An asr experiment of ESPnet (``model_type: espnet``). In a batch its outputs depend on the padding."""

    @property
    def sees_padding(self) -> bool:
        return True

    def _make_encoder(self, config: Any) -> EspnetEncoder:
        return EspnetEncoder(config)

    def _set_frames(self) -> None:
        hop, self._strides = self.encoder.frontend.hop_length, STRIDES[self.config.encoder_conf["input_layer"]]
        frames = 1
        for stride in reversed(self._strides):
            frames = (frames - 1) * stride + 3
        self._least = self.encoder.least(frames)  # ESPnet refuses what is too short for its convolutions
        self.frame_ms = self.encoder_frame_ms = hop * math.prod(self._strides) // 16

    def _frames(self, samples: Tensor) -> Tensor:
        frames = self.encoder.count(samples.clamp(min=self._least))
        for stride in self._strides:
            frames = torch.div(frames - 3, stride, rounding_mode="floor") + 1
        return frames

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> NetworkOutput:
        speech = torch.nn.functional.pad(speech, (0, max(0, self._least - speech.shape[1])))
        features, frames = self.encoder.features(speech, speech_lengths.clamp(min=self._least))
        hidden: list[Tensor] = []
        layers = self.encoder.encoder.encoders
        hooks = [layer.register_forward_hook(lambda _l, _i, output: hidden.append(first(output))) for layer in layers]
        try:
            x = first(self.encoder.encoder(features, frames))
        finally:
            for hook in hooks:
                hook.remove()
        lengths = self._frames(speech_lengths).clamp(max=x.shape[1])
        return NetworkOutput(predict(self.output, self.dropout(x)), lengths, hidden, lengths)


def first(output: Any) -> Tensor:
    """The features among what a layer of ESPnet puts out: with positions, and with a mask."""
    return first(output[0]) if isinstance(output, tuple) else output
