"""A recognition session: audio goes in as it arrives, partial and final results come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from distill.configuration import ChunkConf, read_conf
from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import Hypothesis, Search
from distill.decode.settings import DecodeConf, search_factory
from distill.decode.text import tokens_to_text
from distill.errors import UserError
from distill.models.student import StreamState, Student
from distill.models.teacher import Teacher

SAMPLE_RATE = 16000


class TokenResult(TypedDict):
    """A token, where it was heard, and its mean posterior."""

    token: str
    start_s: float
    end_s: float
    confidence: float


class Result(TypedDict):
    """What was recognised so far.

    ``audio_s`` is the audio that had arrived, ``emitted_after_s`` the seconds of computation between the arrival of
    the piece of audio that completed the result and the result itself.
    """

    event: str  # "partial" or "final"
    text: str
    audio_s: float
    emitted_after_s: float
    tokens: list[TokenResult]


class StreamingRecognizer:
    """Recognise one stream of 16 kHz audio, with greedy decoding or another search.

    A streaming student (one trained with ``chunk_conf``) computes every chunk once, with caches, and remembers
    ``chunk_conf.left_ms`` before it: memory and computation per chunk do not grow with the stream. Any other network
    decodes all audio so far again at each chunk, so that models can be compared through one interface.

    Args:
        network: teacher or student in evaluation mode. Many sessions may share one.
        token_list: tokens by id, blank first.
        config: configuration of the training, for ``token_type`` and ``chunk_conf``.
        chunk_ms: length of a chunk with its look-ahead (``chunk_conf.hop``), a multiple of the network's frame; None:
            no partial results, and the whole audio is decoded with full context at the end.
        endpoint_ms: a result is final once so much silence follows its last token, and the next one begins; None: only
            the end of the stream is an end. For streaming students.
        new_search: makes the decoder of a stream. ``hypotheses`` holds what it found for the last final result.
    """

    def __init__(
        self,
        network: Student | Teacher,
        token_list: Sequence[str],
        config: Mapping[str, Any],
        chunk_ms: int | None = 480,
        endpoint_ms: int | None = None,
        new_search: Callable[[], Search] = GreedySearch,
    ) -> None:
        frame_ms = network.encoder_frame_ms
        if chunk_ms is not None and (chunk_ms <= 0 or chunk_ms % frame_ms):
            raise UserError(f"chunk_ms: {chunk_ms} is not a positive multiple of the model's {frame_ms} ms frames")
        self.network = network
        self.token_list = list(token_list)
        self.token_type = config.get("token_type", "char")
        self.chunk_ms = chunk_ms
        chunk_conf = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None)
        self._state: StreamState | None = None
        self._new_state: Callable[[], StreamState] | None = None
        if chunk_conf is not None and chunk_ms is not None and not isinstance(network, Teacher):
            frames = chunk_conf.in_frames(chunk_ms // frame_ms, frame_ms)
            self._new_state = partial(network.initial_state, 1, *frames)
        if endpoint_ms is not None and (endpoint_ms <= 0 or self._new_state is None):
            raise UserError(f"endpoint_ms: {endpoint_ms} must be positive, and the model a streaming student")
        self._endpoint_frames = None if endpoint_ms is None else -(-endpoint_ms // network.frame_ms)
        self._device = next(network.parameters()).device
        self._new_search = new_search
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        chunk_ms: int | None = 480,
        endpoint_ms: int | None = None,
        device: str = "cpu",
        decoding: DecodeConf | None = None,
    ) -> StreamingRecognizer:
        """A recogniser from a training, such as exp/student_stream, or a packed model; greedy unless told otherwise."""
        from distill.checkpoints.load import load_network

        network, token_list, config = load_network(directory, device)
        new_search = search_factory(decoding or DecodeConf(), token_list, config)
        return cls(network, token_list, config, chunk_ms, endpoint_ms, new_search)

    @property
    def streaming(self) -> bool:
        """Whether every chunk is computed once, with caches."""
        return self._new_state is not None

    @property
    def step_ms(self) -> int:
        """Time between two chunks of a stream."""
        assert self._state is not None
        return self._state.chunk_frames * self.network.encoder_frame_ms

    @property
    def wait_ms(self) -> tuple[float, float]:
        """How long a frame of a stream waits at worst and on average: for its chunk, look-ahead and the front end."""
        assert self._state is not None and self.chunk_ms is not None
        worst = self.chunk_ms + self._student.lookahead_samples * 1000 / SAMPLE_RATE
        return worst, worst - self.step_ms / 2

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a new stream."""
        self._samples = 0
        self._finished = False
        self._search = self._new_search()
        self.hypotheses: list[Hypothesis] = []
        self._results: list[TokenResult] = []  # of the last result; the first so many of them stay as they are:
        self._settled = 0
        self._audio: list[Tensor] = []
        self._decoded_chunks = 0
        self._state = self._new_state() if self._new_state is not None else None

    def accept_waveform(self, samples: np.ndarray | Tensor) -> list[Result]:
        """Take in (n,) samples in [-1, 1], any n.

        Returns:
            the partial result, if the samples completed at least one chunk; before it a final one for each endpoint.
        """
        started = time.perf_counter()
        piece = self._check(samples)
        self._samples += len(piece)
        if self._state is not None:
            return self._accept_logits(self._student.stream(piece[None], self._state)[0], started)
        self._audio.append(piece)
        if self.chunk_ms is None:
            return []
        chunks = self._samples * 1000 // (SAMPLE_RATE * self.chunk_ms)
        if chunks == self._decoded_chunks:
            return []
        self._decoded_chunks = chunks
        self._decode_all()
        return [self._partial(started)]

    def finish(self) -> Result:
        """End the stream and return its final result, or what follows the last endpoint; :meth:`reset` begins anew."""
        started = time.perf_counter()
        if self._finished:
            raise RuntimeError("the stream has ended; call reset() first")
        self._finished = True
        if self._samples:
            if self._state is not None:
                nothing = torch.zeros(1, 0, device=self._device)
                self._search.accept(self._student.stream(nothing, self._state, final=True)[0])
            else:
                self._decode_all()
        return self._final(started)

    @property
    def _student(self) -> Student:
        assert not isinstance(self.network, Teacher)
        return self.network

    def _check(self, samples: np.ndarray | Tensor) -> Tensor:
        if self._finished:
            raise RuntimeError("the stream has ended; call reset() first")
        piece = torch.as_tensor(samples)
        if piece.dim() != 1 or not piece.is_floating_point():
            raise ValueError(f"expected (n,) floating-point samples in [-1, 1], got {tuple(piece.shape)} {piece.dtype}")
        piece = piece.to(self._device, torch.float32)
        # The sum tells without a second array; it overflows only where the samples are no audio either.
        if not torch.isfinite(piece.sum()):
            raise UserError("audio: holds samples that are not finite numbers; check where it comes from")
        return piece

    def _accept_logits(self, logits: Tensor, started: float) -> list[Result]:
        """Results after the (t, V) logits of one chunk or several."""
        if not len(logits):
            return []
        if self._endpoint_frames is None:
            self._search.accept(logits)
            return [self._partial(started)]
        results = []
        assert self._state is not None
        chunk_logits = self._state.chunk_frames * self._student.logits_per_frame
        for chunk in logits.split(chunk_logits):  # one at a time, so that pieces of any size end alike
            self._search.accept(chunk)
            tokens = self._search.best.tokens
            if tokens and self._search.frames - tokens[-1].end_frame >= self._endpoint_frames:
                results.append(self._final(started))
        if self._search.best.tokens or not results:
            results.append(self._partial(started))
        return results

    @torch.no_grad()
    def _decode_all(self) -> None:
        audio = torch.cat(self._audio)
        self._audio = [audio]
        output = self.network(audio[None], torch.tensor([len(audio)], device=self._device))
        self._search = self._new_search()
        self._settled = 0
        self._search.accept(output.logits[0])

    def _partial(self, started: float) -> Result:
        result = self._result("partial", self._search.best, started)
        self._settled = self._search.settled
        return result

    def _final(self, started: float) -> Result:
        self.hypotheses = self._search.finish()
        result = self._result("final", self.hypotheses[0], started)
        self._settled = 0
        return result

    def _result(self, event: str, hypothesis: Hypothesis, started: float) -> Result:
        audio_s = self._samples / SAMPLE_RATE
        frame_s = self.network.frame_ms / 1000
        # What is settled is not made again, as an hour has many tokens.
        del self._results[self._settled :]
        for token in hypothesis.tokens[self._settled :]:
            self._results.append(
                TokenResult(
                    token=self.token_list[token.id],
                    start_s=round(min(token.start_frame * frame_s, audio_s), 6),
                    end_s=round(min(token.end_frame * frame_s, audio_s), 6),
                    confidence=round(token.confidence, 6),
                )
            )
        if hypothesis.words is None:
            text = tokens_to_text((token["token"] for token in self._results), self.token_type)
        else:
            text = " ".join(word.text for word in hypothesis.words)
        return Result(
            event=event,
            text=text,
            audio_s=audio_s,
            emitted_after_s=time.perf_counter() - started,
            tokens=self._results.copy(),
        )


