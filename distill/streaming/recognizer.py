"""A recognition session in torch: audio goes in as it arrives, partial and final results come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.audio import SAMPLE_RATE, as_floats, check_at_once
from distill.configuration import ChunkConf, frames_of_chunk, read_conf
from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import Hypothesis, Search
from distill.decode.settings import DecodeConf, search_factory
from distill.decode.stream_results import Result, StreamDecoder, TokenResult
from distill.errors import UserError
from distill.models.student import StreamState, Student
from distill.models.teacher import Teacher

__all__ = ["Result", "StreamingRecognizer", "TokenResult", "accept_together"]


class StreamingRecognizer:
    """Recognises one stream of 16 kHz audio, with greedy decoding or another search.

    A streaming student (one trained with ``chunk_conf``) computes every chunk once, with caches of the
    ``chunk_conf.left_ms`` before it: memory and computation per chunk do not grow with the stream. Any other network
    computes the whole audio again at each chunk, so that all models can be compared through one interface.

    Args:
        network: teacher or student in evaluation mode. Many sessions may share one.
        token_list: tokens by id, blank first.
        config: the training's configuration, of which ``token_type`` and ``chunk_conf`` are used.
        chunk_ms: length of a chunk with its look-ahead (see ``chunk_conf.hop``), a multiple of the encoder's frame;
            None: no partial results, and the whole audio is decoded with full context at the end.
        endpoint_ms: a result is final once this much silence follows its last token, and the next one begins; None:
            only the end of the stream is an endpoint. For streaming students.
        new_search: creates the search of a stream.

    Raises:
        UserError: ``chunk_ms`` does not fit the encoder's frames, or ``endpoint_ms`` is not positive or given for a
            network that does not stream.
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
        self.network = network
        self.token_list = list(token_list)
        self.token_type = config.get("token_type", "char")
        self.chunk_ms = chunk_ms
        self._settings = (config, chunk_ms, endpoint_ms, new_search)
        self._state: StreamState | None = None
        self._new_state: Callable[[], StreamState] | None = None
        chunk_conf = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None)
        self.trained_ms = None if chunk_conf is None else chunk_conf.range_ms  # shortest and longest chunk
        if chunk_ms is not None:
            frame_ms = network.encoder_frame_ms
            chunk_frames = frames_of_chunk(chunk_ms, frame_ms)
            if chunk_conf is not None and not isinstance(network, Teacher):
                frames = chunk_conf.in_frames(chunk_frames, frame_ms)
                self._new_state = partial(network.initial_state, 1, *frames)
        if endpoint_ms is not None and self._new_state is None:
            raise UserError(f"endpoint_ms: {endpoint_ms} needs a streaming student; leave it out for this model")
        self._decoder = StreamDecoder(self.token_list, self.token_type, network.frame_ms, endpoint_ms, new_search)
        self._device = next(network.parameters()).device
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
        """Load a training's directory, such as exp/student_stream, or a packed model; decodes greedily by default."""
        from distill.checkpoints.load import load_network

        network, token_list, config = load_network(directory, device)
        new_search = search_factory(decoding or DecodeConf(), token_list, config)
        return cls(network, token_list, config, chunk_ms, endpoint_ms, new_search)

    def new_session(self) -> StreamingRecognizer:
        """A session for another stream, with the same network (which is not copied) and settings."""
        config, chunk_ms, endpoint_ms, new_search = self._settings
        return StreamingRecognizer(self.network, self.token_list, config, chunk_ms, endpoint_ms, new_search)

    @property
    def streaming(self) -> bool:
        """Whether every chunk is computed once, with caches."""
        return self._new_state is not None

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """Hypotheses of the last final result, best first."""
        return self._decoder.hypotheses

    @property
    def step_ms(self) -> int:
        """Milliseconds between the beginnings of two chunks of a stream."""
        assert self._state is not None
        return self._state.chunk_frames * self.network.encoder_frame_ms

    @property
    def wait_ms(self) -> tuple[float, float]:
        """Longest and mean milliseconds that a frame waits for the end of its chunk, look-ahead and front end."""
        assert self._state is not None and self.chunk_ms is not None
        longest = self.chunk_ms + self._student.lookahead_samples * 1000 / SAMPLE_RATE
        return longest, longest - self.step_ms / 2

    def reset(self) -> None:
        """Begin a new stream."""
        self._decoder.reset()
        self._audio: list[Tensor] = []  # all of it, for networks that do not stream
        self._decoded_chunks = 0
        self._state = self._new_state() if self._new_state is not None else None

    def accept_waveform(self, samples: np.ndarray | Tensor, sample_rate: int = SAMPLE_RATE) -> list[Result]:
        """Take the next (n,) samples of the stream, floats in [-1, 1] or int16; any n.

        Returns:
            the partial result if the samples complete a chunk, after a final result for each endpoint in them.

        Raises:
            ValueError: the samples are not a vector of floats or of int16.
            UserError: a sample is not a finite number, the rate is not 16 kHz, or there is more audio than full context
                takes.
            RuntimeError: the stream has ended.
        """
        piece = self._check(samples, sample_rate)
        self._decoder.receive(piece.numpy())
        if self._state is not None:
            return self._accept_logits(self._student.stream(piece[None], self._state)[0])
        check_at_once(self._decoder.samples, "audio")
        self._audio.append(piece)
        if self.chunk_ms is None:
            return []
        chunks = self._decoder.samples * 1000 // (SAMPLE_RATE * self.chunk_ms)
        if chunks == self._decoded_chunks:
            return []
        self._decoded_chunks = chunks
        return [self._decoder.accept_again(self._full_context_logits())]

    def flush(self) -> list[Result]:
        """Let everything that was spoken so far come out, as in a pause; the stream goes on.

        Silence completes the last chunk. It does not count as audio: times of what follows are those of the audio. But
        with ``endpoint_ms`` it may end an utterance.

        Returns:
            as :meth:`accept_waveform`.

        Raises:
            RuntimeError: the stream has ended.
        """
        self._decoder.receive(np.zeros(0))
        if not self._decoder.samples:
            return []
        if self._state is None:
            return [self._decoder.accept_again(self._full_context_logits())]
        silence = self._student.silence(self._state)
        logits = self._student.stream(torch.zeros(1, 0), self._state, flush=True)[0]
        return self._decoder.flush(silence, logits, self._state.chunk_frames * self._student.logits_per_frame)

    def finish(self) -> Result:
        """End the stream and return its last final result. :meth:`reset` begins a new stream."""
        self._decoder.receive(np.zeros(0))
        if not self._decoder.samples:
            return self._decoder.finish()
        if self._state is None:
            self._decoder.accept_again(self._full_context_logits())
            return self._decoder.finish()
        return self._decoder.finish(self._student.stream(torch.zeros(1, 0), self._state, flush=True)[0])

    @property
    def _student(self) -> Student:
        assert not isinstance(self.network, Teacher)
        return self.network

    def _check(self, samples: np.ndarray | Tensor, sample_rate: int = SAMPLE_RATE) -> Tensor:
        if isinstance(samples, Tensor):
            samples = samples.detach().cpu()  # a device would be waited for
            samples = (samples.float() if samples.is_floating_point() else samples).numpy()
        return torch.from_numpy(as_floats(np.asarray(samples), sample_rate))

    def _accept_logits(self, logits: Tensor) -> list[Result]:
        """Results after the (t, V) logits of whole chunks of a stream; t may be 0."""
        assert self._state is not None
        return self._decoder.accept(logits, self._state.chunk_frames * self._student.logits_per_frame)

    @torch.no_grad()
    def _full_context_logits(self) -> Tensor:
        """(T, V) logits of all audio so far."""
        audio = torch.cat(self._audio)
        self._audio = [audio]
        lengths = torch.tensor([len(audio)], device=self._device)
        return self.network(audio[None].to(self._device), lengths).logits[0]


