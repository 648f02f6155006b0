"""The configuration sections of a distillation, checked key by key."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from distill.errors import UserError
from distill.files import atomic_write, read_yaml, yaml_text

# Milliseconds between two encoder frames, known without building the network: of a student by its front end, and of
# teachers of wav2vec 2.0's layout.
FRAME_MS = {"cnn": 20, "fbank": 40}
TEACHER_FRAME_MS = 20
CODEWORDS = 256  # of a codebook, so that a code is a byte
CODED_TOKENS = 64  # as many tokens at most, and their logits are coded as layers are
MAX_CHUNK_MS, MAX_LEFT_MS = 60_000, 600_000  # beyond these the caches of a stream would fill the memory

# Types of configuration values, as YAML has them: "1e-3" is no number and 1 is not true. No number is infinite or NaN.
Int: TypeAlias = Annotated[int, pydantic.Strict()]
Float: TypeAlias = Annotated[float, pydantic.Strict()]
Number: TypeAlias = Int | Float
Flag: TypeAlias = Annotated[bool, pydantic.Strict()]
Share: TypeAlias = Annotated[Float, Field(ge=0, le=1)]
Positive: TypeAlias = Annotated[Int, Field(ge=1)]
NotNegative: TypeAlias = Annotated[Float, Field(ge=0)]
KEYS = ConfigDict(extra="forbid", allow_inf_nan=False)  # of a section that has these keys and no others


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

    ``token_delay_ms`` bounds the alignments of token sequences in ``loss_ctc`` and in LF-MMI's numerators: no token may
    be put out earlier than this long after the frame where it begins on the teacher's best alignment. A teacher with
    full context puts tokens out before they are heard; a streaming student then cannot learn to guess them. null, or no
    teacher: no bound.

    ``posterior_top_k`` (target posterior) keeps the teacher's k most probable tokens of every frame and spreads the
    rest of the probability evenly over the others; it saves the teacher's forward-backward for large vocabularies.
    ``nbest`` (target pseudo) uses so many of the teacher's token sequences, weighted by their posteriors, not one.

    Target ``frame_kl`` replaces LF-MMI by the Kullback-Leibler divergence of single frames, and ``hidden_loss: cosine``
    the squared error by the cosine distance. ``hidden_loss: codes`` predicts the codes of stored targets of the dtype
    codebook instead, by their cross-entropy.
    """

    __pydantic_config__ = KEYS

    alpha: Share = 0.8
    beta: Share = 0.8
    layer_map: Sequence[Positive] | None = None
    hidden_norm: Flag = True
    hidden_loss: Literal["mse", "cosine", "codes"] = "mse"
    target: Literal["posterior", "transcript", "pseudo", "frame_kl", "none"] = "none"
    den_scale: NotNegative = 1.0
    weight_ctc: NotNegative = 0.0
    graph: str | None = None
    target_delay_ms: NotNegative = 0.0
    token_delay_ms: NotNegative | None = None
    posterior_top_k: Positive | None = None
    nbest: Positive = 1

    def __post_init__(self) -> None:
        top_k = self.posterior_top_k
        if top_k is not None and self.target != "posterior":
            raise UserError(f"distill_conf.posterior_top_k: {top_k} needs target posterior")
        if self.nbest > 1 and self.target != "pseudo":
            raise UserError(f"distill_conf.nbest: {self.nbest} needs target pseudo")

    @property
    def compares_frames(self) -> bool:
        """Whether single frames of logits are compared, or a lattice made of them, rather than token sequences."""
        return self.alpha > 0 and (self.beta < 1 or self.target in ("posterior", "frame_kl"))


