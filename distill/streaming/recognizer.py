"""Streams recognised in torch: audio goes in as it arrives, partial and final results come out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.audio import SAMPLE_RATE, check_at_once
from distill.configuration import ChunkConf, frames_of_chunk, read_conf
from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import Search
from distill.decode.settings import DecodeConf, search_factory
from distill.decode.stream_results import NO_RULES, EndpointRules, Result, TokenResult, silence_rule
from distill.decode.streams import BaseRecognizer, Session
from distill.models.student import StreamState, Student
from distill.models.teacher import Teacher

__all__ = ["Recognizer", "Result", "StreamingRecognizer", "TokenResult", "accept_together"]


class WholeAudio:
    """State of a stream whose network computes all of its audio again at each chunk.

    Attributes:
        audio: pieces of it.
        samples: their number.
        chunks: how many of them were complete when it was computed last.
        wanted: whether it is to be computed although no chunk is complete.
    """

    def __init__(self) -> None:
        self.audio: list[Tensor] = []
        self.samples = self.chunks = 0
        self.wanted = False


class Recognizer(BaseRecognizer[StreamState | WholeAudio]):
    """Recognises streams of 16 kHz audio, with greedy decoding or another search.

    A streaming student (one trained with ``chunk_conf``) computes every chunk once, with caches of the
    ``chunk_conf.left_ms`` before it: memory and computation per chunk do not grow with the stream. Any other network
    computes the whole audio again at each chunk, so that all models can be compared through one interface.

    Args:
        network: teacher or student in evaluation mode. Many recognisers may share one.
        token_list: tokens by id, blank first.
        config: the training's configuration, of which ``token_type`` and ``chunk_conf`` are used.
        chunk_ms: length of a chunk with its look-ahead (see ``chunk_conf.hop``), a multiple of the encoder's frame;
            None: no partial results, and the whole audio is decoded with full context at the end.
        rules: when an utterance ends before its stream does; for streaming students.
        new_search: creates the search of a stream.

    Raises:
        UserError: ``chunk_ms`` does not fit the encoder's frames, or there are rules for a network that does not
            stream.
    """

    def __init__(
        self,
        network: Student | Teacher,
        token_list: Sequence[str],
        config: Mapping[str, Any],
        chunk_ms: int | None = 480,
        rules: EndpointRules = NO_RULES,
        new_search: Callable[[], Search] = GreedySearch,
    ) -> None:
        super().__init__(token_list, config.get("token_type", "char"), network.frame_ms, rules, new_search)
        self.network, self.chunk_ms = network, chunk_ms
        self._frames: tuple[int, int | None, int] | None = None  # of a chunk, its history and its look-ahead
        chunk_conf = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None)
        self.trained_ms = None if chunk_conf is None else chunk_conf.range_ms  # shortest and longest chunk
        if chunk_ms is not None:
            frame_ms = network.encoder_frame_ms
            chunk_frames = frames_of_chunk(chunk_ms, frame_ms)
            if chunk_conf is not None and not isinstance(network, Teacher):
                self._frames = chunk_conf.in_frames(chunk_frames, frame_ms)
        self.streaming = self._frames is not None
        self._check_rules(rules)
        self._device = next(network.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        chunk_ms: int | None = 480,
        rules: EndpointRules = NO_RULES,
        device: str = "cpu",
        decoding: DecodeConf | None = None,
    ) -> Recognizer:
        """Load a training's directory, such as exp/student_stream, or a packed model; decodes greedily by default."""
        from distill.checkpoints.load import load_network

        network, token_list, config = load_network(directory, device)
        new_search = search_factory(decoding or DecodeConf(), token_list, config)
        return cls(network, token_list, config, chunk_ms, rules, new_search)

    @property
    def step_ms(self) -> int:
        """Milliseconds between the beginnings of two chunks of a stream."""
        assert self._frames is not None
        return self._frames[0] * self.network.encoder_frame_ms

    @property
    def wait_ms(self) -> tuple[float, float]:
        """Longest and mean milliseconds that a frame waits for the end of its chunk, look-ahead and front end."""
        assert self.chunk_ms is not None
        longest = self.chunk_ms + self._student.lookahead_samples * 1000 / SAMPLE_RATE
        return longest, longest - self.step_ms / 2

    @property
    def _student(self) -> Student:
        assert not isinstance(self.network, Teacher)
        return self.network

    def _batch_key(self) -> Hashable:
        return (id(self.network), *self._frames) if self._frames is not None else id(self)

    def _new_state(self) -> StreamState | WholeAudio:
        return WholeAudio() if self._frames is None else self._student.initial_state(1, *self._frames)

    def _receive(self, state: StreamState | WholeAudio, samples: np.ndarray) -> None:
        piece = torch.from_numpy(samples)
        if isinstance(state, StreamState):
            self._student.receive(piece[None], state)
            return
        state.samples += len(piece)
        check_at_once(state.samples, "audio")
        state.audio.append(piece)

    def _flush(self, state: StreamState | WholeAudio) -> int:
        if isinstance(state, StreamState):
            silence = self._student.silence(state)
            self._student.receive(torch.zeros(1, silence), state)
            return silence
        state.wanted = True
        return 0

    def _ready(self, state: StreamState | WholeAudio) -> bool:
        if isinstance(state, StreamState):
            return self._student.has_chunk(state)
        return state.wanted or self._whole_chunks(state) > state.chunks

    def _whole_chunks(self, state: WholeAudio) -> int:
        return 0 if self.chunk_ms is None else state.samples * 1000 // (SAMPLE_RATE * self.chunk_ms)

    def _compute(self, states: Sequence[StreamState | WholeAudio]) -> list[Tensor]:
        if self.streaming:
            batch = [state for state in states if isinstance(state, StreamState)]
            return list(torch.cat(self._student.stream_together(batch)).cpu())
        return [self._full_context(state) for state in states if isinstance(state, WholeAudio)]

    @torch.no_grad()
    def _full_context(self, state: WholeAudio) -> Tensor:
        """(T, V) logits of all audio so far."""
        state.chunks, state.wanted = self._whole_chunks(state), False
        audio = torch.cat(state.audio)
        state.audio = [audio]
        lengths = torch.tensor([len(audio)], device=self._device)
        return self.network(audio[None].to(self._device), lengths).logits[0].cpu()


