"""A recognition session: audio goes in as it arrives, partial and final results come out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from distill.decode.greedy import GreedySearch
from distill.decode.text import tokens_to_text
from distill.errors import UserError
from distill.models.student import StreamState, Student

if TYPE_CHECKING:
    from distill.models.teacher import Teacher

SAMPLE_RATE = 16000
DEFAULT_LEFT_MS = 6000


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
    """Recognise one stream of 16 kHz audio with greedy decoding.

    A streaming student (one trained with ``chunk_conf``) computes every chunk once, with caches, and remembers
    ``chunk_conf.left_ms`` (6000 ms if not given; null: everything) before it: memory and computation per chunk do not
    grow with the stream. Any other network decodes all audio so far again at each chunk, so that models can be
    compared through one interface.

    Args:
        network: teacher or student in evaluation mode.
        token_list: tokens by id, blank first.
        config: configuration of the training, for ``token_type`` and ``chunk_conf``.
        chunk_ms: length of a chunk, a multiple of the network's frame; None: no partial results, and the whole
            audio is decoded with full context at the end.
    """

    def __init__(
        self,
        network: Student | Teacher,
        token_list: Sequence[str],
        config: Mapping[str, Any],
        chunk_ms: int | None = 480,
    ) -> None:
        if chunk_ms is not None and (chunk_ms <= 0 or chunk_ms % network.frame_ms):
            raise UserError(
                f"chunk_ms: {chunk_ms} is not a positive multiple of the model's {network.frame_ms} ms frames"
            )
        self.network = network
        self.token_list = list(token_list)
        self.token_type = config.get("token_type", "char")
        self.chunk_ms = chunk_ms
        chunk_conf = config.get("chunk_conf")
        self.streaming = isinstance(network, Student) and bool(chunk_conf) and chunk_ms is not None
        left_ms = (chunk_conf or {}).get("left_ms", DEFAULT_LEFT_MS)
        self._left_frames = None if left_ms is None else int(left_ms // network.frame_ms)
        self._device = next(network.parameters()).device
        self.reset()

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, chunk_ms: int | None = 480, device: str = "cpu"
    ) -> StreamingRecognizer:
        """A recogniser from the directory of a training, such as exp/student_stream."""
        from distill.tasks.load import load_network

        network, token_list, config = load_network(directory, device)
        return cls(cast("Student | Teacher", network), token_list, config, chunk_ms)

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a new stream."""
        self._samples = 0
        self._finished = False
        self._search = GreedySearch()
        self._state: StreamState | None = None
        self._audio: list[Tensor] = []
        self._decoded_chunks = 0
        if self.streaming:
            assert isinstance(self.network, Student) and self.chunk_ms is not None
            chunk_frames = self.chunk_ms // self.network.frame_ms
            self._state = self.network.initial_state(1, chunk_frames, self._left_frames)

    def accept_waveform(self, samples: np.ndarray | Tensor) -> Result | None:
        """Take in (n,) samples in [-1, 1], any n; the partial result if they completed at least one chunk."""
        started = time.perf_counter()
        piece = self._check(samples)
        self._samples += len(piece)
        if self._state is not None:
            assert isinstance(self.network, Student)
            logits = self.network.stream(piece[None], self._state)[0]
            self._search.accept(logits)
            return self._result("partial", started) if len(logits) else None
        self._audio.append(piece)
        if self.chunk_ms is None:
            return None
        chunks = self._samples * 1000 // (SAMPLE_RATE * self.chunk_ms)
        if chunks == self._decoded_chunks:
            return None
        self._decoded_chunks = chunks
        self._decode_all()
        return self._result("partial", started)

    def finish(self) -> Result:
        """End the stream and return its final result; :meth:`reset` begins the next."""
        started = time.perf_counter()
        if self._finished:
            raise RuntimeError("the stream has ended; call reset() first")
        self._finished = True
        if self._samples:
            if self._state is not None:
                assert isinstance(self.network, Student)
                nothing = torch.zeros(1, 0, device=self._device)
                self._search.accept(self.network.stream(nothing, self._state, final=True)[0])
            else:
                self._decode_all()
        return self._result("final", started)

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

    @torch.no_grad()
    def _decode_all(self) -> None:
        audio = torch.cat(self._audio)
        self._audio = [audio]
        output = self.network(audio[None], torch.tensor([len(audio)], device=self._device))
        self._search = GreedySearch()
        self._search.accept(output.logits[0])

    def _result(self, event: str, started: float) -> Result:
        audio_s = self._samples / SAMPLE_RATE
        frame_s = self.network.frame_ms / 1000
        tokens = [
            TokenResult(
                token=self.token_list[token.id],
                start_s=round(min(token.start_frame * frame_s, audio_s), 6),
                end_s=round(min(token.end_frame * frame_s, audio_s), 6),
                confidence=round(token.confidence, 6),
            )
            for token in self._search.tokens
        ]
        return Result(
            event=event,
            text=tokens_to_text((token["token"] for token in tokens), self.token_type),
            audio_s=audio_s,
            emitted_after_s=time.perf_counter() - started,
            tokens=tokens,
        )