def accept_together(
    sessions: Sequence[StreamingRecognizer], pieces: Sequence[np.ndarray | Tensor]
) -> list[list[Result]]:
    """Call :meth:`StreamingRecognizer.accept_waveform` of many sessions at once, with a piece of audio for each.

    Sessions that share a network (see :meth:`StreamingRecognizer.new_session`) and a chunk length are computed in one
    batch, wherever each of them is in its audio. The results are those of each session on its own.

    Raises:
        ValueError: a session's model does not stream.
    """
    if not all(session.streaming for session in sessions):
        raise ValueError("accept_together: only sessions of streaming students can be computed together")
    checked = [session._check(piece) for session, piece in zip(sessions, pieces, strict=True)]
    batches: dict[tuple, list[tuple[int, StreamState]]] = {}
    for number, (session, samples) in enumerate(zip(sessions, checked, strict=True)):
        state = session._state
        assert state is not None
        session._decoder.receive(samples.numpy())
        session._student.receive(samples[None], state)
        key = (id(session.network), state.chunk_frames, state.left_frames, state.lookahead_frames)
        batches.setdefault(key, []).append((number, state))
    results: list[list[Result]] = [[] for _ in sessions]
    for batch in batches.values():
        network = sessions[batch[0][0]]._student
        chunks: dict[int, list[Tensor]] = {number: [] for number, _ in batch}
        while ready := [(number, state) for number, state in batch if network.has_chunk(state)]:
            logits = torch.cat(network.stream_together([state for _, state in ready])).cpu()  # (N, C, V)
            for (number, _), chunk in zip(ready, logits, strict=True):
                chunks[number].append(chunk)
        for number, _ in batch:
            if chunks[number]:
                results[number] = sessions[number]._accept_logits(torch.cat(chunks[number]))
    return results
