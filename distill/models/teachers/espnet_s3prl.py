"""s3prl's front end of ESPnet: layers of a wav2vec 2.0, HuBERT or WavLM as features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.teacher import Teacher
from distill.models.transfer import send

SHORTEST = 800  # samples; s3prl pads what is shorter


class S3prlFrontEnd(Teacher):
    """ESPnet's ``frontend: s3prl``: one layer of an upstream of wav2vec 2.0's layout, or a weighted sum of all.

    It has a frame for each 320 samples or part of them; where the CNN has none any more, its last is repeated.

    Args:
        upstream: arguments of the upstream's configuration, as :class:`Teacher`'s ``config``.
        normalize: as :class:`Teacher`'s.
        layer: 0 is the first layer's input, i is what layer i puts out, with the norm after the last; None: their sum.
    """

    hop_length = 320
    audio_epsilon = 1e-5

    def __init__(self, upstream: Mapping[str, Any], normalize: bool = False, layer: int | None = None) -> None:
        super().__init__(1, upstream, normalize)
        del self.output, self.dropout
        self.layer = layer
        if layer is None:
            self.weights = nn.Parameter(torch.zeros(self.config.num_hidden_layers + 1))

    def _run(self, x: Tensor, mask: Tensor | None, hooks: list[Any]) -> tuple[Tensor, list[Tensor]]:
        """The last output, and the layers that s3prl hands out: the first one's input and what each puts out."""
        states: list[Tensor] = []
        hooks.append(self.stack.layers[0].register_forward_pre_hook(lambda _layer, inputs: states.append(inputs[0])))
        x, hidden = super()._run(x, mask, hooks)
        return x, [*states, *hidden[:-1], x]

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, N) audio in [-1, 1] with (B,) samples each -> features (B, T, width), and (B,) frames on its device."""
        frames = torch.div(speech_lengths - 1, self.hop_length, rounding_mode="floor") + 1
        samples = speech_lengths.clamp(min=SHORTEST)
        speech = F.pad(speech, (0, int(samples.max()) - speech.shape[1]))
        inside = self._frames(samples)
        x, states = self._encode(self._project(self._inputs(speech, send(samples, speech.device))), inside)
        if self.layer is not None:
            x = states[self.layer]
        else:
            x = sum((w * state for w, state in zip(self.weights.softmax(0), states, strict=True)), x.new_zeros(()))
        steps = torch.arange(int(frames.max()), device=frames.device).minimum(inside[:, None] - 1)
        steps = send(steps, x.device)[:, :, None].expand(-1, -1, x.shape[2])
        return x.float().gather(1, steps), send(frames, x.device)
