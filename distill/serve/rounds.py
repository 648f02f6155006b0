"""Computation of a server's sessions, all of them together.

A worker thread computes in rounds: a round takes at most a chunk of audio from every session that has some, runs them
as one batch (:mod:`distill.decode.streams`), and hands the results back. What arrives meanwhile waits for the next
round, so batches grow with the load, and a single client does not wait for others.

Sessions that are live come first. One that has got ahead of real time, such as a file sent at full speed, or whose
audio waits for longer than a live client would accept, is computed in the rounds that live ones leave free, and while
any are live in small rounds, which do not keep them waiting. When clients ask for more than the machine can do, those
who ask for most are late, and not all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from aiohttp import WSCloseCode

from distill.audio import SAMPLE_RATE, from_pcm
from distill.decode.stream_results import EndpointRules, Result
from distill.decode.streams import BaseRecognizer, Stream
from distill.serve.metrics import Metrics
from distill.serve.refusal import Refusal

BYTES_PER_S = 2 * SAMPLE_RATE
WAITING_RESULTS = 8  # a session with this many unsent results is not computed until some are sent
AHEAD_S, LATE_S = 1, 3  # a session further ahead of real time, or with more audio that waits, is not live
NOT_LIVE_AT_ONCE = 1  # sessions in a round while there are live ones, which may have to wait for it
STUCK_S = 10  # a round that takes longer is not healthy

log = logging.getLogger(__name__)


Message = dict[str, Any] | Refusal | None  # to the client; None closes the connection


@dataclass(eq=False)
class Session:
    """A client's recogniser, and the audio and messages that wait to be computed and sent.

    Attributes:
        recognizer: of the chunk length that the client chose.
        rules: of the client, by which utterances end.
        audio: 16-bit samples that are received but not computed.
        began: time at which the session began.
        received, taken: bytes of audio so far, of which so many were taken for computation.
        arrivals: (bytes received, time) of every message of which audio waits.
        room: is set when some audio was taken for computation.
        ended: the client has sent all its audio.
        finished: all audio was taken for computation.
        any_words: whether a final result so far has words.
        messages: not sent yet.
    """

    recognizer: BaseRecognizer[Any]
    rules: EndpointRules
    chunk_ms: int
    audio: bytearray = field(default_factory=bytearray)
    began: float = field(default_factory=time.monotonic)
    received: int = 0
    taken: int = 0
    arrivals: deque[tuple[int, float]] = field(default_factory=deque)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    finished: bool = False
    any_words: bool = False
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)

    @cached_property
    def stream(self) -> Stream[Any]:
        """Made when there is audio for it."""
        return self.recognizer.create_stream(self.rules)

    def receive(self, samples: bytes) -> None:
        """Append 16-bit audio."""
        self.audio += samples
        self.received += len(samples)
        self.arrivals.append((self.received, time.monotonic()))

    @property
    def waits(self) -> bool:
        """Whether there is something to compute."""
        return not self.finished and self.messages.qsize() < WAITING_RESULTS and bool(self.audio or self.ended)

    @property
    def live(self) -> bool:
        """Whether the session keeps up with real time, and is not ahead of it."""
        if len(self.audio) > LATE_S * BYTES_PER_S:
            return False
        return self.taken / BYTES_PER_S < time.monotonic() - self.began + AHEAD_S

    def take_chunk(self) -> Share:
        """Take a chunk of audio, or what there is, for computation."""
        size = min(self.chunk_ms * BYTES_PER_S // 1000, len(self.audio))
        samples = from_pcm(bytes(self.audio[:size]))
        del self.audio[:size]
        self.taken += size
        arrived = time.monotonic()
        while self.arrivals:
            end, arrived = self.arrivals[0]
            if end > self.taken:
                break
            self.arrivals.popleft()
        self.room.set()
        self.finished = self.ended and not self.audio
        return Share(self, samples, self.finished, arrived)


@dataclass
class Share:
    """A session's part in a round: (n,) samples, whether they are its last, and when the last of them arrived."""

    session: Session
    samples: np.ndarray
    last: bool
    arrived: float


class Rounds:
    """The sessions of a server, and the rounds that compute them."""

    def __init__(self, metrics: Metrics) -> None:
        self.sessions: dict[Session, None] = {}  # longest not computed first
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "recognition")
        self._round_began: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether a round takes longer than :data:`STUCK_S`."""
        return self._round_began is not None and time.monotonic() - self._round_began > STUCK_S

    def notify(self) -> None:
        """Start a round if none is running: a session has new audio, has ended, or has sent results."""
        self._changed.set()

    async def run(self) -> None:
        """Compute rounds until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._changed.wait()
            self._changed.clear()
            while shares := self._next_shares():
                self._round_began = time.monotonic()
                outcomes = await loop.run_in_executor(self._worker, compute, shares)
                self._round_began, now = None, time.monotonic()
                for share, messages in zip(shares, outcomes, strict=True):
                    self._metrics.audio.inc(len(share.samples) / SAMPLE_RATE)
                    for message in messages:
                        share.session.messages.put_nowait(message)
                        if isinstance(message, dict):
                            self._metrics.delay.observe(now - share.arrived)

    def shut_down(self) -> None:
        """Stop the worker thread, once no round is running."""
        self._worker.shutdown()

    def _next_shares(self) -> list[Share]:
        waiting = [session for session in self.sessions if session.waits]
        if any(session.live for session in self.sessions):
            waiting = [session for session in waiting if session.live] or waiting[:NOT_LIVE_AT_ONCE]
        for session in waiting:
            self.sessions[session] = self.sessions.pop(session)
        return [session.take_chunk() for session in waiting]


def decode(streams: Sequence[Stream[Any]]) -> list[list[Result]]:
    """Results of streams of one recogniser."""
    return streams[0].recognizer.decode(streams)


def compute(shares: Sequence[Share]) -> list[list[Message]]:
    """Messages for the client of each share. Runs in the worker thread.

    Sessions with the same chunk length are one batch; if it fails, all of its sessions are refused.
    """
    outcomes: dict[Session, list[Message]] = {share.session: [] for share in shares}
    batches: dict[int, list[Share]] = {}
    for share in shares:
        batches.setdefault(share.session.chunk_ms, []).append(share)
    for batch in batches.values():
        try:
            for share in batch:
                share.session.stream.accept(share.samples)
                if share.last:
                    share.session.stream.finish()
            streams = [share.session.stream for share in batch]
            for share, results in zip(batch, decode(streams), strict=True):
                session = share.session
                shown = [dict(result) for result in results]
                session.any_words |= any(result["event"] == "final" and result["tokens"] for result in results)
                if share.last and session.any_words and not shown[-1]["tokens"]:
                    shown.pop()  # behind words an empty result says nothing
                outcomes[session] += shown
                if share.last:
                    outcomes[session] += [{"event": "end", "audio_s": results[-1]["audio_s"]}, None]
        except Exception:
            log.exception("a round failed; its %d sessions are closed", len(batch))
            for share in batch:
                outcomes[share.session] = [Refusal("internal", "the recogniser failed", WSCloseCode.INTERNAL_ERROR)]
    return [outcomes[share.session] for share in shares]
