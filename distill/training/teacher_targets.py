"""The outputs of a teacher that a student is trained on, computed in the trainer or read from storage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distill.checkpoints.load import load_network, network_shape, read_config
from distill.configuration import (
    CODEWORDS,
    DistillConf,
    check_frames_compared,
    check_tokens_compared,
    frame_factors,
    layer_map,
)
from distill.decode.token_text import tokens_to_text
from distill.errors import UserError
from distill.lfmmi.loss import top_occupancies
from distill.models.student import Student
from distill.targets.codebooks import LOGITS, Codebooks, decode_logits
from distill.targets.frames import average_frames
from distill.targets.nbest import best_sequences, unpack
from distill.targets.store import hidden_stream
from distill.training import loss_terms

if TYPE_CHECKING:
    from distill.lfmmi import DenominatorGraph
    from distill.models.teacher import Teacher

Retokenise: TypeAlias = Callable[[list[int]], list[int]]

# More frames than this between teacher and student mean another recording, not another rounding.
MAX_FRAMES_APART = 2


class FramePairs(NamedTuple):
    """Which frames of student and teacher are compared.

    Attributes:
        student, teacher: slices of their time axes, equally long.
        lengths: (B,) pairs of each utterance; those beyond it are padding.
    """

    student: slice
    teacher: slice
    lengths: Tensor


def pair_frames(student: Tensor, teacher: Tensor, delay: int, utterances: list[str]) -> FramePairs:
    """Pair frame t of the teacher with frame t + ``delay`` of the student.

    Args:
        student, teacher: (B,) frames of each utterance, at the same frame rate, on the host.
        delay: in frames, at least 0.
        utterances: ids, for the message.

    Raises:
        UserError: if their numbers of frames differ by more than rounding explains.
    """
    apart = (student - teacher).abs()
    worst = int(apart.argmax())
    if apart[worst] > MAX_FRAMES_APART:
        raise UserError(
            f"teacher targets of {utterances[worst] if utterances else 'an utterance'}: {int(teacher[worst])} "
            f"frames, but the student has {int(student[worst])}; they are of other audio, extract again (stage 8)"
        )
    lengths = (torch.minimum(student, teacher) - delay).clamp(min=0)
    frames = max(1, int(lengths.max()))
    return FramePairs(slice(delay, delay + frames), slice(frames), lengths)


@dataclass
class TeacherTargets:
    """Outputs of one teacher for a batch of B utterances.

    Logits are at the teacher's frame rate, so that no token is lost; hidden layers are at the student's encoder rate,
    or at the teacher's if its frames are longer. Lengths and token sequences are on the host.

    Attributes:
        hidden: (B, T', D) by layer, layers from 1; empty if hidden layers are not compared, or if their codes are.
        hidden_lengths: (B,) frames of these layers.
        logits: (B, T, V).
        lengths: (B,) frames of the logits.
        factor: teacher logit frames to a student's logit frame.
        longer: student logit frames to a teacher's logit frame; this or ``factor`` is 1.
        hidden_longer: student frames to a frame of these hidden layers.
        top: the k most probable tokens of every frame under the denominator graph, ids and occupancies (B, T, k), if
            they were stored.
        nbest: token sequences (B, N, U), lengths and weights (B, N), if they were stored.
        codes: (B, T', N) codes of hidden layers by layer, if those are compared.
        retokenise: from the teacher's token ids to the training's, where its tokens are others.
    """

    hidden: dict[int, Tensor]
    hidden_lengths: Tensor
    logits: Tensor
    lengths: Tensor
    factor: int = 1
    longer: int = 1
    hidden_longer: int = 1
    top: tuple[Tensor, Tensor] | None = None
    nbest: tuple[Tensor, Tensor, Tensor] | None = None
    codes: dict[int, Tensor] = field(default_factory=dict)
    retokenise: Retokenise | None = None

    def frame_logits(self) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and (B,) lengths at the student's logit rate; averaged, if the student's is lower."""
        return average_frames(self.logits, self.lengths, self.factor)

    def frame_occupancies(self, graph: DenominatorGraph, top_k: int) -> tuple[Tensor, Tensor]:
        """The ``top_k`` most probable tokens of every frame under ``graph``: ids, occupancies (B, T, k)."""
        if self.top is not None and self.factor == 1:
            return self.top
        logits, lengths = self.frame_logits()
        return top_occupancies(graph, logits.log_softmax(-1), lengths, top_k)

    def best_sequence(self) -> tuple[Tensor, Tensor]:
        """Tokens (B, U) of the training, padded with -1, and (B,) lengths of the teacher's best path."""
        sequences = loss_terms.greedy_tokens(self.logits, self.lengths)
        if self.retokenise is not None:
            sequences = [self.retokenise(sequence) for sequence in sequences]
        return loss_terms.pad_tokens(sequences)

    def best_sequences(self, graph: DenominatorGraph, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` token sequences (B, N, U), their lengths and weights (B, N)."""
        return self.nbest or best_sequences(graph, self.logits.log_softmax(-1), self.lengths, count)


class StoredFormat(NamedTuple):
    """How the teacher's outputs that come with a batch are stored (``teacher_hidden_02``, beside ``teacher_logits``).

    Attributes:
        hidden_ms: milliseconds between frames of hidden layers.
        codebooks: of these layers, if they and the logits are codes.
    """

    hidden_ms: int
    codebooks: Codebooks | None = None


class TeacherSource:
    """One teacher of a student. It is no module: never in a checkpoint, the optimiser or DDP, never in training mode.

    Args:
        directory: of the teacher's training; it may be a student itself. Loaded at the first batch that needs it.
        stored: how its outputs are stored; None: they are computed here.
        student: the network that is compared with it.
        conf: its ``layer_map`` names layers of this teacher.
        token_list: tokens of the training by id.
        encode: token ids of a text; the teacher may then have other tokens, and only its text and layers are used.

    Attributes:
        layer_map: teacher layer of each student layer, both counted from 1; empty if hidden layers are not compared.
        width: of what a student layer is compared with: of the teacher's layers, or 256 for each code of a frame.
        is_student: whether the teacher is itself a student.
    """

    def __init__(
        self,
        directory: str,
        stored: StoredFormat | None,
        student: Student | Teacher,
        conf: DistillConf,
        token_list: list[str],
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        self.directory = directory
        self.stored = stored is not None
        self.top_stored = self.stored and conf.posterior_top_k is not None
        self.nbest_stored = self.stored and conf.nbest > 1
        self._loaded: list[Student | Teacher] = []
        config = read_config(directory)
        self.is_student = config["network"] == "student"
        self.token_list: list[str] = config["token_list"]
        self.retokenise: Retokenise | None = None
        if self.token_list != token_list:
            self.retokenise = self._retokeniser(conf, encode, config.get("token_type") or "char")
        shape = network_shape(directory)
        self.width = shape.width
        hidden_ms = stored.hidden_ms if stored else shape.encoder_frame_ms
        try:
            check_frames_compared(conf, shape.frame_ms, student.frame_ms)
            self.factor, self.longer = frame_factors(shape.frame_ms, student.frame_ms)
            self.hidden_factor, self.hidden_longer = frame_factors(hidden_ms, student.encoder_frame_ms)
        except UserError as error:
            raise UserError(f"{directory}: {error}") from None
        self.layer_map: list[int] = []
        if conf.alpha < 1:
            assert isinstance(student, Student), "only a student has a teacher"
            self.layer_map = self._read_layer_map(conf.layer_map, len(student.blocks), shape.layers)
        self.codebooks = stored.codebooks if stored else None
        self.predicts_codes = conf.hidden_loss == "codes" and bool(self.layer_map)
        if self.predicts_codes:
            if self.codebooks is None or self.hidden_factor > 1 or self.hidden_longer > 1:
                raise UserError(
                    "distill_conf.hidden_loss: codes needs one teacher, whose targets are stored with --target_dtype "
                    "codebook at the student's frame rate"
                )
            self.width = CODEWORDS * len(self.codebooks.layers[self.layer_map[0]])
        if self.codebooks is not None and self.layer_map and not conf.hidden_norm:
            raise UserError("distill_conf.hidden_norm: false, but codebooks hold normalised layers; take another dtype")

    def _retokeniser(self, conf: DistillConf, encode: Callable[[str], list[int]] | None, token_type: str) -> Retokenise:
        """A function from the teacher's token ids to the training's, by way of text.

        Raises:
            UserError: there is none, or frames or several sequences of the teacher are to be compared.
        """
        if encode is None or token_type == "phn":
            raise UserError(f"{self.directory}: its token list is not this training's; use the same tokens")
        try:
            check_tokens_compared(conf)
        except UserError as error:
            raise UserError(f"{self.directory}: {error}") from None

        def retokenise(ids: list[int]) -> list[int]:
            return encode(tokens_to_text((self.token_list[index] for index in ids), token_type))

        return retokenise

    @staticmethod
    def _read_layer_map(given: Sequence[int] | None, student_layers: int, teacher_layers: int) -> list[int]:
        if given is None:
            return layer_map(student_layers, teacher_layers)
        given = list(given)
        if len(given) != student_layers or not all(1 <= layer <= teacher_layers for layer in given):
            raise UserError(
                f"distill_conf.layer_map: {given} must name a teacher layer from 1 to {teacher_layers} for each of the "
                f"student's {student_layers} layers"
            )
        return given

    def network(self, device: torch.device) -> Student | Teacher:
        """The frozen teacher in evaluation mode, loaded on first use."""
        if not self._loaded:
            with torch.random.fork_rng(devices=[]):  # a training that is resumed goes on with its own random numbers
                loaded = load_network(self.directory, device)
            self._loaded.append(loaded.network.requires_grad_(False))
            logging.info(f"Teacher loaded from {self.directory}")
        return self._loaded[0]

    def targets(self, speech: Tensor, speech_lengths: Tensor, streams: dict[str, Any]) -> TeacherTargets:
        """Targets for a batch of clean audio (B, N) with (B,) samples; ``streams`` holds the stored outputs.

        All lengths are on the host. The teacher computes in the precision that the trainer's autocast sets.
        """
        result = self._read(streams) if self.stored else self._compute(speech, speech_lengths)
        result.factor, result.longer, result.hidden_longer = self.factor, self.longer, self.hidden_longer
        result.retokenise = self.retokenise
        if self.hidden_factor > 1:
            lengths = result.hidden_lengths
            pooled = {layer: average_frames(h, lengths, self.hidden_factor) for layer, h in result.hidden.items()}
            result.hidden = {layer: h for layer, (h, _) in pooled.items()}
            result.hidden_lengths = lengths.div(self.hidden_factor, rounding_mode="floor").clamp(min=1)
        return result

    def _compute(self, speech: Tensor, speech_lengths: Tensor) -> TeacherTargets:
        with torch.no_grad():
            output = self.network(speech.device)(speech, speech_lengths)
        hidden = {layer: output.hidden[layer - 1].float() for layer in set(self.layer_map)}
        return TeacherTargets(hidden, output.hidden_lengths, output.logits.float(), output.lengths)

    def _read(self, streams: dict[str, Any]) -> TeacherTargets:
        layers = sorted(set(self.layer_map))
        names = ["teacher_logits"] + [f"teacher_{hidden_stream(layer)}" for layer in layers]
        if self.top_stored:
            names += ["teacher_posterior_ids", "teacher_posterior"]
        if self.nbest_stored:
            names += ["teacher_nbest"]
        for name in names:
            if name not in streams:
                raise UserError(f"{name}: no such stream in the batch; extract it (stage 8) or use an online teacher")
        stored = {layer: streams[f"teacher_{hidden_stream(layer)}"] for layer in layers}
        lengths = streams["teacher_logits_lengths"]
        hidden_lengths = streams[f"teacher_{hidden_stream(layers[0])}_lengths"] if layers else lengths
        logits = streams["teacher_logits"].float()
        if self.codebooks is None:
            hidden = {layer: x.float() for layer, x in stored.items()}
        else:
            self.codebooks = self.codebooks.to(logits.device)
            codes_of_logits = streams["teacher_logits"].clamp(min=0)  # -1 is padding
            if LOGITS in self.codebooks.layers:
                logits = self.codebooks.decode(LOGITS, codes_of_logits)
            else:
                logits = decode_logits(codes_of_logits, len(self.token_list))
            stored = {layer: codes.clamp(min=0) for layer, codes in stored.items()}
            decoded = {} if self.predicts_codes else stored
            hidden = {layer: self.codebooks.decode(layer, codes) for layer, codes in decoded.items()}
        result = TeacherTargets(hidden, hidden_lengths, logits, lengths)
        if self.predicts_codes:
            result.codes = stored
        if self.top_stored:
            result.top = streams["teacher_posterior_ids"].long(), streams["teacher_posterior"].float()
        if self.nbest_stored:
            result.nbest = unpack(streams["teacher_nbest"], streams["teacher_nbest_lengths"])
        return result
