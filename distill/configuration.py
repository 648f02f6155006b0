"""The configuration sections of a distillation, checked key by key."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import UserError
from distill.files import atomic_write

TARGETS = ("posterior", "transcript", "pseudo", "frame_kl", "none")
HIDDEN_LOSSES = ("mse", "cosine")
# Milliseconds between two encoder frames, known without building the network: of a student by its front end, and of
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
    + weight_ctc loss_ctc``, where ``loss_logits`` is the squared error of logits from which each frame's mean is taken,
    as softmax ignores it; without one ``loss = loss_mmi (only if target is transcript) + weight_ctc loss_ctc``.

    ``target_delay_ms`` compares frame t of the teacher with the student's frame that much later: a streaming student
    then sees as much of the future as it needs, but emits tokens later.

    ``posterior_top_k`` (target posterior) keeps the teacher's k most probable tokens of every frame and spreads the
    rest of the probability evenly over the others; it saves the teacher's forward-backward for large vocabularies.
    ``nbest`` (target pseudo) uses so many of the teacher's token sequences, weighted by their posteriors, not one.

    Target ``frame_kl`` replaces LF-MMI by the Kullback-Leibler divergence of single frames, and ``hidden_loss: cosine``
    the squared error by the cosine distance.
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
    training batches have full context instead; ``left_ms`` is the history before a chunk (null: all of it). Validation
    uses 480 ms, or the nearest length of the range.
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
    """Random gain and noise at a random SNR, each for a share ``prob`` of the utterances, and silence around them.

    Attributes:
        gain_db: [low, high], or a number for [-gain_db, gain_db].
        noise_snr_db: [low, high] or one value.
        prob: share of utterances with gain, with noise, and of batches with silence.
        silence_s: most silence put before and after the utterances of a batch, in seconds together. Draws are mostly
            short, a fifth of it on average.
    """

    gain_db: Any = 6.0
    noise_snr_db: Any = (10.0, 40.0)
    prob: float = 0.5
    silence_s: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.silence_s, int | float) or not 0 <= self.silence_s < math.inf:
            raise UserError(f"augment_conf.silence_s: {self.silence_s} is not a number of seconds from 0 on")
        _range("augment_conf.noise_snr_db", self.noise_snr_db)
        _range("augment_conf.gain_db", self.gain_range)
        if not 0 <= self.prob <= 1:
            raise UserError(f"augment_conf.prob: {self.prob} is not a probability")

    @property
    def snr_range(self) -> tuple[float, float]:
        return _range("augment_conf.noise_snr_db", self.noise_snr_db)

    @property
    def gain_range(self) -> Any:
        gain = self.gain_db
        return (-gain, gain) if isinstance(gain, int | float) else gain


@dataclass(frozen=True)
class MaskConf:
    """Stretches of time and bands of frequency of the features that are hidden in training (Park et al. 2019).

    The features are the log-mel of an fbank front end, and what the CNN puts out of a cnn front end.

    Attributes:
        time_ms: longest masked stretch; each is drawn from 0 to it, and is at most a fifth of the utterance.
        times_per_s: masked stretches for each second of an utterance; at least one.
        bands: masked bands of every utterance.
        band_share: widest band, as a share of all bins; each is drawn from 0 to it.
    """

    time_ms: float = 100.0
    times_per_s: float = 1.0
    bands: int = 2
    band_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("time_ms", "times_per_s", "bands"):
            if getattr(self, name) < 0:
                raise UserError(f"mask_conf.{name}: {getattr(self, name)} must not be negative")
        if not 0 <= self.band_share <= 1:
            raise UserError(f"mask_conf.band_share: {self.band_share} is not between 0 and 1")


def student_frame_ms(network_conf: Mapping[str, Any]) -> tuple[int, int]:
    """Milliseconds between logit frames and between encoder frames of a student, from its ``network_conf``."""
    front_end = network_conf.get("front_end", "cnn")
    if front_end not in FRAME_MS:
        raise UserError(f"network_conf.front_end: {front_end!r} is neither cnn nor fbank")
    encoder_ms = FRAME_MS[front_end]
    return encoder_ms // (network_conf.get("logits_per_frame") or encoder_ms // TEACHER_FRAME_MS), encoder_ms


def frames_of_chunk(chunk_ms: int, frame_ms: int) -> int:
    """Encoder frames in a chunk of ``chunk_ms``.

    Raises:
        UserError: ``chunk_ms`` is not a positive multiple of the network's ``encoder_frame_ms``.
    """
    if chunk_ms <= 0 or chunk_ms % frame_ms:
        raise UserError(f"chunk_ms: {chunk_ms} is not a positive multiple of the model's {frame_ms} ms frames")
    return chunk_ms // frame_ms


Conf = TypeVar("Conf", DistillConf, ChunkConf, AugmentConf, MaskConf)


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


def read_training_config(path: Path) -> dict[str, Any]:
    """Read a training configuration, a YAML file such as those in conf/.

    Raises:
        UserError: not found, or not a mapping in YAML.
    """
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: not found; give the training's configuration")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a training's configuration; expected keys such as max_epoch")
    return config


def for_processes(training: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """``training`` on so many GPUs (or CPU processes), each of which takes batches of ``batch_bins``.

    As many fewer batches make an update of the weights (``accum_grad``), down to one, so the audio of an update stays
    the same up to ``accum_grad`` processes and grows from there on. ``num_iters_per_epoch`` shrinks with it: the number
    of updates in an epoch, on which schedulers rely, stays the same.
    """
    accumulated = int(training.get("accum_grad") or 1)
    of_each = -(-accumulated // processes)
    result = {**training, "accum_grad": of_each}
    if training.get("batch_bins"):
        result["batch_bins"] = int(training["batch_bins"]) * processes
    if training.get("num_iters_per_epoch"):
        result["num_iters_per_epoch"] = max(1, round(int(training["num_iters_per_epoch"]) * of_each / accumulated))
    return result


def with_student(training: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``training`` with the ``network_conf`` of ``student``, but with its dropout.

    The front end is frozen as before only if the new student has the same: another than the teacher's must be trained.
    """
    before, network = training.get("network_conf") or {}, dict(student["network_conf"])
    if "dropout" in before:
        network.setdefault("dropout", before["dropout"])
    old_front, front = before.get("front_end_conf") or {}, dict(network.get("front_end_conf") or {})
    same = before.get("front_end") == network.get("front_end") and old_front.get("channels") == front.get("channels")
    if same and "freeze" in old_front:
        front.setdefault("freeze", old_front["freeze"])
    network["front_end_conf"] = front
    return {**training, "network": "student", "network_conf": network}


def write_student_config(config: Path, student: Path, output: Path) -> None:
    """Write the training configuration ``config`` with the student of another file; see :func:`with_student`."""
    import yaml

    new = read_training_config(student)
    if new.get("network") != "student" or not isinstance(new.get("network_conf"), dict):
        raise UserError(f"{student}: no student; expected network: student and network_conf, as in conf/students")
    with atomic_write(output) as stream:
        yaml.safe_dump(with_student(read_training_config(config), new), stream, sort_keys=False, allow_unicode=True)
