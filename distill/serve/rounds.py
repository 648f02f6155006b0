"""Computation of a server's sessions, all of them together.

A worker thread computes in rounds: a round takes at most a chunk of audio from every session that has some, runs them
as one batch (:func:`distill.streaming.accept_together`), and hands the results back. What arrives meanwhile waits for
the next round, so batches grow with the load, and a single client does not wait for others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import WSCloseCode

from distill.audio import SAMPLE_RATE, from_pcm
from distill.streaming.recognizer import StreamingRecognizer, accept_together

BYTES_PER_S = 2 * SAMPLE_RATE
WAITING_RESULTS = 50  # a session with this many unsent results is not computed until some are sent

log = logging.getLogger(__name__)


class Refusal(Exception):
    """Ends a session with an error message to its client.

    Args:
        code: identifies the reason for programs (docs/server.md).
        message: one line.
        close_code: of the websocket.
    """

    def __init__(self, code: str, message: str, close_code: int = WSCloseCode.POLICY_VIOLATION) -> None:
        super().__init__(message)
        self.code = code
        self.close_code = close_code


Message = dict[str, Any] | Refusal | None  # to the client; None closes the connection


@dataclass(eq=False)
class Session:
    """A client's recogniser, and the audio and messages that wait to be computed and sent.

    Attributes:
        audio: 16-bit samples that are received but not computed.
        room: is set when some audio was taken for computation.
        ended: the client has sent all its audio.
        finished: all audio was taken for computation.
        finals: number of final results so far.
        messages: not sent yet.
    """

    recognizer: StreamingRecognizer
    chunk_ms: int
    audio: bytearray = field(default_factory=bytearray)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    finished: bool = False
    finals: int = 0
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)


@dataclass
class Share:
    """A session's part in a round: (n,) samples, and whether they are its last."""

    session: Session
    samples: np.ndarray
    last: bool


class Rounds:
    """The sessions of a server, and the rounds that compute them."""

    def __init__(self) -> None:
        self.sessions: set[Session] = set()
        self._changed = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "recognition")

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
                outcomes = await loop.run_in_executor(self._worker, compute, shares)
                for share, messages in zip(shares, outcomes, strict=True):
                    for message in messages:
                        share.session.messages.put_nowait(message)

    def shut_down(self) -> None:
        """Stop the worker thread, once no round is running."""
        self._worker.shutdown()

    def _next_shares(self) -> list[Share]:
        shares = []
        for session in self.sessions:
            if session.finished or session.messages.qsize() >= WAITING_RESULTS or not (session.audio or session.ended):
                continue
            size = session.chunk_ms * BYTES_PER_S // 1000
            samples = from_pcm(bytes(session.audio[:size]))
            del session.audio[:size]
            session.room.set()
            session.finished = session.ended and not session.audio
            shares.append(Share(session, samples, session.finished))
        return shares


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
            results = accept_together([share.session.recognizer for share in batch], [share.samples for share in batch])
            for share, new in zip(batch, results, strict=True):
                session = share.session
                session.finals += sum(result["event"] == "final" for result in new)
                outcomes[session] += [dict(result) for result in new]
                if share.last:
                    final = session.recognizer.finish()
                    if final["tokens"] or not session.finals:  # after an endpoint an empty result says nothing
                        outcomes[session].append(dict(final))
                    outcomes[session] += [{"event": "end", "audio_s": final["audio_s"]}, None]
        except Exception:
            log.exception("a round failed; its %d sessions are closed", len(batch))
            for share in batch:
                outcomes[share.session] = [Refusal("internal", "the recogniser failed", WSCloseCode.INTERNAL_ERROR)]
    return [outcomes[share.session] for share in shares]
