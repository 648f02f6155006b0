"""Check that a recording can be trained on and scored."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from distill.audio import SAMPLE_RATE, read_audio
from distill.containers import check_format, check_whole
from distill.errors import UserError

PIECE = 1 << 18  # samples that are decoded at a time


def recording_seconds(entry: str, resample: bool, allow_pipes: bool) -> float:
    """Check a wav.scp entry, a path or a command (ends with ``|``), and return its length in seconds.

    Args:
        entry: what follows the id in wav.scp.
        resample: accept other sample rates than 16 kHz.
        allow_pipes: run a command instead of refusing it.
    """
    if not entry.endswith("|"):
        return check_audio(entry, resample)
    if not allow_pipes:
        raise UserError("a command; give --allow_pipes true if it may be run")
    return check_command(entry, resample)


def check_audio(path: str, resample: bool) -> float:
    """Refuse an audio file that cannot be trained on or scored, and return its length in seconds.

    PCM files are judged by their headers. Compressed files are decoded, as their header does not give their length, and
    floating-point files are read, as they may hold infinities or NaN.
    """
    file = Path(path)
    if re.search(r"\.ark:\d+$", path):
        return len(read_audio(path, SAMPLE_RATE)) / SAMPLE_RATE
    if file.is_dir():
        raise UserError(f"{path}: a directory, not an audio file; correct the path")
    if not file.is_file():
        words = path.split()
        if len(words) > 1 and Path(words[-1]).is_file():
            hint = "if it is a command, end the line with |; if the id has a space, rename it"
        else:
            hint = "correct the path"
        raise UserError(f"{path}: no such audio file; {hint}")
    check_whole(file)
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError):
        raise UserError(f"{path}: cannot be read as audio; {_how_to_read(file)}") from None
    check_format(file, info.format)
    if info.channels != 1:
        raise UserError(f"{path}: {info.channels} channels; convert it: sox {shlex.quote(path)} -c 1 OUT.wav")
    if info.samplerate != SAMPLE_RATE and not resample:
        raise UserError(
            f"{path}: {info.samplerate} Hz instead of {SAMPLE_RATE}; convert it: sox {shlex.quote(path)} "
            f"-r {SAMPLE_RATE} OUT.wav, or give --resample true"
        )
    if info.frames == 0:
        raise UserError(f"{path}: no samples; record it again or remove the utterance")
    if info.format != "WAV" or not info.subtype.startswith("PCM"):
        _check_samples(path, info.frames)
    return info.frames / info.samplerate


def _check_samples(path: str, promised: int) -> None:
    """Decode a one-channel file piece by piece, and refuse it if it is cut off or has samples that are not finite."""
    count = 0
    try:
        with soundfile.SoundFile(path) as stream:
            while len(samples := stream.read(PIECE, dtype="float32")):
                bad = np.flatnonzero(~np.isfinite(samples))
                if len(bad):
                    raise UserError(f"{path}: sample {count + bad[0]} is not a finite number; write the file again")
                count += len(samples)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).split(": ")[-1].rstrip(".")
        raise UserError(f"{path}: cannot be read as audio ({reason}); {_how_to_read(Path(path))}") from error
    if count < promised:
        raise UserError(f"{path}: is cut off after {count} of {promised} samples; copy it again")


def _how_to_read(file: Path) -> str:
    """Cure for a file that libsndfile refuses, from its first bytes."""
    with open(file, "rb") as stream:
        start = stream.read(1024)
    if start.startswith(b"NIST_1A") and b"shorten" in start:
        command = f"sph2pipe -f wav {shlex.quote(str(file))} |"
        return f"it is compressed with shorten, give this command in wav.scp: {command}"
    if start[4:8] == b"ftyp" or start.startswith(b"\x1a\x45\xdf\xa3"):
        return f"it is MP4 or Matroska, convert it: ffmpeg -i {shlex.quote(str(file))} -ac 1 -ar {SAMPLE_RATE} OUT.flac"
    return "it is cut off or no audio file, copy it again"


def check_command(command: str, resample: bool) -> float:
    """Run a command of wav.scp (ends with ``|``), check the audio that it prints, and return its length in seconds."""
    with tempfile.NamedTemporaryFile(suffix=".audio") as output:
        done = subprocess.run(command.rstrip("| \t"), shell=True, stdout=output, stderr=subprocess.PIPE)
        if done.returncode != 0:
            errors = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
            raise UserError(f"the command fails ({errors[-1]}); correct it: {command}")
        try:
            return check_audio(output.name, resample)
        except UserError as error:
            raise UserError(f"the output of the command is refused, {error}") from None
