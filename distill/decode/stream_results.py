"""Results of a stream: which text is recognised when, and where an utterance ends.

The recognisers in torch and in onnxruntime share this module, so their results follow one set of rules. It imports
neither of the two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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

    ``text`` begins with ``stable``: the words that no further audio changes; those behind them are tentative.
    ``start_s`` is the beginning of the utterance, that is the end of the one before it. ``endpoint`` says what ended a
    final result: one of the :class:`EndpointRules`, or "end" of the audio; None for a partial one. ``audio_s`` is the
    length of the audio received so far, ``emitted_after_s`` the time between the arrival of the piece of audio that
    completed the result and the result itself; all times are in seconds.
    """

    event: str  # "partial" or "final"
    text: str
    stable: str
    start_s: float
    endpoint: str | None
    audio_s: float
    emitted_after_s: float
    tokens: list[TokenResult]


@dataclass(frozen=True)
class EndpointRules:
    """When an utterance ends, in milliseconds; a rule that is None ends none. Rules are checked after each chunk.

    Attributes:
        silence: of silence behind the last token.
        empty: of silence without any token.
        length: of an utterance; while a token lasts it goes on, up to twice as long.

    Raises:
        UserError: one is not positive.
    """

    silence: int | None = None
    empty: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        for rule in fields(self):
            value = getattr(self, rule.name)
            if value is not None and value <= 0:
                raise UserError(f"endpoint rule {rule.name}: {value} ms must be positive")


def silence_rule(endpoint_ms: int | None) -> EndpointRules:
    """The rule that ``endpoint_ms`` of silence behind the last token end an utterance; None: no rule does.

    Raises:
        UserError: it is not positive.
    """
    if endpoint_ms is not None and endpoint_ms <= 0:
        raise UserError(f"endpoint_ms: {endpoint_ms} must be positive")
    return EndpointRules(silence=endpoint_ms)


RULES = tuple(rule.name for rule in fields(EndpointRules))
NO_RULES = EndpointRules()
SHERPA_RULES = EndpointRules(silence=1200, empty=2400, length=20000)  # sherpa-onnx's defaults


