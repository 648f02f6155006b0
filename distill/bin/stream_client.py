"""Recognise audio on a server that distill.bin.serve runs: partial results on stderr, a final line each on stdout.

    python -m distill.bin.stream_client a.wav
    arecord -q -t raw -f S16_LE -r 16000 | python -m distill.bin.stream_client -

A file is sent in real time, or as fast as the server accepts it (--fast). - stands for raw 16-bit little-endian samples
at 16 kHz with one channel on stdin, sent as they come. With --json stdout has every result as the server sent it
(docs/server.md).
"""

from __future__ import annotations

import asyncio

from distill.bin.arguments import new_parser
from distill.bin.endpoint_arguments import add_endpoints, endpoint_options
from distill.errors import cli, require


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8765/stream", help="(default: ws://127.0.0.1:8765/stream)")
    parser.add_argument("--chunk_ms", type=int, help="length of a chunk (default: the server's)")
    parser.add_argument("--fast", action="store_true", help="send a file as fast as the server accepts it")
    parser.add_argument("--json", action="store_true", help="print an object per result")
    parser.add_argument("wav", metavar="WAV", help="audio at 16 kHz with one channel; - for stdin")
    add_endpoints(parser, None)
    args = parser.parse_args(argv)
    require("aiohttp", extra="serve")

    from distill.serve.client import print_results

    asyncio.run(print_results(args.url, args.wav, args.fast, args.json, args.chunk_ms, **endpoint_options(args)))


if __name__ == "__main__":
    main()
