"""Spoken digits in the layout of the Free Spoken Digit Dataset, synthesised where its recordings are not at hand."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

from distill.data.fsdd import DIGITS, RECORDED_RATE
from distill.data.synth import Synthesiser, Voice

ROOT = Path(__file__).parents[2]
VOICES = {  # FSDD's speakers, of whom tests name some
    "george": Voice("en-us", "m1"),
    "jackson": Voice("en", "m3"),
    "lucas": Voice("en-gb-x-rp", "m7"),
    "nicolas": Voice("en-gb-scotland", "f1"),
    "theo": Voice("en-029", "m4"),
    "yweweler": Voice("en-gb-x-gbcwmd", "f4"),
}
RENDERINGS = 5  # of a digit by a speaker, each at its own speed and pitch
TAKES = 50
VERSION = 1  # raise it when other files are written


def digits_dir() -> Path:
    """FSDD: $FSDD_DIR, else shared/corpora/fsdd beside the repository, else where synthesised digits are kept."""
    beside = ROOT.parent / "shared/corpora/fsdd"
    if "FSDD_DIR" in os.environ or (beside / "recordings").is_dir():
        return Path(os.environ.get("FSDD_DIR", beside))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "distillw2v2"
    return Path(os.environ.get("DISTILL_ENV_HOME", cache)) / f"test-digits-{VERSION}"


def make_digits(directory: Path) -> None:
    """Synthesise ``recordings/{digit}_{speaker}_{take}.wav`` unless they are there; processes wait for each other."""
    if (directory / "recordings").is_dir():
        return
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "recordings").is_dir():
            unfinished = Path(tempfile.mkdtemp(dir=directory))
            try:
                write_recordings(unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(directory / "recordings")
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)


def write_recordings(directory: Path) -> None:
    """50 takes of each digit by each speaker at 8 kHz: renderings of a synthesiser, each played at several speeds."""
    say = Synthesiser()
    for speaker, voice in VOICES.items():
        for digit, word in enumerate(DIGITS):
            spoken = [say(word, voice, 160 + 10 * n, 40 + 5 * n) for n in range(RENDERINGS)]
            for take in range(TAKES):
                speed = 0.9 + 0.02 * (take // RENDERINGS)
                audio = soxr.resample(spoken[take % RENDERINGS], say.rate * speed, RECORDED_RATE)
                path = directory / f"{digit}_{speaker}_{take}.wav"
                soundfile.write(path, np.clip(audio, -1, 1), RECORDED_RATE)
