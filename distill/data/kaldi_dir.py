"""Write a Kaldi data directory of audio made in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from distill.files import atomic_write

SAMPLE_RATE = 16000


class Utterance(NamedTuple):
    """An utterance: its id begins with its speaker's, as Kaldi's sorting wants; audio (N,) in [-1, 1] at 16 kHz."""

    key: str
    speaker: str
    text: str
    audio: np.ndarray


def write_data_dir(directory: Path, wav_dir: Path, utterances: Iterable[Utterance]) -> int:
    """Write 16-bit wav files to ``wav_dir`` and wav.scp, text, utt2spk, spk2utt to ``directory``; the utterances' number.

    The data directory's files appear only when all audio is written.
    """
    wav_dir.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, Path]] = []
    for utterance in utterances:
        path = wav_dir / f"{utterance.key}.wav"
        samples = np.rint(np.clip(utterance.audio, -1, 1) * 32767).astype(np.int16)
        with atomic_write(path, "wb") as stream:
            soundfile.write(stream, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        rows.append((utterance.key, utterance.speaker, utterance.text, path))
    rows.sort()
    spoken: dict[str, list[str]] = {}
    for key, speaker, _, _ in rows:
        spoken.setdefault(speaker, []).append(key)
    files = {
        "wav.scp": [f"{key} {path}" for key, _, _, path in rows],
        "text": [f"{key} {text}" for key, _, text, _ in rows],
        "utt2spk": [f"{key} {speaker}" for key, speaker, _, _ in rows],
        "spk2utt": [f"{speaker} {' '.join(keys)}" for speaker, keys in sorted(spoken.items())],
    }
    for name, lines in files.items():
        with atomic_write(directory / name) as stream:
            stream.writelines(line + "\n" for line in lines)
    return len(rows)
