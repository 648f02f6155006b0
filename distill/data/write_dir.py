"""Write Kaldi data directories, from audio in memory or from tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from distill.audio import SAMPLE_RATE
from distill.data.read_dir import DataDir
from distill.files import atomic_write, naming

FILES = ("wav.scp", "text", "utt2spk", "spk2utt", "segments")


class Utterance(NamedTuple):
    """An utterance: (N,) samples in [-1, 1] at 16 kHz; ``key`` is its id and begins with its speaker's, for sorting."""

    key: str
    speaker: str
    text: str
    audio: np.ndarray


def write_data_dir(directory: Path, wav_dir: Path, utterances: Iterable[Utterance]) -> int:
    """Write 16-bit wav files to ``wav_dir`` and their tables to ``directory``, and return the number of utterances.

    The tables appear only when all audio is written; those of an earlier run, whose audio is overwritten, are removed
    first.
    """
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    wav_dir.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, Path]] = []
    for utterance in utterances:
        path = wav_dir / f"{utterance.key}.wav"
        samples = np.rint(np.clip(utterance.audio, -1, 1) * 32767).astype(np.int16)
        wav = io.BytesIO()  # libsndfile does not tell why it cannot write a file
        soundfile.write(wav, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        with naming(path):
            path.write_bytes(wav.getvalue())
        rows.append((utterance.key, utterance.speaker, utterance.text, path))
    rows.sort()
    write_tables(
        directory,
        {
            "wav.scp": {key: str(path) for key, _, _, path in rows},
            "text": {key: text for key, _, text, _ in rows},
            "utt2spk": {key: speaker for key, speaker, _, _ in rows},
        },
    )
    return len(rows)


def write_tables(directory: Path, tables: dict[str, dict[str, str]]) -> None:
    """Write tables such as wav.scp and utt2spk, sorted, and spk2utt; remove those of :data:`FILES` not given."""
    utterances: dict[str, list[str]] = {}
    for key, speaker in sorted(tables["utt2spk"].items(), key=lambda item: item[0].encode()):
        utterances.setdefault(speaker, []).append(key)
    tables = {**tables, "spk2utt": {speaker: " ".join(keys) for speaker, keys in utterances.items()}}
    for name in FILES:
        if name not in tables:
            (directory / name).unlink(missing_ok=True)
    for name, table in tables.items():
        with atomic_write(directory / name) as stream:
            for key in sorted(table, key=str.encode):
                stream.write(f"{key} {table[key]}\n")


def write_data_tables(directory: Path, data: DataDir, utterances: set[str]) -> None:
    """Write the tables of some utterances of a data directory; the audio stays where it is."""
    speakers = {key: speaker for key, (_, speaker) in data.speakers.items() if key in utterances}
    tables = {"utt2spk": speakers}
    if data.text is not None:
        tables["text"] = {key: data.text[key][1] for key in speakers}
    if data.segments is not None:
        cuts = {key: data.segments[key][1:] for key in speakers}
        tables["segments"] = {key: f"{recording} {start} {end}" for key, (recording, start, end) in cuts.items()}
        used = {recording for recording, _, _ in cuts.values()}
    else:
        used = set(speakers)
    tables["wav.scp"] = {key: entry for key, (_, entry) in data.recordings.items() if key in used}
    write_tables(directory, tables)


def write_sets(data: Path, wav: Path, sets: Mapping[str, Iterable[Utterance]]) -> None:
    """Write DATA/NAME and its audio in WAV/NAME for each set, and print its number of utterances."""
    for name, utterances in sets.items():
        count = write_data_dir(data / name, wav / name, utterances)
        print(f"{data / name}: {count} utterances")
