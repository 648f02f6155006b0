"""What teacher and student both return."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NetworkOutput(NamedTuple):
    """Outputs of a network for B utterances of at most T frames.

    Attributes:
        logits: (B, T, V), before log-softmax; token 0 is blank.
        lengths: (B,) frames of logits of each utterance, at least 1. Logits beyond them are to be ignored.
        hidden: output of layer i as ``hidden[i - 1]``, each (B, T', width). T' = T unless the network puts out several
            frames of logits for each frame of its layers.
        hidden_lengths: (B,) frames of the hidden layers of each utterance, at least 1.
    """

    logits: Tensor
    lengths: Tensor
    hidden: list[Tensor]
    hidden_lengths: Tensor

    @property
    def rate(self) -> int:
        """Frames of logits for each frame of the hidden layers."""
        return self.logits.shape[1] // self.hidden[0].shape[1]

    def without_silence(self, before: int, after: int) -> NetworkOutput:
        """The frames of the utterances alone, where silence was put around them.

        Args:
            before, after: silence in frames of the hidden layers.
        """
        if before == after == 0:
            return self
        return NetworkOutput(
            self.logits[:, before * self.rate :],
            self.lengths - (before + after) * self.rate,
            [hidden[:, before:] for hidden in self.hidden],
            self.hidden_lengths - (before + after),
        )


def predict(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """Logits of a prediction layer, in float32 whatever autocast says: bfloat16 would round by up to 0.04 nats."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
