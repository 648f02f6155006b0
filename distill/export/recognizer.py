"""Streaming recognition with onnxruntime and numpy alone: what a port to another language has to do.

    session = OnnxRecognizer.from_pretrained("exp/export", chunk_ms=480)
    for result in session.accept_waveform(samples):     # float samples at 16 kHz, as many as there are
        print(result["event"], result["text"])
    print(session.finish()["text"])

The model takes a fixed number of samples at each step and gives log-posteriors of the next chunk. Inputs ``keys_0`` ...
are what the step before gave as ``next_keys_0`` ..., which may be written where the input was read from; at the
beginning they are zeros, but for ``origin``: ones and zeros. The model's metadata holds every number that is needed.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from distill.checkpoints.archive import model_directory
from distill.decode.text import tokens_to_text
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.streaming.recognizer import Result, TokenResult

SAMPLE_RATE = 16000


def open_session(path: str | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX file, ready to run on so many CPU threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle between two chunks
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class StepState:
    """What a step remembers, in memory that the step reads and writes.

    A step has read all of an input before it writes the output of that name, so both may be the same memory: the rings
    of keys and values, most of what is remembered, are then not copied.

    Args:
        session: of an exported step.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.binding = session.io_binding()
        self.values: dict[str, onnxruntime.OrtValue] = {}
        outputs = {output.name: output.shape for output in session.get_outputs()}
        self.log_probs = onnxruntime.OrtValue.ortvalue_from_shape_and_type(outputs["log_probs"], np.float32)
        self.binding.bind_ortvalue_output("log_probs", self.log_probs)
        for tensor in session.get_inputs():
            if "next_" + tensor.name in outputs:
                zeros = np.zeros(tensor.shape, np.float32)
                if tensor.name == "origin":
                    zeros[0] = 1
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(tensor.shape, np.float32)
                value.update_inplace(zeros)
                self.values[tensor.name] = value
                self.binding.bind_ortvalue_input(tensor.name, value)
                self.binding.bind_ortvalue_output("next_" + tensor.name, value)


class OnnxModel:
    """An exported step and its numbers; many sessions may share one.

    Args:
        path: ONNX file that distill.export.export wrote.
        threads: CPU threads of a step.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        try:
            self.session = open_session(path, threads)
            about = self.session.get_modelmeta().custom_metadata_map
            self.token_list: list[str] = json.loads(about["tokens"])
        except Exception as error:  # whatever onnxruntime raises
            raise UserError(
                f"{path}: not a model that was exported here ({type(error).__name__}); export again"
            ) from None
        self.token_type = about["token_type"]
        names = ("chunk", "lookahead", "samples", "hop", "window", "tail", "priming", "leading")
        self.logits_per_frame = int(about.get("logits_per_frame", 1))  # not in older exports
        self.chunk, self.lookahead, self.samples, self.hop, self.window, self.tail, *rest = (
            int(about[name]) for name in names
        )
        self.priming, self.leading = rest
        self.frame_ms, self.chunk_ms = int(about["frame_ms"]), int(about["chunk_ms"])

    def first_state(self) -> StepState:
        """What a step remembers, before the first."""
        return StepState(self.session)

    def step(self, samples: np.ndarray, frames: int, past: int, state: StepState) -> np.ndarray:
        """Log-posteriors (chunk * logits_per_frame, V) from (samples,) audio; the state becomes the next.

        See :class:`distill.export.step.StreamStep` for the arguments.
        """
        inputs = {"samples": np.ascontiguousarray(samples), "frames": np.array(frames), "past": np.array(past)}
        for name, value in inputs.items():
            state.binding.bind_cpu_input(name, value)
        self.session.run_with_iobinding(state.binding)
        return state.log_probs.numpy().copy()  # the next step's are written in the same place


class LogProbStream:
    """From audio as it comes to log-posteriors, chunk by chunk.

    Args:
        model: may be shared.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self._samples = 0
        self._buffer = np.zeros(model.leading, np.float32)
        self._state = model.first_state()
        self._chunks = -model.priming  # put out so far
        self._past = 0

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """Take in (n,) samples and return (t, V) log-posteriors of the chunks that they complete."""
        model = self.model
        self._samples += len(samples)
        self._buffer = np.concatenate((self._buffer, samples))
        pieces = [np.zeros((0, len(model.token_list)), np.float32)]
        while len(self._buffer) >= model.samples:
            pieces.append(self._step(self._buffer[: model.samples], model.chunk + model.lookahead))
        return np.concatenate(pieces)

    def finish(self) -> np.ndarray:
        """The (t, V) log-posteriors of what is left; the stream has then ended."""
        model = self.model
        total = max(0, self._samples + model.tail - model.window) // model.hop + 1 if self._samples else 0
        pieces = [np.zeros((0, len(model.token_list)), np.float32)]
        while self._chunks * model.chunk < total:
            rest = total - self._chunks * model.chunk
            audio = self._buffer[: model.samples]
            silence = np.zeros(model.samples - len(audio), np.float32)
            step = self._step(np.concatenate((audio, silence)), min(rest, model.chunk + model.lookahead))
            pieces.append(step[: rest * model.logits_per_frame])
        return np.concatenate(pieces)

    def _step(self, samples: np.ndarray, frames: int) -> np.ndarray:
        """Log-posteriors of the next chunk; none if this step only fills the look-ahead of the first."""
        model = self.model
        log_probs = model.step(samples, frames, self._past, self._state)
        self._buffer = self._buffer[model.chunk * model.hop :]
        self._chunks += 1
        if self._chunks <= 0:
            ahead = self._state.values["ahead"].numpy()
            self._state = model.first_state()
            self._state.values["ahead"].update_inplace(ahead)
            return log_probs[:0]
        self._past += model.chunk
        return log_probs


