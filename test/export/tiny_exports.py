"""Exports of the tests' networks, each made once."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tiny_networks as tiny

from distill.export.model import metadata, save, shapes_for, step_model
from distill.export.sherpa import sherpa_metadata, sherpa_model, sherpa_tokens

TOKENS = ["<blank>", *"abcdefghij"]
FRONT_ENDS = ("cnn", "fbank")
_folder = TemporaryDirectory()


def config(chunk_ms: int = 480, hop: float = 1.0, left_ms: float | None = 2000) -> dict:
    """Of a training."""
    return {"token_type": "char", "chunk_conf": {"chunk_ms": chunk_ms, "hop": hop, "left_ms": left_ms}}


@functools.cache
def export(front_end: str, chunk_ms: int = 480, hop: float = 1.0, left_ms: float = 2000) -> Path:
    """A directory with a student_*.onnx, a sherpa_*.onnx and tokens.txt, in float32."""
    folder = Path(_folder.name, f"{front_end}_{chunk_ms}_{hop}_{left_ms}")
    folder.mkdir()
    network = tiny.student(front_end)
    shapes = shapes_for(network, config(chunk_ms, hop, left_ms), chunk_ms, "tiny")
    step = step_model(network, shapes)
    wrapped = sherpa_model(step, shapes)
    save(step, folder / f"student_{chunk_ms}ms.onnx", metadata(network, shapes, TOKENS, "char", chunk_ms))
    save(wrapped, folder / f"sherpa_{chunk_ms}ms.onnx", sherpa_metadata(wrapped))
    (folder / "tokens.txt").write_text(sherpa_tokens(TOKENS, "char"))
    return folder


def audio(samples: int, seed: int = 0) -> np.ndarray:
    """(samples,) of noise whose level changes."""
    return tiny.speech(samples, seed).numpy()


def audio_16_bit(samples: int, seed: int = 0) -> np.ndarray:
    """The same as 16-bit audio would be, without the samples of +-1, which sherpa-onnx makes 0."""
    steps = np.round(audio(samples, seed) * 32768).clip(-32768, 32767)
    steps[np.abs(steps) == 1] = 0
    return (steps / 32768).astype(np.float32)
