"""Recognition of audio files, or of audio on stdin, as if it arrived in real time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.checkpoints.archive import model_directory
from distill.decode.display import ResultPrinter
from distill.decode.settings import DecodeConf
from distill.decode.stream_results import NO_RULES, EndpointRules
from distill.errors import UserError
from distill.export import exported

if TYPE_CHECKING:
    import numpy as np

    from distill.decode.streams import BaseRecognizer

PIECE = 160  # samples: 10 ms


def transcribe(
    model: Path,
    files: Sequence[str],
    chunk_ms: int = 480,
    rules: EndpointRules = NO_RULES,
    decoding: DecodeConf | None = None,
    int8: bool = False,
    threads: int = 1,
    as_json: bool = False,
) -> None:
    """Print partial and final results of audio that goes in piece by piece.

    Args:
        model: a training's directory, an export's, or a packed model.
        files: paths of audio files at 16 kHz with one channel; ``-`` for raw 16-bit samples on stdin.
        chunk_ms: length of a chunk.
        rules: what ends a result before the end of the audio.
        decoding: decoder and its settings; greedy by default.
        int8: of an export, take the model with int8 weights.
        threads: CPU threads.
        as_json: see :class:`ResultPrinter`.

    Raises:
        UserError: a model or audio file cannot be used, or the options do not fit the model.
    """
    recognizer = open_recognizer(model, chunk_ms, rules, decoding or DecodeConf(), int8, threads)
    printer = ResultPrinter(as_json)
    for file in files:
        stream, any_words = recognizer.create_stream(), False
        for piece in pieces(file, at_once=not recognizer.streaming):
            stream.accept(piece)
            for result in stream.decode():
                printer.show(result, file=file)
                any_words |= result["event"] == "final" and bool(result["tokens"])
        stream.finish()
        (last,) = stream.decode()
        if last["tokens"] or not any_words:  # behind words an empty result says nothing
            printer.show(last, file=file)


def open_recognizer(
    model: Path, chunk_ms: int, rules: EndpointRules, decoding: DecodeConf, int8: bool, threads: int
) -> BaseRecognizer[Any]:
    """The recogniser of a model: in onnxruntime for an export, in torch otherwise."""
    directory = model_directory(model, "onnx" if int8 else None)
    if exported(directory):
        from distill.export.recognizer import Recognizer as OnnxRecognizer

        if decoding.decoder != "greedy":
            raise UserError(
                f"--decoder {decoding.decoder}: exported models decode greedily; give the training's directory"
            )
        return OnnxRecognizer.from_pretrained(directory, chunk_ms, rules, int8, threads)
    import torch

    from distill.streaming import Recognizer

    if int8:
        raise UserError(f"--int8: {model} is not an export; stage 15 makes one")
    torch.set_num_threads(threads)
    recognizer = Recognizer.from_pretrained(model, chunk_ms, rules, decoding=decoding)
    low, high = recognizer.trained_ms or (chunk_ms, chunk_ms)
    if not low <= chunk_ms <= high:
        print(
            f"warning: --chunk_ms {chunk_ms}: the model was trained with chunks of {low:g} to {high:g} ms",
            file=sys.stderr,
        )
    return recognizer


def pieces(file: str, at_once: bool = False) -> Iterator[np.ndarray]:
    """Samples (n,) of a file, or of stdin (``-``) as they arrive, in pieces of 10 ms.

    Args:
        at_once: they are kept and computed at once, so that a long file is refused.
    """
    from distill.audio import check_at_once, from_pcm, raw_pieces, read_audio

    if file == "-":
        yield from map(from_pcm, raw_pieces(sys.stdin.buffer, PIECE))
        return
    audio = read_audio(file)
    if at_once:
        check_at_once(len(audio), file)
    for start in range(0, len(audio), PIECE):
        yield audio[start : start + PIECE]
