"""Checksums of audio files, which are read again only if they have changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.files import NPZ_DAMAGE, atomic_write

CHECKED_BYTES = 1 << 16
READERS = 16  # threads; they wait for the disk
PIECE = 256  # files that a thread takes at a time
# A file that is written within the resolution of its time of modification keeps that time: what is as new as this when
# it is read is read again the next time.
RECENT_NS = 10 * 10**9

Facts = tuple[int, int, int, int, int]  # inode, bytes, times of modification and of change in ns, offset


def place_of(location: str) -> tuple[str, int, os.stat_result]:
    """Path, offset and status of an entry of wav.scp, ``FILE`` or ``FILE:OFFSET``."""
    try:
        try:
            return location, 0, os.stat(location)
        except FileNotFoundError:
            path, _, digits = location.rpartition(":")
            if not path or not digits.isdigit():
                raise
            return path, int(digits), os.stat(path)
    except OSError as error:
        raise UserError(f"{location}: audio cannot be read ({error.strerror}); correct wav.scp") from error


def audio_checksum(location: str) -> str:
    """SHA-256 (16 hexadecimal digits) of an audio file's size, first and last 64 KiB.

    Its name and time do not count, so copied data still match. ``FILE:OFFSET`` means 64 KiB of an ark from there on.
    """
    path, offset, status = place_of(location)
    size = status.st_size
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(offset)
            digest.update(stream.read(CHECKED_BYTES))
            if offset == 0 and size > CHECKED_BYTES:
                stream.seek(max(CHECKED_BYTES, size - CHECKED_BYTES))
                digest.update(stream.read())
                digest.update(str(size).encode())
    except OSError as error:
        raise UserError(f"{path}: audio cannot be read ({error.strerror}); correct wav.scp") from error
    return digest.hexdigest()[:16]


class AudioChecksums:
    """Checksums of audio by utterance, computed only of files that are not those of a cache.

    A file is the one of the cache if its inode, its size and its times of modification and of change are.

    Args:
        caches: files that :meth:`save` wrote, of which later ones win; what cannot be read counts as empty.
        trust: whether the caches are used at all.
    """

    def __init__(self, *caches: Path, trust: bool = True) -> None:
        self._rows: dict[str, int] = {}
        self._checksums = np.zeros(0, np.uint64)
        self._facts = np.zeros((0, 5), np.int64)
        self._new: dict[str, tuple[str, Facts]] = {}
        for cache in caches if trust else ():
            with contextlib.suppress(*NPZ_DAMAGE):
                with np.load(cache, allow_pickle=False) as saved:
                    names = saved["utterances"].tobytes().decode().splitlines()
                    checksums, facts = saved["checksums"], saved["facts"]
                if checksums.dtype == np.uint64 and facts.dtype == np.int64 and facts.shape == (len(checksums), 5):
                    if len(names) == len(checksums):
                        start = len(self._checksums)
                        self._rows |= {name: row for row, name in enumerate(names, start)}
                        self._checksums = np.concatenate([self._checksums, checksums])
                        self._facts = np.concatenate([self._facts, facts])

    def of(self, audio: Mapping[str, str]) -> dict[str, str]:
        """Checksum of every utterance's audio, by utterance.

        Args:
            audio: location of each utterance's audio.

        Raises:
            UserError: an audio file cannot be read.
        """
        result: dict[str, str] = {}
        with ThreadPoolExecutor(READERS, "audio checksums") as pool:
            for part in pool.map(self._of_piece, batched(audio.items(), PIECE)):
                for utterance, checksum, facts in part:
                    result[utterance] = checksum
                    if facts is not None:
                        self._new[utterance] = checksum, facts
        return result

    def _of_piece(self, items: tuple[tuple[str, str], ...]) -> list[tuple[str, str, Facts | None]]:
        """Utterance, checksum and, if the file was read and is not too new, its facts."""
        return list(self._of_items(items))

    def _of_items(self, items: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str, Facts | None]]:
        for utterance, location in items:
            _, offset, status = place_of(location)
            facts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, offset)
            row = self._rows.get(utterance)
            if row is not None and tuple(self._facts[row].tolist()) == facts:
                yield utterance, f"{int(self._checksums[row]):016x}", None
            else:
                recent = max(status.st_mtime_ns, status.st_ctime_ns) > time.time_ns() - RECENT_NS
                yield utterance, audio_checksum(location), None if recent else facts

    @property
    def changed(self) -> bool:
        """Whether there is something to save."""
        return bool(self._new)

    def save(self, path: Path) -> None:
        """Write a cache of what was read from caches and what was computed since."""
        names = [name for name in self._rows if name not in self._new]
        rows = [self._rows[name] for name in names]
        new = [(int(checksum, 16), facts) for checksum, facts in self._new.values()]
        checksums = np.concatenate([self._checksums[rows], np.array([c for c, _ in new], np.uint64)])
        facts = np.concatenate([self._facts[rows], np.array([f for _, f in new], np.int64).reshape(-1, 5)])
        facts = np.asfortranarray(facts)  # column after column, as equal numbers are compressed best side by side
        utterances = np.frombuffer("".join(f"{name}\n" for name in [*names, *self._new]).encode(), np.uint8)
        with atomic_write(path, "wb") as stream:
            np.savez_compressed(stream, utterances=utterances, checksums=checksums, facts=facts)
