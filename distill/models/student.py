"""The student: a front end, Conformer blocks, and a linear prediction layer; for whole utterances and for streams."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from distill.audio import END_SILENCE, SAMPLE_RATE
from distill.errors import UserError
from distill.models.chunk_attention import WORTH_IT, ChunkAttention, pairs
from distill.models.chunk_mask import chunk_mask, copied_frames
from distill.models.cnn import ConvFrontEnd, ConvLayer, FeatureMask, frame_counts, with_lead
from distill.models.conformer import ConformerBlock, for_rotation, rotary_tables
from distill.models.fbank import FbankFrontEnd
from distill.models.output import NetworkOutput, predict
from distill.models.stream_caches import StreamCaches
from distill.models.transfer import send

if TYPE_CHECKING:
    from distill.models.teacher import Teacher


LOGIT_FRAME_MS = 20  # of wav2vec 2.0, with whose logits a student's are compared
INITIAL_DEVIATION = 0.02  # of the blocks' first weights, as in wav2vec 2.0 and BERT


class StreamState:
    """State of B streams of the same age between two calls of :meth:`Student.stream`.

    The slots of the streams are given back when the state is no longer in use.

    Attributes:
        chunk_frames: encoder frames of a chunk.
        left_frames: encoder frames of history a chunk sees, None for all.
        lookahead_frames: encoder frames a chunk sees beyond its end.
        samples: (B, n) audio that the front end has not read yet, in the host's memory.
        led: whether they, or what was read before them, began with the front end's lead.
        caches: past of these streams and perhaps of others.
        rows: slots of these streams in the caches.
        ahead: encoder frames of which the caches hold features as look-ahead.
        frames: encoder frames put out so far.
    """

    def __init__(
        self, batch: int, chunk_frames: int, left_frames: int | None, lookahead_frames: int, caches: StreamCaches
    ) -> None:
        self.chunk_frames, self.left_frames, self.lookahead_frames = chunk_frames, left_frames, lookahead_frames
        self.samples = torch.zeros(batch, 0)
        self.led = False
        self.ahead, self.frames = 0, 0
        self._settle(caches, caches.take(batch))

    def _settle(self, caches: StreamCaches, rows: list[int]) -> None:
        self.caches, self.rows = caches, rows
        self._release = weakref.finalize(self, caches.release, rows)
        self._release.atexit = False

    def join(self, caches: StreamCaches) -> None:
        """Move to the caches of other streams."""
        if caches is not self.caches:
            release, rows = self._release, caches.move(self.caches, self.rows, self.frames + self.lookahead_frames)
            self._settle(caches, rows)
            release()

    @property
    def wanted(self) -> int:
        """Encoder frames still missing for the next chunk and its look-ahead."""
        return self.chunk_frames + self.lookahead_frames - self.ahead


class Student(nn.Module):
    """A Conformer recogniser for 16 kHz audio, for whole utterances and for streams in chunks.

    The front end makes *encoder frames*; chunks, history and look-ahead are counted in them. The prediction layer puts
    out ``logits_per_frame`` *logit frames* for each of them, in order of time, so that a front end with a frame per
    40 ms can still emit a token every 20 ms, as wav2vec 2.0 does: (B, T', W) -> (B, T', k V) -> (B, k T', V).

    Args:
        vocab_size: V; token 0 is blank.
        front_end: ``cnn`` (wav2vec 2.0's, an encoder frame per 20 ms) or ``fbank`` (log-mel, one per 40 ms).
        front_end_conf: arguments of :class:`ConvFrontEnd` or :class:`FbankFrontEnd`.
        width: of the blocks.
        layers: number of blocks.
        heads: of attention; width / heads must be even.
        ffn: inner width of the feed-forward modules.
        kernel: encoder frames that the causal depthwise convolution sees.
        dropout: in every module.
        logits_per_frame: k, logit frames for each encoder frame; None: as many as make a logit frame 20 ms long, 1 for
            cnn and 2 for fbank. Models of the log-mel front end that were trained before this option existed have 1.
    """

    def __init__(
        self,
        vocab_size: int,
        front_end: str = "cnn",
        front_end_conf: Mapping[str, Any] | None = None,
        width: int = 384,
        layers: int = 10,
        heads: int = 6,
        ffn: int = 576,
        kernel: int = 15,
        dropout: float = 0.1,
        logits_per_frame: int | None = None,
    ) -> None:
        super().__init__()
        kinds: dict[str, type[ConvFrontEnd] | type[FbankFrontEnd]] = {"cnn": ConvFrontEnd, "fbank": FbankFrontEnd}
        if front_end not in kinds:
            raise UserError(f"network_conf.front_end: {front_end!r} is neither cnn nor fbank")
        if width % (2 * heads):
            raise UserError(f"network_conf.heads: width {width} is not {heads} heads of an even width; choose another")
        self.vocab_size = vocab_size
        self.width = width
        self.heads = heads
        self.front_end = kinds[front_end](**(front_end_conf or {}))
        frame_ms = self.encoder_frame_ms
        self.logits_per_frame = logits_per_frame or frame_ms // LOGIT_FRAME_MS
        if self.logits_per_frame < 1 or frame_ms % self.logits_per_frame:
            raise UserError(
                f"network_conf.logits_per_frame: {logits_per_frame} does not divide a frame of {frame_ms} ms"
            )
        self.feature_norm = nn.LayerNorm(self.front_end.channels)
        self.projection = nn.Linear(self.front_end.channels, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ConformerBlock(width, heads, ffn, kernel, dropout) for _ in range(layers))
        self.output = nn.Linear(width, self.logits_per_frame * vocab_size)
        self._initialise()

    def _initialise(self) -> None:
        """Small weights in the blocks, Xavier's before and after them, and zero biases.

        With a standard deviation of :data:`INITIAL_DEVIATION` every block begins close to the identity. With Xavier's,
        four times as large, a student that learns from transcripts alone takes two to three times as many steps.
        """
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
                    nn.init.zeros_(module.bias)
        for layer in (self.projection, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def encoder_frame_ms(self) -> int:
        """Milliseconds between encoder frames: 20 (cnn) or 40 (fbank)."""
        return self.front_end.hop * 1000 // SAMPLE_RATE

    @property
    def frame_ms(self) -> int:
        """Milliseconds between logit frames: 20 unless ``logits_per_frame`` was chosen otherwise."""
        return self.encoder_frame_ms // self.logits_per_frame

    @property
    def lookahead_samples(self) -> int:
        """Samples beyond an encoder frame's own that the front end sees: 80 (5 ms) for cnn, 600 (37.5 ms) for fbank."""
        return self.front_end.window - self.front_end.hop - self.front_end.lead

    def frames(self, samples: int) -> int:
        """Logit frames of an utterance of so many samples, at least 1."""
        return int(frame_counts(self.front_end, torch.tensor(samples))) * self.logits_per_frame

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, k T', V) of the last layer's output (B, T', width)."""
        return predict(self.output, hidden).view(len(hidden), -1, self.vocab_size)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        return for_rotation(*rotary_tables(length, self.width // self.heads, self.output.weight.device))

    def _project(self, features: Tensor) -> Tensor:
        return self.dropout(self.projection(self.feature_norm(features)))

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        chunk_frames: int | None = None,
        left_frames: int | None = None,
        lookahead_frames: int = 0,
        mask: FeatureMask | None = None,
    ) -> NetworkOutput:
        """Whole utterances (B, N) of audio in [-1, 1], padded with zeros, with (B,) samples each.

        The lengths are best on the host, which then knows whether anything is padded.
        With ``chunk_frames`` attention sees what a stream in chunks of that length would see (:func:`chunk_mask`),
        and the logits are those of :meth:`stream`. ``mask`` hides parts of the front end's features, in training.
        """
        x, lengths = self.features(speech, speech_lengths, mask)
        return self.recognise(x, lengths, chunk_frames, left_frames, lookahead_frames)

    def features(
        self, speech: Tensor, speech_lengths: Tensor, mask: FeatureMask | None = None
    ) -> tuple[Tensor, Tensor]:
        """The part of :meth:`forward` that does not depend on chunks: (B, T', width) and (B,) encoder frames."""
        features, lengths = self.front_end(speech, speech_lengths, mask)
        return self._project(features), lengths

    def recognise(
        self,
        x: Tensor,
        lengths: Tensor,
        chunk_frames: int | None = None,
        left_frames: int | None = None,
        lookahead_frames: int = 0,
    ) -> NetworkOutput:
        """The rest of :meth:`forward`, from the :meth:`features` on."""
        frames = x.shape[1]
        visible = what_is_seen(lengths, x, chunk_frames, left_frames, lookahead_frames)
        tables = self._tables(frames + lookahead_frames + (chunk_frames or 0))
        if chunk_frames is not None and lookahead_frames:
            ahead = copied_frames(frames, chunk_frames, lookahead_frames, x.device).flatten()
            x = torch.cat((x, x[:, ahead.clamp(max=frames - 1)]), 1)
            times = torch.cat((torch.arange(frames, device=x.device), ahead))
            tables = tables[0][times], tables[1][times]
        else:
            tables = tables[0][:frames], tables[1][:frames]
        hidden = []
        for block in self.blocks:
            x = block(x, visible, tables, frames, chunk_frames)
            hidden.append(x[:, :frames])
        return NetworkOutput(self.logits(x[:, :frames]), lengths * self.logits_per_frame, hidden, lengths)

    def initial_state(
        self, batch: int, chunk_frames: int, left_frames: int | None, lookahead_frames: int = 0
    ) -> StreamState:
        """State before the first sample of ``batch`` streams."""
        if chunk_frames < 1 or lookahead_frames < 0:
            raise ValueError(f"chunk_frames {chunk_frames} must be at least 1, lookahead_frames {lookahead_frames} 0")
        kernel = cast(ConformerBlock, self.blocks[0]).convolution.kernel
        sizes = len(self.blocks), self.heads, self.width, kernel
        ahead = chunk_frames + lookahead_frames
        caches = StreamCaches(self.output.weight.detach(), *sizes, left_frames, ahead, lookahead_frames)
        return StreamState(batch, chunk_frames, left_frames, lookahead_frames, caches)

    @torch.no_grad()
    def stream(self, samples: Tensor, state: StreamState, flush: bool = False) -> Tensor:
        """Take in (B, n) more samples, any n, and return the logits (B, t, V) of the chunks they complete.

        Chunk c is encoder frames [c C, (c + 1) C). It is complete ``lookahead_frames`` and then
        :attr:`lookahead_samples` after its last frame's end. ``flush`` appends :meth:`silence`, so that all of the
        audio comes out; the streams may go on behind it. ``state`` is changed in place.
        """
        self.receive(samples, state)
        if flush:
            batch = len(state.samples)
            self.receive(torch.zeros(batch, self.silence(state)), state)
        pieces = []
        while self.has_chunk(state):
            pieces.append(self.stream_together([state])[0])
        return torch.cat(pieces, 1) if pieces else self.output.weight.new_zeros(len(samples), 0, self.vocab_size)

    def silence(self, state: StreamState) -> int:
        """Samples of silence that complete the chunk of the last frame of the audio so far and :data:`END_SILENCE`."""
        front = self.front_end
        read = front.hop * (state.frames + state.ahead)
        received = read + state.samples.shape[1] - (front.lead if state.led else 0)
        frames = int(frame_counts(front, torch.tensor(received + END_SILENCE)))
        needed = -(-frames // state.chunk_frames) * state.chunk_frames + state.lookahead_frames
        return max(0, front.hop * (needed - 1) + front.window - front.lead - received)

    def receive(self, samples: Tensor, state: StreamState) -> None:
        """Append (B, n) samples to the audio that is still to be read."""
        state.samples = torch.cat((state.samples, samples.to(state.samples)), 1)
        if not state.led and state.samples.shape[1] >= self.front_end.lead:
            state.samples, state.led = with_lead(state.samples, self.front_end.lead), True

    def has_chunk(self, state: StreamState) -> bool:
        """Whether the audio in ``state`` completes a chunk and its look-ahead."""
        return state.samples.shape[1] >= self.front_end.hop * (state.wanted - 1) + self.front_end.window

    @torch.no_grad()
    def stream_together(self, states: Sequence[StreamState]) -> list[Tensor]:
        """Logits (B, k C, V) of the next chunk of each of the states, all of whose streams are one batch.

        Each must have a chunk (:meth:`has_chunk`). The streams may have begun at different times, but share chunk,
        history and look-ahead. Their past is moved to common caches the first time, and stays there. Streams that see
        all of their history are computed one after the other.
        """
        if states[0].left_frames is None and len(states) > 1:
            # Histories without a limit differ in length: side by side, each would take the room of the longest.
            return [self.stream_together([state])[0] for state in states]
        caches = max((state.caches for state in states), key=lambda caches: caches.used)
        for state in states:
            state.join(caches)
        # Streams at their beginning have no look-ahead yet; each kind reads as much audio as it still lacks.
        order = sorted(range(len(states)), key=lambda number: (states[number].wanted, states[number].rows))
        kinds = [list(kind) for _, kind in groupby((states[number] for number in order), key=lambda s: s.wanted)]
        x = torch.cat([self._next_features(kind, caches) for kind in kinds])
        ordered = [states[number] for number in order]
        chunk = ordered[0].chunk_frames
        if ordered[0].lookahead_frames:
            caches.features[rows_of(ordered)] = x[:, chunk:]
            for state in ordered:
                state.ahead = state.lookahead_frames
        logits = self._blocks(x, chunk, ordered).split([len(state.rows) for state in ordered])
        return [logits[place] for place in sorted(range(len(order)), key=order.__getitem__)]

    def _next_features(self, states: Sequence[StreamState], caches: StreamCaches) -> Tensor:
        """(B, C + look-ahead, width) projected features of the next chunk of streams that want equally much."""
        read = self.front_end.hop * states[0].wanted
        seen = read + self.front_end.window - self.front_end.hop
        audio = torch.cat([state.samples[:, :seen] for state in states])
        new = self._project(self.front_end.encode(send(audio, caches.features.device)))
        ahead = states[0].ahead
        for state in states:
            state.samples = state.samples[:, read:].clone()
        if not ahead:
            return new
        return torch.cat((caches.features[rows_of(states), :ahead], new), 1)

    def _blocks(self, x: Tensor, frames: int, states: Sequence[StreamState]) -> Tensor:
        """Logits (B, k frames, V) of a chunk of every stream and its look-ahead (B, T, width); the states move on."""
        rows = [row for state in states for row in state.rows]
        first = [state.frames for state in states for _ in state.rows]
        step = states[0].caches.step(rows, first, x.shape[1], frames)
        tables = rotary_tables(x.shape[1], self.width // self.heads, x.device, step.first)
        rotation = for_rotation(*(table[:, None] for table in tables))
        for layer, block in enumerate(self.blocks):
            x = block(x, None, rotation, frames, layer=layer, step=step)
        for state in states:
            state.frames += frames
        return self.logits(x[:, :frames])

    @torch.no_grad()
    def init_from_teacher(self, teacher: Teacher, level: float | None = None, same_tokens: bool = True) -> list[str]:
        """Copy the CNN, the norm after it, and the prediction layer from a :class:`Teacher` where shapes allow.

        Each is copied whole or not at all; the prediction layer is repeated for each of a frame's logit frames. A
        teacher that brings every utterance to unit variance needs ``level``, the root mean square of typical audio: the
        copied CNN then expects audio of this level, as its first convolution is divided by it.

        Returns:
            a line for each part: copied or not, and why not.
        """
        of_teacher = {**teacher.parts(), "prediction layer": teacher.output}
        parts: dict[str, tuple[nn.Module, nn.Module]] = {
            name: (part, of_teacher.get(name, nn.Identity()))  # an Identity has none of its weights
            for name, part in (
                ("CNN", self.front_end),
                ("feature norm", self.feature_norm),
                ("feature projection", self.projection),
                ("prediction layer", self.output),
            )
        }
        report = []
        cnn_copied = False
        for name, (part, source) in parts.items():
            weights = source.state_dict()
            if source is teacher.output:
                weights = {key: torch.cat([value] * self.logits_per_frame) for key, value in weights.items()}
            obstacle = mismatch(part.state_dict(), weights)
            if source is teacher.output and not same_tokens:
                obstacle = "the teacher has other tokens"
            if name.startswith("feature") and not cnn_copied:
                obstacle = "it belongs to the CNN"
            if obstacle is None:
                part.load_state_dict(weights)
                cnn_copied |= name == "CNN"
                count = sum(p.numel() for p in part.parameters())
                report.append(f"{name}: copied ({count} parameters)")
            else:
                report.append(f"{name}: not copied, {obstacle}")
        if cnn_copied and teacher.normalize:
            if level is None:
                raise ValueError("the teacher normalises each utterance's audio: give the level of the student's")
            first = cast(ConvLayer, cast(ConvFrontEnd, self.front_end).conv_layers[0])
            first.conv.weight.div_(level)
            report.append(f"CNN: scaled for audio of level {level:.3g}, as the teacher normalises each utterance's")
        return report


def rows_of(states: Sequence[StreamState]) -> Tensor:
    """(B,) slots of the streams of these states, on the device of their caches."""
    rows = torch.tensor([row for state in states for row in state.rows])
    return send(rows, states[0].caches.features.device)


def what_is_seen(
    lengths: Tensor, x: Tensor, chunk: int | None, left: int | None, lookahead: int
) -> Tensor | ChunkAttention | None:
    """What attention may see of frames x (B, T, width) with (B,) lengths, in its cheapest form.

    Nothing where all see all; the keys within the length where context is full; blocks where they save enough; else a
    mask over all pairs.
    """
    frames = x.shape[1]
    if chunk is None:
        if lengths.device.type == "cpu" and int(lengths.min()) >= frames:
            return None
        return (torch.arange(frames, device=x.device) < send(lengths, x.device)[:, None])[:, None, None]
    if left is not None:
        in_blocks, dense = pairs(frames, chunk, left, lookahead)
        if in_blocks <= WORTH_IT * dense:
            return ChunkAttention(send(lengths, x.device), frames, chunk, left, lookahead)
    return chunk_mask(send(lengths, x.device), frames, chunk, left, lookahead)


def mismatch(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> str | None:
    """The first reason why the teacher's weights do not fit the student, None if they do."""
    for key in student:
        if key not in teacher:
            return f"the teacher has no {key}"
        if student[key].shape != teacher[key].shape:
            return f"{key} is {tuple(teacher[key].shape)} in the teacher and {tuple(student[key].shape)} here"
    for key in teacher:
        if key not in student:
            return f"the student has no {key}"
    return None
