"""ONNX model of a teacher, for whole utterances."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.teacher import Teacher

OPSET = 18


class Logits(nn.Module):
    """(1, N) samples -> (1, T, V) logits of a teacher, as operators of ONNX.

    Raises:
        UserError: the teacher brings audio to zero mean and unit variance first.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        if teacher.normalize:
            raise UserError("a teacher with normalize: true is not exported")
        self.encoder, self.output = teacher.encoder, teacher.output

    def forward(self, speech: Tensor) -> Tensor:
        features = self.encoder.feature_extractor(speech).transpose(1, 2)  # (1, T, channels)
        projected = self.encoder.feature_projection(features)[0]
        return self.output(self.encoder.encoder(projected).last_hidden_state)


def save_teacher(teacher: Teacher, samples: int, path: Path) -> None:
    """Write a teacher's ``logits`` of ``speech`` (1, N), any N; of a wav2vec 2.0 or what computes as it does.

    Args:
        teacher: in evaluation mode.
        samples: N of an example.
        path: the ONNX file.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that this exporter is deprecated; the newer one needs onnxscript
        torch.onnx.export(
            Logits(teacher).eval(),
            (torch.zeros(1, samples),),
            path,
            input_names=["speech"],
            output_names=["logits"],
            dynamic_axes={"speech": {1: "samples"}, "logits": {1: "frames"}},
            opset_version=OPSET,
            dynamo=False,
        )
