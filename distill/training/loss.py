"""The loss of a distillation: its terms against each teacher, their weights, and the projections of hidden layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.configuration import DistillConf
from distill.errors import UserError
from distill.lfmmi import DenominatorGraph, LFMMILoss
from distill.lfmmi.alignment import first_frames
from distill.lfmmi.loss import spread_occupancies
from distill.models.output import NetworkOutput
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.models.transfer import send
from distill.targets.frames import average_frames
from distill.training import loss_terms
from distill.training.teacher_targets import TeacherSource, TeacherTargets, pair_frames


class TokenSequences(NamedTuple):
    """What LF-MMI's numerator and CTC sum the alignments of.

    Attributes:
        tokens: ids padded with -1: a sequence (B, U) or N sequences (B, N, U) of each utterance.
        lengths: (B,) or (B, N).
        weights: (B, N) of several sequences.
        earliest: first frame at which each token may be put out, shaped as ``tokens``; None: there is no bound.
    """

    tokens: Tensor
    lengths: Tensor
    weights: Tensor | None = None
    earliest: Tensor | None = None


class DistillLoss(nn.Module):
    """The loss of :class:`distill.configuration.DistillConf`, in float32 whatever the network computes in.

    Its parameters are the projections W_i that bring a student layer to the width of the teacher's.

    Args:
        network: the network that is trained.
        conf: weights and targets.
        sources: its teachers; with several, each term is the mean of what they give.
        vocab_size: V, which the denominator graph must have.
    """

    def __init__(
        self, network: Student | Teacher, conf: DistillConf, sources: Sequence[TeacherSource], vocab_size: int
    ) -> None:
        super().__init__()
        self.conf, self.vocab_size = conf, vocab_size
        self.layer_maps = [source.layer_map for source in sources]
        self.frame_delay = int(conf.target_delay_ms // network.frame_ms)
        self.hidden_delay = int(conf.target_delay_ms // network.encoder_frame_ms)
        self.frame_ms = network.frame_ms
        widths = [source.width for source in sources for _ in source.layer_map]
        self.projections = nn.ModuleList(nn.Linear(network.width, width) for width in widths)
        teachers = [source for source in sources for _ in source.layer_map]
        for projection, source in zip(self.projections, teachers, strict=True):
            if source.is_student and source.width == network.width:  # usually the one that training starts from
                nn.init.eye_(cast(nn.Linear, projection).weight)
                nn.init.zeros_(cast(nn.Linear, projection).bias)
        self._mmi: list[Any] = []  # a list, so that the graph is in no checkpoint
        self._skipped_logged, self._mmi_steps = False, 0

    def mmi(self, device: torch.device) -> Any:
        """The LF-MMI loss with its denominator graph, loaded on first use."""
        if not self._mmi:
            if not self.conf.graph:
                raise UserError(f"distill_conf.graph: target {self.conf.target} needs a denominator graph (stage 6)")
            graph = DenominatorGraph.load(self.conf.graph)
            if graph.vocab_size != self.vocab_size:
                raise UserError(
                    f"{self.conf.graph}: made for {graph.vocab_size} tokens, but the token list has "
                    f"{self.vocab_size}; make the graph again (stage 6)"
                )
            mmi = LFMMILoss(graph, target=self.conf.target, den_scale=self.conf.den_scale, reduction="none")
            self._mmi.append(mmi.to(device))
        return self._mmi[0]

    def forward(
        self,
        output: NetworkOutput,
        targets: Sequence[TeacherTargets],
        text: Tensor,
        text_lengths: Tensor,
        utterances: list[str],
        silence: tuple[int, int] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and every term by name, both means over the utterances.

        The projections are computed as the network is, under the trainer's autocast; all that follows in float32.
        Lengths and tokens are on the host.

        Args:
            output: of the network.
            targets: of each teacher; none: ``loss_mmi`` against the transcript, if asked for, and CTC alone.
            text, text_lengths: (B, U) token ids padded with -1, and (B,).
            utterances: ids, for messages.
            silence: that was put before and after the utterances for the network alone, in encoder frames. In the
                silence before, the network is trained to put out blank, so that it does not guess words before they are
                spoken. Token sequences are those of the frames that follow, and the teacher's frames are compared
                with those between the silences. None: this training has no silence.
        """
        projected = [
            [projection(h.float()) for projection, h in zip(projections, output.hidden, strict=bool(projections))]
            for projections in self._of_each_teacher()
        ]
        with torch.autocast(output.logits.device.type, enabled=False):
            output = output._replace(logits=output.logits.float())
            return self._terms(output, projected, targets, text, text_lengths, utterances, silence)

    def _of_each_teacher(self) -> list[list[nn.Module]]:
        """The projections for each teacher, none where its hidden layers are not compared."""
        projections = iter(self.projections)
        return [[next(projections) for _ in layer_map] for layer_map in self.layer_maps]

    def _terms(
        self,
        output: NetworkOutput,
        projected: Sequence[Sequence[Tensor]],
        targets: Sequence[TeacherTargets],
        text: Tensor,
        text_lengths: Tensor,
        utterances: list[str],
        silence: tuple[int, int] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        conf = self.conf
        stats: dict[str, Tensor] = {}
        loss = output.logits.new_zeros(())
        before, after = silence or (0, 0)
        if silence is not None:
            stats["loss_silence"] = loss_terms.blank_at_start(
                output.logits, output.lengths, before * output.rate
            ).mean()
            loss = loss + stats["loss_silence"]
        speech, output = output.without_silence(before, after), output.without_silence(before, 0)
        transcript = TokenSequences(text, text_lengths)
        bounded = [self._bounded(transcript, self._numerator(t, transcript), t, output) for t in targets]
        if conf.weight_ctc > 0:
            of_ctc = bounded[0][0] if bounded else transcript
            tokens, token_lengths, _, earliest = of_ctc
            ctc = loss_terms.ctc(output.logits, output.lengths, tokens, token_lengths, earliest)
            stats["loss_ctc"] = ctc.mean()
            loss = loss + conf.weight_ctc * stats["loss_ctc"]
        weights = {"loss_mmi": 1.0}
        if targets:
            terms: list[dict[str, Tensor]] = []
            each = zip(targets, self.layer_maps, projected, bounded, strict=True)
            for of_teacher, layer_map, layers, (_, numerator) in each:
                comparisons = [(h[:, before:], layer) for h, layer in zip(layers, layer_map, strict=True)]
                terms.append(self._compare(output, speech, of_teacher, comparisons, utterances, numerator))
            stats.update({name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]})
            weights = {
                "loss_hidden": 1 - conf.alpha,
                "loss_logits": conf.alpha * (1 - conf.beta),
                "loss_mmi": conf.alpha * conf.beta,
                "loss_kl": conf.alpha * conf.beta,  # in place of loss_mmi
            }
        elif conf.target == "transcript":
            stats["loss_mmi"] = self._sequence_mmi(output, transcript)
        for name, weight in weights.items():
            if name in stats:
                loss = loss + weight * stats[name]
        return loss, {name: term.detach() for name, term in stats.items()}

    def _compare(
        self,
        output: NetworkOutput,
        speech: NetworkOutput,
        targets: TeacherTargets,
        comparisons: list[tuple[Tensor, int]],
        utterances: list[str],
        numerator: TokenSequences | None,
    ) -> dict[str, Tensor]:
        """Terms of the loss against one teacher.

        ``output`` begins with the utterances, ``speech`` is without the silence after them as well, ``comparisons``
        are its projected layers, each with the teacher's layer, and ``numerator`` are LF-MMI's token sequences.
        """
        conf = self.conf
        terms: dict[str, Tensor] = {}
        if comparisons:
            terms["loss_hidden"] = self._hidden(speech, targets, comparisons, utterances)
        teacher, teacher_lengths = targets.frame_logits()
        lengths, delay = speech.lengths, self.frame_delay
        if targets.longer > 1:  # then no frames of logits are compared, but the audio must be the same
            lengths, delay = torch.div(lengths, targets.longer, rounding_mode="floor"), 0
        pairs = pair_frames(lengths, teacher_lengths, delay, utterances)
        student, teacher = speech.logits[:, pairs.student], teacher[:, pairs.teacher]
        if conf.alpha > 0 and conf.beta < 1:
            terms["loss_logits"] = loss_terms.centred_mse(student, teacher, pairs.lengths).mean()
        if conf.alpha * conf.beta == 0:
            return terms
        if conf.target == "frame_kl":
            terms["loss_kl"] = loss_terms.frame_kl(student, teacher, pairs.lengths).mean()
        elif conf.target == "posterior":
            criterion = self.mmi(student.device)
            if conf.posterior_top_k is None:
                of_teacher = {"teacher_log_probs": teacher.log_softmax(-1)}
            else:
                top = targets.frame_occupancies(criterion.graph, conf.posterior_top_k)
                of_teacher = {"teacher_occupancies": spread_occupancies(*top, self.vocab_size)[:, pairs.teacher]}
            mmi = criterion(student.log_softmax(-1), pairs.lengths, **of_teacher)
            terms["loss_mmi"] = (mmi / send(pairs.lengths, mmi.device).clamp(min=1)).mean().float()
        elif numerator is not None:
            terms["loss_mmi"] = self._sequence_mmi(output, numerator)
        return terms

    def _numerator(self, targets: TeacherTargets, transcript: TokenSequences) -> TokenSequences | None:
        """Token sequences of LF-MMI's numerator; None if it has none."""
        conf = self.conf
        if conf.alpha * conf.beta == 0 or conf.target not in ("pseudo", "transcript"):
            return None
        if conf.target == "transcript":
            return transcript
        if conf.nbest > 1:
            return TokenSequences(*targets.best_sequences(self.mmi(targets.logits.device).graph, conf.nbest))
        return TokenSequences(*targets.best_sequence())

    def _bounded(
        self,
        transcript: TokenSequences,
        numerator: TokenSequences | None,
        targets: TeacherTargets,
        output: NetworkOutput,
    ) -> tuple[TokenSequences, TokenSequences | None]:
        """Both with the first frame of ``output`` for each token, if ``token_delay_ms`` bounds them.

        All are aligned at once, as an alignment takes many small steps.
        """
        if self.conf.token_delay_ms is None:
            return transcript, numerator
        delay = int(self.conf.token_delay_ms // self.frame_ms)
        tokens, token_lengths = transcript.tokens[:, None], transcript.lengths[:, None]  # (B, N, U), (B, N)
        if numerator is not None and numerator is not transcript:
            others = numerator.tokens.reshape(len(tokens), -1, numerator.tokens.shape[-1])
            width, device = max(tokens.shape[2], others.shape[2]), targets.logits.device
            each = [F.pad(send(x, device), (0, width - x.shape[2]), value=-1) for x in (tokens, others)]
            each_length = [send(x.reshape(len(x), -1), device) for x in (token_lengths, numerator.lengths)]
            tokens, token_lengths = torch.cat(each, 1), torch.cat(each_length, 1)
        frames = first_frames(targets.logits, targets.lengths, tokens, token_lengths) * targets.longer // targets.factor
        earliest = loss_terms.earliest_frames(frames, delay, output.lengths[:, None], token_lengths)
        of_transcript = transcript._replace(earliest=earliest[:, 0, : transcript.tokens.shape[1]])
        if numerator is None or numerator is transcript:
            return of_transcript, numerator and of_transcript
        of_numerator = earliest[:, 1:, : numerator.tokens.shape[-1]].reshape(numerator.tokens.shape)
        return of_transcript, numerator._replace(earliest=of_numerator)

    def _hidden(
        self,
        speech: NetworkOutput,
        targets: TeacherTargets,
        comparisons: list[tuple[Tensor, int]],
        utterances: list[str],
    ) -> Tensor:
        """Mean distance of the projected student layers to the teacher's, or cross-entropy of its codes.

        Where the teacher's frames are longer, the student's within each of them are averaged.
        """
        lengths, delay, longer = speech.hidden_lengths, self.hidden_delay, targets.hidden_longer
        if longer > 1:
            lengths = (lengths - delay).clamp(min=0)
            pooled = [average_frames(h[:, delay:], lengths, longer)[0] for h, _ in comparisons]
            comparisons = [(h, layer) for h, (_, layer) in zip(pooled, comparisons, strict=True)]
            lengths = torch.div(lengths, longer, rounding_mode="floor").clamp(min=1) * (lengths > 0)
            delay = 0
        pairs = pair_frames(lengths, targets.hidden_lengths, delay, utterances)
        distance = loss_terms.masked_mse if self.conf.hidden_loss == "mse" else loss_terms.masked_cosine
        layers = []
        for h, layer in comparisons:
            if self.conf.hidden_loss == "codes":
                codes = targets.codes[layer][:, pairs.teacher]
                layers.append(loss_terms.code_entropy(h[:, pairs.student].float(), codes, pairs.lengths).mean())
                continue
            target = targets.hidden[layer][:, pairs.teacher]
            target = loss_terms.normalise_frames(target) if self.conf.hidden_norm else target
            layers.append(distance(h[:, pairs.student].float(), target, pairs.lengths).mean())
        return torch.stack(layers).mean()

    def _sequence_mmi(self, output: NetworkOutput, sequences: TokenSequences) -> Tensor:
        """LF-MMI per frame against token sequences, mean over utterances."""
        mmi = self.mmi(output.logits.device)
        tokens, token_lengths, weights, earliest = sequences
        log_probs = output.logits.log_softmax(-1)
        loss = mmi(log_probs, output.lengths, tokens, token_lengths, weights=weights, earliest=earliest)
        self._mmi_steps += 1
        # After 1, 2, 4, 8, ... steps: to look waits for the device
        if not self._skipped_logged and self._mmi_steps & (self._mmi_steps - 1) == 0 and mmi.skipped:
            logging.warning("LF-MMI: an utterance has too few frames for its tokens, or tokens the graph rules out")
            self._skipped_logged = True
        return (loss / send(output.lengths, loss.device).clamp(min=1)).mean().float()
