"""Write a Kaldi data directory of audio made in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from distill.files import atomic_write

SAMPLE_RATE = 16000
FILES = ("wav.scp", "text", "utt2spk", "spk2utt")


class Utterance(NamedTuple):
    """An utterance: its id begins with its speaker's, as Kaldi's sorting wants; audio (N,) in [-1, 1] at 16 kHz."""

    key: str
    speaker: str
    text: str
    audio: np.ndarray


def write_data_dir(directory: Path, wav_dir: Path, utterances: Iterable[Utterance]) -> int:
    """Write 16-bit wav files to ``wav_dir``, and wav.scp, text, utt2spk and spk2utt to ``directory``; their number.

    The data directory's files appear only when all audio is written; those of an earlier run, whose audio this one
    overwrites, go first.
    """
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    wav_dir.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, Path]] = []
    for utterance in utterances:
        path = wav_dir / f"{utterance.key}.wav"
        samples = np.rint(np.clip(utterance.audio, -1, 1) * 32767).astype(np.int16)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        rows.append((utterance.key, utterance.speaker, utterance.text, path))
    rows.sort()
    spoken: dict[str, list[str]] = {}
    for key, speaker, _, _ in rows:
        spoken.setdefault(speaker, []).append(key)
    contents = (
        [f"{key} {path}" for key, _, _, path in rows],
        [f"{key} {text}" for key, _, text, _ in rows],
        [f"{key} {speaker}" for key, speaker, _, _ in rows],
        [f"{speaker} {' '.join(keys)}" for speaker, keys in sorted(spoken.items())],
    )
    for name, lines in zip(FILES, contents, strict=True):
        with atomic_write(directory / name) as stream:
            stream.writelines(line + "\n" for line in lines)
    return len(rows)
