"""Exports of the tests' networks, each made once."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tiny_networks as tiny
import torch

from distill.export.model import metadata, save, shapes_for, sherpa_models, slot_model, step_model
from distill.export.sherpa import sherpa_tokens
from distill.models.student import Student

TOKENS = ["<blank>", *"abcdefghij"]
FRONT_ENDS = ("cnn", "fbank")
_folder = TemporaryDirectory()


def student(front_end: str) -> Student:
    """One whose output varies with what it hears, and is blank often enough for there to be ends of speech."""
    network = tiny.student(front_end)
    speech = tiny.speech(60001)[None]
    with torch.no_grad():
        # (T, k V): each of a frame's k logit frames has an output of its own
        logits = network.output(network(speech, torch.tensor([speech.shape[1]]), 12, 50).hidden[-1])[0]
        network.output.weight /= logits.std(0)[:, None]
        network.output.bias.sub_(logits.mean(0)).div_(logits.std(0))
        network.output.bias[:: network.vocab_size] += 1
    return network


def config(chunk_ms: int = 480, hop: float = 1.0, left_ms: float | None = 2000) -> dict:
    """Of a training."""
    return {"token_type": "char", "chunk_conf": {"chunk_ms": chunk_ms, "hop": hop, "left_ms": left_ms}}


def export(front_end: str, chunk_ms: int = 480, hop: float = 1.0) -> Path:
    """A directory with a student_*.onnx, a streams_*.onnx, a sherpa_*.onnx and tokens.txt, in float32."""
    return _export(front_end, chunk_ms, hop)


@functools.cache
def _export(front_end: str, chunk_ms: int, hop: float) -> Path:
    folder = Path(_folder.name, f"{front_end}_{chunk_ms}_{hop}")
    folder.mkdir()
    network = student(front_end)
    shapes = shapes_for(network, config(chunk_ms, hop), chunk_ms, "tiny")
    step = step_model(network, shapes)
    wrapped, about = sherpa_models(network, shapes, {"float32": step})["float32"]
    save(step, folder / f"student_{chunk_ms}ms.onnx", metadata(network, shapes, TOKENS, "char", chunk_ms))
    properties = metadata(network, shapes, TOKENS, "char", chunk_ms)
    save(slot_model(network, shapes), folder / f"streams_{chunk_ms}ms.onnx", properties)
    save(wrapped, folder / f"sherpa_{chunk_ms}ms.onnx", about)
    (folder / "tokens.txt").write_text(sherpa_tokens(TOKENS, "char"))
    return folder


def audio(samples: int, seed: int = 0) -> np.ndarray:
    """(samples,) of noise whose level changes."""
    return tiny.speech(samples, seed).numpy()


def audio_16_bit(samples: int, seed: int = 0) -> np.ndarray:
    """The same as 16-bit audio would be."""
    return (np.round(audio(samples, seed) * 32768).clip(-32767, 32767) / 32768).astype(np.float32)