@dataclass(frozen=True)
class ChunkConf:
    """Attention chunks of a streaming student, in ms: a fixed length, or [low, high] to draw one for every batch.

    A chunk begins ``hop`` of its length after the one before. With less than 1, the rest at its end is look-ahead: seen
    by this chunk and put out by the next. A frame waits for ``chunk_ms`` at worst either way. ``max_lookahead_ms``
    bounds the look-ahead of long chunks, which then follow each other less often: less to compute. ``full_prob`` of
    the training batches have full context instead; ``left_ms`` is the history before a chunk (null: all of it).
    Validation uses 480 ms, or the nearest length of the range.
    """

    __pydantic_config__ = KEYS

    chunk_ms: Number | Sequence[Number] = 480
    hop: Annotated[Float, Field(gt=0, le=1)] = 1.0
    max_lookahead_ms: Annotated[Float, Field(ge=0, le=MAX_CHUNK_MS)] | None = None
    full_prob: Share = 0.0
    left_ms: Annotated[Float, Field(ge=0, le=MAX_LEFT_MS)] | None = 6000

    def __post_init__(self) -> None:
        low, high = _range("chunk_conf.chunk_ms", self.chunk_ms)
        if not 0 < low <= high <= MAX_CHUNK_MS:
            raise UserError(f"chunk_conf.chunk_ms: {self.chunk_ms} must be above 0 and at most {MAX_CHUNK_MS}")

    @property
    def range_ms(self) -> tuple[float, float]:
        """Shortest and longest chunk of the training."""
        return _range("chunk_conf.chunk_ms", self.chunk_ms)

    def range_in_frames(self, frame_ms: int) -> tuple[int, int]:
        """Shortest and longest chunk in frames: the multiples of ``frame_ms`` within the range."""
        low, high = self.range_ms
        first, last = -int(-low // frame_ms), int(high // frame_ms)
        if first > last:
            raise UserError(f"chunk_conf.chunk_ms: {self.chunk_ms} holds no multiple of the student's {frame_ms} ms")
        return first, last

    def in_frames(self, chunk: int, frame_ms: int) -> tuple[int, int | None, int]:
        """Frames that a chunk of ``chunk`` frames puts out, of history (None: all), and of look-ahead."""
        lookahead = chunk - max(1, round(chunk * self.hop))
        if self.max_lookahead_ms is not None:
            lookahead = min(lookahead, int(self.max_lookahead_ms // frame_ms))
        left = None if self.left_ms is None else int(self.left_ms // frame_ms)
        return chunk - lookahead, left, lookahead


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

    __pydantic_config__ = KEYS

    gain_db: Number | Sequence[Number] = 6.0
    noise_snr_db: Number | Sequence[Number] = (10.0, 40.0)
    prob: Share = 0.5
    silence_s: Annotated[Float, Field(ge=0, le=3600)] = 0.0

    def __post_init__(self) -> None:
        _range("augment_conf.noise_snr_db", self.noise_snr_db)
        _range("augment_conf.gain_db", self.gain_range)

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

    __pydantic_config__ = KEYS

    time_ms: NotNegative = 100.0
    times_per_s: NotNegative = 1.0
    bands: Annotated[Int, Field(ge=0)] = 2
    band_share: Share = 0.2


def student_frame_ms(network_conf: Mapping[str, Any]) -> tuple[int, int]:
    """Milliseconds between logit frames and between encoder frames of a student, from its ``network_conf``."""
    front_end = network_conf.get("front_end", "cnn")
    if front_end not in FRAME_MS:
        raise UserError(f"network_conf.front_end: {front_end!r} is neither cnn nor fbank")
    encoder_ms = FRAME_MS[front_end]
    return encoder_ms // (network_conf.get("logits_per_frame") or encoder_ms // TEACHER_FRAME_MS), encoder_ms


def frame_factors(teacher_ms: int, student_ms: int) -> tuple[int, int]:
    """How many teacher frames are averaged for a comparison, and how many student frames: at least one of them is 1.

    Raises:
        UserError: neither frame is a multiple of the other.
    """
    if student_ms % teacher_ms and teacher_ms % student_ms:
        raise UserError(f"frames of {teacher_ms} ms do not fit the student's {student_ms} ms")
    return max(1, student_ms // teacher_ms), max(1, teacher_ms // student_ms)


def check_frames_compared(conf: DistillConf, teacher_ms: int, student_ms: int) -> None:
    """Refuse to compare single frames of logits where the teacher's are longer than the student's.

    Raises:
        UserError: that says what can be compared.
    """
    if frame_factors(teacher_ms, student_ms)[1] > 1 and conf.compares_frames:
        raise UserError(
            f"its frames of logits, of {teacher_ms} ms, are longer than the student's {student_ms} ms and cannot be "
            "compared one by one; give distill_conf beta: 1 and target: pseudo (the teacher's best text) or transcript"
        )


def check_tokens_compared(conf: DistillConf) -> None:
    """Refuse to compare logits with those of a teacher that has other tokens.

    Raises:
        UserError: that says what can be compared.
    """
    if conf.compares_frames or (conf.alpha > 0 and conf.nbest > 1) or conf.token_delay_ms is not None:
        raise UserError(
            "its tokens are not this training's, so only its best text can be used: give distill_conf beta: 1, target: "
            "pseudo (that text, in this training's tokens) or transcript, nbest: 1 and no token_delay_ms"
        )


def code_bytes(width: int) -> int:
    """Bytes of a frame of a hidden layer of that width as codes: 8 from 512 on."""
    return max(3, min(8, width // 64))


def top_logits(vocab_size: int) -> tuple[int, bool]:
    """How many tokens of a frame's logits are kept beside codes, and whether an id takes two bytes."""
    return min(8, vocab_size - 1), vocab_size > 256


def logit_codes(vocab_size: int) -> int:
    """Codes of a frame's logits; 0: those of the most probable tokens are kept instead."""
    return max(2, min(8, 1 + vocab_size // 3)) if vocab_size <= CODED_TOKENS else 0


def logit_bytes(vocab_size: int) -> int:
    """Bytes of a frame's logits: codes, or ids and values of the kept tokens and a value for all others."""
    if codes := logit_codes(vocab_size):
        return codes
    kept, wide = top_logits(vocab_size)
    return kept * (3 if wide else 2) + 1


def frames_of_chunk(chunk_ms: int, frame_ms: int) -> int:
    """Encoder frames in a chunk of ``chunk_ms``.

    Raises:
        UserError: ``chunk_ms`` is not a positive multiple of the network's ``encoder_frame_ms``, or too long.
    """
    if chunk_ms <= 0 or chunk_ms % frame_ms or chunk_ms > MAX_CHUNK_MS:
        raise UserError(
            f"chunk_ms: {chunk_ms} is not a positive multiple of the model's {frame_ms} ms frames"
            f", at most {MAX_CHUNK_MS}"
        )
    return chunk_ms // frame_ms


Conf = TypeVar("Conf")


@functools.cache
def _checker(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: type[Conf], section: str, values: Any) -> Conf:
    """A configuration section as its dataclass, whose fields say which values they take.

    Args:
        section: beginning of the error message; empty: that begins with the key.

    Raises:
        UserError: not a map, an unknown key, or a value of another type, out of range or not finite.
    """
    try:
        return _checker(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fields = {name for name in kind.__annotations__ if not name.startswith("_")}
        key = first["loc"][0] if first["loc"] else None
        if first["type"] in ("unexpected_keyword_argument", "invalid_key"):
            raise UserError(f"{section}: no key {key!r}; it has {', '.join(sorted(fields))}") from None
        # What follows the field's name is where in a list it is wrong, or which of several types was tried.
        where = [str(part) for part in first["loc"][:1]] + [f"[{n}]" for n in first["loc"][1:] if isinstance(n, int)]
        place = ".".join(filter(None, [section, "".join(where)]))
        reason = first["msg"].removeprefix("Input ").replace("a dictionary or an instance of", "a map of")
        raise UserError(f"{place}: {shortened(first['input'])} {reason}") from None


def shortened(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_conf(kind: type[Conf], section: str, values: Mapping[str, Any] | None) -> Conf | None:
    """A configuration section as its dataclass, see :func:`checked`; None for null."""
    return None if values is None else checked(kind, section, values)


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
        UserError: not found, or not a map of plain values in YAML.
    """
    return read_yaml(path, "give a training's configuration, with keys such as max_epoch")


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
    new = read_training_config(student)
    if new.get("network") != "student" or not isinstance(new.get("network_conf"), dict):
        raise UserError(f"{student}: no student; expected network: student and network_conf, as in conf/students")
    with atomic_write(output) as stream:
        stream.write(yaml_text(with_student(read_training_config(config), new)))
