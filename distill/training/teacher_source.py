"""What a student is compared with: the outputs of one teacher, computed in the trainer or stored beforehand."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from distill.checkpoints.load import load_network, network_shape
from distill.configuration import DistillConf, layer_map
from distill.errors import UserError
from distill.models.student import Student
from distill.targets.frames import average_frames
from distill.targets.nbest import unpack
from distill.targets.store import hidden_stream

if TYPE_CHECKING:
    from distill.models.teacher import Teacher


class TeacherOutputs(NamedTuple):
    """What a student is compared with, at the student's frame rate.

    Attributes:
        hidden: (B, T, D) by layer, from 1.
        logits: (B, T, V).
        lengths: (B,) frames.
        top: the k most probable tokens of every frame under the denominator graph, ids and occupancies (B, T, k), if
            they were stored.
        nbest: token sequences (B, N, U), lengths and weights (B, N), if they were stored.
    """

    hidden: dict[int, Tensor]
    logits: Tensor
    lengths: Tensor
    top: tuple[Tensor, Tensor] | None
    nbest: tuple[Tensor, Tensor, Tensor] | None


class TeacherSource:
    """One teacher of a student. It is no module: never in a checkpoint, the optimiser or DDP, never in training mode.

    Args:
        directory: of the teacher's training; it may be a student itself. Loaded at the first batch that needs it.
        stored_ms: ms per frame of outputs that come with the batch (``teacher_hidden_02``, ``teacher_logits``) instead;
            None: computed here.
        student: who is compared with it.
        conf: whose ``layer_map`` holds for this teacher.
        token_list: tokens by id, which must be the teacher's as well.

    Attributes:
        layer_map: teacher layer of each student layer, both counted from 1; empty if hidden layers are not compared.
        width: of the teacher's layers.
        factor: teacher frames to a student frame.
    """

    def __init__(
        self,
        directory: str,
        stored_ms: int | None,
        student: Student | Teacher,
        conf: DistillConf,
        token_list: list[str],
    ) -> None:
        self.directory, self.token_list = directory, token_list
        self.stored = stored_ms is not None
        self.top_stored = self.stored and conf.posterior_top_k is not None
        self.nbest_stored = self.stored and conf.nbest > 1
        self._loaded: list[Student | Teacher] = []
        layers, self.width, teacher_ms = network_shape(directory)
        teacher_ms = stored_ms or teacher_ms
        if student.frame_ms % teacher_ms:
            raise UserError(f"{directory}: frames of {teacher_ms} ms do not fit the student's {student.frame_ms} ms")
        self.factor = student.frame_ms // teacher_ms
        self.layer_map: list[int] = []
        if conf.alpha < 1:
            assert isinstance(student, Student), "only a student has a teacher"
            self.layer_map = self._read_layer_map(conf, len(student.blocks), layers)

    @staticmethod
    def _read_layer_map(conf: DistillConf, student_layers: int, teacher_layers: int) -> list[int]:
        if conf.layer_map is None:
            return layer_map(student_layers, teacher_layers)
        given = list(conf.layer_map)
        if len(given) != student_layers or not all(1 <= layer <= teacher_layers for layer in given):
            raise UserError(
                f"distill_conf.layer_map: {given} must name a teacher layer from 1 to {teacher_layers} for each of the "
                f"student's {student_layers} layers"
            )
        return given

    def network(self, device: torch.device) -> Student | Teacher:
        """The frozen teacher in evaluation mode, loaded on first use."""
        if not self._loaded:
            loaded = load_network(self.directory, device)
            if loaded.token_list != self.token_list:
                raise UserError(f"{self.directory}: its token list is not this training's; use the same tokens")
            self._loaded.append(loaded.network.requires_grad_(False))
            logging.info(f"Teacher loaded from {self.directory}")
        return self._loaded[0]

    def outputs(self, speech: Tensor, speech_lengths: Tensor, streams: dict[str, Any]) -> TeacherOutputs:
        """Outputs for a batch of audio; ``streams`` holds the stored ones."""
        top = nbest = None
        if self.stored:
            names = ["teacher_logits"] + [f"teacher_{hidden_stream(layer)}" for layer in set(self.layer_map)]
            if self.top_stored:
                names += ["teacher_posterior_ids", "teacher_posterior"]
            if self.nbest_stored:
                names += ["teacher_nbest"]
            for name in names:
                if name not in streams:
                    raise UserError(
                        f"{name}: no such stream in the batch; extract it (stage 8) or use an online teacher"
                    )
            hidden = {layer: streams[f"teacher_{hidden_stream(layer)}"].float() for layer in set(self.layer_map)}
            logits, lengths = streams["teacher_logits"].float(), streams["teacher_logits_lengths"]
            if self.top_stored:
                top = streams["teacher_posterior_ids"].long(), streams["teacher_posterior"].float()
            if self.nbest_stored:
                nbest = unpack(streams["teacher_nbest"], streams["teacher_nbest_lengths"])
        else:
            with torch.no_grad():
                output = self.network(speech.device)(speech, speech_lengths)
            hidden = {layer: output.hidden[layer - 1].float() for layer in set(self.layer_map)}
            logits, lengths = output.logits.float(), output.lengths
        if self.factor > 1:
            hidden = {layer: average_frames(h, lengths, self.factor)[0] for layer, h in hidden.items()}
            logits, lengths = average_frames(logits, lengths, self.factor)
        return TeacherOutputs(hidden, logits, lengths, top, nbest)
