"""Recognise audio files as if they were arriving now: partial results as chunks are complete, then the final text.

    python -m distill.bin.transcribe --model exp/student_stream --chunk_ms 480 a.wav b.wav

prints a line per file to stdout (path, text) and partial results to stderr. With --json stdout has an object per
result instead: {"file", "event": "partial"|"final", "text", "audio_s", "emitted_after_s", "tokens": [{"token",
"start_s", "end_s", "confidence"}]}; audio_s is the audio received so far, emitted_after_s the time to compute the
result. Audio goes in in pieces of 10 ms. A chunk, with its look-ahead, is complete 5 ms (CNN front end) or 45 ms
(fbank) after its end. A teacher, or a student that does not stream, computes all audio so far again at every chunk.

With - for a file, raw 16-bit little-endian samples at 16 kHz with one channel are read from stdin until it ends:

    arecord -q -t raw -f S16_LE -r 16000 | python -m distill.bin.transcribe --model DIR --silence 800 -

--silence, --empty and --length end a result and begin the next; each that has words gets a line.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.bin.decoding_arguments import add_decoding, decode_conf
from distill.bin.endpoint_arguments import add_endpoints, endpoint_options
from distill.decode.settings import DECODERS
from distill.decode.stream_results import NO_RULES, EndpointRules
from distill.errors import cli
from distill.recognition.transcribe import transcribe


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a training's directory, an export, or packed model")
    parser.add_argument("--chunk_ms", type=int, default=480, help="length of a chunk (default: 480)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--int8", action="store_true", help="of an export, take the model with int8 weights")
    parser.add_argument("--json", action="store_true", help="print an object per result")
    parser.add_argument("--decoder", choices=DECODERS, default="greedy", help="(default: greedy)")
    add_decoding(parser)
    add_endpoints(parser, NO_RULES)
    parser.add_argument("wavs", nargs="+", metavar="WAV", help="audio at 16 kHz with one channel; - for stdin")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    decoding = decode_conf(args, args.decoder)
    rules = EndpointRules(**endpoint_options(args))
    transcribe(args.model, args.wavs, args.chunk_ms, rules, decoding, args.int8, args.threads, args.json)


if __name__ == "__main__":
    main()
