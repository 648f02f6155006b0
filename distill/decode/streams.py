"""Recognition of many streams of audio: a recogniser holds a model, and a stream what belongs to one audio.

    recognizer = Recognizer.from_pretrained(...)     # of distill.streaming; without torch, of distill.export.recognizer
    stream = recognizer.create_stream()
    stream.accept(samples)                           # any number of them, whenever they arrive
    for result in stream.decode():                   # or of many: recognizer.decode(streams)
        print(result["event"], result["text"])
    stream.finish()
    (*_, final) = stream.decode()

Recognisers in torch and in onnxruntime share this module, and with it :mod:`distill.decode.stream_results`: they differ
in how a chunk is computed only. It imports neither of the two.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from distill.audio import SAMPLE_RATE, as_floats
from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import Hypothesis, Search
from distill.decode.stream_results import NO_RULES, EndpointRules, Result, StreamDecoder
from distill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

State = TypeVar("State")  # of a stream: audio that the model has not read, and caches of what it has
Scores = Any  # (t, V) logits or log-probabilities, an array of numpy or of torch


class BaseRecognizer(ABC, Generic[State]):
    """A model that recognises streams of 16 kHz audio, and how its streams are decoded.

    Args:
        token_list: tokens by id, blank first.
        token_type: char, bpe, word or phn.
        frame_ms: milliseconds of a row of scores.
        rules: when an utterance ends before its stream does.
        new_search: creates the search of a stream; greedy by default.

    Attributes:
        streaming: whether every chunk is computed once; otherwise the whole audio is, again at each chunk.
    """

    streaming = True
    chunk_ms: int | None

    def __init__(
        self,
        token_list: Sequence[str],
        token_type: str,
        frame_ms: int,
        rules: EndpointRules = NO_RULES,
        new_search: Callable[[], Search] = GreedySearch,
    ) -> None:
        self.token_list, self.token_type, self.frame_ms = list(token_list), token_type, frame_ms
        self.rules, self._new_search = rules, new_search

    def create_stream(self, rules: EndpointRules | None = None) -> Stream[State]:
        """A new stream; with other ``rules`` than the recogniser's if they are given."""
        rules = rules or self.rules
        self._check_rules(rules)
        decoder = StreamDecoder(self.token_list, self.token_type, self.frame_ms, rules, self._new_search)
        return Stream(self, self._new_state(), decoder)

    def recognize(self, samples: np.ndarray | Tensor) -> Result:
        """The last final result of a stream of (n,) samples, see :meth:`Stream.accept`."""
        stream = self.create_stream()
        stream.accept(samples)
        stream.finish()
        return stream.decode()[-1]

    def decode(self, streams: Sequence[Stream[State]]) -> list[list[Result]]:
        """Recognise what streams have accepted, as far as it completes chunks.

        The next chunks of all of them are one batch, wherever each stream is in its audio; results are those of each
        stream on its own.

        Returns:
            for each stream the final result of each utterance that ended, then the partial result of the one that goes
            on if there is anything new; behind :meth:`Stream.finish` the last final result, once.

        Raises:
            ValueError: a stream is of another model or chunk length.
        """
        key = self._batch_key()
        if not all(stream.recognizer._batch_key() == key for stream in streams):
            raise ValueError("decode: a stream is of another recogniser; only streams of one can be decoded together")
        results: list[list[Result]] = [[] for _ in streams]
        news = [False] * len(streams)
        while ready := [number for number, stream in enumerate(streams) if stream._read()]:
            scores = self._compute([streams[number].state for number in ready])
            for number, chunk in zip(ready, scores, strict=True):
                if len(chunk):  # some steps only fill the first look-ahead
                    results[number] += streams[number]._take(chunk)
                    news[number] = True
        for stream, found, new in zip(streams, results, news, strict=True):
            found += stream._end(new, bool(found))
            if found:
                stream.result = found[-1]
        return results

    def _check_rules(self, rules: EndpointRules) -> None:
        """Raise UserError if streams cannot have these rules."""
        if not self.streaming and rules != NO_RULES:
            raise UserError("endpoint rules (endpoint_ms) need a streaming student; leave them out for this model")

    def _batch_key(self) -> Hashable:
        """Streams of recognisers with equal keys can be computed together."""
        return id(self)

    @property
    @abstractmethod
    def step_ms(self) -> int:
        """Milliseconds between the beginnings of two chunks of a stream."""

    @property
    @abstractmethod
    def wait_ms(self) -> tuple[float, float]:
        """Longest and mean milliseconds that a frame waits for the end of its chunk, look-ahead and front end."""

    @abstractmethod
    def _new_state(self) -> State:
        """State before the first sample of a stream."""

    @abstractmethod
    def _receive(self, state: State, samples: np.ndarray) -> None:
        """Append (n,) samples to the audio that is to be read."""

    @abstractmethod
    def _flush(self, state: State) -> int:
        """Complete the chunk of the last sound so far; samples of silence that were appended for it."""

    @abstractmethod
    def _ready(self, state: State) -> bool:
        """Whether there is audio for another chunk."""

    @abstractmethod
    def _compute(self, states: Sequence[State]) -> list[Scores]:
        """(t, V) scores of the next chunk of each stream, on the host; each is ready."""


