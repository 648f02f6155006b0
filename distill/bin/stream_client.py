"""Recognise audio on a server that distill.bin.serve runs: partial results on stderr, a final line each on stdout.

    python -m distill.bin.stream_client a.wav
    arecord -q -t raw -f S16_LE -r 16000 | python -m distill.bin.stream_client -

Files are sent as fast as they would be spoken, or as the server takes them (--fast). - stands for raw 16-bit
little-endian samples at 16 kHz with one channel on stdin, sent as they come. With --json stdout gets every result as
the server sent it (docs/server.md).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator

from distill.errors import UserError, cli


async def from_stdin() -> AsyncIterator[bytes]:
    """Raw audio from stdin as it comes; a thread reads, so that results are shown meanwhile."""
    from distill.serve.client import pieces

    size = len(pieces(bytes(1 << 16))[0])
    while data := await asyncio.to_thread(sys.stdin.buffer.read, size):
        if len(data) % 2:
            raise UserError("-: the last sample on stdin has one byte; expected raw 16-bit samples")
        yield data


async def at_once(audio: list[bytes]) -> AsyncIterator[bytes]:
    for piece in audio:
        yield piece


async def show(args: argparse.Namespace) -> None:
    from distill.audio import read_audio
    from distill.serve.client import in_real_time, pcm, pieces, recognize

    if args.wav == "-":
        audio = from_stdin()
    else:
        pace = at_once if args.fast else in_real_time
        audio = pace(pieces(pcm(read_audio(args.wav))))
    terminal = sys.stderr.isatty()
    shown = ""
    async for message in recognize(args.url, audio, args.chunk_ms, args.endpoint_ms):
        if message["event"] not in ("partial", "final"):
            continue
        if args.json:
            print(json.dumps(message, ensure_ascii=False), flush=True)
        elif message["event"] == "final":
            if terminal and shown:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            print(message["text"], flush=True)
            shown = ""
        elif message["text"] != shown:
            shown = message["text"]
            line = f"[{message['audio_s']:7.2f} s] {shown}"
            print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="ws://127.0.0.1:8765/stream", help="(default: ws://127.0.0.1:8765/stream)")
    parser.add_argument("--chunk_ms", type=int, help="length of a chunk (default: the server's)")
    parser.add_argument("--endpoint_ms", type=int, help="silence that ends a result (default: the server's)")
    parser.add_argument("--fast", action="store_true", help="send a file as fast as the server takes it")
    parser.add_argument("--json", action="store_true", help="print an object per result")
    parser.add_argument("wav", metavar="WAV", help="audio at 16 kHz with one channel; - for stdin")
    args = parser.parse_args(argv)
    asyncio.run(show(args))


if __name__ == "__main__":
    main()
