"""Cut recordings anywhere and see whether a word is lost, with flush() and finish(), in every runtime.

    python test/export/cut_points.py EXPORT MODEL DATA [--points 10000] [--runtime onnx torch sherpa]

EXPORT is a directory of ``distill export`` with chunks of 480 ms, MODEL the student, and DATA has a wav.scp. At each of
the points the audio ends, in the middle of a word or not. A word is lost if a second of silence more brings it out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from distill.audio import SAMPLE_RATE, read_audio, read_wav_scp

SECOND = np.zeros(SAMPLE_RATE, np.float32)
Texts = tuple[str, str, str]  # of flush(), of finish(), and after a second of silence more


def of_recognizer(recognizer) -> Callable[[np.ndarray], Texts]:
    """For a recogniser in torch or in onnxruntime."""

    def texts(audio: np.ndarray) -> Texts:
        flushed, finished = (recognizer.create_stream() for _ in range(2))
        for stream in (flushed, finished):
            stream.accept(audio)
        flushed.flush()
        finished.finish()
        partial, final = (results[-1]["text"] for results in recognizer.decode([flushed, finished]))
        flushed.accept(SECOND)
        flushed.finish()
        return partial, final, flushed.decode()[-1]["text"]

    return texts


def of_sherpa(recognizer) -> Callable[[np.ndarray], Texts]:
    """For sherpa-onnx, whose end is silence: half a chunk's length and 0.9 s."""

    def texts(audio: np.ndarray) -> Texts:
        stream, found = recognizer.create_stream(), []
        for piece in (audio, 0.9 * SAMPLE_RATE, SECOND):
            samples = piece if isinstance(piece, np.ndarray) else np.zeros(int(piece), np.float32)
            stream.accept_waveform(SAMPLE_RATE, samples)
            while recognizer.is_ready(stream):
                recognizer.decode_stream(stream)
            found.append(" ".join(recognizer.get_result(stream).split()))
        return found[1], found[1], found[2]

    return texts


def runtime(name: str, export: Path, model: Path) -> Callable[[np.ndarray], Texts]:
    """The runtime of this name, for chunks of 480 ms."""
    if name == "sherpa":
        from distill.export.parity import sherpa_recognizer

        return of_sherpa(sherpa_recognizer(export / "sherpa_480ms.onnx", export / "tokens.txt", True)[0])
    if name == "torch":
        import torch

        from distill import streaming

        torch.set_num_threads(1)
        return of_recognizer(streaming.Recognizer.from_pretrained(model, 480))
    from distill.export.recognizer import Recognizer

    return of_recognizer(Recognizer.from_pretrained(export, 480))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("export", "model", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--points", type=int, default=10000)
    parser.add_argument("--runtime", nargs="+", default=["onnx", "torch", "sherpa"])
    args = parser.parse_args()
    recordings = [read_audio(path).astype(np.float32) for path in read_wav_scp(args.data / "wav.scp").values()]
    lost_at_all = 0
    for name in args.runtime:
        texts, random, lost = runtime(name, args.export, args.model), np.random.default_rng(0), 0
        for _ in (progress := tqdm(range(args.points), desc=name, mininterval=10)):
            audio = recordings[random.integers(len(recordings))]
            flushed, finished, later = texts(audio[: random.integers(1, len(audio) + 1)])
            lost += not flushed == finished == later
            progress.set_postfix(lost=lost, refresh=False)
        print(f"{name}: {lost} of {args.points} cut points lose a word")
        lost_at_all += lost
    sys.exit(lost_at_all > 0)


if __name__ == "__main__":
    main()
