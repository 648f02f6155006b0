"""A client of the server: audio goes in as it arrives, results come out."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import aiohttp
import numpy as np

from distill.audio import SAMPLE_RATE, raw_pieces, read_audio
from distill.decode.display import ResultPrinter
from distill.errors import UserError

PIECE = 40 * SAMPLE_RATE // 1000  # samples: 40 ms


def pcm(samples: np.ndarray) -> bytes:
    """16-bit little-endian audio of (n,) samples in [-1, 1]."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def pieces(audio: bytes) -> list[bytes]:
    """Cut 16-bit audio into pieces of 40 ms."""
    return [audio[start : start + 2 * PIECE] for start in range(0, len(audio), 2 * PIECE)]


async def in_real_time(audio: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield each piece at the time at which its last sample would be recorded."""
    started, samples = time.monotonic(), 0
    for piece in audio:
        samples += len(piece) // 2
        await asyncio.sleep(started + samples / SAMPLE_RATE - time.monotonic())
        yield piece


async def at_once(audio: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces without waiting."""
    for piece in audio:
        yield piece


async def from_stdin() -> AsyncIterator[bytes]:
    """Yield raw 16-bit audio from stdin as it arrives; a thread reads, so that results are shown meanwhile."""
    audio = raw_pieces(sys.stdin.buffer, PIECE)
    while (piece := await asyncio.to_thread(next, audio, None)) is not None:
        yield piece


async def print_results(
    url: str, file: str, fast: bool, as_json: bool, chunk_ms: int | None = None, **rules: int | None
) -> None:
    """Send a file's audio to a server and print the results.

    Args:
        url, chunk_ms, rules: see :func:`recognize`.
        file: path of audio at 16 kHz with one channel; ``-`` for raw 16-bit samples on stdin.
        fast: send a file as fast as the server accepts it, not in real time.
        as_json: see :class:`ResultPrinter`.
    """
    if file == "-":
        audio = from_stdin()
    else:
        audio = (at_once if fast else in_real_time)(pieces(pcm(read_audio(file))))
    printer = ResultPrinter(as_json)
    async for message in recognize(url, audio, chunk_ms, **rules):
        if message["event"] in ("partial", "final"):
            printer.show(message)


async def recognize(
    url: str, audio: AsyncIterable[bytes], chunk_ms: int | None = None, **rules: int | None
) -> AsyncIterator[dict[str, Any]]:
    """Send 16-bit audio to a server and yield its messages: hello, ready, partial and final results, end.

    Args:
        url: of the websocket, such as ``ws://127.0.0.1:8765/stream``.
        audio: pieces of any length, each sent as soon as it is there.
        chunk_ms: length of a chunk; None: the server's default.
        rules: ``silence``, ``empty`` and ``length`` of :class:`distill.decode.stream_results.EndpointRules`; the
            server's defaults stand for those that are left out.

    Raises:
        UserError: there is no server, it refused the session, or the connection was lost before the end.
    """
    config: dict[str, Any] = {"event": "config", **rules}
    config |= {} if chunk_ms is None else {"chunk_ms": chunk_ms}
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=0) as socket:

            async def send() -> None:
                try:
                    await socket.send_json(config)
                    async for piece in audio:
                        await socket.send_bytes(piece)
                    await socket.send_json({"event": "end"})
                except ConnectionError:
                    pass  # a message of the server says why
                except Exception as error:  # from the audio
                    failures.append(error)
                    await socket.close()

            failures: list[Exception] = []
            sending = asyncio.create_task(send())
            try:
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    event = message.json()
                    if event["event"] == "error":
                        raise UserError(f"{url}: {event['message']}")
                    yield event
                    if event["event"] == "end":
                        return
                if failures:
                    raise failures[0]
                raise UserError(f"{url}: the connection ended before the results (code {socket.close_code})")
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except (aiohttp.ClientError, OSError) as error:
        raise UserError(f"{url}: {error}; is the server running there?") from error
