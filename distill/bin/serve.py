"""Serve a streaming student: captions in a browser, and a websocket for programs (docs/server.md).

    python -m distill.bin.serve --model exp/student_stream

prints the address of the page, which takes the microphone or a file. Ctrl-C stops it. Only this machine can connect
unless --host says otherwise, for instance --host 0.0.0.0. Browsers give a microphone only to localhost and to https
pages: for other machines give --certificate, or put the server behind a web server that has one, and name its pages
with --origin.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli, require


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a streaming student's training, or packed model")
    parser.add_argument("--chunk_ms", type=int, default=480, help="default chunk length of a client (default: 480)")
    parser.add_argument("--endpoint_ms", type=int, default=800, help="silence that ends a result (default: 800)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: 8765)")
    parser.add_argument("--origin", nargs="+", default=[], metavar="URL", help="pages from elsewhere that may connect")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="certificate and key, for https")
    parser.add_argument("--sessions", type=int, default=64, help="clients at a time (default: 64)")
    parser.add_argument("--session_s", type=float, default=3600, help="longest session (default: 3600)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the computation (default: 1)")
    args = parser.parse_args(argv)
    if args.threads < 1 or args.sessions < 1 or args.session_s <= 0:
        parser.error("--threads, --sessions and --session_s must be positive")
    require("aiohttp", extra="serve")

    from distill.serve.server import Limits, Server, serve

    limits = Limits(sessions=args.sessions, session_s=args.session_s)
    server = Server(args.model, args.chunk_ms, args.endpoint_ms, limits, args.origin)
    serve(server, args.host, args.port, args.certificate, args.threads)


if __name__ == "__main__":
    main()