class OnnxRecognizer:
    """Recognise one stream of 16 kHz audio, greedily; see :class:`distill.streaming.StreamingRecognizer`.

    Args:
        model: may be shared.
        endpoint_ms: a result is final once so much silence follows its last token, and the next one begins; None: only
            the end of the stream is an end.
    """

    def __init__(self, model: OnnxModel, endpoint_ms: int | None = None) -> None:
        if endpoint_ms is not None and endpoint_ms <= 0:
            raise UserError(f"endpoint_ms: {endpoint_ms} must be positive")
        self.model = model
        self.token_list, self.token_type, self.chunk_ms = model.token_list, model.token_type, model.chunk_ms
        self._endpoint_frames = None if endpoint_ms is None else -(-endpoint_ms // model.frame_ms)
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        chunk_ms: int = 480,
        endpoint_ms: int | None = None,
        int8: bool = False,
        threads: int = 1,
    ) -> OnnxRecognizer:
        """A recogniser from a directory that distill.export.export wrote, such as exp/export, or a packed model."""
        return cls(OnnxModel(model_path(directory, chunk_ms, int8), threads), endpoint_ms)

    @property
    def streaming(self) -> bool:
        """Every chunk is computed once."""
        return True

    @property
    def step_ms(self) -> int:
        """Time between two chunks."""
        return self.model.chunk * self.model.logits_per_frame * self.model.frame_ms

    @property
    def wait_ms(self) -> tuple[float, float]:
        """How long a frame waits at worst and on average: for its chunk, look-ahead and the front end."""
        worst = self.chunk_ms + (self.model.window - self.model.hop) * 1000 / SAMPLE_RATE
        return worst, worst - self.step_ms / 2

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a new stream."""
        self._samples = 0
        self._finished = False
        self._stream = LogProbStream(self.model)
        self._frames = 0
        self._begin()

    def _begin(self) -> None:
        self._tokens: list[list[float]] = []  # id, first frame, frame after the last, sum of posteriors
        self._open = 0  # token of the last frame; 0 is blank
        self._results: list[TokenResult] = []  # of the last result; the first so many of them stay as they are:
        self._settled = 0

    def accept_waveform(self, samples: np.ndarray) -> list[Result]:
        """Take in (n,) samples in [-1, 1], any n.

        Returns:
            the partial result, if the samples completed at least one chunk; before it a final one for each endpoint.
        """
        started = time.perf_counter()
        if self._finished:
            raise RuntimeError("the stream has ended; call reset() first")
        piece = np.asarray(samples)
        if piece.ndim != 1 or piece.dtype.kind != "f":
            raise ValueError(f"expected (n,) floating-point samples in [-1, 1], got {piece.shape} {piece.dtype}")
        if not np.isfinite(piece).all():
            raise UserError("audio: holds samples that are not finite numbers; check where it comes from")
        self._samples += len(piece)
        log_probs = self._stream.accept(piece.astype(np.float32))
        results: list[Result] = []
        size = self.model.chunk * self.model.logits_per_frame
        for start in range(0, len(log_probs), size):
            self._search(log_probs[start : start + size])
            if self._endpoint_frames is not None and self._tokens:
                if self._frames - self._tokens[-1][2] >= self._endpoint_frames:
                    results.append(self._result("final", started))
                    self._begin()
        if len(log_probs) and (self._tokens or not results):
            results.append(self._result("partial", started))
        return results

    def finish(self) -> Result:
        """End the stream and return its final result, or what follows the last endpoint; :meth:`reset` begins anew."""
        started = time.perf_counter()
        if self._finished:
            raise RuntimeError("the stream has ended; call reset() first")
        self._finished = True
        self._search(self._stream.finish())
        return self._result("final", started)

    def _search(self, log_probs: np.ndarray) -> None:
        """The best CTC path: the most probable token of every frame, repetitions merged and blanks dropped."""
        for token, log_prob in zip(log_probs.argmax(1).tolist(), log_probs.max(1).tolist(), strict=True):
            if token and token != self._open:
                self._tokens.append([token, self._frames, self._frames, 0.0])
            self._frames += 1
            self._open = token
            if token:
                self._tokens[-1][2] = self._frames
                self._tokens[-1][3] += np.exp(log_prob)

    def _result(self, event: str, started: float) -> Result:
        audio_s = self._samples / SAMPLE_RATE
        frame_s = self.model.frame_ms / 1000
        # What is settled is not made again, as an hour has many tokens.
        del self._results[self._settled :]
        for token, first, end, total in self._tokens[self._settled :]:
            self._results.append(
                {
                    "token": self.token_list[int(token)],
                    "start_s": round(min(first * frame_s, audio_s), 6),
                    "end_s": round(min(end * frame_s, audio_s), 6),
                    "confidence": round(float(total) / (end - first), 6),
                }
            )
        self._settled = len(self._tokens) - (self._open != 0)
        return {
            "event": event,
            "text": tokens_to_text((token["token"] for token in self._results), self.token_type),
            "audio_s": audio_s,
            "emitted_after_s": time.perf_counter() - started,
            "tokens": self._results.copy(),
        }


def model_path(directory: str | Path, chunk_ms: int, int8: bool = False) -> Path:
    """The file for a chunk length; a :class:`UserError` says what there is instead."""
    directory = model_directory(directory, "onnx")
    path = directory / f"student_{chunk_ms}ms{'.int8' if int8 else ''}.onnx"
    if path.is_file():
        return path
    if int8 and model_path(directory, chunk_ms).is_file():
        raise UserError(f"{path}: not found; int8 is not offered here, parity.json says why")
    found = sorted(int(re.findall(r"\d+", file.name)[0]) for file in directory.glob("student_*ms.onnx"))
    if not found:
        raise UserError(f"{path}: not found; give a directory that distill.export.export wrote, such as exp/export")
    raise UserError(f"{path}: not found; it was exported for {', '.join(map(str, found))} ms (--chunk_ms)")
