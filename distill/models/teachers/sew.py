"""SEW: wav2vec 2.0 whose layers compute with fewer frames than its CNN puts out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.teacher import Teacher


class SewTeacher(Teacher):
    """SEW (``model_type: sew``), whose layers have a frame for ``squeeze_factor`` frames of logits.

    The CNN's frames, one per 20 ms, are averaged in groups before the first layer, and what the last layer puts out is
    spread over as many frames again. ``hidden[i - 1]`` is what layer i puts out, at the lower rate.
    Frames at the end that fill no group have no logits here; transformers gives them zeros in place of features.
    """

    def _set_frames(self) -> None:
        super()._set_frames()
        self.encoder_frame_ms = self.frame_ms * self.config.squeeze_factor
        if self.config.squeeze_factor not in (1, 2, 4):
            raise UserError(f"network_conf.config.squeeze_factor: {self.config.squeeze_factor} is none of 1, 2 and 4")
        self._window += (self.config.squeeze_factor - 1) * 320  # of one frame of the layers

    def _frames(self, samples: Tensor) -> Tensor:
        squeeze = self.config.squeeze_factor
        return torch.div((samples - self._window).clamp(min=0), 320, rounding_mode="floor") + squeeze

    def parts(self) -> dict[str, nn.Module]:
        return {
            "CNN": self.encoder.feature_extractor,
            "feature norm": self.encoder.layer_norm,
            "feature projection": getattr(self.encoder, "feature_projection", nn.Identity()),
        }

    def _project(self, features: Tensor) -> Tensor:
        x = self.encoder.layer_norm(features)
        if self.encoder.project_features:
            x = self.encoder.feature_projection(x)
        return self.encoder.feature_dropout(x)
