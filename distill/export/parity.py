"""Comparison of exported models with the student in torch: log-posteriors, texts, word errors, and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from distill import streaming
from distill.audio import END_SILENCE, SAMPLE_RATE
from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import RecordingSearch, Search
from distill.export.recognizer import OnnxModel, Recognizer, open_session
from distill.export.rows import RowState, one_row_per_frame
from distill.export.sherpa import BLOCK, FULL_SCALE, GAIN
from distill.export.slots import SlotModel
from distill.export.step import Shapes
from distill.models.cnn import with_lead
from distill.models.fbank import FbankFrontEnd
from distill.models.student import Student
from distill.scoring.counts import count_errors

# Float32 rounds the log-energy of a quiet band beside loud ones, and a network may amplify that in a frame between two
# tokens: one frame in 10,000 may differ by more than the bound, by no more than ten times as much.
LOG_PROB_BOUND, RARELY, RARE_BOUND = 1e-3, 1e-4, 1e-2
SILENCE_MS = 600  # besides the last chunk: END_SILENCE, the front end's window, and blocks that sherpa-onnx waits for
RAW_AUDIO_RATE = 8000  # declared for 16 kHz, see distill.export.sherpa
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
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
        rows: what the runtime is expected to put out for torch's (t, V) log-posteriors.

    Attributes:
        difference: largest absolute difference of a log-posterior.
        frames, beyond: number of frames, and of those with a difference above LOG_PROB_BOUND.
        identical: number of utterances with the same text as in torch.
    """

    def __init__(
        self,
        recognize: Callable[[np.ndarray], tuple[np.ndarray, str]],
        rows: Callable[[np.ndarray], np.ndarray] = lambda log_probs: log_probs,
    ) -> None:
        self._recognize, self._rows = recognize, rows
        self.difference, self.frames, self.beyond = 0.0, 0, 0
        self.identical, self.utterances, self.errors, self.words = 0, 0, 0, 0

    def add(self, utterance: Utterance, log_probs: np.ndarray, text: str) -> None:
        """Compare an utterance with its (t, V) log-posteriors and text in torch."""
        exported_log_probs, exported_text = self._recognize(utterance.audio)
        differences = frame_differences(exported_log_probs, self._rows(log_probs))
        self.difference = max(self.difference, float(differences.max(initial=0)))
        self.frames += len(differences)
        self.beyond += int((~(differences <= LOG_PROB_BOUND)).sum())
        self.identical += exported_text == text
        self.utterances += 1
        (counts,) = count_errors([utterance.text.split()], [exported_text.split()])
        self.errors += counts.errors
        self.words += counts.words

    def report(self) -> dict[str, Any]:
        """The figures as parity.json has them."""
        return {
            "max_log_prob_difference": self.difference,
            "frames": self.frames,
            "frames_beyond_bound": self.beyond,
            "identical_texts": self.identical,
            "utterances": self.utterances,
            "word_errors": self.errors,
            "words": self.words,
        }


