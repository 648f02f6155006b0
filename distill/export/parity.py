"""Whether exported models say what the student says in torch: log-posteriors, texts, word errors, and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from distill.bin.score import count_errors
from distill.export.recognizer import LogProbStream, OnnxModel, OnnxRecognizer
from distill.export.sherpa import BLOCK, FULL_SCALE
from distill.export.step import Shapes
from distill.models.student import Student
from distill.streaming import StreamingRecognizer

LOG_PROB_BOUND = 1e-3
INT8_LOSS = 1.02  # largest factor of the word error rate


@dataclass
class Utterance:
    """Audio (n,) at 16 kHz in [-1, 1] and what is said."""

    audio: np.ndarray
    text: str


class Comparison:
    """How one runtime compares with torch, over utterances.

    Args:
        log_probs: of an utterance's audio, (t, V).
        text: of an utterance's audio.
    """

    def __init__(self, log_probs: Callable[[np.ndarray], np.ndarray], text: Callable[[np.ndarray], str]) -> None:
        self._log_probs, self._text = log_probs, text
        self.difference, self.identical, self.utterances, self.errors, self.words = 0.0, 0, 0, 0, 0

    def add(self, utterance: Utterance, log_probs: np.ndarray, text: str) -> None:
        """Compare an utterance with what torch gives."""
        mine, said = self._log_probs(utterance.audio), self._text(utterance.audio)
        if mine.shape != log_probs.shape:
            self.difference = float("inf")
        elif len(mine):
            self.difference = max(self.difference, float(np.abs(mine - log_probs).max()))
        self.identical += said == text
        self.utterances += 1
        counts = count_errors(utterance.text.split(), said.split())
        self.errors += counts["sub"] + counts["del"] + counts["ins"]
        self.words += counts["words"]

    def report(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "max_log_prob_difference": self.difference,
            "identical_texts": self.identical,
            "utterances": self.utterances,
            "word_errors": self.errors,
            "words": self.words,
        }


def torch_log_probs(network: Student, shapes: Shapes, audio: np.ndarray) -> np.ndarray:
    """Log-posteriors (t, V) of a stream of the student in torch."""
    state = network.initial_state(1, shapes.chunk, shapes.left, shapes.lookahead)
    return network.stream(torch.from_numpy(audio)[None], state, final=True)[0].log_softmax(-1).numpy()


def whole_text(recognizer: StreamingRecognizer | OnnxRecognizer, audio: np.ndarray) -> str:
    """The text of one utterance."""
    recognizer.reset()
    recognizer.accept_waveform(audio)
    return recognizer.finish()["text"]


def onnx_comparison(path: Path) -> Comparison:
    """Compare a student_*.onnx, through the recogniser of onnxruntime and numpy."""
    model = OnnxModel(path)
    recognizer = OnnxRecognizer(model)

    def log_probs(audio: np.ndarray) -> np.ndarray:
        stream = LogProbStream(model)
        return np.concatenate((stream.accept(audio), stream.finish()))

    return Comparison(log_probs, lambda audio: whole_text(recognizer, audio))


def with_end(audio: np.ndarray) -> np.ndarray:
    """Audio and the full-scale samples that tell a sherpa_*.onnx of its end, with the block that sherpa-onnx keeps."""
    return np.concatenate((audio, np.ones(3 * BLOCK, np.float32)))


def sherpa_comparison(path: Path, tokens: Path) -> Comparison:
    """Compare a sherpa_*.onnx: texts through sherpa-onnx itself, log-posteriors as it would compute them."""
    import sherpa_onnx

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    recognizer = sherpa_onnx.OnlineRecognizer.from_t_one_ctc(tokens=str(tokens), model=str(path), num_threads=1)

    def log_probs(audio: np.ndarray) -> np.ndarray:
        samples = np.trunc(with_end(audio).clip(-1, 1) * np.float32(FULL_SCALE)).astype(np.int32)
        state = np.zeros(session.get_inputs()[1].shape, np.float16)
        pieces = []
        for start in range(0, len(samples) - 2 * BLOCK + 1, BLOCK):
            block = samples[start : start + BLOCK].reshape(1, BLOCK, 1)
            piece, state = session.run(None, {"signal": block, "state": state})
            pieces.append(piece[0])
        return np.concatenate(pieces)

    def text(audio: np.ndarray) -> str:
        stream = recognizer.create_stream()
        stream.accept_waveform(8000, with_end(audio))
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        return " ".join(recognizer.get_result(stream).split())

    return Comparison(log_probs, text)


def step_times(paths: Sequence[Path], utterances: Sequence[Utterance], rounds: int = 60) -> list[float]:
    """Median milliseconds of a step on one thread for each model, by turns: a machine's other work comes and goes."""
    models = [OnnxModel(path) for path in paths]
    audio = np.concatenate([utterance.audio for utterance in utterances[:20]])
    audio = np.resize(audio, (rounds, models[0].samples)).astype(np.float32)
    states = [model.first_state() for model in models]
    times = np.zeros((rounds, len(models)))
    for number, samples in enumerate(audio):
        for place, model in enumerate(models):
            started = time.perf_counter()
            _, states[place] = model.step(samples, model.chunk + model.lookahead, model.left, states[place])
            times[number, place] = 1000 * (time.perf_counter() - started)
    return np.median(times[rounds // 6 :], 0).tolist()
