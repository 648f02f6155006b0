"""A client of the server: audio goes in as it arrives, messages come out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import aiohttp
import numpy as np

from distill.errors import UserError

SAMPLE_RATE = 16000
PIECE_MS = 40


def pcm(samples: np.ndarray) -> bytes:
    """(n,) samples in [-1, 1] as 16-bit little-endian ones."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def pieces(audio: bytes) -> list[bytes]:
    """16-bit audio in pieces of 40 ms."""
    size = 2 * SAMPLE_RATE * PIECE_MS // 1000
    return [audio[start : start + size] for start in range(0, len(audio), size)]


async def in_real_time(audio: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Each piece when its last sample would have been spoken."""
    started, samples = time.monotonic(), 0
    for piece in audio:
        samples += len(piece) // 2
        await asyncio.sleep(started + samples / SAMPLE_RATE - time.monotonic())
        yield piece


async def recognize(
    url: str, audio: AsyncIterable[bytes], chunk_ms: int | None = None, endpoint_ms: int | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Send 16-bit audio to a server's websocket, yield its messages: hello, ready, partial and final results, end.

    Args:
        url: such as ``ws://127.0.0.1:8765/stream``.
        audio: pieces of any length, each sent as soon as it is there.
        chunk_ms: None: the server's default.
        endpoint_ms: likewise.

    Raises:
        UserError: no server is there, it refused the session, or the connection was lost before the end.
    """
    config: dict[str, Any] = {"event": "config"}
    config |= {} if chunk_ms is None else {"chunk_ms": chunk_ms}
    config |= {} if endpoint_ms is None else {"endpoint_ms": endpoint_ms}
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=0) as socket:

            async def send() -> None:
                try:
                    await socket.send_json(config)
                    async for piece in audio:
                        await socket.send_bytes(piece)
                    await socket.send_json({"event": "end"})
                except ConnectionError:
                    pass  # why is among the messages
                except Exception as error:  # of the audio's source
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
