"""Kaldi data directories of Mini LibriSpeech, or of any parts of LibriSpeech divided by speaker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.data.librispeech import read_part
from distill.data.speaker_split import read_split, split_speakers
from distill.data.write_dir import write_tables
from distill.errors import UserError

TRAIN_PART, TEST_PART = "train-clean-5", "dev-clean-2"
# Mini LibriSpeech has no set to choose settings on; these readers of its training part are held out for that.
VALID_SPEAKERS = 2


def prepare(root: Path, data: Path, speaker_lists: Path | None = None) -> dict[str, int]:
    """Write ``data/train``, ``data/valid`` and ``data/test``. The audio stays where it is.

    Args:
        root: directory that holds the parts (or the directory LibriSpeech with them), as the archives unpack.
        speaker_lists: divide all parts by this file, see :func:`distill.data.speaker_split.read_split`. Without it
            train-clean-5 is the training set (its last two speakers, in order of their ids, the validation set) and
            dev-clean-2 the test set.

    Returns:
        utterances of each set.

    Raises:
        UserError: a part is missing or damaged, or the file does not fit the speakers.
    """
    if (root / "LibriSpeech").is_dir():
        root = root / "LibriSpeech"
    parts = sorted(path.name for path in root.glob("*") if any(path.glob("*/*/*.trans.txt")))
    if not parts:
        raise UserError(f"{root}: holds no PART/SPEAKER/CHAPTER/*.trans.txt; give another --corpus")
    if speaker_lists is None and not {TRAIN_PART, TEST_PART} <= set(parts):
        raise UserError(
            f"{root}: has {', '.join(parts)}, but Mini LibriSpeech is {TRAIN_PART} and {TEST_PART}; divide other parts "
            "by speaker with --cut FILE"
        )
    rows: dict[str, tuple[str, str, str]] = {}
    for part in parts if speaker_lists is not None else (TRAIN_PART, TEST_PART):
        rows |= read_part(root / part)
    speakers = {speaker for _, _, speaker in rows.values()}
    if speaker_lists is not None:
        divided = split_speakers(speakers, read_split(speaker_lists), speaker_lists)
        missing = {"train", "valid", "test"} - divided.keys()
        if missing:
            raise UserError(f"{speaker_lists}: no speaker for {min(missing)}; the sets are train, valid and test")
    else:
        train = {path.name for path in (root / TRAIN_PART).iterdir() if path.is_dir()}
        valid = set(_in_order(sorted(train))[-VALID_SPEAKERS:])
        divided = {"train": train - valid, "valid": valid, "test": speakers - train}
    return {name: _write(data / name, rows, members) for name, members in divided.items()}


def _in_order(speakers: Sequence[str]) -> list[str]:
    """Speaker ids of LibriSpeech, which are numbers, by their value."""
    return sorted(speakers, key=lambda speaker: (len(speaker), speaker))


def _write(directory: Path, rows: dict[str, tuple[str, str, str]], speakers: set[str]) -> int:
    """Write the tables of the utterances of some speakers; their number."""
    selected = {key: row for key, row in rows.items() if row[2] in speakers}
    columns = enumerate(("wav.scp", "text", "utt2spk"))
    write_tables(directory, {table: {key: row[column] for key, row in selected.items()} for column, table in columns})
    return len(selected)
