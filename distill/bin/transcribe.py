"""Recognise audio files as if they were arriving now: partial results as chunks are complete, then the final text.

    python -m distill.bin.transcribe --model exp/student_stream --chunk_ms 480 a.wav b.wav

prints a line per file on stdout (path, text) and partial results on stderr. With --json stdout gets an object per
event instead: {"file", "event": "partial"|"final", "text", "audio_s", "emitted_after_s", "tokens": [{"token",
"start_s", "end_s", "confidence"}]}; audio_s is the audio that had arrived, emitted_after_s the computation since.
The audio arrives in pieces of 10 ms. A chunk is complete 5 ms (CNN front end) or 45 ms (fbank) after its end. A
teacher, and a student that does not stream, decode all audio so far again at every chunk.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from distill.errors import cli

PIECE = 160  # samples


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a training, such as exp/student_stream")
    parser.add_argument("--chunk_ms", type=int, default=480, help="length of a chunk (default: 480)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--json", action="store_true", help="print an object per event")
    parser.add_argument("wavs", nargs="+", metavar="WAV", help="audio at 16 kHz with one channel")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error("--threads must be at least 1")

    import torch

    from distill.audio import read_audio
    from distill.streaming.recognizer import Result, StreamingRecognizer

    torch.set_num_threads(args.threads)
    recognizer = StreamingRecognizer.from_pretrained(args.model, chunk_ms=args.chunk_ms)
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
        audio = read_audio(file)
        recognizer.reset()
        for start in range(0, len(audio), PIECE):
            result = recognizer.accept_waveform(audio[start : start + PIECE])
            if result is not None:
                show(file, result)
        show(file, recognizer.finish())


if __name__ == "__main__":
    main()
