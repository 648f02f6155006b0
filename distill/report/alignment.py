"""When tokens come out: those of teacher and student over the spectrogram of an utterance, with their times."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from distill.audio import SAMPLE_RATE, read_audio
from distill.bench.latency import emitted_at, recognise
from distill.models.fbank import FRAME, FbankFrontEnd
from distill.report.plots import Mark, Scale, Tick, number, separate_labels

if TYPE_CHECKING:
    from distill.streaming.recognizer import Recognizer

MOST_S = 15.0  # of an utterance that is shown
LEFT, RIGHT, IMAGE = 58, 40, 110  # px: before and after the spectrogram, and its height
LINE = 15  # px, height of a line of text
CHARACTER = 7.0  # px, width of a character


@dataclass
class Alignment:
    """A drawing of ``width`` x ``height`` px, of an utterance of ``seconds``.

    Attributes:
        image: data URL of the log-mel spectrogram, drawn from ``top`` to ``bottom`` and from ``left`` to ``right``.
        teacher: a mark for each token at the middle of its frames, above the image; empty without a teacher.
        student: a mark for each token, likewise, below the image.
        shown: where in the drawing each of the student's tokens comes out, in px; empty where it does so at the end.
    """

    name: str
    seconds: float
    image: str
    width: float = 0.0
    height: float = 0.0
    left: float = LEFT
    right: float = 0.0
    top: float = 0.0
    bottom: float = 0.0
    teacher: list[Mark] = field(default_factory=list)
    student: list[Mark] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    description: str = ""  # for screen readers


def spectrogram(audio: np.ndarray) -> str:
    """Data URL of a PNG: log-mel energies as opacity, a column for each 10 ms, low frequencies below."""
    samples = np.pad(audio, (0, max(0, FRAME - len(audio))))
    log_mel = FbankFrontEnd().features(torch.from_numpy(samples)[None])[0].numpy().T[::-1]
    low, high = np.percentile(log_mel, (10, 99))
    alpha = np.clip((log_mel - low) / max(high - low, 1e-3), 0, 1)
    pixels = np.stack([np.full_like(alpha, 0.45), alpha], -1)  # a grey that both a light and a dark page show
    out = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8), "LA").save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def align(name: str, audio: np.ndarray, student: Recognizer, teacher: Recognizer | None) -> Alignment:
    """Recognise an utterance with both, the student as it arrives, and draw when which token comes out.

    Args:
        audio: (n,) samples in [-1, 1].
        student: at the chunk length that is shown.
        teacher: with full context; or None.
    """
    drawing = Alignment(name, len(audio) / SAMPLE_RATE, spectrogram(audio))
    results = recognise(student, audio)
    tokens, emitted = results[-1]["tokens"], emitted_at(results)
    aligned = [] if teacher is None else teacher.recognize(audio)["tokens"]
    characters = max(sum(len(token["token"]) + 1 for token in row) for row in (tokens, aligned))
    second = max(80.0, 640 / max(drawing.seconds, 1.0), min(260.0, CHARACTER * characters / max(drawing.seconds, 1.0)))
    drawing.right = round(LEFT + second * drawing.seconds, 1)
    drawing.width = drawing.right + RIGHT
    x = Scale(0, drawing.seconds, LEFT, drawing.right)
    drawing.teacher = [
        Mark(x((token["start_s"] + token["end_s"]) / 2), 0, 2.5, f"{token['token']}: {token['start_s']:.2f} s")
        for token in aligned
    ]
    for token, mark in zip(aligned, drawing.teacher, strict=True):
        mark.label = token["token"]
    delays = student.chunk_ms is not None
    for token, seconds in zip(tokens, emitted, strict=True):
        title = f"{token['token']}: {token['start_s']:.2f} s" + (f", out at {seconds:.2f} s" if delays else "")
        drawing.student.append(Mark(x((token["start_s"] + token["end_s"]) / 2), 0, 2.5, title, label=token["token"]))
        drawing.shown += [x(seconds)] if delays else []
    place_rows(drawing, x)
    texts = [f"teacher: {'; '.join(mark.title for mark in drawing.teacher)}"] if aligned else []
    drawing.description = ". ".join([*texts, f"student: {'; '.join(mark.title for mark in drawing.student)}"])
    return drawing


def place_rows(drawing: Alignment, x: Scale) -> None:
    """Lay out the rows: teacher, image, axis, student; labels stacked where they would overlap."""
    separate_labels(drawing.teacher, LINE, CHARACTER)
    lines = max((-mark.label_y for mark in drawing.teacher), default=-LINE) + LINE
    drawing.top = lines + 8 if drawing.teacher else 4
    drawing.bottom = drawing.top + IMAGE
    for mark in drawing.teacher:
        mark.y, mark.label_y = drawing.top - 4, drawing.top - 10 + mark.label_y
    drawing.ticks = [Tick(x(second), number(second)) for second in range(int(drawing.seconds) + 1)]
    # A label stands under the moment when its token comes out
    labels = [Mark(at, 0, 0, "", label=mark.label) for mark, at in zip(drawing.student, drawing.shown, strict=False)]
    labels = labels or [Mark(mark.x, 0, 0, "", label=mark.label) for mark in drawing.student]
    separate_labels(labels, LINE, CHARACTER)
    for mark, label in zip(drawing.student, labels, strict=True):
        mark.y, mark.label_y = drawing.bottom + 26, drawing.bottom + 58 - label.label_y
    drawing.height = max((mark.label_y for mark in drawing.student), default=drawing.bottom + 30) + 8


def alignments(student: Path, teacher: Path | None, chunk_ms: int | None, paths: Mapping[str, str]) -> list[Alignment]:
    """Draw utterances, see :func:`align`.

    Args:
        student, teacher: directories of trainings.
        chunk_ms: of the student; None: full context.
        paths: audio by utterance.
    """
    from distill.streaming.recognizer import Recognizer

    recognizer = Recognizer.from_pretrained(student, chunk_ms)
    reference = None if teacher is None else Recognizer.from_pretrained(teacher, None)
    return [align(name, read_audio(path), recognizer, reference) for name, path in paths.items()]


def chosen(seconds: Mapping[str, float], first: str | None, count: int) -> list[str]:
    """Utterances to show: ``first``, and those in the middle by length; none is longer than MOST_S.

    Args:
        seconds: of each utterance.
        first: such as the one with the most errors.
    """
    short = [name for length, name in sorted((length, name) for name, length in seconds.items()) if length <= MOST_S]
    names = [short[index] for index in sorted(range(len(short)), key=lambda index: abs(index - len(short) // 2))]
    if first in names:
        names.remove(first)
        names.insert(0, first)
    return names[:count]
