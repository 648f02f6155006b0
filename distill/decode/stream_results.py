"""Results of a stream: which text is recognised when, and where an utterance ends.

The recognisers in torch and in onnxruntime share this module, so their results follow one set of rules. It imports
neither of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

from distill.audio import SAMPLE_RATE, first_sound
from distill.decode.hypothesis import Hypothesis, Search
from distill.decode.token_text import tokens_to_text
from distill.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from distill.decode.greedy import BestTokens


NOTHING = Hypothesis([], [], 0.0)  # in silence


class TokenResult(TypedDict):
    """A recognised token, its time in the stream, and its posterior averaged over its frames."""

    token: str
    start_s: float
    end_s: float
    confidence: float


class Result(TypedDict):
    """What is recognised of the current utterance.

    ``audio_s`` is the length of the audio received so far, ``emitted_after_s`` the time between the arrival of the
    piece of audio that completed the result and the result itself; both are in seconds.
    """

    event: str  # "partial" or "final"
    text: str
    audio_s: float
    emitted_after_s: float
    tokens: list[TokenResult]


class StreamDecoder:
    """Decodes the frames of one audio stream and makes results of them.

    Before the first sound of a stream nothing is recognised, whatever a network makes of silence.

    Args:
        token_list: tokens by id, blank first.
        token_type: char, bpe, word or phn.
        frame_ms: milliseconds per frame.
        endpoint_ms: an utterance ends after this much silence behind its last token, checked at the end of each chunk;
            None: only the end of the stream ends it.
        new_search: creates the search of a stream.

    Attributes:
        hypotheses: of the last final result, best first.

    Raises:
        UserError: ``endpoint_ms`` is not positive.
    """

    def __init__(
        self,
        token_list: Sequence[str],
        token_type: str,
        frame_ms: int,
        endpoint_ms: int | None,
        new_search: Callable[[], Search],
    ) -> None:
        if endpoint_ms is not None and endpoint_ms <= 0:
            raise UserError(f"endpoint_ms: {endpoint_ms} must be positive")
        self._token_list, self._token_type, self._frame_s = token_list, token_type, frame_ms / 1000
        self._endpoint_frames = None if endpoint_ms is None else -(-endpoint_ms // frame_ms)
        self._new_search = new_search
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self.samples = 0
        self.hypotheses: list[Hypothesis] = []
        self._ended = False
        self._first_sound: int | None = None  # in samples
        self._silences: list[tuple[float, float]] = []  # begin and length in seconds of those that flush put in
        self._arrival = time.perf_counter()
        self._start_search()

    def _start_search(self) -> None:
        self._search = self._new_search()
        # Tokens of the last result; the first ``_settled`` of them can be reused in the next one.
        self._tokens: list[TokenResult] = []
        self._settled = 0

    def receive(self, audio: np.ndarray) -> None:
        """Note (n,) samples that arrive now. ``emitted_after_s`` of the next results is measured from this call.

        Raises:
            RuntimeError: the stream has ended.
        """
        if self._ended:
            raise RuntimeError("the stream has ended; call reset() first")
        self._arrival = time.perf_counter()
        if self._first_sound is None and (sound := first_sound(audio)) is not None:
            self._first_sound = self.samples + sound
        self.samples += len(audio)

    def accept(self, scores: Tensor | np.ndarray, chunk_frames: int) -> list[Result]:
        """Decode the (t, V) logits or log-probabilities of whole chunks, each of ``chunk_frames`` of them.

        Returns:
            a final result for each utterance that ends, then the partial result; nothing if t is 0.
        """
        if not len(scores):
            return []
        # Endpoints are checked chunk by chunk, so that they do not depend on how the audio was cut into pieces.
        step = len(scores) if self._endpoint_frames is None else chunk_frames
        results = []
        for first in range(0, len(scores), step):
            self._search.accept(scores[first : first + step])  # type: ignore[arg-type]
            if self._at_endpoint():
                final = self._final()
                if not self._silent:
                    results.append(final)
        if not results or self._search.best.tokens:
            results.append(self._partial())
        return results

    def accept_again(self, scores: Tensor | np.ndarray) -> Result:
        """Decode the (T, V) scores of all audio from its beginning, in place of what was decoded so far."""
        self._start_search()
        self._search.accept(scores)  # type: ignore[arg-type]
        return self._partial()

    def flush(self, samples: int, scores: Tensor | np.ndarray, chunk_frames: int) -> list[Result]:
        """The same for the (t, V) scores after ``samples`` of silence, which do not count as audio, were put in."""
        begin = self.samples / SAMPLE_RATE + sum(length for _, length in self._silences)
        self._silences.append((begin, samples / SAMPLE_RATE))
        return self.accept(scores, chunk_frames)

    def _audio_time(self, frame: int) -> float:
        """Seconds of audio at the beginning of a frame: without the silences before it."""
        time_s = frame * self._frame_s
        return time_s - sum(min(max(time_s - begin, 0.0), length) for begin, length in self._silences)

    def finish(self, scores: Tensor | np.ndarray | BestTokens | None = None) -> Result:
        """End the stream, after the last (t, V) scores, and return its last final result.

        Greedy decoding also takes the best tokens of t frames.
        """
        if scores is not None:
            self._search.accept(scores)  # type: ignore[arg-type]
        self._ended = True
        return self._final()

    @property
    def _silent(self) -> bool:
        """Whether the frames so far are of silence."""
        decoded = self._audio_time(self._search.frames) * SAMPLE_RATE
        return self._first_sound is None or self._first_sound >= decoded

    def _at_endpoint(self) -> bool:
        if self._endpoint_frames is None:
            return False
        tokens = self._search.best.tokens
        return bool(tokens) and self._search.frames - tokens[-1].end_frame >= self._endpoint_frames

    def _partial(self) -> Result:
        if self._silent:
            return self._result("partial", NOTHING)
        result = self._result("partial", self._search.best)
        self._settled = self._search.settled
        return result

    def _final(self) -> Result:
        found = self._search.finish()
        self.hypotheses = [NOTHING] if self._silent else found
        result = self._result("final", self.hypotheses[0])
        self._settled = 0
        return result

    def _result(self, event: str, hypothesis: Hypothesis) -> Result:
        audio_s = self.samples / SAMPLE_RATE
        # Settled tokens are reused: an hour has tens of thousands of tokens, and a result every chunk.
        del self._tokens[self._settled :]
        for token in hypothesis.tokens[self._settled :]:
            self._tokens.append(
                TokenResult(
                    token=self._token_list[token.id],
                    start_s=round(min(self._audio_time(token.start_frame), audio_s), 6),
                    end_s=round(min(self._audio_time(token.end_frame), audio_s), 6),
                    confidence=round(token.confidence, 6),
                )
            )
        if hypothesis.words is None:
            text = tokens_to_text((token["token"] for token in self._tokens), self._token_type)
        else:
            text = " ".join(word.text for word in hypothesis.words)
        return Result(
            event=event,
            text=text,
            audio_s=audio_s,
            emitted_after_s=time.perf_counter() - self._arrival,
            tokens=self._tokens.copy(),
        )
