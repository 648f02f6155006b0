"""Audio from strangers: a file that is cut off, lies or is too long is refused in one line, whatever its format.

PYTHONPATH=. python test/faults/hostile_audio.py --seconds 60
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import numpy as np
import small_models
import soundfile
from verdict import faults, run

from distill.bin import check_data, transcribe

SAMPLES = 24000
FORMATS = {
    "WAV": "PCM_16", "WAVEX": "PCM_24", "RF64": "PCM_16", "W64": "FLOAT", "AIFF": "PCM_16", "AU": "PCM_16",
    "CAF": "PCM_16", "NIST": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "OPUS": "OPUS", "MP3": "MPEG_LAYER_III",
    "VOC": "PCM_16", "PAF": "PCM_16", "AVR": "PCM_16", "SVX": "PCM_16",
}  # fmt: skip


def written(path: Path, name: str, samples: int = SAMPLES) -> bytes:
    """A file of noise in a format."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(samples)
    soundfile.write(path, noise, 16000, format="OGG" if name == "OPUS" else name, subtype=FORMATS[name])
    return path.read_bytes()


class Hostile:
    """A recogniser with full context, and a place for audio."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "a.audio"
        small_models.write_training(folder / "model", "full")
        self.data = folder / "data"
        self.data.mkdir()
        (self.data / "wav.scp").write_text(f"a-1 {self.path}\n")
        (self.data / "text").write_text("a-1 a\n")
        (self.data / "utt2spk").write_text("a-1 a\n")
        written(self.path, "WAV")
        for command in (self.recognise, self.check_data):
            assert (ended := command()) == (0, []), (command.__name__, ended)

    def recognise(self) -> tuple[int, list[str]]:
        outcome = run(transcribe.main, ["--model", str(self.folder / "model"), str(self.path)], self.folder)
        return outcome.status, faults(outcome)

    def check_data(self) -> tuple[int, list[str]]:
        outcome = run(check_data.main, ["--data", str(self.data)], self.folder)
        return outcome.status, [fault for fault in faults(outcome) if "no one line" not in fault]

    def refuse(self, name: str, content: bytes) -> list[str]:
        """What is wrong with how a file is taken that must be refused."""
        self.path.write_bytes(content)
        wrong = []
        for command in (self.recognise, self.check_data):
            status, found = command()
            wrong += [f"{name}: {command.__name__}: {fault}" for fault in found]
            wrong += [f"{name}: {command.__name__} accepts it"] if status == 0 else []
        return wrong


def cut_off(seconds: float) -> list[str]:
    """Files of every format, cut at places all over them; at least one place of each."""
    generator, wrong, done, started = random.Random(0), [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        hostile = Hostile(Path(folder))
        contents = {name: written(hostile.path, name) for name in FORMATS}
        while done < len(FORMATS) or time.monotonic() - started < seconds:
            name = list(FORMATS)[done % len(FORMATS)]
            size = generator.randrange(len(contents[name]) - 400) if done >= len(FORMATS) else len(contents[name]) // 2
            wrong += hostile.refuse(f"{name} of {size} bytes", contents[name][:size])
            done += 1
    print(f"  {done} files in {time.monotonic() - started:.0f} s", flush=True)
    return wrong


def endless(seconds: float) -> list[str]:
    """An hour, which a network with full context does not compute at once, and headers that promise centuries."""
    with tempfile.TemporaryDirectory() as folder:
        hostile = Hostile(Path(folder))
        soundfile.write(hostile.path, np.zeros(3600 * 16000, np.int16), 16000, format="FLAC")
        status, wrong = hostile.recognise()
        if status != 2:
            wrong.append("an hour with full context is accepted")
        content = bytearray(written(hostile.path, "AU"))
        content[8:12] = b"\xff\xff\xff\xfe"
        wrong += hostile.refuse("AU of 4 GB", bytes(content))
        content = bytearray(written(hostile.path, "RF64"))
        content[28:36] = b"\xff" * 7 + b"\x7f"
        wrong += hostile.refuse("RF64 of 8 EB", bytes(content))
    return wrong


SECTIONS = {"cut off audio": cut_off, "endless audio": endless}
