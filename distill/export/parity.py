"""Whether exported models say what the student says in torch: log-posteriors, texts, word errors, and speed."""

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
from distill.export.recognizer import OnnxModel, OnnxRecognizer, open_session
from distill.export.sherpa import BLOCK, FULL_SCALE, GAIN
from distill.models.student import Student
from distill.scoring.counts import count_errors
from distill.streaming import StreamingRecognizer

LOG_PROB_BOUND = 1e-3
INT8_LOSS = 1.02  # largest factor of the word error rate


@dataclass
class Utterance:
    """Audio (n,) at 16 kHz in [-1, 1], of 16-bit samples as microphones give it, and what is said."""

    audio: np.ndarray
    text: str


class Comparison:
    """How one runtime compares with torch, over utterances.

    Args:
        recognize: log-posteriors (t, V) and text of an utterance's audio.
    """

    def __init__(self, recognize: Callable[[np.ndarray], tuple[np.ndarray, str]]) -> None:
        self._recognize = recognize
        self.difference = 0.0
        self.identical, self.utterances, self.errors, self.words = 0, 0, 0, 0

    def add(self, utterance: Utterance, log_probs: np.ndarray, text: str) -> None:
        """Compare an utterance with what torch gives."""
        mine, said = self._recognize(utterance.audio)
        self.difference = max(self.difference, largest_difference(mine, log_probs))
        self.identical += said == text
        self.utterances += 1
        (counts,) = count_errors([utterance.text.split()], [said.split()])
        self.errors += counts.errors
        self.words += counts.words

    def report(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "max_log_prob_difference": self.difference,
            "identical_texts": self.identical,
            "utterances": self.utterances,
            "word_errors": self.errors,
            "words": self.words,
        }


def largest_difference(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Between (t, V) log-posteriors; infinite if they are not of as many frames."""
    return float(np.abs(mine - theirs).max(initial=0)) if mine.shape == theirs.shape else float("inf")


class _RecordingSearch(GreedySearch):
    """Greedy decoding that adds what it decodes to a list."""

    def __init__(self, heard: list[Tensor]) -> None:
        super().__init__()
        self._heard = heard

    def accept(self, logits: Tensor) -> None:
        self._heard.append(logits)
        super().accept(logits)


class _RecordingRecognizer(OnnxRecognizer):
    """The recogniser, with the log-posteriors that it decoded."""

    def reset(self) -> None:
        super().reset()
        self.heard: list[np.ndarray] = []

    def _search(self, log_probs: np.ndarray) -> None:
        self.heard.append(log_probs)
        super()._search(log_probs)


def torch_reference(
    network: Student, token_list: Sequence[str], config: Mapping[str, Any], chunk_ms: int
) -> Callable[[np.ndarray], tuple[np.ndarray, str]]:
    """Log-posteriors and text of an utterance, as a session in torch has them."""
    heard: list[Tensor] = []
    recognizer = StreamingRecognizer(network, token_list, config, chunk_ms, new_search=lambda: _RecordingSearch(heard))

    def recognize(audio: np.ndarray) -> tuple[np.ndarray, str]:
        heard.clear()
        recognizer.reset()
        recognizer.accept_waveform(audio)
        text = recognizer.finish()["text"]
        return torch.cat(heard).log_softmax(-1).numpy(), text

    return recognize


def onnx_comparison(path: Path) -> Comparison:
    """Compare a student_*.onnx, through the recogniser of onnxruntime and numpy."""
    recognizer = _RecordingRecognizer(OnnxModel(path))

    def recognize(audio: np.ndarray) -> tuple[np.ndarray, str]:
        recognizer.reset()
        recognizer.accept_waveform(audio)
        text = recognizer.finish()["text"]
        return np.concatenate(recognizer.heard), text

    return Comparison(recognize)


def for_sherpa(audio: np.ndarray) -> np.ndarray:
    """What to give sherpa-onnx for audio: 16-bit samples so that they arrive as they are, and full-scale ones that tell
    a sherpa_*.onnx of the end, with the block that sherpa-onnx keeps."""
    return np.concatenate((audio * np.float32(GAIN), np.ones(3 * BLOCK, np.float32)))


def handed_over(samples: np.ndarray) -> np.ndarray:
    """The int32 samples that sherpa-onnx makes of those that it is given."""
    return np.trunc(samples.clip(-1, 1) * np.float32(FULL_SCALE)).astype(np.int32)


def sherpa_log_probs(session: onnxruntime.InferenceSession, audio: np.ndarray) -> np.ndarray:
    """Log-posteriors (t, V) of a sherpa_*.onnx, handed the blocks that sherpa-onnx would hand it."""
    samples = handed_over(for_sherpa(audio))
    state = np.zeros(session.get_inputs()[1].shape, np.float16)
    pieces = []
    for start in range(0, len(samples) - 2 * BLOCK + 1, BLOCK):
        block = samples[start : start + BLOCK].reshape(1, BLOCK, 1)
        piece, state = session.run(None, {"signal": block, "state": state})
        pieces.append(piece[0])
    return np.concatenate(pieces)


def sherpa_text(recognizer: Any, audio: np.ndarray) -> str:
    """The text of sherpa-onnx itself (an OnlineRecognizer)."""
    stream = recognizer.create_stream()
    stream.accept_waveform(8000, for_sherpa(audio))
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    return " ".join(recognizer.get_result(stream).split())


def sherpa_comparison(path: Path, tokens: Path) -> Comparison:
    """Compare a sherpa_*.onnx: texts as sherpa-onnx gives them, and log-posteriors, which it keeps to itself."""
    import sherpa_onnx

    session = open_session(path)
    recognizer = sherpa_onnx.OnlineRecognizer.from_t_one_ctc(tokens=str(tokens), model=str(path), num_threads=1)
    return Comparison(lambda audio: (sherpa_log_probs(session, audio), sherpa_text(recognizer, audio)))


def step_times(paths: Sequence[Path], utterances: Sequence[Utterance], rounds: int = 60) -> list[float]:
    """Median milliseconds of computation of a step on one thread for each model, by turns."""
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