class _Flush(NamedTuple):
    """The end of so many samples of audio, behind which there may be more unless it is the last."""

    samples: int
    last: bool


class Stream(Generic[State]):
    """One audio: what of it is still to be computed, the state of the model, and what was recognised.

    :meth:`accept`, :meth:`flush` and :meth:`finish` take effect in this order when the stream is decoded.

    Attributes:
        result: the last result; None before the first.
        closed: whether :meth:`finish` was called.
    """

    def __init__(self, recognizer: BaseRecognizer[State], state: State, decoder: StreamDecoder) -> None:
        self.recognizer, self.state = recognizer, state
        self.result: Result | None = None
        self._decoder = decoder
        self.closed = False
        self._waiting: deque[np.ndarray | _Flush] = deque()
        self._last = False  # what is computed from now on is the end

    def accept(self, samples: np.ndarray | Tensor, sample_rate: int = SAMPLE_RATE) -> None:
        """Take the next (n,) samples, floats in [-1, 1] or int16; any n.

        Raises:
            ValueError: the samples are not a vector of floats or of int16.
            UserError: a sample is not a finite number, or the rate is not 16 kHz.
            RuntimeError: the stream has ended.
        """
        self._check_open()
        if not isinstance(samples, np.ndarray) and hasattr(samples, "detach"):  # of torch
            samples = samples.detach().cpu()  # a device would be waited for
            samples = (samples.float() if samples.is_floating_point() else samples).numpy()
        piece = as_floats(np.asarray(samples), sample_rate)
        self._decoder.receive(piece)
        self._waiting.append(piece)

    def flush(self) -> None:
        """Let everything that was spoken so far come out, as in a pause; the stream goes on.

        Silence completes the last chunk. It does not count as audio: times of what follows are those of the audio. But
        it may end an utterance.

        Raises:
            RuntimeError: the stream has ended.
        """
        self._check_open()
        self._end_of_audio(last=False)

    def finish(self) -> None:
        """End the stream: what is left of its audio comes out, in a final result.

        Raises:
            RuntimeError: the stream has ended.
        """
        self._check_open()
        self.closed = True
        self._end_of_audio(last=True)

    def decode(self) -> list[Result]:
        """:meth:`BaseRecognizer.decode` of this stream alone."""
        return self.recognizer.decode([self])[0]

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """Hypotheses of the last final result, best first."""
        return self._decoder.hypotheses

    def _end_of_audio(self, last: bool) -> None:
        self._decoder.receive(np.zeros(0, np.float32))
        self._waiting.append(_Flush(self._decoder.samples, last))

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("the stream has ended; create another one")

    def _read(self) -> bool:
        """Hand over what waits until there is a chunk to compute; whether there is."""
        recognizer = self.recognizer
        while not (ready := recognizer._ready(self.state)) and self._waiting:
            part = self._waiting.popleft()
            if isinstance(part, np.ndarray):
                recognizer._receive(self.state, part)
                continue
            silence = recognizer._flush(self.state) if part.samples else 0
            if not part.last:
                self._decoder.put_in(silence, part.samples)
            self._last = part.last
        return ready

    def _take(self, scores: Scores) -> list[Result]:
        """Final results after the (t, V) scores of a chunk."""
        if not self.recognizer.streaming:
            self._decoder.accept_again(scores)
        elif self._last:
            self._decoder.accept_last(scores)
        else:
            return self._decoder.accept(scores)
        return []

    def _end(self, new: bool, ended: bool) -> list[Result]:
        """The result behind the last chunk; ``new``: some were computed, ``ended``: they ended utterances."""
        decoder = self._decoder
        if self._last:
            return [] if decoder.ended else [decoder.finish()]
        if not new or (ended and decoder.empty):
            return []
        return [decoder.partial(again=not self.recognizer.streaming)]


class Session:
    """The interface of recognisers before there were streams: a recogniser with one stream at a time.

    Deprecated; the next release has it no more.
    """

    def __init__(self, recognizer: BaseRecognizer[Any]) -> None:
        name = type(self).__name__
        warnings.warn(
            f"{name} goes with the next release: Recognizer and its streams take its place (docs/recognition.md)",
            DeprecationWarning,
            stacklevel=3,
        )
        self.recognizer = recognizer
        self.reset()

    def __getattr__(self, name: str) -> Any:
        if name == "recognizer":  # not there yet
            raise AttributeError(name)
        return getattr(self.recognizer, name)

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """Hypotheses of the last final result, best first."""
        return self.stream.hypotheses

    def reset(self) -> None:
        """Begin a new stream."""
        self.stream = self.recognizer.create_stream()

    def accept_waveform(self, samples: np.ndarray | Tensor, sample_rate: int = SAMPLE_RATE) -> list[Result]:
        """:meth:`Stream.accept`, and the results."""
        self._check_open()
        self.stream.accept(samples, sample_rate)
        return self.stream.decode()

    def flush(self) -> list[Result]:
        """:meth:`Stream.flush`, and the results."""
        self._check_open()
        self.stream.flush()
        return self.stream.decode()

    def finish(self) -> Result:
        """:meth:`Stream.finish`, and the last final result."""
        self._check_open()
        self.stream.finish()
        return self.stream.decode()[-1]

    def _check_open(self) -> None:
        if self.stream.closed:
            raise RuntimeError("the stream has ended; call reset() first")