def frame_differences(log_probs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(t,) largest absolute difference of each frame of two (t, V) log-posteriors; infinite if their numbers differ."""
    if log_probs.shape != reference.shape:
        return np.full(max(1, len(reference)), np.inf)
    return np.abs(log_probs - reference).max(axis=1, initial=0)


def is_equal(report: Mapping[str, Any]) -> bool:
    """Whether the figures of a :class:`Comparison` are those of the same function, but for rounding."""
    difference, beyond = report["max_log_prob_difference"], report["frames_beyond_bound"]
    return difference <= RARE_BOUND and beyond <= RARELY * report["frames"]


def torch_reference(
    network: Student, token_list: Sequence[str], config: Mapping[str, Any], chunk_ms: int
) -> Callable[[np.ndarray], tuple[np.ndarray, str]]:
    """A function that returns (t, V) log-posteriors and text of an utterance's audio, from a session in torch."""
    logits: list[Tensor] = []
    recognizer = streaming.Recognizer(
        network, token_list, config, chunk_ms, new_search=lambda: RecordingSearch(GreedySearch(), logits.append)
    )

    def recognize(audio: np.ndarray) -> tuple[np.ndarray, str]:
        logits.clear()
        text = recognizer.recognize(audio)["text"]
        return torch.cat(logits).log_softmax(-1).numpy(), text

    return recognize


def onnx_comparison(path: Path, batch: bool = False) -> Comparison:
    """Compare a student_*.onnx, or with ``batch`` a streams_*.onnx, through the recogniser in onnxruntime.

    In a batch there are two streams more, which are ahead and behind.
    """
    log_probs: list[np.ndarray] = []
    searches: Iterator[Search] = iter(())
    recognizer = Recognizer(SlotModel(path) if batch else OnnxModel(path), new_search=lambda: next(searches))

    def recognize(audio: np.ndarray) -> tuple[np.ndarray, str]:
        nonlocal searches
        log_probs.clear()
        recording = RecordingSearch(GreedySearch(), log_probs.append)
        searches = iter((recording, GreedySearch(), GreedySearch()))
        streams = [recognizer.create_stream() for _ in range(3 if batch else 1)]
        for stream, samples in zip(streams, (audio, audio[len(audio) // 3 :], np.resize(audio, 9999)), strict=False):
            stream.accept(samples)
            stream.finish()
        text = recognizer.decode(streams)[0][-1]["text"]
        return np.concatenate(log_probs), text

    return Comparison(recognize)


def silence(chunk_ms: int) -> np.ndarray:
    """Samples of silence behind the audio after which sherpa-onnx has decoded all of it."""
    return np.zeros((chunk_ms + SILENCE_MS) * SAMPLE_RATE // 1000, np.float32)


def for_sherpa(audio: np.ndarray, log_mel: bool) -> np.ndarray:
    """Samples for sherpa-onnx of 16-bit ``audio`` (n,): with a gain for raw-audio students, see :data:`GAIN`."""
    return audio if log_mel else audio * np.float32(GAIN)


def handed_over(samples: np.ndarray) -> np.ndarray:
    """The int32 samples that sherpa-onnx passes to a raw-audio model for (n,) samples in [-1, 1]."""
    return np.trunc(samples.clip(-1, 1) * np.float32(FULL_SCALE)).astype(np.int32)


def raw_audio_log_probs(session: onnxruntime.InferenceSession, audio: np.ndarray) -> np.ndarray:
    """Log-posteriors (t, V) of a raw-audio student's sherpa_*.onnx, given the same blocks as by sherpa-onnx.

    ``audio`` is what sherpa-onnx gets: samples times :data:`GAIN`, and silence.
    """
    samples = handed_over(audio)
    state = np.zeros(session.get_inputs()[1].shape, np.float16)
    pieces = []
    for start in range(0, len(samples) - 2 * BLOCK + 1, BLOCK):
        block = samples[start : start + BLOCK].reshape(1, BLOCK, 1)
        piece, state = session.run(None, {"signal": block, "state": state})
        pieces.append(piece[0])
    return np.concatenate(pieces)


def log_mel_log_probs(session: onnxruntime.InferenceSession, front: FbankFrontEnd, audio: np.ndarray) -> np.ndarray:
    """Log-posteriors (t, V) of a log-mel student's sherpa_*.onnx, one row for each encoder frame."""
    about = session.get_modelmeta().custom_metadata_map
    window, shift = int(about["T"]), int(about["decode_chunk_len"])
    x = front.features(with_lead(torch.from_numpy(audio)[None], front.lead)).numpy()
    names = [tensor.name for tensor in session.get_inputs()]
    state = [
        np.zeros([1 if isinstance(size, str) else size for size in tensor.shape], TYPES[tensor.type])
        for tensor in session.get_inputs()[1:]
    ]
    pieces = []
    for first in range(0, x.shape[1] - window, shift):
        given = [x[:, first : first + window], *state]
        piece, *state = session.run(None, dict(zip(names, given, strict=True)))
        pieces.append(piece[0])
    return np.concatenate(pieces)


def sherpa_recognizer(path: Path, tokens: Path, log_mel: bool) -> tuple[Any, int]:
    """sherpa-onnx's OnlineRecognizer of a sherpa_*.onnx, and the rate to declare for audio at 16 kHz."""
    import sherpa_onnx

    kind = sherpa_onnx.OnlineRecognizer
    load = kind.from_zipformer2_ctc if log_mel else kind.from_t_one_ctc
    rate = SAMPLE_RATE if log_mel else RAW_AUDIO_RATE
    return load(tokens=str(tokens), model=str(path), num_threads=1), rate


def sherpa_text(recognizer: Any, audio: np.ndarray, rate: int) -> str:
    """The text that sherpa-onnx itself recognises in samples, silence included, that are declared to have this rate."""
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, audio)
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    text = " ".join(recognizer.get_result(stream).split())
    return f"<{text}" if text.startswith("unk>") else text  # sherpa-onnx drops the < of a text that begins with <unk>


def sherpa_comparison(path: Path, tokens: Path, network: Student, shapes: Shapes, chunk_ms: int) -> Comparison:
    """Compare a sherpa_*.onnx: texts through sherpa-onnx; log-posteriors, which it hides, through onnxruntime.

    What sherpa-onnx makes of silence behind the chunk of the last frame is not compared.
    """
    session, front, per_frame = open_session(path), network.front_end, shapes.logits_per_frame
    log_mel = isinstance(front, FbankFrontEnd)
    recognizer, rate = sherpa_recognizer(path, tokens, log_mel)

    def recognize(audio: np.ndarray) -> tuple[np.ndarray, str]:
        frames = network.frames(len(audio) + END_SILENCE) // per_frame
        rows = -(-frames // shapes.chunk) * shapes.chunk * (1 if log_mel else per_frame)
        given = np.concatenate((for_sherpa(audio, log_mel), silence(chunk_ms)))
        if isinstance(front, FbankFrontEnd):
            log_probs = log_mel_log_probs(session, front, given)
        else:
            log_probs = raw_audio_log_probs(session, given)
        return log_probs[:rows], sherpa_text(recognizer, given, rate)

    return Comparison(recognize, (lambda log_probs: a_row_per_frame(log_probs, shapes)) if log_mel else np.asarray)


def a_row_per_frame(log_probs: np.ndarray, shapes: Shapes) -> np.ndarray:
    """What a log-mel student's sherpa_*.onnx puts out for torch's (t, V) log-posteriors of whole chunks."""
    state = RowState(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    rows = []
    for chunk in torch.from_numpy(log_probs).split(shapes.chunk * shapes.logits_per_frame):
        row, state = one_row_per_frame(chunk[None], shapes.logits_per_frame, state)
        rows.append(row[0])
    return torch.cat(rows).numpy()


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
