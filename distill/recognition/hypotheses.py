"""The rows of hyp.JOB.jsonl: their content, and the file while it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from distill.decode.hypothesis import Hypothesis, Word, words_of
from distill.decode.stream_results import Result


def result_row(
    utterance: str,
    result: Result,
    hypotheses: Sequence[Hypothesis],
    token_list: Sequence[str],
    token_type: str,
    frame_ms: int,
    audio_s: float,
) -> dict[str, Any]:
    """The row of an utterance: text, tokens and words with times, n-best list, seconds of audio.

    Args:
        result: the final one.
        hypotheses: best first.
        frame_ms: milliseconds of a logit frame.
    """
    frame_s = frame_ms / 1000
    latest = max(0.0, audio_s - frame_s)  # a word that came out in the silence at the end was spoken before
    nbest = [words_of(hypothesis, token_list, token_type) for hypothesis in hypotheses]

    def word_row(word: Word) -> dict[str, Any]:
        return {
            "word": word.text,
            "start_s": round(min(word.start_frame * frame_s, latest), 6),
            "end_s": round(min(word.end_frame * frame_s, audio_s), 6),
            "confidence": round(word.confidence, 6),
        }

    row = {
        "utterance": utterance,
        "text": result["text"],
        "tokens": result["tokens"],
        "words": [word_row(word) for word in nbest[0]],
        "score": hypotheses[0].score,
        "audio_s": audio_s,
    }
    if len(nbest) > 1:
        row["nbest"] = [
            {"text": " ".join(word.text for word in words), "score": hypothesis.score}
            for words, hypothesis in zip(nbest, hypotheses, strict=True)
        ]
    return row


class HypothesisFile:
    """A hyp.JOB.jsonl that is being written: beside it as PATH.part, renamed to PATH when it is complete.

    What a run that was cut off has left in PATH.part is kept.

    Attributes:
        done: utterances that have a row.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._part = path, path.with_name(f"{path.name}.part")
        self.done: set[str] = set()
        self._stream: IO[bytes] = open(self._part, "a+b")
        self._stream.seek(0)
        whole = 0
        for line in self._stream:
            try:
                utterance = json.loads(line)["utterance"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                break
            if utterance is None:
                break
            self.done.add(utterance)
            whole += len(line)
        self._stream.truncate(whole)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.done.add(row["utterance"])

    def flush(self) -> None:
        """Hand all rows so far to the operating system, so that they outlive this process."""
        self._stream.flush()

    def __enter__(self) -> HypothesisFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if kind is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
        if kind is None:
            os.replace(self._part, self._path)