def accept_together(
    sessions: Sequence[StreamingRecognizer], pieces: Sequence[np.ndarray | Tensor]
) -> list[list[Result]]:
    """:meth:`StreamingRecognizer.accept_waveform` of many sessions at once, a piece for each.

    Sessions of one streaming student with one ``chunk_ms`` have their chunks computed in one batch, wherever each of
    them stands in its audio; the results are those each would have given alone.
    """
    started = time.perf_counter()
    network = sessions[0].network
    for session, piece in zip(sessions, pieces, strict=True):
        if session.network is not network or session.chunk_ms != sessions[0].chunk_ms or session._state is None:
            raise ValueError("sessions that go together share one streaming student and one chunk_ms")
        samples = session._check(piece)
        session._samples += len(samples)
        session._state.samples = torch.cat((session._state.samples, samples[None]), 1)
    assert not isinstance(network, Teacher)
    chunks: dict[int, list[Tensor]] = {number: [] for number in range(len(sessions))}
    while True:
        states = {n: s._state for n, s in enumerate(sessions) if s._state is not None and network.has_chunk(s._state)}
        if not states:
            break
        for number, logits in zip(states, network.stream_together(list(states.values())), strict=True):
            chunks[number].append(logits[0])
    nothing = torch.empty(0)
    return [
        session._accept_logits(torch.cat(chunks[number]) if chunks[number] else nothing, started)
        for number, session in enumerate(sessions)
    ]
