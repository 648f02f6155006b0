"""Comparison of exported models with the student in torch: log-posteriors, texts, word errors, and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import RecordingSearch
from distill.export.recognizer import OnnxModel, OnnxRecognizer, open_session
from distill.export.sherpa import BLOCK, FULL_SCALE, GAIN
from distill.models.student import Student
from distill.scoring.counts import count_errors
from distill.streaming import StreamingRecognizer

LOG_PROB_BOUND = 1e-3
INT8_LOSS = 1.02  # highest ratio of int8's word errors to float32's


@dataclass
class Utterance:
    """Audio (n,) at 16 kHz in [-1, 1], rounded to 16 bits, and its transcript."""

    audio: np.ndarray
    text: str


class Comparison:
    """Compares one runtime with torch, utterance by utterance.

    Args:
        recognize: returns the runtime's (t, V) log-posteriors and text of an utterance's audio.

    Attributes:
        difference: largest absolute difference of a log-posterior.
        identical: number of utterances with the same text as in torch.
    """

    def __init__(self, recognize: Callable[[np.ndarray], tuple[np.ndarray, str]]) -> None:
        self._recognize = recognize
        self.difference = 0.0
        self.identical, self.utterances, self.errors, self.words = 0, 0, 0, 0

    def add(self, utterance: Utterance, log_probs: np.ndarray, text: str) -> None:
        """Compare an utterance with its (t, V) log-posteriors and text in torch."""
        exported_log_probs, exported_text = self._recognize(utterance.audio)
        self.difference = max(self.difference, largest_difference(exported_log_probs, log_probs))
        self.identical += exported_text == text
        self.utterances += 1
        (counts,) = count_errors([utterance.text.split()], [exported_text.split()])
        self.errors += counts.errors
        self.words += counts.words

    def report(self) -> dict[str, Any]:
        """The figures as parity.json has them."""
        return {
            "max_log_prob_difference": self.difference,
            "identical_texts": self.identical,
            "utterances": self.utterances,
            "word_errors": self.errors,
            "words": self.words,
        }


def largest_difference(log_probs: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference of two (t, V) log-posteriors; infinite if their numbers of frames differ."""
    if log_probs.shape != reference.shape:
        return float("inf")
    return float(np.abs(log_probs - reference).max(initial=0))


def torch_reference(
    network: Student, token_list: Sequence[str], config: Mapping[str, Any], chunk_ms: int
) -> Callable[[np.ndarray], tuple[np.ndarray, str]]:
    """A function that returns (t, V) log-posteriors and text of an utterance's audio, from a session in torch."""
    logits: list[Tensor] = []
    recognizer = StreamingRecognizer(
        network, token_list, config, chunk_ms, new_search=lambda: RecordingSearch(GreedySearch(), logits.append)
    )

    def recognize(audio: np.ndarray) -> tuple[np.ndarray, str]:
        logits.clear()
        recognizer.reset()
        recognizer.accept_waveform(audio)
        text = recognizer.finish()["text"]
        return torch.cat(logits).log_softmax(-1).numpy(), text

    return recognize


def onnx_comparison(path: Path) -> Comparison:
    """Compare a student_*.onnx, through the recogniser in onnxruntime."""
    log_probs: list[np.ndarray] = []
    recognizer = OnnxRecognizer(OnnxModel(path), new_search=lambda: RecordingSearch(GreedySearch(), log_probs.append))

    def recognize(audio: np.ndarray) -> tuple[np.ndarray, str]:
        log_probs.clear()
        recognizer.reset()
        recognizer.accept_waveform(audio)
        text = recognizer.finish()["text"]
        return np.concatenate(log_probs), text

    return Comparison(recognize)


def for_sherpa(audio: np.ndarray) -> np.ndarray:
    """Samples to give to sherpa-onnx for 16-bit ``audio`` (n,), followed by the mark of its end.

    The gain lets the samples arrive unchanged. The mark is full-scale samples, over more than one block because
    sherpa-onnx holds back the last one; see :mod:`distill.export.sherpa`.
    """
    return np.concatenate((audio * np.float32(GAIN), np.ones(3 * BLOCK, np.float32)))


def handed_over(samples: np.ndarray) -> np.ndarray:
    """The int32 samples that sherpa-onnx passes to the model for (n,) samples in [-1, 1]."""
    return np.trunc(samples.clip(-1, 1) * np.float32(FULL_SCALE)).astype(np.int32)


def sherpa_log_probs(session: onnxruntime.InferenceSession, audio: np.ndarray) -> np.ndarray:
    """Log-posteriors (t, V) of a sherpa_*.onnx, given the same blocks as by sherpa-onnx."""
    samples = handed_over(for_sherpa(audio))
    state = np.zeros(session.get_inputs()[1].shape, np.float16)
    pieces = []
    for start in range(0, len(samples) - 2 * BLOCK + 1, BLOCK):
        block = samples[start : start + BLOCK].reshape(1, BLOCK, 1)
        piece, state = session.run(None, {"signal": block, "state": state})
        pieces.append(piece[0])
    return np.concatenate(pieces)


def sherpa_text(recognizer: Any, audio: np.ndarray) -> str:
    """The text that sherpa-onnx itself (an OnlineRecognizer) recognises."""
    stream = recognizer.create_stream()
    stream.accept_waveform(8000, for_sherpa(audio))
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    return " ".join(recognizer.get_result(stream).split())


def sherpa_comparison(path: Path, tokens: Path) -> Comparison:
    """Compare a sherpa_*.onnx: texts through sherpa-onnx; log-posteriors, which it hides, through onnxruntime."""
    import sherpa_onnx

    session = open_session(path)
    recognizer = sherpa_onnx.OnlineRecognizer.from_t_one_ctc(tokens=str(tokens), model=str(path), num_threads=1)
    return Comparison(lambda audio: (sherpa_log_probs(session, audio), sherpa_text(recognizer, audio)))


def step_times(paths: Sequence[Path], utterances: Sequence[Utterance], rounds: int = 60) -> list[float]:
    """Median CPU milliseconds of a step of each model on one thread; the models take turns."""
    models = [OnnxModel(path) for path in paths]
    audio = np.concatenate([utterance.audio for utterance in utterances[:20]])
    audio = np.resize(audio, (rounds, models[0].samples)).astype(np.float32)
    states = [model.first_state() for model in models]
    times = np.zeros((rounds, len(models)))
    for number, samples in enumerate(audio):
        for place, model in enumerate(models):
            started = time.process_time()
            model.step(samples, model.chunk + model.lookahead, number * model.chunk, states[place])
            times[number, place] = 1000 * (time.process_time() - started)
    return np.median(times[rounds // 6 :], 0).tolist()
