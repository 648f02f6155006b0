"""The configuration sections of a distillation, checked key by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from distill.errors import UserError

TARGETS = ("posterior", "transcript", "pseudo", "frame_kl", "none")
HIDDEN_LOSSES = ("mse", "cosine")
# Milliseconds between two output frames, known without building the network: of a student by its front end, and of
# every teacher.
FRAME_MS = {"cnn": 20, "fbank": 40}
TEACHER_FRAME_MS = 20


def _range(name: str, value: Any) -> tuple[float, float]:
    """A number or a pair of numbers as (low, high)."""
    pair = value if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int | float) for v in pair) or pair[0] > pair[1]:
        raise UserError(f"{name}: {value!r} is neither a number nor [low, high]")
    return pair[0], pair[1]


@dataclass(frozen=True)
class DistillConf:
    """Weights and targets of the loss.

    With a teacher ``loss = (1 - alpha) loss_hidden + alpha (beta loss_mmi + (1 - beta) loss_logits)
    + weight_ctc loss_ctc``; without one ``loss = loss_mmi (only if target is transcript) + weight_ctc loss_ctc``.

    ``target_delay_ms`` compares what the student knows that much later with what the teacher knew: a student that
    cannot hear the future then need not guess, but emits later.

    ``posterior_top_k`` (target posterior) keeps the teacher's k most probable tokens of every frame and spreads what is
    left evenly over the others: for a large vocabulary, where the teacher's forward-backward in training is dear.
    ``nbest`` (target pseudo) takes so many of the teacher's token sequences, weighted by their posteriors, not one.

    Target ``frame_kl`` puts the divergence of single frames in LF-MMI's place, and ``hidden_loss: cosine`` the angle in
    that of the squared error: what a follow-up project chose, to compare with.
    """

    alpha: float = 0.8
    beta: float = 0.8
    layer_map: Sequence[int] | None = None
    hidden_norm: bool = True
    hidden_loss: str = "mse"
    target: str = "none"
    den_scale: float = 1.0
    weight_ctc: float = 0.0
    graph: str | None = None
    target_delay_ms: float = 0.0
    posterior_top_k: int | None = None
    nbest: int = 1

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(f"distill_conf.target: {self.target!r} is none of {', '.join(TARGETS)}")
        if self.hidden_loss not in HIDDEN_LOSSES:
            raise UserError(f"distill_conf.hidden_loss: {self.hidden_loss!r} is none of {', '.join(HIDDEN_LOSSES)}")
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"distill_conf.{name}: {getattr(self, name)} is not between 0 and 1")
        top_k = self.posterior_top_k
        if top_k is not None and (top_k < 1 or self.target != "posterior"):
            raise UserError(f"distill_conf.posterior_top_k: {top_k} must be positive, and target posterior")
        if self.nbest < 1 or (self.nbest > 1 and self.target != "pseudo"):
            raise UserError(f"distill_conf.nbest: {self.nbest} must be positive; above 1 it needs target pseudo")
        for name in ("weight_ctc", "den_scale", "target_delay_ms"):
            if getattr(self, name) < 0:
                raise UserError(f"distill_conf.{name}: {getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class ChunkConf:
    """Attention chunks of a streaming student, in ms: a fixed length, or [low, high] to draw one for every batch.

    A chunk begins ``hop`` of its length after the one before. With less than 1, the rest at its end is look-ahead: seen
    by this chunk and put out by the next. A frame waits for ``chunk_ms`` at worst either way. ``full_prob`` of the
    training batches see everything instead; ``left_ms`` is the history before a chunk (null: all of it). Validation
    always takes 480 ms, or what the range holds nearest to it.
    """

    chunk_ms: Any = 480
    hop: float = 1.0
    full_prob: float = 0.0
    left_ms: float | None = 6000

    def __post_init__(self) -> None:
        low, _ = _range("chunk_conf.chunk_ms", self.chunk_ms)
        if low <= 0:
            raise UserError(f"chunk_conf.chunk_ms: {self.chunk_ms} must be positive")
        if not 0 <= self.full_prob <= 1:
            raise UserError(f"chunk_conf.full_prob: {self.full_prob} is not a probability")
        if not 0 < self.hop <= 1:
            raise UserError(f"chunk_conf.hop: {self.hop} must be above 0 and at most 1")
        if self.left_ms is not None and self.left_ms < 0:
            raise UserError(f"chunk_conf.left_ms: {self.left_ms} must not be negative")

    def range_in_frames(self, frame_ms: int) -> tuple[int, int]:
        """Shortest and longest chunk in frames: the multiples of ``frame_ms`` within the range."""
        low, high = _range("chunk_conf.chunk_ms", self.chunk_ms)
        first, last = -int(-low // frame_ms), int(high // frame_ms)
        if first > last:
            raise UserError(f"chunk_conf.chunk_ms: {self.chunk_ms} holds no multiple of the student's {frame_ms} ms")
        return first, last

    def in_frames(self, chunk: int, frame_ms: int) -> tuple[int, int | None, int]:
        """Frames that a chunk of ``chunk`` frames puts out, of history (None: all), and of look-ahead."""
        hop = max(1, round(chunk * self.hop))
        return hop, None if self.left_ms is None else int(self.left_ms // frame_ms), chunk - hop


@dataclass(frozen=True)
class AugmentConf:
    """Random gain within +-``gain_db`` and noise at a random SNR, each for a share ``prob`` of the utterances."""

    gain_db: float = 6.0
    noise_snr_db: Any = (10.0, 40.0)
    prob: float = 0.5

    def __post_init__(self) -> None:
        _range("augment_conf.noise_snr_db", self.noise_snr_db)
        if not 0 <= self.prob <= 1:
            raise UserError(f"augment_conf.prob: {self.prob} is not a probability")

    @property
    def snr_range(self) -> tuple[float, float]:
        return _range("augment_conf.noise_snr_db", self.noise_snr_db)


def student_frame_ms(network_conf: Mapping[str, Any]) -> tuple[int, int]:
    """Milliseconds between logit frames and between encoder frames of a student, from its ``network_conf``."""
    front_end = network_conf.get("front_end", "cnn")
    if front_end not in FRAME_MS:
        raise UserError(f"network_conf.front_end: {front_end!r} is neither cnn nor fbank")
    encoder_ms = FRAME_MS[front_end]
    return encoder_ms // (network_conf.get("logits_per_frame") or encoder_ms // TEACHER_FRAME_MS), encoder_ms


def frames_of_chunk(chunk_ms: int, frame_ms: int) -> int:
    """Frames in a chunk of ``chunk_ms``.

    Raises:
        UserError: ``chunk_ms`` is not a positive multiple of the network's ``frame_ms``.
    """
    if chunk_ms <= 0 or chunk_ms % frame_ms:
        raise UserError(f"chunk_ms: {chunk_ms} is not a positive multiple of the model's {frame_ms} ms frames")
    return chunk_ms // frame_ms


Conf = TypeVar("Conf", DistillConf, ChunkConf, AugmentConf)


def read_conf(kind: type[Conf], section: str, values: Mapping[str, Any] | None) -> Conf | None:
    """A configuration section as its dataclass; None for null. An unknown key is a :class:`UserError`."""
    if values is None:
        return None
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(f"{section}: no key {key!r}; it has {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{section}: {error}") from error


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layer g(i) = i * L_T // L_S for student layers i = 1 ... L_S.

    24 -> 12 layers gives 2, 4, ..., 24; equal depths give the identity.
    """
    if student_layers > teacher_layers:
        raise UserError(
            f"network_conf.layers: the student's {student_layers} layers are more than the teacher's {teacher_layers}; "
            "give distill_conf.layer_map"
        )
    return [i * teacher_layers // student_layers for i in range(1, student_layers + 1)]
