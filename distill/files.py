"""Atomic writes, checksums, and readers of text and JSON that refuse bad input in one line."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from distill.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file beside ``path`` for writing and rename it to ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never a part. After an error the temporary file is removed. One that a
    killed process of this host has left is removed by the next writer of the same path.

    Args:
        path: its directory is made if need be.
        mode: of :func:`open`; text is written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
    try:
        with open(beside, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def name_beside(path: Path) -> Path:
    """Path of the temporary file, in the same directory, that this process renames to ``path`` when it is complete.

    Temporary files for ``path`` that belong to processes which no longer run on this host are deleted.
    """
    stem = f".{path.name}.{platform.node()}."
    for leftover in path.parent.glob(f"{glob.escape(stem)}*.tmp"):
        pid = leftover.name[len(stem) : -len(".tmp")]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)
    return path.with_name(f"{stem}{os.getpid()}.tmp")


def is_running(pid: int) -> bool:
    """Whether a process with this id runs on this host."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, as another user
        pass
    return True


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_lines(path: str | Path, expected: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text, line end included, of every line of a UTF-8 file.

    Args:
        expected: end of the error message if there is no such file: what the user should give.

    Raises:
        UserError: the file does not exist, or is not UTF-8.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; {expected}")
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                cure = f"convert it: iconv -t utf-8 {path}"
                raise UserError(f"{path}:{number}: not UTF-8 (byte {error.start}); {cure}") from None


def json_object(text: str, where: str, cure: str) -> dict[str, Any]:
    """The JSON object in a text.

    Args:
        where: beginning of the error message, such as the file.
        cure: end of the error message: what the user should do.

    Raises:
        UserError: the text is not JSON, or not an object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); {cure}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not an object in JSON; {cure}")
    return content
