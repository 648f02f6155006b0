"""Streaming recognition of exported students, with onnxruntime and without torch.

    recognizer = Recognizer.from_pretrained("exp/export", chunk_ms=480)
    stream = recognizer.create_stream()
    stream.accept(samples)                           # any number of float samples at 16 kHz
    for result in stream.decode():                   # or of many streams: recognizer.decode(streams)
        print(result["event"], result["text"])
    stream.finish()
    print(stream.decode()[-1]["text"])

A port to another language has to do what :class:`LogProbStream` does. Each step of the model takes a fixed number of
samples and returns the log-posteriors of the next chunk. Its inputs ``keys_0`` ... are the outputs ``next_keys_0`` ...
of the previous step, which may overwrite them in place; before the first step they are zeros, except ``origin``, which
is ones and zeros. All the numbers that are needed are in the model's metadata.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import onnxruntime
from pydantic import ConfigDict, Field

from distill.audio import END_SILENCE, SAMPLE_RATE
from distill.checkpoints.archive import model_directory
from distill.checkpoints.schema import TokenType, check_tokens
from distill.configuration import MAX_CHUNK_MS, checked
from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import Search
from distill.decode.stream_results import NO_RULES, EndpointRules, silence_rule
from distill.decode.streams import BaseRecognizer, Session
from distill.errors import UserError


def open_session(path: str | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Load an ONNX file to run on this number of CPU threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # do not burn CPU between two chunks
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


Text: TypeAlias = Annotated[str, Field(max_length=16 << 20)]
Frames: TypeAlias = Annotated[int, Field(ge=0, le=MAX_CHUNK_MS)]
Samples: TypeAlias = Annotated[int, Field(ge=0, le=MAX_CHUNK_MS * SAMPLE_RATE // 1000)]
MAX_STATE = 1 << 28  # bytes of the caches of one stream


@dataclass(frozen=True)
class Metadata:
    """Metadata of an exported model: :class:`distill.export.step.Shapes`, what follows from it, and the tokens.

    Values are texts in the file. ``left`` is not used here, and a model may have other keys.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    tokens: Text
    token_type: TokenType
    frame_ms: Annotated[int, Field(ge=1, le=1000)]
    chunk_ms: Annotated[int, Field(ge=1, le=MAX_CHUNK_MS)]
    chunk: Annotated[Frames, Field(ge=1)]
    lookahead: Frames
    samples: Annotated[Samples, Field(ge=1)]
    hop: Annotated[Samples, Field(ge=1)]
    window: Annotated[Samples, Field(ge=1)]
    tail: Samples
    priming: Frames
    leading: Samples
    sample_rate: Literal["16000"]
    logits_per_frame: Annotated[int, Field(ge=1, le=4)] = 1  # missing in older exports
    lead: Samples = 0  # likewise

    def __post_init__(self) -> None:
        ahead = self.priming * self.chunk
        frame = self.frame_ms * SAMPLE_RATE // 1000
        consistent = {
            "samples": self.hop * self.chunk + self.window - self.hop,
            "priming": -(-self.lookahead // self.chunk),
            "leading": (ahead - self.lookahead) * self.hop,
            "hop": frame * self.logits_per_frame,
            "chunk_ms": (self.chunk + self.lookahead) * self.logits_per_frame * self.frame_ms,
        }
        for name, value in consistent.items():
            if getattr(self, name) != value:
                raise UserError(f"{name} is {getattr(self, name)}, but {value} by its other metadata")


NUMBERS = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class StepState:
    """The inputs and outputs of a step of one stream, caches among them, in memory that the step reads and overwrites.

    A step has read an input completely before it writes the output of the same name, so both may share memory: the ring
    buffers of keys and values, which are most of the caches, are then never copied.

    Args:
        session: of an exported step.

    Attributes:
        arrays: each input and ``log_probs``, by name; what is written to them is what the next step reads.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.binding = session.io_binding()
        self.arrays: dict[str, np.ndarray] = {}
        outputs = {output.name: output for output in session.get_outputs()}
        for tensor in session.get_inputs():
            value = self._add(tensor.name, tensor)
            self.binding.bind_ortvalue_input(tensor.name, value)
            if "next_" + tensor.name in outputs:
                self.binding.bind_ortvalue_output("next_" + tensor.name, value)
        self.binding.bind_ortvalue_output("log_probs", self._add("log_probs", outputs["log_probs"]))
        self.begin_again()

    def _add(self, name: str, tensor: onnxruntime.NodeArg) -> onnxruntime.OrtValue:
        """Zeros of this type and shape."""
        self.arrays[name] = np.zeros(tensor.shape, NUMBERS[tensor.type])
        return onnxruntime.OrtValue.ortvalue_from_numpy(self.arrays[name])  # the same memory

    def begin_again(self) -> None:
        """Empty all caches but that of the look-ahead, which the first chunk reads."""
        for name, array in self.arrays.items():
            if name != "ahead":
                array[...] = 0
        self.arrays["origin"][0] = 1


def _tokens(text: str) -> list[str]:
    """The token list in a model's metadata.

    Raises:
        UserError: not a list of tokens in JSON.
    """
    try:
        tokens = json.loads(text)
    except (ValueError, RecursionError):
        tokens = None
    if not isinstance(tokens, list) or len(tokens) < 2 or not all(isinstance(token, str) for token in tokens):
        raise UserError("tokens is not a list of tokens in JSON")
    check_tokens(tokens, "tokens")
    return tokens


class ExportedModel(ABC):
    """An exported network with its metadata.

    Args:
        path: an ONNX file that ``distill export`` wrote.
        threads: CPU threads of a step.

    Raises:
        UserError: the file is no such model, or its metadata are not those of its network.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        if not Path(path).is_file():
            raise UserError(f"{path}: not found; export the model first")
        try:
            self.session = open_session(path, threads)
            values = dict(self.session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # whatever onnxruntime raises
            raise UserError(f"{path}: not an exported model ({type(error).__name__}); export it again") from None
        try:
            self.metadata = checked(Metadata, "", values)
            self.token_list = _tokens(self.metadata.tokens)
            self._check_graph()
        except UserError as error:
            raise UserError(f"{path}: not an exported model: {error}; export it again") from None
        self.token_type: str = self.metadata.token_type

    @abstractmethod
    def _check_graph(self) -> None:
        """Check that inputs and outputs are those of a step with these metadata; UserError if not."""

    @abstractmethod
    def new_stream(self) -> UnreadAudio:
        """The state before the first sample of a stream."""

    @abstractmethod
    def compute(self, streams: Sequence[Any]) -> list[np.ndarray]:
        """Log-posteriors (t, V) of the next step of each stream, all of which are ready."""

    @staticmethod
    def check_state(size: int) -> None:
        """Refuse caches of a stream of too many bytes."""
        if size > MAX_STATE:
            raise UserError(f"a stream would take {size} bytes")


class OnnxModel(ExportedModel):
    """An exported step of one stream at a time with its metadata. Many streams may share one.

    Args:
        path: a student_*.onnx that ``distill export`` wrote.
        threads: CPU threads of a step.

    Raises:
        UserError: the file is no such model, its metadata are not those of its network, or its weights are not finite.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        super().__init__(path, threads)
        about = self.metadata
        self.chunk, self.lookahead, self.logits_per_frame = about.chunk, about.lookahead, about.logits_per_frame
        self.samples, self.hop, self.window = about.samples, about.hop, about.window
        self.lead, self.tail, self.priming, self.leading = about.lead, about.tail, about.priming, about.leading
        self.frame_ms, self.chunk_ms = about.frame_ms, about.chunk_ms
        self._check_step(path)

    def _check_graph(self) -> None:
        """Check that inputs and outputs are those of a step with these metadata."""
        about = self.metadata
        inputs = {tensor.name: (tensor.type, tensor.shape) for tensor in self.session.get_inputs()}
        outputs = {tensor.name: (tensor.type, tensor.shape) for tensor in self.session.get_outputs()}
        state = {name: kind for name, kind in inputs.items() if f"next_{name}" in outputs}
        numbers = "tensor(float)", "tensor(int64)"
        expected = {"samples": (numbers[0], [about.samples]), "frames": (numbers[1], []), "past": (numbers[1], [])}
        if inputs != expected | state or not state:
            raise UserError("its inputs are not those of a step")
        log_probs = (numbers[0], [about.chunk * about.logits_per_frame, len(self.token_list)])
        if outputs != {"log_probs": log_probs, **{f"next_{name}": kind for name, kind in state.items()}}:
            raise UserError("its outputs are not those of a step with these tokens")
        size = 0
        for name, (kind, shape) in state.items():
            if kind != numbers[0] or not all(isinstance(length, int) and length >= 0 for length in shape):
                raise UserError(f"its input {name} has no fixed shape")
            size += 4 * math.prod(shape)
        self.check_state(size)
        if about.lookahead and "ahead" not in state:
            raise UserError("it has a look-ahead, but no input for it")

    def _check_step(self, path: str | Path) -> None:
        """Compute a step of silence: weights that are not finite show in its log-posteriors."""
        log_probs = self.step(np.zeros(self.samples, np.float32), self.chunk + self.lookahead, 0, self.first_state())
        if not np.isfinite(log_probs).all():
            raise UserError(f"{path}: its log-posteriors are not finite numbers; export it again")

    def new_stream(self) -> LogProbStream:
        """The state before the first sample of a stream."""
        return LogProbStream(self)

    def compute(self, streams: Sequence[LogProbStream]) -> list[np.ndarray]:
        """Log-posteriors (t, V) of the next step of each stream, one after the other."""
        return [stream.compute() for stream in streams]

    def first_state(self) -> StepState:
        """The caches at the beginning of a stream."""
        return StepState(self.session)

    def step(self, samples: np.ndarray, frames: int, past: int, state: StepState) -> np.ndarray:
        """Run :class:`distill.export.step.StreamStep` once and update ``state``.

        Returns:
            log-posteriors (chunk * logits_per_frame, V) of (samples,) audio.
        """
        state.arrays["samples"][...], state.arrays["frames"][...], state.arrays["past"][...] = samples, frames, past
        try:
            self.session.run_with_iobinding(state.binding)
        except Exception as error:  # whatever onnxruntime raises
            raise UserError(f"the model cannot be computed ({type(error).__name__}); export it again") from None
        return state.arrays["log_probs"].copy()  # the next step overwrites the original


class UnreadAudio:
    """Audio of a stream that no step has read yet.

    Args:
        about: of the model.

    Attributes:
        steps: steps computed so far, without those that only fill the first look-ahead; below 0 before them.
    """

    def __init__(self, about: Metadata) -> None:
        self._about = about
        self._samples = 0
        self._buffer = np.zeros(0, np.float32)
        self._led = False  # whether the buffer began with the silence and the mirrored samples before the audio
        self.steps = -about.priming

    def receive(self, samples: np.ndarray) -> None:
        """Append (n,) samples to the audio that is to be read."""
        about = self._about
        self._samples += len(samples)
        self._buffer = np.concatenate((self._buffer, samples))
        if not self._led and len(self._buffer) >= about.lead:
            # what the first frames see of the time before the audio
            silence = np.zeros(about.leading, np.float32)
            self._buffer = np.concatenate((silence, self._buffer[: about.lead][::-1], self._buffer))
            self._led = True

    @property
    def ready(self) -> bool:
        """Whether there is audio for another step."""
        return len(self._buffer) >= self._about.samples

    def next_samples(self) -> np.ndarray:
        """The samples of the next step, which must be :attr:`ready`; the audio moves on."""
        about = self._about
        samples, self._buffer = self._buffer[: about.samples], self._buffer[about.chunk * about.hop :]
        self.steps += 1
        return samples

    @property
    def silence(self) -> int:
        """Samples of silence that complete the chunk of the last frame of the audio and :data:`END_SILENCE`."""
        about = self._about
        seen = self._samples + END_SILENCE + about.lead + about.tail
        frames = max(0, seen - about.window) // about.hop + 1
        needed = -(-frames // about.chunk) * about.chunk + about.lookahead
        return max(0, about.hop * (needed - 1) + about.window - about.lead - self._samples)


class LogProbStream(UnreadAudio):
    """Computes log-posteriors of one stream, chunk by chunk, while its audio arrives.

    Args:
        model: may be shared.
    """

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model.metadata)
        self.model = model
        self._state = model.first_state()
        self._past = 0

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """Take (n,) samples and return (t, V) log-posteriors of the chunks that they complete."""
        self.receive(samples)
        pieces = [np.zeros((0, len(self.model.token_list)), np.float32)]
        while self.ready:
            pieces.append(self.compute())
        return np.concatenate(pieces)

    def flush(self) -> np.ndarray:
        """Log-posteriors (t, V) of all of the audio that is left, behind which there is silence then."""
        return self.accept(np.zeros(self.silence if self._samples else 0, np.float32))

    def compute(self) -> np.ndarray:
        """Log-posteriors (t, V) of the next step, which must be :attr:`ready`; none while it fills the look-ahead."""
        model = self.model
        log_probs = model.step(self.next_samples(), model.chunk + model.lookahead, self._past, self._state)
        if self.steps <= 0:
            self._state.begin_again()
            return log_probs[:0]
        self._past += model.chunk
        return log_probs


class Recognizer(BaseRecognizer[UnreadAudio]):
    """Recognises streams of 16 kHz audio; its results are those of :class:`distill.streaming.Recognizer`.

    Args:
        model: may be shared.
        rules: when an utterance ends before its stream does.
        new_search: creates the search of a stream.
    """

    def __init__(
        self,
        model: ExportedModel,
        rules: EndpointRules = NO_RULES,
        new_search: Callable[[], Search] = GreedySearch,
    ) -> None:
        about = model.metadata
        super().__init__(model.token_list, model.token_type, about.frame_ms, rules, new_search)
        self.model, self._about, self.chunk_ms = model, about, about.chunk_ms

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        chunk_ms: int = 480,
        rules: EndpointRules = NO_RULES,
        int8: bool = False,
        threads: int = 1,
        batch: bool = False,
    ) -> Recognizer:
        """Load a directory that ``distill export`` wrote, such as exp/export, or a packed model.

        Args:
            batch: compute many streams at once, for servers, instead of one after the other.
        """
        path = model_path(directory, chunk_ms, int8, "streams" if batch else "student")
        if batch:
            from distill.export.slots import SlotModel

            model: ExportedModel = SlotModel(path, threads)
        else:
            model = OnnxModel(path, threads)
        if model.metadata.chunk_ms != chunk_ms:
            raise UserError(f"{path}: is a model for chunks of {model.metadata.chunk_ms} ms; export it again")
        return cls(model, rules)

    @property
    def step_ms(self) -> int:
        """Milliseconds between the beginnings of two chunks."""
        return self._about.chunk * self._about.logits_per_frame * self._about.frame_ms

    @property
    def wait_ms(self) -> tuple[float, float]:
        """Longest and mean milliseconds that a frame waits for the end of its chunk, look-ahead and front end."""
        longest = self._about.chunk_ms + (self._about.window - self._about.hop - self._about.lead) * 1000 / SAMPLE_RATE
        return longest, longest - self.step_ms / 2

    def _batch_key(self) -> Hashable:
        return id(self.model)

    def _new_state(self) -> UnreadAudio:
        return self.model.new_stream()

    def _receive(self, state: UnreadAudio, samples: np.ndarray) -> None:
        state.receive(samples)

    def _flush(self, state: UnreadAudio) -> int:
        silence = state.silence
        state.receive(np.zeros(silence, np.float32))
        return silence

    def _ready(self, state: UnreadAudio) -> bool:
        return state.ready

    def _compute(self, states: Sequence[UnreadAudio]) -> list[np.ndarray]:
        return self.model.compute(states)


class OnnxRecognizer(Session):
    """A :class:`Recognizer` with one stream at a time. Deprecated; the next release has it no more."""

    recognizer: Recognizer

    def __init__(
        self,
        model: OnnxModel,
        endpoint_ms: int | None = None,
        new_search: Callable[[], Search] = GreedySearch,
    ) -> None:
        super().__init__(Recognizer(model, silence_rule(endpoint_ms), new_search))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        chunk_ms: int = 480,
        endpoint_ms: int | None = None,
        int8: bool = False,
        threads: int = 1,
    ) -> OnnxRecognizer:
        """:meth:`Recognizer.from_pretrained`."""
        session = cls.__new__(cls)
        rules = silence_rule(endpoint_ms)
        Session.__init__(session, Recognizer.from_pretrained(directory, chunk_ms, rules, int8, threads))
        return session


def model_path(directory: str | Path, chunk_ms: int, int8: bool = False, kind: str = "student") -> Path:
    """The exported model for a chunk length; ``kind``: "student", or "streams" for many at once.

    Raises:
        UserError: it is not there; the message names the chunk lengths that are.
    """
    directory = model_directory(directory, "onnx")
    path = directory / f"{kind}_{chunk_ms}ms{'.int8' if int8 else ''}.onnx"
    if path.is_file():
        return path
    if int8 and model_path(directory, chunk_ms, kind=kind).is_file():
        raise UserError(f"{path}: not found; int8 is not offered for this model, parity.json says why")
    lengths = sorted(int(re.findall(r"\d+", file.name)[0]) for file in directory.glob(f"{kind}_*ms.onnx"))
    if not lengths:
        raise UserError(f"{path}: not found; give a directory that distill export wrote, such as exp/export")
    raise UserError(f"{path}: not found; it was exported for {', '.join(map(str, lengths))} ms (--chunk_ms)")
