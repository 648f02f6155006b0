"""The model ESPnet trains: a network, the loss terms, and the projections that compare layers of different widths."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from distill.configuration import AugmentConf, ChunkConf, DistillConf
from distill.errors import UserError
from distill.lfmmi.loss import spread_occupancies, top_occupancies
from distill.models.student import Student
from distill.targets.nbest import best_sequences
from distill.training import losses
from distill.training.augment import augment
from distill.training.teacher_source import TeacherOutputs, TeacherSource

if TYPE_CHECKING:
    from distill.models.teacher import Teacher

# More than a frame or two between stored targets and the student is another recording, not another rounding.
MAX_FRAMES_APART = 2
VALID_CHUNK_MS = 480
# The trainer makes no step with gradients that are not finite; so many batches in a row are no accident.
MAX_NOT_FINITE = 20


class DistillModel(AbsESPnetModel):
    """A network with the loss of :class:`distill.configuration.DistillConf`.

    Args:
        network: teacher or student; called with (speech (B, N), lengths (B,)) at 16 kHz.
        token_list: tokens by id, blank first.
        conf: weights and targets of the loss.
        teacher: directory of the trained teacher, or None.
        stored_ms: ms per frame of the teacher's outputs that come with the batch (``teacher_hidden_02``,
            ``teacher_logits``); None: they are computed in the trainer.
        second_teacher: directory of another one, which is always computed in the trainer and counts as much.
        chunk: attention chunks of a streaming student, None for full context.
        augmentation: of the training audio; an online teacher hears the same augmented audio, stored targets were
            made from the clean audio.
    """

    # Lengths are all that collect_stats needs.
    extract_feats_in_collect_stats = False

    def __init__(
        self,
        network: Student | Teacher,
        token_list: list[str],
        conf: DistillConf,
        teacher: str | None = None,
        stored_ms: int | None = None,
        second_teacher: str | None = None,
        chunk: ChunkConf | None = None,
        augmentation: AugmentConf | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.token_list = token_list
        self.conf = conf
        self.chunk = chunk
        self.augmentation = augmentation
        self._mmi: list[Any] = []
        self.apart_logged = False
        self.skipped_logged = False
        self.not_finite, self.not_finite_in_a_row = 0, 0
        # Lists of plain objects: no module of a teacher may be found in this one.
        self.teachers = [
            TeacherSource(directory, from_streams, network, conf, token_list)
            for directory, from_streams in ((teacher, stored_ms), (second_teacher, None))
            if directory is not None
        ]
        if not self.teachers:
            if conf.target in ("posterior", "pseudo", "frame_kl"):
                raise UserError(f"distill_conf.target: {conf.target} needs a teacher; give --teacher DIR")
            if conf.target == "none" and conf.weight_ctc == 0:
                raise UserError("distill_conf: nothing to train on; give a teacher, target: transcript or weight_ctc")
        widths = [source.width for source in self.teachers for _ in source.layer_map]
        self.projections = nn.ModuleList(nn.Linear(network.width, width) for width in widths)
        if chunk is not None:
            self.chunk_range = chunk.range_in_frames(network.frame_ms)

    def mmi(self, device: torch.device) -> Any:
        """The LF-MMI loss with its denominator graph, loaded on first use and kept out of checkpoints."""
        if not self._mmi:
            from distill.lfmmi import DenominatorGraph, LFMMILoss

            if not self.conf.graph:
                raise UserError(f"distill_conf.graph: target {self.conf.target} needs a denominator graph (stage 6)")
            graph = DenominatorGraph.load(self.conf.graph)
            if graph.vocab_size != len(self.token_list):
                raise UserError(
                    f"{self.conf.graph}: made for {graph.vocab_size} tokens, but the token list has "
                    f"{len(self.token_list)}; make the graph again (stage 6)"
                )
            mmi = LFMMILoss(graph, target=self.conf.target, den_scale=self.conf.den_scale, reduction="none")
            self._mmi.append(mmi.to(device))
        return self._mmi[0]

    def draw_chunk(self) -> dict[str, int | None]:
        """Chunk, left context and look-ahead in frames for this batch, as arguments of the student's forward."""
        if self.chunk is None:
            return {}
        chunk: int
        frame_ms = self.network.frame_ms
        first, last = self.chunk_range
        if not self.training:
            chunk = min(max(VALID_CHUNK_MS // frame_ms, first), last)
        elif torch.rand(()) < self.chunk.full_prob:
            return {}
        else:
            chunk = int(torch.randint(first, last + 1, ()).item())
        hop, left, lookahead = self.chunk.in_frames(chunk, frame_ms)
        return {"chunk_frames": hop, "left_frames": left, "lookahead_frames": lookahead}

    def _common_length(self, student: Tensor, teacher: Tensor, utterances: list[str]) -> Tensor:
        """Frames that both have, (B,); the last frame may differ by rounding, more is an error."""
        apart = (student - teacher).abs()
        worst = int(apart.argmax())
        if apart[worst] > MAX_FRAMES_APART:
            raise UserError(
                f"teacher targets of {utterances[worst] if utterances else 'an utterance'}: {int(teacher[worst])} "
                f"frames, but the student has {int(student[worst])}; they are of other audio, extract again (stage 8)"
            )
        if apart[worst] > 0 and not self.apart_logged:
            logging.info("Teacher and student differ by a frame in some utterances: their common length is compared")
            self.apart_logged = True
        return torch.minimum(student, teacher)

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
        if self.training and self.augmentation is not None:
            speech = augment(speech, speech_lengths, self.augmentation)
        output = self.network(speech, speech_lengths, **self.draw_chunk())
        with torch.autocast(speech.device.type, enabled=False):
            loss, stats = self._loss(output, speech, speech_lengths, text, text_lengths, utt_id or [], streams)
        if not self.training:
            references = [row[:n] for row, n in zip(text.tolist(), text_lengths.tolist(), strict=True)]
            hypotheses = losses.greedy_tokens(output.logits, output.lengths)
            stats["ter"] = torch.tensor(losses.token_error_rate(hypotheses, references))
        else:
            self._note_not_finite(loss, stats, utt_id or [])
        stats = {"loss": loss.detach(), **stats}
        return force_gatherable((loss, stats, len(speech)), loss.device)

    def _note_not_finite(self, loss: Tensor, stats: dict[str, Tensor], utterances: list[str]) -> None:
        """Log a training batch whose loss is not a finite number, and stop when there are too many in a row."""
        if bool(torch.isfinite(loss)):
            self.not_finite_in_a_row = 0
            return
        self.not_finite += 1
        self.not_finite_in_a_row += 1
        names = [name for name, term in stats.items() if not bool(torch.isfinite(term))] or ["loss"]
        which = f"{', '.join(names)} of {' '.join(utterances)}"
        if self.not_finite_in_a_row >= MAX_NOT_FINITE:
            raise UserError(
                f"no finite loss in {self.not_finite_in_a_row} batches in a row, at last {which}; go on from an "
                "earlier checkpoint with a lower learning rate, or look at these utterances"
            )
        logging.warning(f"Batch left out, not finite: {which} ({self.not_finite} so far)")

    def _loss(
        self,
        output: Any,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        utterances: list[str],
        streams: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        conf = self.conf
        logits, lengths = output.logits.float(), output.lengths
        stats: dict[str, Tensor] = {}
        loss = logits.new_zeros(())
        if conf.weight_ctc > 0:
            stats["loss_ctc"] = losses.ctc(logits, lengths, text, text_lengths).mean()
            loss = loss + conf.weight_ctc * stats["loss_ctc"]
        if not self.teachers:
            if conf.target == "transcript":
                stats["loss_mmi"] = self._loss_mmi(logits, lengths, text, text_lengths)
                loss = loss + stats["loss_mmi"]
            return loss, {name: term.detach() for name, term in stats.items()}

        terms: list[dict[str, Tensor]] = []
        projections = iter(self.projections)
        for source in self.teachers:
            outputs = source.outputs(speech, speech_lengths, streams)
            comparisons = [(next(projections), layer) for layer in source.layer_map]
            terms.append(self._compare(output, outputs, comparisons, utterances, text, text_lengths))
        stats.update({name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]})
        weights = {
            "loss_hidden": 1 - conf.alpha,
            "loss_logits": conf.alpha * (1 - conf.beta),
            "loss_mmi": conf.alpha * conf.beta,
            "loss_kl": conf.alpha * conf.beta,  # in place of loss_mmi
        }
        for name, weight in weights.items():
            if name in stats:
                loss = loss + weight * stats[name]
        return loss, {name: term.detach() for name, term in stats.items()}

    def _compare(
        self,
        output: Any,
        teacher: TeacherOutputs,
        comparisons: list[tuple[nn.Module, int]],
        utterances: list[str],
        text: Tensor,
        text_lengths: Tensor,
    ) -> dict[str, Tensor]:
        """Terms of the loss against one teacher; ``comparisons`` are the projection and teacher layer of each layer."""
        conf = self.conf
        logits, lengths = output.logits.float(), output.lengths
        hidden, teacher_logits, teacher_lengths, top, nbest = teacher
        terms: dict[str, Tensor] = {}
        common = self._common_length(lengths, teacher_lengths, utterances)
        # The student's frame t + delay is compared with the teacher's frame t.
        delay = int(conf.target_delay_ms // self.network.frame_ms)
        common = (common - delay).clamp(min=0)
        frames = max(1, min(logits.shape[1], teacher_logits.shape[1]) - delay)
        own, theirs = slice(delay, delay + frames), slice(frames)
        if comparisons:
            layers = []
            distance = losses.masked_mse if conf.hidden_loss == "mse" else losses.masked_cosine
            for (projection, layer), h in zip(comparisons, output.hidden, strict=True):
                target = losses.normalise_frames(hidden[layer]) if conf.hidden_norm else hidden[layer]
                layers.append(distance(projection(h[:, own].float()), target[:, theirs], common).mean())
            terms["loss_hidden"] = torch.stack(layers).mean()
        if conf.alpha > 0 and conf.beta < 1:
            terms["loss_logits"] = losses.masked_mse(logits[:, own], teacher_logits[:, theirs], common).mean()
        if conf.alpha * conf.beta > 0 and conf.target != "none":
            if conf.target == "frame_kl":
                terms["loss_kl"] = losses.frame_kl(logits[:, own], teacher_logits[:, theirs], common).mean()
            elif conf.target == "posterior":
                log_probs = teacher_logits.log_softmax(-1)
                criterion = self.mmi(logits.device)
                of_teacher: dict[str, Tensor] = {}
                if conf.posterior_top_k is None:
                    of_teacher["teacher_log_probs"] = log_probs[:, theirs]
                else:
                    top = top or top_occupancies(criterion.graph, log_probs, teacher_lengths, conf.posterior_top_k)
                    of_teacher["teacher_occupancies"] = spread_occupancies(*top, logits.shape[2])[:, theirs]
                mmi = criterion(logits[:, own].log_softmax(-1), common, **of_teacher)
                terms["loss_mmi"] = (mmi / common.clamp(min=1)).mean().float()
            elif conf.nbest > 1:
                graph = self.mmi(logits.device).graph
                nbest = nbest or best_sequences(graph, teacher_logits.log_softmax(-1), teacher_lengths, conf.nbest)
                terms["loss_mmi"] = self._loss_mmi(logits, lengths, *nbest)
            elif conf.target == "pseudo":
                tokens = losses.greedy_tokens(teacher_logits, teacher_lengths)
                terms["loss_mmi"] = self._loss_mmi(logits, lengths, *losses.pad_tokens(tokens, logits.device))
            else:
                terms["loss_mmi"] = self._loss_mmi(logits, lengths, text, text_lengths)
        return terms

    def _loss_mmi(
        self, logits: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """LF-MMI against tokens per frame, mean over utterances."""
        mmi = self.mmi(logits.device)
        loss = mmi(logits.log_softmax(-1), lengths, tokens, token_lengths, weights=weights)
        if mmi.skipped and not self.skipped_logged:
            logging.warning("LF-MMI: an utterance has too few frames for its tokens, or tokens the graph rules out")
            self.skipped_logged = True
        return (loss / lengths.clamp(min=1)).mean().float()

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: Any) -> dict[str, Tensor]:
        """The audio itself: there are no features whose statistics matter."""
        return {"feats": speech, "feats_lengths": speech_lengths}
