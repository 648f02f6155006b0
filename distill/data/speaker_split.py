"""Divide a corpus into training, validation and test sets by speaker, as a file of speaker lists says."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from distill.errors import UserError
from distill.files import text_lines

ALL_OTHERS = "*"


def read_split(path: Path) -> dict[str, str]:
    """Set name of each speaker.

    Args:
        path: lines of ``SPEAKER SET``, such as ``1089 test``. The speaker ``*`` stands for every speaker that the file
            does not name. Empty lines and lines that begin with ``#`` are ignored.

    Raises:
        UserError: a line has not two fields, or a speaker occurs twice.
    """
    sets: dict[str, str] = {}
    for number, line in text_lines(path, "give a file with lines of SPEAKER SET"):
        fields = line.split()
        if not fields or line.lstrip().startswith("#"):
            continue
        if len(fields) != 2:
            raise UserError(f"{path}:{number}: {line.strip()[:40]!r}; expected: SPEAKER SET, such as '1089 test'")
        if fields[0] in sets:
            raise UserError(f"{path}:{number}: speaker {fields[0]} is in the file twice; remove one of the lines")
        sets[fields[0]] = fields[1]
    if not sets:
        raise UserError(f"{path}: names no speaker; expected lines of SPEAKER SET, such as '1089 test'")
    return sets


def split_speakers(speakers: Collection[str], sets: dict[str, str], path: Path) -> dict[str, set[str]]:
    """The speakers of each set.

    Args:
        speakers: all speakers of the corpus.
        sets: what :func:`read_split` returned for ``path``.

    Raises:
        UserError: a speaker of the file is not in the corpus, or one of the corpus is in no set.
    """
    for speaker in sorted(sets.keys() - {ALL_OTHERS}):
        if speaker not in speakers:
            raise UserError(f"{path}: speaker {speaker} is not in the corpus; unpack its part or remove the line")
    divided: dict[str, set[str]] = {name: set() for name in sets.values()}
    for speaker in sorted(speakers):
        name = sets.get(speaker, sets.get(ALL_OTHERS))
        if name is None:
            raise UserError(f"{path}: puts speaker {speaker} in no set; add a line for it, or '* train' for all others")
        divided[name].add(speaker)
    return divided
