"""Similarity of the layers of two networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.checkpoints.load import load_network
from distill.configuration import ChunkConf, DistillConf, frame_factors, layer_map, read_conf
from distill.models.student import Student
from distill.targets.frames import average_frames


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of (n, d1) and (n, d2), the same n frames in two representations.

        CKA(X, Y) = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖)

    with Frobenius norms and columns of zero mean (Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network
    representations revisited", ICML 2019). It is 1 if they differ by rotation and scale alone, and 0 if they have
    nothing linear in common or do not vary.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).square().sum() / scale) if scale > 0 else 0.0


@torch.no_grad()
def layer_similarity(
    student: Path, teacher: Path, utterances: Sequence[np.ndarray], chunk_ms: int | None
) -> list[list[float]]:
    """CKA of every student layer (rows) with every teacher layer (columns) over all frames of ``utterances``.

    A streaming student computes in chunks of ``chunk_ms``. The frames of one are averaged where the
    other's are longer.
    """
    student_network, _, config = load_network(student)
    teacher_network = load_network(teacher).network
    chunk = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None)
    streaming = {}
    if chunk is not None and chunk_ms is not None and isinstance(student_network, Student):
        hop, left, ahead = chunk.in_frames(
            chunk_ms // student_network.encoder_frame_ms, student_network.encoder_frame_ms
        )
        streaming = {"chunk_frames": hop, "left_frames": left, "lookahead_frames": ahead}
    factor, longer = frame_factors(teacher_network.encoder_frame_ms, student_network.encoder_frame_ms)
    student_layers: list[list[Tensor]] = []  # by utterance, then by layer, (frames, width)
    teacher_layers: list[list[Tensor]] = []
    for audio in utterances:
        speech, lengths = torch.from_numpy(audio)[None], torch.tensor([len(audio)])
        of_student = student_network(speech, lengths, **streaming)
        of_teacher = teacher_network(speech, lengths)
        layers = [average_frames(h, of_teacher.hidden_lengths, factor)[0] for h in of_teacher.hidden]
        averaged = [average_frames(h, of_student.hidden_lengths, longer)[0] for h in of_student.hidden]
        frames = min(averaged[0].shape[1], layers[0].shape[1])
        student_layers.append([h[0, :frames] for h in averaged])
        teacher_layers.append([h[0, :frames] for h in layers])
    rows = [torch.cat(layer) for layer in zip(*student_layers, strict=True)]
    columns = [torch.cat(layer) for layer in zip(*teacher_layers, strict=True)]
    return [[linear_cka(row, column) for column in columns] for row in rows]


def compared_layers(config: Mapping[str, Any], layers: int, teacher_layers: int) -> list[int]:
    """Layer (from 1) of ``exp/teacher`` that each student layer was trained with; empty without a teacher."""
    conf = read_conf(DistillConf, "distill_conf", config.get("distill_conf") or None) or DistillConf()
    if Path(config.get("teacher") or "").name != "teacher" or conf.alpha == 1:
        return []
    return list(conf.layer_map or layer_map(layers, teacher_layers))
