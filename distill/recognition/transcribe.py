"""Recognise audio files as if they were arriving now: partial results as chunks are complete, then the final text.

    python -m distill.bin.transcribe --model exp/student_stream --chunk_ms 480 a.wav b.wav

prints a line per file on stdout (path, text) and partial results on stderr. With --json stdout gets an object per
event instead: {"file", "event": "partial"|"final", "text", "audio_s", "emitted_after_s", "tokens": [{"token",
"start_s", "end_s", "confidence"}]}; audio_s is the audio that had arrived, emitted_after_s the computation since.
The audio arrives in pieces of 10 ms. A chunk, look-ahead included, is complete 5 ms (CNN front end) or 45 ms
(fbank) after its end. A teacher, and a student that does not stream, decode all audio so far again at every chunk.

With - for a file, raw 16-bit little-endian samples at 16 kHz with one channel come from stdin, for as long as they do:

    arecord -q -t raw -f S16_LE -r 16000 | python -m distill.bin.transcribe --model DIR --endpoint_ms 800 -

--endpoint_ms ends a result after so much silence, and begins the next: a final line for each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distill.checkpoints.archive import model_directory
from distill.decode.settings import DECODERS, add_arguments, conf_of
from distill.errors import UserError, cli
from distill.export import exported

if TYPE_CHECKING:
    import numpy as np

    from distill.export.recognizer import OnnxRecognizer
    from distill.streaming.recognizer import Result, StreamingRecognizer

PIECE = 160  # samples


def pieces(file: str) -> Iterator[np.ndarray]:
    """Audio of a file, or of stdin as it comes, in pieces of 10 ms."""
    import numpy as np

    from distill.audio import read_audio

    if file != "-":
        audio = read_audio(file)
        for start in range(0, len(audio), PIECE):
            yield audio[start : start + PIECE]
        return
    while data := sys.stdin.buffer.read(2 * PIECE):
        if len(data) % 2:
            raise UserError("-: the last sample on stdin has one byte; expected raw 16-bit samples")
        yield np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="training, such as exp/student_stream, exp/export, or packed model"
    )
    parser.add_argument("--chunk_ms", type=int, default=480, help="length of a chunk (default: 480)")
    parser.add_argument(
        "--endpoint_ms", type=int, help="silence that ends a result (default: only the end of the audio)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--int8", action="store_true", help="of an export, take the model with int8 weights")
    parser.add_argument("--json", action="store_true", help="print an object per event")
    parser.add_argument("--decoder", choices=DECODERS, default="greedy", help="(default: greedy)")
    add_arguments(parser)
    parser.add_argument("wavs", nargs="+", metavar="WAV", help="audio at 16 kHz with one channel; - for stdin")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error("--threads must be at least 1")

    decoding = conf_of(args, args.decoder)
    recognizer: StreamingRecognizer | OnnxRecognizer
    directory = model_directory(args.model, "onnx" if args.int8 else None)
    if exported(directory):
        from distill.export.recognizer import OnnxRecognizer

        if args.decoder != "greedy":
            raise UserError(f"--decoder {args.decoder}: exported models decode greedily; give the training's directory")
        recognizer = OnnxRecognizer.from_pretrained(directory, args.chunk_ms, args.endpoint_ms, args.int8, args.threads)
    else:
        import torch

        from distill.streaming.recognizer import StreamingRecognizer

        if args.int8:
            raise UserError(f"--int8: {args.model} is no export; stage 15 makes one")
        torch.set_num_threads(args.threads)
        recognizer = StreamingRecognizer.from_pretrained(args.model, args.chunk_ms, args.endpoint_ms, decoding=decoding)
    terminal = sys.stderr.isatty()
    shown = ""

    def show(file: str, result: Result) -> None:
        nonlocal shown
        if args.json:
            print(json.dumps({"file": file, **result}, ensure_ascii=False), flush=True)
        elif result["event"] == "final":
            if terminal and shown:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            print(file, result["text"], flush=True)
            shown = ""
        elif result["text"] != shown:
            shown = result["text"]
            line = f"[{result['audio_s']:7.2f} s] {shown}"
            print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    for file in args.wavs:
        recognizer.reset()
        ended = False
        for piece in pieces(file):
            for result in recognizer.accept_waveform(piece):
                show(file, result)
                ended |= result["event"] == "final"
        last = recognizer.finish()
        if last["tokens"] or not ended:  # nothing but silence after an endpoint is no result
            show(file, last)


if __name__ == "__main__":
    main()
