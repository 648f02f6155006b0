"""The model ESPnet trains: a network, its teachers, augmentation, the chunk of a batch, and the loss."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor

from distill.audio import SAMPLE_RATE
from distill.configuration import AugmentConf, ChunkConf, DistillConf, MaskConf
from distill.errors import UserError
from distill.lfmmi import host
from distill.models.output import NetworkOutput
from distill.models.student import Student
from distill.training import loss_terms
from distill.training.augment import augment, draw_silence, mask_features, surround_with_silence
from distill.training.loss import DistillLoss
from distill.training.teacher_targets import StoredFormat, TeacherSource

if TYPE_CHECKING:
    from distill.models.teacher import Teacher

VALID_CHUNK_MS = 480
# The trainer skips steps whose gradients are not finite; after this many in a row the training is stopped.
MAX_NOT_FINITE = 20


class DistillModel(AbsESPnetModel):
    """A network with the loss of :class:`distill.configuration.DistillConf`.

    Args:
        network: teacher or student; called with (speech (B, N), lengths (B,)) at 16 kHz.
        token_list: tokens by id, blank first.
        conf: weights and targets of the loss.
        teacher: directory of the trained teacher, or None.
        stored: how the teacher's outputs that come with the batch are stored; None: they are computed in the trainer.
        second_teacher: directory of another one, which is always computed in the trainer and has the same weight;
            ``conf.layer_map`` is the first teacher's, this one's is the default.
        chunk: attention chunks of a streaming student, None for full context.
        augmentation: of the student's training audio; teachers always get the clean audio.
        masking: of the student's features in training.
        encode: token ids of a text, for teachers with other tokens.
        cpu_bfloat16: compute networks in bfloat16 where they are on the CPU, as the trainer's autocast does on a GPU.
    """

    # Lengths are all that collect_stats needs.
    extract_feats_in_collect_stats = False

    def __init__(
        self,
        network: Student | Teacher,
        token_list: list[str],
        conf: DistillConf,
        teacher: str | None = None,
        stored: StoredFormat | None = None,
        second_teacher: str | None = None,
        chunk: ChunkConf | None = None,
        augmentation: AugmentConf | None = None,
        masking: MaskConf | None = None,
        encode: Callable[[str], list[int]] | None = None,
        cpu_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.token_list = token_list
        self.conf = conf
        self.chunk = chunk
        self.augmentation, self.masking = augmentation, masking
        self.cpu_bfloat16 = cpu_bfloat16
        if masking is not None and not isinstance(network, Student):
            raise UserError("mask_conf: is for students; a teacher's config.json has mask_time_prob")
        self.not_finite, self.not_finite_in_a_row = 0, 0
        # Whether loss and terms of the last training batch were finite, their names, and the batch's utterances
        self._finite, self._last_step = torch.ones(0, dtype=torch.long), (list[str](), list[str]())
        # A list of plain objects, so that no teacher is a submodule of this model.
        self.teachers = [
            TeacherSource(directory, stored_format, network, of_teacher, token_list, encode)
            for directory, stored_format, of_teacher in (
                (teacher, stored, conf),
                (second_teacher, None, replace(conf, layer_map=None)),
            )
            if directory is not None
        ]
        if not self.teachers:
            if conf.target in ("posterior", "pseudo", "frame_kl"):
                raise UserError(f"distill_conf.target: {conf.target} needs a teacher; give --teacher DIR")
            if conf.target == "none" and conf.weight_ctc == 0:
                raise UserError("distill_conf: nothing to train on; give a teacher, target: transcript or weight_ctc")
        self.criterion = DistillLoss(network, conf, self.teachers, len(token_list))
        if chunk is not None:
            self.chunk_range = chunk.range_in_frames(network.encoder_frame_ms)

    def draw_chunk(self) -> dict[str, int | None]:
        """Chunk, left context and look-ahead of this batch in encoder frames, as arguments of the student's forward."""
        if self.chunk is None:
            return {}
        chunk: int
        frame_ms = self.network.encoder_frame_ms
        first, last = self.chunk_range
        if not self.training:
            chunk = min(max(VALID_CHUNK_MS // frame_ms, first), last)
        elif torch.rand(()) < self.chunk.full_prob:
            return {}
        else:
            chunk = int(torch.randint(first, last + 1, ()).item())
        hop, left, lookahead = self.chunk.in_frames(chunk, frame_ms)
        return {"chunk_frames": hop, "left_frames": left, "lookahead_frames": lookahead}

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        utt_id: list[str] | None = None,
        **streams: Any,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss of a batch.

        Args:
            speech, speech_lengths: (B, N) audio in [-1, 1] and (B,) samples.
            text, text_lengths: (B, U) token ids padded with -1, and (B,).
            utt_id: utterance ids, for messages.
            streams: stored teacher outputs (B, T, D) and their lengths.

        Returns:
            loss, every term by name, and the batch size as the trainer's weight.
        """
        # What decides shapes is brought to the host once; from here on all lengths and tokens are there.
        names = [name for name in streams if name.endswith("_lengths")]
        known = host.read(speech_lengths, text_lengths, text, self._finite, *(streams[name] for name in names))
        speech_lengths, text_lengths, text, finite, *others = map(torch.from_numpy, known)
        streams |= dict(zip(names, others, strict=True))
        self._check_last_step(finite.tolist())
        with torch.autocast("cpu", torch.bfloat16) if self.cpu_bfloat16 else nullcontext():
            targets = [source.targets(speech, speech_lengths, streams) for source in self.teachers]
            output, silence = self._compute(speech, speech_lengths)
            loss, stats = self.criterion(output, targets, text, text_lengths, utt_id or [], silence)
        if self.training:
            self._finite = torch.isfinite(torch.stack([loss.detach(), *stats.values()])).long()
            self._last_step = ["loss", *stats], utt_id or []
        else:
            references = [row[:n] for row, n in zip(text.tolist(), text_lengths.tolist(), strict=True)]
            hypotheses = loss_terms.greedy_tokens(output.logits, output.lengths)
            stats["ter"] = torch.tensor(loss_terms.token_error_rate(hypotheses, references))
        stats = {"loss": loss.detach(), **stats}
        # The weight is filled in on the device, where a number of the host would be waited for.
        return (*force_gatherable((loss, stats), loss.device), loss.new_full((1,), len(speech), dtype=torch.long))

    def _compute(self, speech: Tensor, lengths: Tensor) -> tuple[NetworkOutput, tuple[int, int] | None]:
        """The network's output for audio that is augmented and whose features are masked, in training.

        Also the silence that was put before and after the utterances, in encoder frames; None if there never is any.
        """
        silence = None
        if self.training and self.augmentation is not None:
            if self.augmentation.silence_s > 0:
                silence = before, after = draw_silence(self.augmentation, self.network.encoder_frame_ms)
                hop = self.network.encoder_frame_ms * SAMPLE_RATE // 1000
                speech = surround_with_silence(speech, lengths, before * hop, after * hop)
                lengths = lengths + (before + after) * hop
            speech = augment(speech, lengths, self.augmentation)
        chunk, masking = self.draw_chunk(), self.masking
        if not self.training or masking is None:
            return self.network(speech, lengths, **chunk), silence

        def mask(features: Tensor, hop: int) -> Tensor:
            return mask_features(features, lengths // hop, 1000 * hop / SAMPLE_RATE, masking)

        return self.network(speech, lengths, **chunk, mask=mask), silence

    def _check_last_step(self, finite: list[int]) -> None:
        """Log a training batch whose loss was not a finite number, and stop when there are too many in a row.

        It is looked at with the next batch, of training or validation: to answer at once, a GPU would have to finish
        all that it has been given.
        """
        names, utterances = self._last_step
        self._finite = self._finite.new_empty(0)
        if all(finite):
            self.not_finite_in_a_row = 0 if finite else self.not_finite_in_a_row  # none: it has been looked at
            return
        self.not_finite += 1
        self.not_finite_in_a_row += 1
        terms = [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]
        which = f"{', '.join(terms[1:] or terms)} of {' '.join(utterances)}"
        if self.not_finite_in_a_row >= MAX_NOT_FINITE:
            raise UserError(
                f"no finite loss in {self.not_finite_in_a_row} batches in a row, at last {which}; go on from an "
                "earlier checkpoint with a lower learning rate, or look at these utterances"
            )
        logging.warning(f"Batch left out, not finite: {which} ({self.not_finite} so far)")

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: Any) -> dict[str, Tensor]:
        """The audio itself, as no statistics of features are needed."""
        return {"feats": speech, "feats_lengths": speech_lengths}
