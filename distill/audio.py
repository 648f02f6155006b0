"""Read audio files, and refuse those that would give wrong results, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distill.containers import check_format, check_whole
from distill.errors import UserError
from distill.files import text_lines

SAMPLE_RATE = 16000  # Hz, of everything that a model reads
# Samples of silence behind the end of a stream, at least: its last word may come out a little after it was spoken.
END_SILENCE = 3200
# A network that sees all of an utterance at once takes memory that grows with it, and time that grows faster.
MOST_AT_ONCE_S = 120
SILENT = 3e-4  # largest sample of audio in which nothing can be heard: ten steps of 16 bits, -70 dB of full scale
BLOCK = 1 << 20  # samples per channel that are read at a time
_ARK = re.compile(r"(.+\.ark):(\d+)$")


def read_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples of a one-channel audio file as float32 in [-1, 1], shape (N,), N >= 1.

    Digital silence and clipped audio are accepted.

    Args:
        path: a file that libsndfile reads (WAV, FLAC, ...), or ``FILE.ark:OFFSET`` as in a Kaldi wav.scp.
        sample_rate: expected sampling rate in Hz.

    Raises:
        UserError: the file is missing, truncated, no audio, empty, of another sampling rate, has several channels, or
            has samples that are not finite.
    """
    ark = _ARK.match(str(path))
    file = Path(ark.group(1)) if ark else Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such audio file; check the path")
    if ark:
        rate, samples = _read_ark(str(path))
    else:
        check_whole(file)
        rate, samples = _read_file(file)
    cure = f"convert it: sox {_shell(file)} -r {sample_rate} -c 1 OUT.wav"
    if samples.ndim > 1 and samples.shape[1] > 1:
        raise UserError(f"{path}: has {samples.shape[1]} channels where 1 is expected; {cure}")
    if rate != sample_rate:
        raise UserError(f"{path}: is sampled at {rate} Hz where {sample_rate} Hz is expected; {cure}")
    samples = samples.reshape(-1)
    if len(samples) == 0:
        raise UserError(f"{path}: holds no samples; record it again or remove it from the list")
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise UserError(f"{path}: sample {bad[0]} is not a finite number ({len(bad)} such); write the file again")
    return samples


def first_sound(samples: np.ndarray) -> int | None:
    """Index of the first of (n,) samples that is larger than :data:`SILENT`; None if none is."""
    loud = np.abs(samples) > SILENT
    return int(loud.argmax()) if loud.any() else None


def check_at_once(samples: int, where: str) -> None:
    """Refuse an utterance that is too long to be computed at once.

    Args:
        where: beginning of the error message, such as the utterance.

    Raises:
        UserError: it has more samples than :data:`MOST_AT_ONCE_S`.
    """
    if samples > MOST_AT_ONCE_S * SAMPLE_RATE:
        raise UserError(
            f"{where}: at least {samples / SAMPLE_RATE:.0f} s, but at most {MOST_AT_ONCE_S} s are computed at once, as "
            "with full context; cut it, or recognise it in chunks with a streaming student"
        )


def as_floats(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """(n,) float32 samples in [-1, 1] of a stream's next (n,) samples: floats in [-1, 1], or 16-bit integers.

    Raises:
        ValueError: the samples are not a vector of floats or of int16.
        UserError: a sample is not a finite number, or the rate is not 16 kHz.
    """
    if samples.ndim != 1 or not (samples.dtype.kind == "f" or samples.dtype == np.int16):
        raise ValueError(
            f"expected (n,) floating-point samples in [-1, 1], or int16; got {samples.shape} {samples.dtype}"
        )
    if sample_rate != SAMPLE_RATE:
        raise UserError(f"audio: is sampled at {sample_rate} Hz where {SAMPLE_RATE} Hz is expected; resample it")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(32768)
    # The sum is not finite if a sample is not, and needs no second array; finite audio cannot overflow it.
    if not np.isfinite(samples.sum(dtype=np.float64)):
        raise UserError("audio: holds samples that are not finite numbers; check where it comes from")
    return samples.astype(np.float32, copy=False)


def from_pcm(data: bytes) -> np.ndarray:
    """Samples (n,) in [-1, 1) of 16-bit little-endian audio of 2 n bytes."""
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768


def raw_pieces(stream: BinaryIO, samples: int) -> Iterator[bytes]:
    """Raw 16-bit audio from a stream such as stdin while it arrives, in pieces of ``samples`` samples.

    Raises:
        UserError: the stream ends within a sample.
    """
    while data := stream.read(2 * samples):
        if len(data) % 2:
            raise UserError("-: the last sample on stdin has one byte; expected raw 16-bit samples")
        yield data


def _shell(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _read_file(path: Path) -> tuple[int, np.ndarray]:
    """Sampling rate in Hz and samples (N, channels), float32, of a whole file."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as stream:
            check_format(path, stream.format)
            # Block by block: a damaged header may promise more than fits into memory.
            blocks = [stream.read(BLOCK, dtype="float32", always_2d=True)]
            while len(blocks[-1]) == BLOCK:
                blocks.append(stream.read(BLOCK, dtype="float32", always_2d=True))
            samples, rate, promised = np.concatenate(blocks), stream.samplerate, stream.frames
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).split(": ")[-1].rstrip(".")
        raise UserError(
            f"{path}: cannot be read as audio ({reason}); it is cut off or no audio file, copy it again"
        ) from error
    if len(samples) < promised:
        raise UserError(f"{path}: is cut off after {len(samples)} of {promised} samples; copy it again")
    return rate, samples


def _read_ark(entry: str) -> tuple[int, np.ndarray]:
    """Sampling rate in Hz and samples, float32, of an entry ``FILE.ark:OFFSET`` of a Kaldi archive."""
    try:
        from kaldiio import load_mat
    except ImportError:
        from omniio.kaldi import load_mat

    try:
        content = load_mat(entry)
        if not isinstance(content, tuple):
            raise TypeError("a matrix")
        rate, samples = content
    except Exception as error:  # whatever its many decoders raise
        raise UserError(f"{entry}: cannot be read as audio ({type(error).__name__}); format the data again") from error
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / float(-np.iinfo(samples.dtype).min)
    return rate, samples.astype(np.float32)


def read_wav_scp(path: str | Path) -> dict[str, str]:
    """Audio path by utterance id, in the order of a Kaldi wav.scp.

    Raises:
        UserError: the file is missing or empty, a line has no path or is a command, or an id occurs twice.
    """
    entries: dict[str, str] = {}
    for number, line in text_lines(path, "give a Kaldi data directory with wav.scp"):
        fields = line.split(maxsplit=1)
        if not fields:
            continue
        if len(fields) == 1:
            raise UserError(f"{path}:{number}: utterance {fields[0]} has no path; expected: ID PATH")
        utterance, audio = fields[0], fields[1].strip()
        if audio.endswith("|"):
            raise UserError(f"{path}:{number}: is a command, not a file; format the data first (stage 3)")
        if utterance in entries:
            raise UserError(f"{path}:{number}: utterance {utterance} occurs twice; ids must be unique")
        entries[utterance] = audio
    if not entries:
        raise UserError(f"{path}: is empty; expected lines of: ID PATH")
    return entries