class StreamingRecognizer(Session):
    """A :class:`Recognizer` with one stream at a time. Deprecated; the next release has it no more."""

    recognizer: Recognizer

    def __init__(
        self,
        network: Student | Teacher,
        token_list: Sequence[str],
        config: Mapping[str, Any],
        chunk_ms: int | None = 480,
        endpoint_ms: int | None = None,
        new_search: Callable[[], Search] = GreedySearch,
    ) -> None:
        super().__init__(Recognizer(network, token_list, config, chunk_ms, silence_rule(endpoint_ms), new_search))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        chunk_ms: int | None = 480,
        endpoint_ms: int | None = None,
        device: str = "cpu",
        decoding: DecodeConf | None = None,
    ) -> StreamingRecognizer:
        """:meth:`Recognizer.from_pretrained`."""
        rules = silence_rule(endpoint_ms)
        return cls._around(Recognizer.from_pretrained(directory, chunk_ms, rules, device, decoding))

    @classmethod
    def _around(cls, recognizer: Recognizer) -> StreamingRecognizer:
        session = cls.__new__(cls)
        Session.__init__(session, recognizer)
        return session

    def new_session(self) -> StreamingRecognizer:
        """A session for another stream, with the same network (which is not copied) and settings."""
        return self._around(self.recognizer)


def accept_together(
    sessions: Sequence[StreamingRecognizer], pieces: Sequence[np.ndarray | Tensor]
) -> list[list[Result]]:
    """Call :meth:`StreamingRecognizer.accept_waveform` of many sessions at once, with a piece of audio for each.

    Deprecated: :meth:`Recognizer.decode` takes its place.

    Raises:
        ValueError: a session's model does not stream.
    """
    if not all(session.recognizer.streaming for session in sessions):
        raise ValueError("accept_together: only sessions of streaming students can be computed together")
    batches: dict[Hashable, list[int]] = {}
    for number, (session, samples) in enumerate(zip(sessions, pieces, strict=True)):
        session.stream.accept(samples)
        batches.setdefault(session.recognizer._batch_key(), []).append(number)
    results: list[list[Result]] = [[] for _ in sessions]
    for batch in batches.values():
        streams = [sessions[number].stream for number in batch]
        for number, found in zip(batch, streams[0].recognizer.decode(streams), strict=True):
            results[number] = found
    return results