class StreamDecoder:
    """Decodes the frames of one audio stream and makes results of them.

    Before the first sound of a stream nothing is recognised, whatever a network makes of silence.

    Args:
        token_list: tokens by id, blank first.
        token_type: char, bpe, word or phn.
        frame_ms: milliseconds per frame.
        rules: only the end of the stream ends an utterance without any.
        new_search: creates the search of a stream.

    Attributes:
        hypotheses: of the last final result, best first.
        samples: received so far.
        ended: whether :meth:`finish` was called.
    """

    def __init__(
        self,
        token_list: Sequence[str],
        token_type: str,
        frame_ms: int,
        rules: EndpointRules,
        new_search: Callable[[], Search],
    ) -> None:
        self._token_list, self._token_type, self._frame_s = token_list, token_type, frame_ms / 1000
        self._rules = {
            rule.name: -(-getattr(rules, rule.name) // frame_ms)  # frames
            for rule in fields(rules)
            if getattr(rules, rule.name) is not None
        }
        self._new_search = new_search
        self.samples = 0
        self.hypotheses: list[Hypothesis] = []
        self.ended = False
        self._first_sound: int | None = None  # in samples
        self._silences: list[tuple[float, float]] = []  # begin and length in seconds of those that flush put in
        self._arrival = time.perf_counter()
        self._start_search()

    def _start_search(self) -> None:
        self._search = self._new_search()
        self._begin = 0  # frame at which the utterance begins
        # Tokens of the last result; the first ``_settled`` of them can be reused in the next one.
        self._tokens: list[TokenResult] = []
        self._settled = 0

    def receive(self, audio: np.ndarray) -> None:
        """Note (n,) samples that arrive now. ``emitted_after_s`` of the next results is measured from this call."""
        self._arrival = time.perf_counter()
        if self._first_sound is None and (sound := first_sound(audio)) is not None:
            self._first_sound = self.samples + sound
        self.samples += len(audio)

    def put_in(self, samples: int, place: int) -> None:
        """Note silence that does not count as audio, behind the first ``place`` samples; none is put in before it."""
        begin = place / SAMPLE_RATE + sum(length for _, length in self._silences)
        self._silences.append((begin, samples / SAMPLE_RATE))

    def accept(self, scores: Tensor | np.ndarray) -> list[Result]:
        """Decode the (t, V) logits or log-probabilities of a chunk.

        Returns:
            the final result, if the utterance ends.
        """
        self._search.accept(scores)  # type: ignore[arg-type]
        rule = self._rule()
        if rule is None:
            return []
        begin, guessed = self._begin, rule == "silence" and self._silent
        final = self._final(rule)
        if not guessed:
            return [final]
        self._begin = begin
        return []

    def accept_last(self, scores: Tensor | np.ndarray | BestTokens) -> None:
        """Decode the (t, V) scores of a chunk behind the end of the audio, where no rule ends the utterance.

        Greedy decoding also takes the best tokens of t frames.
        """
        self._search.accept(scores)  # type: ignore[arg-type]

    def accept_again(self, scores: Tensor | np.ndarray) -> None:
        """Decode the (T, V) scores of all audio from its beginning, in place of what was decoded so far."""
        self._start_search()
        self._search.accept(scores)  # type: ignore[arg-type]

    @property
    def empty(self) -> bool:
        """Whether nothing is recognised of the current utterance."""
        return not self._search.best.tokens

    def _audio_time(self, frame: int) -> float:
        """Seconds of audio at the beginning of a frame: without the silences before it."""
        time_s = frame * self._frame_s
        return time_s - sum(min(max(time_s - begin, 0.0), length) for begin, length in self._silences)

    def finish(self) -> Result:
        """End the stream and return its last final result."""
        self.ended = True
        return self._final("end")

    @property
    def _silent(self) -> bool:
        """Whether the frames so far are of silence."""
        decoded = self._audio_time(self._search.frames) * SAMPLE_RATE
        return self._first_sound is None or self._first_sound >= decoded

    def _rule(self) -> str | None:
        """The rule by which the utterance ends here."""
        if not self._rules:
            return None
        frames, tokens = self._search.frames, self._search.best.tokens
        silence = frames - (tokens[-1].end_frame if tokens else self._begin)
        if tokens and silence >= self._rules.get("silence", math.inf):
            return "silence"
        if (self._silent or not tokens) and frames - self._begin >= self._rules.get("empty", math.inf):
            return "empty"
        length = self._rules.get("length", math.inf)
        if frames - self._begin >= (length if silence else 2 * length):
            return "length"
        return None

    def partial(self, again: bool = False) -> Result:
        """The partial result of the current utterance; ``again``: more audio may change all of it."""
        if self._silent:
            return self._result("partial", NOTHING, 0)
        result = self._result("partial", self._search.best, 0 if again else self._search.settled)
        self._settled = self._search.settled
        return result

    def _final(self, endpoint: str) -> Result:
        found = self._search.finish()
        self.hypotheses = [NOTHING] if self._silent else found
        result = self._result("final", self.hypotheses[0], len(self.hypotheses[0].tokens), endpoint)
        self._settled = 0
        self._begin = self._search.frames
        return result

    def _result(self, event: str, hypothesis: Hypothesis, stable: int, endpoint: str | None = None) -> Result:
        """A result of a hypothesis whose first ``stable`` tokens cannot change any more."""
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
            stable=text if endpoint else self._stable_text(hypothesis, stable),
            start_s=round(min(self._audio_time(self._begin), audio_s), 6),
            endpoint=endpoint,
            audio_s=audio_s,
            emitted_after_s=time.perf_counter() - self._arrival,
            tokens=self._tokens.copy(),
        )

    def _stable_text(self, hypothesis: Hypothesis, stable: int) -> str:
        """Words that the first ``stable`` tokens spell, without the last one if it may go on."""
        if hypothesis.words is not None:
            end = hypothesis.tokens[stable - 1].end_frame if stable else 0
            whole = [word.text for word in hypothesis.words if word.end_frame <= end]
            return " ".join(whole[:-1])  # a search may still give the last one's tokens to another word
        tokens = [token["token"] for token in self._tokens[:stable]]
        if self._token_type in ("char", "bpe"):
            while tokens and tokens[-1] != "<space>" and not tokens.pop().startswith("▁"):
                pass
        return tokens_to_text(tokens, self._token_type)
