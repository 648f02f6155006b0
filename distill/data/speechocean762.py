"""Kaldi data directories of speechocean762: English sentences read by learners, half of them children."""

from __future__ import annotations

from pathlib import Path

from distill.data.tables import Repairs, read_table
from distill.data.write_dir import write_tables
from distill.errors import UserError

# The corpus has no set to choose settings on; the last speakers of its training set, by id, are held out for that.
VALID_SPEAKERS = 20


def prepare(root: Path, data: Path) -> dict[str, int]:
    """Write ``data/train``, ``data/valid`` (the last 20 speakers of the corpus's own train) and ``data/test``.

    Args:
        root: directory with WAVE, train and test, as the archive unpacks (or its parent). The audio stays where it is.

    Returns:
        utterances of each set.

    Raises:
        UserError: a table is missing or damaged, or names audio that is not there.
    """
    if (root / "speechocean762").is_dir():
        root = root / "speechocean762"
    train = _read(root, "train")
    speakers = sorted({speaker for _, _, speaker in train.values()})
    if len(speakers) <= VALID_SPEAKERS:
        raise UserError(f"{root}/train/utt2spk: only {len(speakers)} speakers; expected 125, unpack the corpus again")
    held_out = set(speakers[-VALID_SPEAKERS:])
    sets = {
        "train": {key: row for key, row in train.items() if row[2] not in held_out},
        "valid": {key: row for key, row in train.items() if row[2] in held_out},
        "test": _read(root, "test"),
    }
    for name, rows in sets.items():
        columns = enumerate(("wav.scp", "text", "utt2spk"))
        write_tables(data / name, {table: {key: row[column] for key, row in rows.items()} for column, table in columns})
    return {name: len(rows) for name, rows in sets.items()}


def _read(root: Path, name: str) -> dict[str, tuple[str, str, str]]:
    """(absolute path of the audio, text, speaker) of each utterance of ``root/name``.

    Utterance ids get the speaker as their prefix, which Kaldi's sorting expects and the corpus's ids lack.
    """
    directory = root / name
    recordings, texts, speakers = (
        read_table(directory / table, repairs=Repairs())  # the corpus separates its fields by tabs
        for table in ("wav.scp", "text", "utt2spk")
    )
    rows: dict[str, tuple[str, str, str]] = {}
    for key, (number, path) in recordings.items():
        for table, values in (("text", texts), ("utt2spk", speakers)):
            if key not in values:
                raise UserError(f"{directory / table}: no line for {key} of wav.scp; unpack the corpus again")
        audio = (root / path).resolve()
        if not audio.is_file():
            raise UserError(f"{directory}/wav.scp:{number}: {audio} is not there; unpack the corpus again")
        speaker = speakers[key][1]
        rows[f"{speaker}-{key}"] = str(audio), " ".join(texts[key][1].split()), speaker
    return rows
