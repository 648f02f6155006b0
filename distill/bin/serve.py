"""Serve a streaming student: captions in a browser, and a websocket for programs (docs/server.md).

    python -m distill.bin.serve --model exp/student_stream

prints the address of the page, which takes the microphone or a file. Ctrl-C stops it. Only this machine can connect
unless --host says otherwise, for instance --host 0.0.0.0. Browsers give a microphone only to localhost and to https
pages: for other machines give --certificate, or put the server behind a web server that has one, and name its pages
with --origin. Chunk length and endpoint rules are those of clients that do not choose them.
"""

from __future__ import annotations

import math
from pathlib import Path

from distill.bin.arguments import new_parser
from distill.bin.decoding_arguments import add_decoding, decode_conf
from distill.bin.endpoint_arguments import add_endpoints, endpoint_options
from distill.decode.settings import DECODERS
from distill.decode.stream_results import SHERPA_RULES, EndpointRules
from distill.errors import UserError, cli, require


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a student's training, an export, or packed model")
    parser.add_argument("--chunk_ms", type=int, default=480, help="default chunk length of a client (default: 480)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: 8765)")
    parser.add_argument("--origin", nargs="+", default=[], metavar="URL", help="pages from elsewhere that may connect")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="certificate and key, for https")
    parser.add_argument("--sessions", type=int, default=64, help="clients at a time (default: 64)")
    parser.add_argument("--sessions_per_address", type=int, default=12, help="clients of one address (default: 12)")
    parser.add_argument("--session_s", type=float, default=3600, help="longest session (default: 3600)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the computation (default: 1)")
    parser.add_argument("--int8", action="store_true", help="of an export, take the model with int8 weights")
    parser.add_argument("--decoder", choices=DECODERS, default="greedy", help="(default: greedy)")
    add_decoding(parser)
    add_endpoints(parser, SHERPA_RULES)
    args = parser.parse_args(argv)
    if min(args.threads, args.sessions, args.sessions_per_address) < 1 or not 0 < args.session_s < math.inf:
        raise UserError("--threads, --sessions, --sessions_per_address, --session_s: give positive numbers")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port {args.port}: a port is a number from 0 to 65535")
    require("aiohttp", "prometheus_client", extra="serve")

    from distill.serve.connections import Limits
    from distill.serve.server import Server, serve

    limits = Limits(args.sessions, args.sessions_per_address, session_s=args.session_s)
    decoding = decode_conf(args, args.decoder)
    rules = EndpointRules(**endpoint_options(args))
    options = args.chunk_ms, rules, limits, args.origin, decoding, args.int8, args.threads
    server = Server(args.model, *options)
    serve(server, args.host, args.port, args.certificate, args.threads)


if __name__ == "__main__":
    main()
