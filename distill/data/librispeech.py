"""Kaldi data directories of LibriSpeech: PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac and .trans.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from distill.data.write_dir import write_tables
from distill.errors import UserError

TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
SETS = {
    "valid": ("dev-clean", "dev-other"),
    "dev_clean": ("dev-clean",),
    "dev_other": ("dev-other",),
    "test_clean": ("test-clean",),
    "test_other": ("test-other",),
}


def read_part(part: Path) -> dict[str, tuple[str, str, str]]:
    """Read path, text and speaker (the reader) of every utterance of a part such as train-clean-100.

    Raises:
        UserError: the part is missing or empty; a line of a transcript has no audio, an audio file no line, or an id is
            not of its chapter.
    """
    transcripts = sorted(part.glob("*/*/*.trans.txt"))
    if not transcripts:
        raise UserError(f"{part}: holds no SPEAKER/CHAPTER/*.trans.txt; unpack this part, or name the parts you have")
    utterances: dict[str, tuple[str, str, str]] = {}
    for transcript in tqdm(transcripts, desc=part.name, unit="chapter", mininterval=1):
        chapter = transcript.parent
        speaker = chapter.parent.name
        audio = {path.stem: path for path in chapter.glob("*.flac")}
        try:
            lines = transcript.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{transcript}: not UTF-8; unpack the part again") from None
        for number, line in enumerate(lines, 1):
            key, _, text = line.strip().partition(" ")
            if not re.fullmatch(rf"{re.escape(speaker)}-{re.escape(chapter.name)}-\d+", key) or not text.strip():
                expected = f"{speaker}-{chapter.name}-NUMBER TEXT"
                raise UserError(f"{transcript}:{number}: {line[:40]!r}; expected: {expected}, unpack the part again")
            if key in utterances:
                raise UserError(f"{transcript}:{number}: {key} is there already; unpack the part again")
            if key not in audio:
                raise UserError(f"{transcript}:{number}: {key}.flac is not beside it; unpack the part again")
            utterances[key] = str(audio.pop(key).resolve()), text.strip(), speaker
        if audio:
            raise UserError(f"{transcript}: has no line for {min(audio)}.flac; unpack the part again")
    return utterances


def prepare(librispeech: Path, train_parts: Sequence[str], data: Path) -> None:
    """Write the training set of these parts and the other sets into ``data``, and print a line for each."""
    root = librispeech
    if (root / "LibriSpeech").is_dir():
        root = root / "LibriSpeech"
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give LibriSpeech's with --librispeech")
    parts: dict[str, dict[str, tuple[str, str, str]]] = {}
    for name, members in {"train": train_parts, **SETS}.items():
        utterances: dict[str, tuple[str, str, str]] = {}
        for member in members:
            if member not in parts:
                parts[member] = read_part(root / member)
            utterances |= parts[member]
        tables = {
            table: {key: row[column] for key, row in utterances.items()}
            for column, table in enumerate(("wav.scp", "text", "utt2spk"))
        }
        write_tables(data / name, tables)
        print(f"{data}/{name}: {len(utterances)} utterances of {' '.join(members)}")
